//! The relay: two connections with a session's two tickets, each pumped into the other by its own thread.

use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use super::carry;
use super::core::Core;
use super::sessions::Half;
use super::sessions::Met;
use super::sessions::Open;
use crate::model::pairing::Offer;
use crate::net::duplex::Duplex;
use crate::net::relay;
use crate::os::clock;
use crate::wire::control::RELAY_UPGRADE;
use crate::wire::message::Request;
use crate::wire::reply::Reply;

/// How long one end waits for the other. Tickets live a little longer.
const MEETING: Duration = Duration::from_secs(10);

/// Serves one end of a session to its end. A refusal comes back, to be answered.
pub fn serve(core: &Core, stream: Duplex, request: &Request) -> Result<(), (Reply, Duplex)> {
    let ticket = request.field("x-ticket").unwrap_or_default();
    if let Some(carried) = carry::redeem(core, ticket) {
        return carry_on(core, stream, &carried);
    }
    let (socket, early) = match stream.into_plain() {
        Ok(plain) => plain,
        Err(stream) => {
            return Err((
                refuse(core, 400, "The relay is not spoken over TLS", "Use the address that the hub named"),
                stream,
            ));
        }
    };
    let (meet, met) = mpsc::sync_channel(1);
    let half = Half { socket: Arc::clone(&socket), meet, is_joiner: false };
    let (session, mine_is_joiner, partner, open) = match core.sessions.offer(ticket, half, clock::now()) {
        Offer::Unknown(_) => {
            return Err((
                refuse(core, 403, "This ticket is not valid", "Tickets work once, for 15 seconds"),
                Duplex::plain(socket),
            ));
        }
        Offer::Second { session, mine, partner } => {
            let Some(open) = begin(core, &session, &mine, &partner) else {
                partner.socket.shutdown(Shutdown::Both).unwrap_or_default();
                return Err((
                    refuse(core, 403, "This session is not valid any more", ""),
                    Duplex::plain(socket),
                ));
            };
            (session, mine.is_joiner, partner.socket, open)
        }
        Offer::First { session } => match met.recv_timeout(MEETING) {
            Ok(Met::Partner(partner, open)) => {
                let is_joiner = open.is_joiner(&socket);
                (session, is_joiner, partner, open)
            }
            Ok(Met::Declined(reason)) => {
                return Err((
                    refuse(core, 503, &format!("The agent declined: {reason}"), ""),
                    Duplex::plain(socket),
                ));
            }
            Err(_) => {
                core.sessions.give_up(&session);
                return Err((
                    refuse(core, 504, "The other end did not come", "Try again in a moment"),
                    Duplex::plain(socket),
                ));
            }
        },
    };
    log::debug!("relaying {session}");
    let _ = socket.set_read_timeout(None).and_then(|()| socket.set_write_timeout(None));
    pump(core, [&socket, &partner], &early, &open, mine_is_joiner);
    Ok(())
}

/// The agent is at another hub.
fn carry_on(core: &Core, mut near: Duplex, carried: &carry::Carried) -> Result<(), (Reply, Duplex)> {
    let (far, _cut) = match carry::dial_relay(core, carried) {
        Ok(far) => far,
        Err(reply) => return Err((reply, near)),
    };
    let mut hello = Vec::new();
    Reply::switching(RELAY_UPGRADE).write_into(&mut hello, true, false);
    let _ = near.socket.set_read_timeout(None).and_then(|()| near.socket.set_write_timeout(None));
    if near.writer.write_all(&hello).is_ok() {
        carry::pump(near, far);
    }
    Ok(())
}

/// Says to both ends that they have met, before either's bytes can flow.
fn begin(core: &Core, session: &str, mine: &Half, partner: &Half) -> Option<Arc<Open>> {
    let (joiner, agent) = if mine.is_joiner { (mine, partner) } else { (partner, mine) };
    let open = core.sessions.begin(session, [Arc::clone(&joiner.socket), Arc::clone(&agent.socket)])?;
    let mut hello = Vec::new();
    Reply::switching(RELAY_UPGRADE).write_into(&mut hello, true, false);
    for half in [mine, partner] {
        if (&*half.socket).write_all(&hello).is_err() {
            let _ = half.socket.shutdown(Shutdown::Both);
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
    let _ = partner.meet.try_send(Met::Partner(Arc::clone(&mine.socket), Arc::clone(&open)));
    Some(open)
}

/// One direction, from the first of the two sockets to the second.
fn pump(core: &Core, [own, partner]: [&TcpStream; 2], early: &[u8], open: &Open, from_joiner: bool) {
    let count = if from_joiner { &open.to_agent } else { &open.to_joiner };
    let begun = (&*partner).write_all(early);
    if begun.is_ok() {
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

fn refuse(core: &Core, status: u16, what: &str, hint: &str) -> Reply {
    core.counters.refused("ticket");
    Reply::error(status, what, hint)
}
