//! The agent's control channel to the hub: opens it again whenever it is lost, exposes the services on it, and handles
//! what the hub says there.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use super::AgentEvent;
use super::AgentInner;
use super::expose_message;
use crate::api::Hub;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::backoff::Backoff;
use crate::model::hub_records::AuditHead;
use crate::model::name::Name;
use crate::model::session_protocol::LOST_HUB_SECONDS;
use crate::model::text::one_line;
use crate::net::address::HubUrl;
use crate::net::channel::ChannelSender;
use crate::net::channel::MessageChannel;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::os::lock::locked;
use crate::os::secret;
use crate::state::hub_heads;
use crate::tunnel::direct_listener::DirectListener;
use crate::wire::control::ToAgent;
use crate::wire::control::ToHub;

/// An attempt to reconnect is given up after this long without an answer: the next may find that the hub is back.
const RECONNECT_TIMEOUT: Duration = Duration::from_millis(2500);
/// Without the hub nobody can end a direct session whose right has ended.
const LOST_HUB_TIMEOUT: Duration = Duration::from_secs(LOST_HUB_SECONDS);
/// Withdrawing the services may delay the end of the process by this much.
const WITHDRAW_TIMEOUT: Duration = Duration::from_millis(300);

impl AgentInner {
    /// The agent's thread: connects, listens until the channel is lost, waits, and begins again.
    pub fn run(self: &Arc<Self>) {
        let retrying = self.hub.with_timeout(RECONNECT_TIMEOUT);
        let mut backoff = Backoff::default();
        // The kind of the last loss reported, so that each kind is reported once.
        let mut reported = None;
        let mut lost_at = Instant::now();
        while !self.stop.is_stopped() {
            let began = Instant::now();
            let hub = if reported.is_some() { &retrying } else { &*self.hub };
            let connected = self.connect(hub);
            // The time of a failed attempt counts as waiting; the time of a channel that was open does not.
            let is_up = connected.is_ok();
            let waited = if connected.is_err() { began.elapsed() } else { Duration::ZERO };
            let ended = connected.and_then(|(mut channel, at)| {
                backoff.reset();
                if reported.take().is_some() {
                    (self.on_event)(AgentEvent::Back);
                }
                self.listen(&mut channel, &at)
            });
            locked(&self.exposures).channel = None;
            if self.stop.is_stopped() {
                return;
            }
            let error = ended.err().unwrap_or_else(|| Error::new("The hub ended the control channel"));
            if is_up {
                lost_at = Instant::now();
            }
            if !error.may_pass() || lost_at.elapsed() >= LOST_HUB_TIMEOUT {
                self.direct.iter().for_each(DirectListener::end_all);
            }
            // One report for each outage. A second one only for an error that retrying cannot help, like a revoked key or
            // a different hub at that address.
            if reported.is_none() || (!error.may_pass() && reported != Some(error.kind)) {
                reported = Some(error.kind);
                (self.on_event)(AgentEvent::Lost(error));
            }
            self.stop.wait_for(backoff.next(secret::number()).saturating_sub(waited));
        }
    }

    /// Registers, opens the control channel, and exposes all services again: after a loss the hub may have forgotten
    /// them.
    fn connect(&self, hub: &Hub) -> Result<(MessageChannel, HubUrl)> {
        self.register(hub)?;
        let (stream, at) = hub.control()?;
        let mut channel = MessageChannel::start(stream).or_say(|| "Cannot use the control channel")?;
        let cut = self.stop.attach(&channel.socket()).ok_or_else(Error::stopped)?;
        let outgoing = channel.outgoing();
        outgoing.send(&ToHub::Hello { agent: self.id.clone(), share: self.share.clone() });
        match channel.first::<ToAgent>(Instant::now() + NETWORK_TIMEOUT) {
            Ok(ToAgent::Welcome) => {}
            Ok(ToAgent::Full) => {
                return Err(Error::new("Too many processes of this machine expose services")
                    .hint("Let one expose several: connect expose NAME PORT --keep")
                    .kind(ErrorKind::Refused(503)));
            }
            Ok(_) => return Err(Error::new("The hub does not speak the control protocol")),
            Err(error) => return Err(connection_lost(error)),
        }
        // From here on a stop must leave the channel open, to withdraw what it exposes.
        drop(cut);
        let mut exposures = locked(&self.exposures);
        for one in &exposures.all {
            outgoing.send(&expose_message(&one.exposure));
        }
        exposures.channel = Some(outgoing);
        drop(exposures);
        self.direct.iter().for_each(DirectListener::report_again);
        self.send_reports();
        Ok((channel, at))
    }

    /// Handles the hub's messages until the channel is lost. On a stop, withdraws all services.
    fn listen(self: &Arc<Self>, channel: &mut MessageChannel, at: &HubUrl) -> Result<()> {
        let outgoing = channel.outgoing();
        let socket = channel.socket();
        // Only reading is cut: the services are withdrawn through the same channel below.
        let cut = self.stop.on_stop(move || {
            let _ = socket.shutdown(Shutdown::Read);
        });
        let mut new_root = None;
        while cut.is_some() && !self.stop.is_stopped() {
            match channel.next::<ToAgent>() {
                Ok(message) => {
                    if let ToAgent::NewRoot { pin } = message {
                        new_root = Some(pin);
                    } else {
                        self.handle_message(message, &outgoing, at);
                    }
                    // If it cannot be seen now, the next message brings another try: the channel itself is good.
                    new_root = new_root.filter(|pin| !self.has_followed(pin, at));
                }
                Err(_) if self.stop.is_stopped() => break,
                Err(error) => return Err(connection_lost(error)),
            }
        }
        let _ = channel.socket().set_write_timeout(Some(WITHDRAW_TIMEOUT));
        self.direct.iter().for_each(|direct| direct.wait_until_over(WITHDRAW_TIMEOUT));
        self.send_reports();
        for one in &locked(&self.exposures).all {
            outgoing.send(&ToHub::Withdraw { name: one.exposure.name.clone() });
        }
        Ok(())
    }

    fn handle_message(self: &Arc<Self>, message: ToAgent, outgoing: &ChannelSender, at: &HubUrl) {
        match message {
            ToAgent::Welcome | ToAgent::Full | ToAgent::NewRoot { .. } | ToAgent::Unknown => {}
            ToAgent::Audit(audit) => self.witness(audit, at),
            ToAgent::Exposed { name, service, tunnel_port } => {
                self.service_exposed(name, service, tunnel_port);
            }
            ToAgent::Refused { name, reason, hint } => {
                let error = Error::new(one_line(&reason)).hint(one_line(&hint)).kind(ErrorKind::Refused(409));
                (self.on_event)(AgentEvent::Refused { name, error });
            }
            ToAgent::Draining => _ = self.drains.fetch_add(1, Ordering::Relaxed),
            ToAgent::Rotate { sealed } => (self.on_event)(AgentEvent::NextKey { sealed }),
            ToAgent::Close { session } => self.direct.iter().for_each(|direct| direct.end(&session)),
            ToAgent::Open(offer) => {
                if let Err(reason) = self.begin_session(&offer, outgoing, at) {
                    outgoing.send(&ToHub::Decline { session: offer.session, reason });
                }
            }
        }
    }

    /// Looks at the hub's new root in another handshake. False if a later one may still show it.
    fn has_followed(&self, root: &str, at: &HubUrl) -> bool {
        match self.hub.with_timeout(RECONNECT_TIMEOUT).check_identity(at) {
            // Another hub of the fleet may answer at this address, which does not have it yet.
            Ok(()) => self.hub.pin().is_none_or(|known| known.to_string() == root),
            Err(error) => !error.may_pass(),
        }
    }

    /// Keeps the head of the hub's audit log. The log must never be shorter, or another one.
    fn witness(&self, audit: AuditHead, at: &HubUrl) {
        let hub = audit.hub.clone();
        if let Some(served) = &self.served {
            served.at_hub(&hub);
        }
        match hub_heads::keep(&self.home, &at.to_string(), audit) {
            Ok(true) => {}
            Ok(false) => {
                log::warn!("the audit log of {at} ({}) is not the one that it was", hub.escape_debug());
            }
            Err(error) => log::debug!("the head of the hub's audit log is not kept: {error}"),
        }
    }

    fn service_exposed(&self, name: Name, service: String, tunnel_port: Option<u16>) {
        let mut exposures = locked(&self.exposures);
        let Some(one) = exposures.all.iter_mut().find(|one| one.exposure.name == name) else { return };
        one.service = Some(service.clone());
        drop(exposures);
        (self.on_event)(AgentEvent::Exposed { name, service, tunnel_port });
    }
}

fn connection_lost(error: io::Error) -> Error {
    Error::new("The connection to the hub was lost").because(error).kind(ErrorKind::Unreachable)
}
