//! The relay: two connections with a session's two tickets, each copied into the other by its own thread.

use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use super::carry;
use super::core::Core;
use super::refusal::Refusal;
use super::sessions::RelayEnd;
use crate::http::message::Request;
use crate::http::reply::Reply;
use crate::model::hub_session::HubSession;
use crate::model::hub_session::RemoteSession;
use crate::model::sessions::Redemption;
use crate::net::connect::clear_deadline;
use crate::net::duplex::Duplex;
use crate::net::relay;
use crate::os::clock;
use crate::wire::control::RELAY_UPGRADE;

/// How long one end waits for the other. Tickets live a little longer.
const PARTNER_TIMEOUT: Duration = Duration::from_secs(10);

/// Two ends that have met, as the thread of one of them sees it.
struct MetEnds {
    session: String,
    own: Arc<RelayEnd>,
    partner: Arc<RelayEnd>,
    since: Instant,
}

/// Serves one end of a session until it is over; `admitted` is called once its ticket has proved valid. If the hub refuses
/// instead, the refusal and the stream to answer on come back.
pub fn serve(
    core: &Core,
    stream: Duplex,
    request: &Request,
    admitted: impl FnOnce(),
) -> Result<(), (Refusal, Duplex)> {
    let ticket = request.field("x-ticket").unwrap_or_default();
    let remote = core.sessions.table().redeem_elsewhere(ticket, clock::now());
    if let Some((session, remote)) = remote {
        admitted();
        return serve_carried(core, stream, &session, &remote);
    }
    let (socket, early) = stream.into_plain().map_err(|stream| (Refusal::RelayOverTls, stream))?;
    let met = meet(core, &socket, ticket, admitted)
        .map_err(|refusal| (refusal, Duplex::plain(Arc::clone(&socket))))?;
    log::debug!("relaying {}", met.session);
    let _ = clear_deadline(&socket);
    copy_to_partner(core, &met, &early);
    Ok(())
}

/// Waits for the other end, unless it waits already.
fn meet(
    core: &Core,
    socket: &Arc<TcpStream>,
    ticket: &str,
    admitted: impl FnOnce(),
) -> Result<MetEnds, Refusal> {
    let (partner, news) = mpsc::sync_channel(1);
    let own = Arc::new(RelayEnd { socket: Arc::clone(socket), sent: AtomicU64::new(0), partner });
    let redeemed = core.sessions.table().redeem(ticket, Arc::clone(&own), clock::now());
    if !matches!(redeemed, Redemption::Unknown) {
        admitted();
    }
    match redeemed {
        Redemption::Unknown => Err(Refusal::BadTicket),
        Redemption::Open { session, joiner, agent } => {
            begin(core, &session, [&joiner, &agent]);
            let partner = if Arc::ptr_eq(&own, &joiner) { agent } else { joiner };
            let _ = partner.partner.try_send(Some(Arc::clone(&own)));
            Ok(MetEnds { session: session.id, own, partner, since: Instant::now() })
        }
        Redemption::Waiting { session } => {
            let told = match news.recv_timeout(PARTNER_TIMEOUT) {
                Err(_) if core.sessions.table().give_up(&session.id) => None,
                // The partner has come at the last moment, and its thread is about to say so.
                Err(_) => news.recv().ok(),
                Ok(told) => Some(told),
            };
            match told {
                Some(Some(partner)) => {
                    Ok(MetEnds { session: session.id, own, partner, since: Instant::now() })
                }
                Some(None) => Err(Refusal::Declined),
                None => {
                    core.session_refused(&session, &Refusal::PartnerMissing, "");
                    Err(Refusal::PartnerMissing)
                }
            }
        }
    }
}

/// Serves a joiner whose agent is at another hub, by a connection to the relay there.
fn serve_carried(
    core: &Core,
    mut near: Duplex,
    session: &str,
    remote: &RemoteSession,
) -> Result<(), (Refusal, Duplex)> {
    let (far, _cut) = match carry::dial_relay(core, remote) {
        Ok(dialled) => dialled,
        Err(refusal) => return Err((refusal, near)),
    };
    core.sessions.table().carried(session);
    let _ = clear_deadline(&near.socket);
    if near.writer.write_all(&switched()).is_ok() {
        relay::both_ways(near, far);
    }
    core.sessions.table().remove(session);
    Ok(())
}

/// Tells both ends that they have met, before either's bytes can flow.
fn begin(core: &Core, session: &HubSession, ends: [&RelayEnd; 2]) {
    for end in ends {
        if (&*end.socket).write_all(&switched()).is_err() {
            let _ = end.socket.shutdown(Shutdown::Both);
        }
    }
    core.session_opened(session);
}

/// The answer after which the connection is the session's.
fn switched() -> Vec<u8> {
    let mut answer = Vec::new();
    Reply::switching(RELAY_UPGRADE).write_into(&mut answer, true, false);
    answer
}

/// Copies one direction, `early` first: bytes that came right after the request.
fn copy_to_partner(core: &Core, met: &MetEnds, early: &[u8]) {
    let MetEnds { own, partner, .. } = met;
    if (&*partner.socket).write_all(early).is_ok() {
        own.sent.fetch_add(early.len() as u64, Ordering::Relaxed);
        relay::copy(&own.socket, &partner.socket, &own.sent);
    } else {
        let _ = own.socket.shutdown(Shutdown::Both);
        let _ = partner.socket.shutdown(Shutdown::Both);
    }
    if let Some((session, to_agent, to_joiner)) = core.sessions.end_direction(&met.session) {
        core.session_closed(&session, met.since.elapsed(), to_agent, to_joiner);
    }
}
