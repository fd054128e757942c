//! A hub that runs, from its start to its end: opens the port, does what is due every few seconds, and ends everything when
//! it is dropped. `listener.rs` serves the connections.

use std::net::SocketAddr;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::audit::Actor;
use super::ca;
use super::ca_rotation;
use super::ca_rotation::NOTE_FILE;
use super::core::Core;
use super::core::ListeningHub;
use super::key_rotation;
use super::listener::HubListener;
use super::listener::METHOD_LETTERS;
use super::membership;
use super::refusal::Refusal;
use super::unauthenticated::connection_limit;
use crate::error::OrSay;
use crate::error::Result;
use crate::net::address::HubUrl;
use crate::net::http_server;
use crate::net::serve::ServeOptions;
use crate::net::serve::Server;
use crate::net::serve::each;
use crate::net::serve::shut;
use crate::net::stop::Stop;
use crate::net::threads;
use crate::net::threads::ThreadGroup;
use crate::os::clock;
use crate::os::files;
use crate::os::socket;
use crate::os::user;

/// How long a thread waits for another connection. What threads hold would keep the memory of a burst from the system.
const SPARE_THREAD_AGE: Duration = Duration::from_secs(3);
/// How often expired sessions are cut and expired records dropped: a revoked key ends within a second.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);
/// How often the audit log is looked after, and its new head stored and told to the agents: what was logged since may be
/// taken away unseen. Each time costs a write to the disk, or to the etcd of a fleet.
const AUDIT_HEAD_INTERVAL: Duration = Duration::from_secs(5);

/// A hub that serves until it is dropped.
pub struct RunningHub {
    core: Arc<Core>,
    server: Option<Server>,
    threads: ThreadGroup,
    member: Option<membership::FleetMembership>,
    stop: Stop,
    note: PathBuf,
}

/// Serves until `stop`; in a fleet as the hub at `url`. While it runs, `hub.json` in the data folder says how the
/// hub's own command line reaches it.
///
/// The hub joins its fleet before it accepts connections, so that no agent finds a hub unknown to the others. It writes
/// `hub.json` last, when it can be reached.
pub fn start(core: &Arc<Core>, listener: TcpListener, url: &str, stop: &Stop) -> Result<RunningHub> {
    let stop = stop.child();
    let listening = listener.local_addr().or_say(|| "Cannot tell the listening address")?;
    let direct = if core.settings.proxies.is_empty() { url.to_owned() } else { without_proxy(listening) };
    let member = membership::join(core, url, &direct, &stop)?;
    let hub_listener = HubListener { tls: ca::base_config(&core.ca)?, core: Arc::clone(core) };
    let (refusing, crowded) = (Arc::clone(core), Arc::clone(core));
    let options = ServeOptions {
        name: "hub",
        limit: connection_limit(),
        new_worker: each(move |stream| hub_listener.serve(&stream)),
        idle: Some(SPARE_THREAD_AGE),
        cut: shut,
        make_room: Some(Box::new(move || crowded.peers.shed())),
        turn_away: Box::new(move |stream| {
            let reply = refusing.refusals.reply(Refusal::TooManyConnections);
            let mut first = [0];
            socket::peek(stream, &mut first);
            // In the clear a client of TLS would misread it.
            if METHOD_LETTERS.contains(&first[0]) {
                http_server::turn_away(stream, &reply);
            }
        }),
    };
    let server = Server::start(listener, options, &stop)?;
    core.check_readiness();
    let (sweep_stop, sweeping) = (stop.clone(), Arc::clone(core));
    let threads = ThreadGroup::default();
    threads.spawn("hub-sweep", move || {
        while !sweep_stop.wait_for(SWEEP_INTERVAL) {
            sweeping.check_readiness();
            key_rotation::sweep(&sweeping, clock::now());
            // In a fleet this waits for etcd, so the lease's thread does it.
            if sweeping.fleet.is_none() {
                ca_rotation::follow(&sweeping);
            }
            sweeping.sweep();
            sweeping.peers.sweep();
            // Sessions and channels need threads too, and the system may not say how many there are.
            if threads::spawn("hub-spare", || ()).is_err() {
                sweeping.peers.shed();
            }
        }
    })?;
    let (audit_stop, audited) = (stop.clone(), Arc::clone(core));
    threads.spawn("hub-audit", move || {
        while !audit_stop.wait_for(AUDIT_HEAD_INTERVAL) {
            audited.audit.check();
            audited.keep_audit_head();
        }
    })?;
    let _ = core.listening.set(ListeningHub { address: server.address(), url: url.to_owned() });
    ca_rotation::write_roots(core)?;
    let note = core.settings.data.join(NOTE_FILE);
    core.audit.say("hub.started", Actor::HUB, &[("version", env!("CARGO_PKG_VERSION")), ("url", url)]);
    Ok(RunningHub { core: Arc::clone(core), server: Some(server), threads, member, stop, note })
}

/// Where the other hubs reach this one past the proxy in front of it.
fn without_proxy(listening: SocketAddr) -> String {
    let ip = listening.ip();
    let host = if ip.is_unspecified() { user::hostname() } else { ip.to_string() };
    HubUrl { host, port: listening.port() }.to_string()
}

/// The hub leaves its fleet first, so that others take its agents over while it closes its connections.
impl Drop for RunningHub {
    fn drop(&mut self) {
        self.stop.stop();
        let _ = files::remove(&self.note);
        self.member = None;
        self.server = None;
        self.threads.join(|| ());
        self.core.tunnel_ports.close_all();
        self.core.audit.say("hub.stopped", Actor::HUB, &[]);
    }
}
