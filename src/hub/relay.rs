//! The relay: two connections with a session's two tickets, each pumped into the other by its own thread.

use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use super::carry;
use super::core::Core;
use super::refusal::Refusal;
use super::sessions::PartnerNews;
use super::sessions::RelayedSession;
use super::sessions::WaitingEnd;
use crate::http::message::Request;
use crate::http::reply::Reply;
use crate::model::pairing::TicketOutcome;
use crate::net::connect::clear_deadline;
use crate::net::duplex::Duplex;
use crate::net::relay;
use crate::os::clock;
use crate::wire::control::RELAY_UPGRADE;

/// How long one end waits for the other. Tickets live a little longer.
const PARTNER_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves one end of a session to its end. A refusal comes back, to be answered.
pub fn serve(core: &Core, stream: Duplex, request: &Request) -> Result<(), (Refusal, Duplex)> {
    let ticket = request.field("x-ticket").unwrap_or_default();
    if let Some(carried) = carry::redeem(core, ticket) {
        return carry_on(core, stream, &carried);
    }
    let (socket, early) = stream.into_plain().map_err(|stream| (Refusal::RelayOverTls, stream))?;
    let met = meet(core, &socket, ticket);
    let (partner, open) = met.map_err(|refusal| (refusal, Duplex::plain(Arc::clone(&socket))))?;
    log::debug!("relaying {}", open.session);
    let _ = clear_deadline(&socket);
    pump(core, [&socket, &partner], &early, &open);
    Ok(())
}

/// Waits for the other end, unless it waits already.
fn meet(
    core: &Core,
    socket: &Arc<TcpStream>,
    ticket: &str,
) -> Result<(Arc<TcpStream>, Arc<RelayedSession>), Refusal> {
    let (meet, met) = mpsc::sync_channel(1);
    let half = WaitingEnd { socket: Arc::clone(socket), meet };
    match core.sessions.offer(ticket, half, clock::now()) {
        TicketOutcome::Unknown(_) => Err(Refusal::BadTicket),
        TicketOutcome::Declined(reason) => Err(Refusal::Declined { reason }),
        TicketOutcome::Second { session, mine, partner, is_first } => {
            let sockets = if is_first { [&mine, &partner] } else { [&partner, &mine] };
            let sockets = sockets.map(|half| Arc::clone(&half.socket));
            let open = begin(core, &session, sockets).ok_or_else(|| {
                let _ = partner.socket.shutdown(Shutdown::Both);
                Refusal::SessionOver
            })?;
            let _ = partner.meet.try_send(PartnerNews::Partner(mine.socket, Arc::clone(&open)));
            Ok((partner.socket, open))
        }
        TicketOutcome::First { session } => match met.recv_timeout(PARTNER_TIMEOUT) {
            Ok(PartnerNews::Partner(partner, open)) => Ok((partner, open)),
            Ok(PartnerNews::Declined(reason)) => Err(Refusal::Declined { reason }),
            Err(_) => {
                core.sessions.give_up(&session);
                Err(Refusal::PartnerMissing)
            }
        },
    }
}

/// The agent is at another hub.
fn carry_on(core: &Core, mut near: Duplex, carried: &carry::CarriedSession) -> Result<(), (Refusal, Duplex)> {
    let (far, _cut) = match carry::dial_relay(core, carried) {
        Ok(far) => far,
        Err(refusal) => return Err((refusal, near)),
    };
    let _ = clear_deadline(&near.socket);
    if near.writer.write_all(&hello()).is_ok() {
        relay::both_ways(near, far);
    }
    Ok(())
}

/// Says to both ends that they have met, before either's bytes can flow.
fn begin(core: &Core, session: &str, sockets: [Arc<TcpStream>; 2]) -> Option<Arc<RelayedSession>> {
    let open = core.sessions.begin(session, sockets.clone())?;
    for socket in sockets {
        if (&*socket).write_all(&hello()).is_err() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
    let share = open.credential.share.as_deref().unwrap_or_default();
    let details = [
        ("session", session),
        ("service", &open.service),
        ("who", &open.credential.principal),
        ("share", share),
    ];
    core.audit.say("session.opened", &details);
    Some(open)
}

fn hello() -> Vec<u8> {
    let mut hello = Vec::new();
    Reply::switching(RELAY_UPGRADE).write_into(&mut hello, true, false);
    hello
}

/// One direction, from the first of the two sockets to the second.
fn pump(core: &Core, [own, partner]: [&Arc<TcpStream>; 2], early: &[u8], open: &RelayedSession) {
    let count = if open.is_joiner(own) { &open.to_agent } else { &open.to_joiner };
    if (&**partner).write_all(early).is_ok() {
        relay::copy(own, partner, count);
    } else {
        let _ = own.shutdown(Shutdown::Both);
        let _ = partner.shutdown(Shutdown::Both);
    }
    if core.sessions.end_direction(open) {
        let (to_agent, to_joiner) = open.bytes();
        let details = [
            ("session", open.session.as_str()),
            ("service", &open.service),
            ("toAgent", &to_agent),
            ("toJoiner", &to_joiner),
        ];
        core.audit.say("session.closed", &details);
    }
}
