//! Sessions: tickets that wait for their two ends, and pairs of connections that are being relayed.

use std::collections::HashMap;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;

use crate::model::hub_records::ChannelId;
use crate::model::pairing::Pairing;
use crate::model::pairing::TICKET_SECONDS;
use crate::model::pairing::TicketOutcome;
use crate::model::registry::Registry;
use crate::model::time::Time;
use crate::os::lock::locked;

/// What a session lives by: when one of the keys or the share dies, it is cut.
#[derive(Clone, Debug)]
pub struct Credential {
    pub principal: String,
    pub share: Option<String>,
    /// The key by which the agent at the other end is here.
    pub agent: String,
}

/// A session that has been granted and not yet met.
pub struct GrantedSession {
    pub session: String,
    pub service: String,
    pub credential: Credential,
    /// Where its agent was told of it.
    pub channel: ChannelId,
}

/// One connection of a session, as it waits for the other.
pub struct WaitingEnd {
    pub socket: Arc<TcpStream>,
    pub meet: SyncSender<PartnerNews>,
}

/// What a waiting half is told.
pub enum PartnerNews {
    Partner(Arc<TcpStream>, Arc<RelayedSession>),
    Declined(String),
}

/// A pair that is being relayed.
pub struct RelayedSession {
    pub session: String,
    pub service: String,
    pub credential: Credential,
    sockets: [Arc<TcpStream>; 2],
    pub to_agent: AtomicU64,
    pub to_joiner: AtomicU64,
    directions: AtomicU8,
}

impl RelayedSession {
    pub fn is_joiner(&self, socket: &Arc<TcpStream>) -> bool {
        Arc::ptr_eq(&self.sockets[0], socket)
    }

    /// To the agent and to the joiner, as the audit log writes them.
    pub fn bytes(&self) -> (String, String) {
        let text = |count: &AtomicU64| count.load(Ordering::Relaxed).to_string();
        (text(&self.to_agent), text(&self.to_joiner))
    }
}

/// Sessions that one key or link has asked for and that have not met yet. An agent has a thread for each, so that
/// one who asks and never comes must leave room for the others.
const WAITING_PER_CREDENTIAL: usize = 1000;
/// What is kept of the reason that an agent gives for not coming.
const DECLINE_REASON_LIMIT: usize = 200;

#[derive(Default)]
pub struct Sessions {
    pairing: Mutex<Pairing<WaitingEnd>>,
    pending: Mutex<HashMap<String, (GrantedSession, Time)>>,
    open: Mutex<HashMap<String, Arc<RelayedSession>>>,
    opened: AtomicU64,
    /// Of sessions that have ended.
    to_agent: AtomicU64,
    to_joiner: AtomicU64,
}

pub struct SessionTotals {
    pub open: u64,
    pub opened: u64,
    pub to_agent: u64,
    pub to_joiner: u64,
}

impl Sessions {
    /// The first ticket is the joiner's, the other one the agent's. False when too many wait.
    pub fn expect(&self, pending: GrantedSession, tickets: [&str; 2], now: Time) -> bool {
        let mut all = locked(&self.pending);
        all.retain(|_, (_, made)| now.since(*made).as_secs() <= TICKET_SECONDS);
        let own =
            |(other, _): &&(GrantedSession, Time)| other.credential.principal == pending.credential.principal;
        if all.values().filter(own).count() >= WAITING_PER_CREDENTIAL {
            return false;
        }
        let session = pending.session.clone();
        all.insert(session.clone(), (pending, now));
        drop(all);
        locked(&self.pairing).expect(&session, tickets, now)
    }

    /// Brings one half; the second one gets its partner and the pair.
    pub fn offer(&self, ticket: &str, half: WaitingEnd, now: Time) -> TicketOutcome<WaitingEnd> {
        locked(&self.pairing).offer(ticket, half, now)
    }

    pub fn begin(&self, session: &str, sockets: [Arc<TcpStream>; 2]) -> Option<Arc<RelayedSession>> {
        let (pending, _) = locked(&self.pending).remove(session)?;
        let open = Arc::new(RelayedSession {
            session: pending.session,
            service: pending.service,
            credential: pending.credential,
            sockets,
            to_agent: AtomicU64::new(0),
            to_joiner: AtomicU64::new(0),
            directions: AtomicU8::new(2),
        });
        self.opened.fetch_add(1, Ordering::Relaxed);
        locked(&self.open).insert(session.to_owned(), Arc::clone(&open));
        Some(open)
    }

    /// One direction has ended; true when it was the last.
    pub fn end_direction(&self, open: &RelayedSession) -> bool {
        let last = open.directions.fetch_sub(1, Ordering::SeqCst) == 1;
        if last {
            locked(&self.open).remove(&open.session);
            self.to_agent.fetch_add(open.to_agent.load(Ordering::Relaxed), Ordering::Relaxed);
            self.to_joiner.fetch_add(open.to_joiner.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        last
    }

    /// The agent that was told of it will not come.
    pub fn decline(&self, session: &str, channel: ChannelId, reason: &str) {
        let mut pending = locked(&self.pending);
        if pending.get(session).is_none_or(|(pending, _)| pending.channel != channel) {
            return;
        }
        pending.remove(session);
        drop(pending);
        self.refuse(session, reason);
    }

    /// The agent is gone, and comes to none of the sessions that it was told of by this channel.
    pub fn agent_left(&self, channel: ChannelId) {
        let its = |(pending, _): &(GrantedSession, Time)| pending.channel == channel;
        let left: Vec<_> = locked(&self.pending).extract_if(|_, pending| its(pending)).collect();
        left.iter().for_each(|(session, _)| self.refuse(session, "it has left"));
    }

    /// The joiner is told, now or when it comes.
    fn refuse(&self, session: &str, reason: &str) {
        let reason: String = reason.chars().take(DECLINE_REASON_LIMIT).collect();
        let waiting = locked(&self.pairing).decline(session, &reason);
        if let Some(half) = waiting {
            let _ = half.meet.try_send(PartnerNews::Declined(reason));
        }
    }

    /// A half has waited long enough.
    pub fn give_up(&self, session: &str) {
        locked(&self.pending).remove(session);
        drop(locked(&self.pairing).give_up(session));
    }

    /// The sockets of sessions whose key or share is no longer good.
    pub fn dead(&self, registry: &Registry, now: Time) -> Vec<Arc<TcpStream>> {
        let is_dead = |credential: &Credential| {
            let share_died =
                credential.share.as_ref().is_some_and(|share| registry.share(share, now).is_none());
            let is_live = |id: &str| registry.credential_is_live(id, now);
            share_died || !is_live(&credential.principal) || !is_live(&credential.agent)
        };
        locked(&self.pending).retain(|_, (pending, _)| !is_dead(&pending.credential));
        let open = locked(&self.open);
        open.values().filter(|open| is_dead(&open.credential)).flat_map(|open| open.sockets.clone()).collect()
    }

    pub fn totals(&self) -> SessionTotals {
        let open = locked(&self.open);
        let running = |count: fn(&RelayedSession) -> &AtomicU64| {
            open.values().map(|one| count(one).load(Ordering::Relaxed)).sum::<u64>()
        };
        SessionTotals {
            open: open.len() as u64,
            opened: self.opened.load(Ordering::Relaxed),
            to_agent: self.to_agent.load(Ordering::Relaxed) + running(|one| &one.to_agent),
            to_joiner: self.to_joiner.load(Ordering::Relaxed) + running(|one| &one.to_joiner),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_and_never_comes_leaves_room_for_others() {
        let (sessions, now) = (Sessions::default(), Time::from_unix(1000));
        let asks = |principal: &str, number: usize, now: Time| {
            let credential =
                Credential { principal: principal.into(), share: None, agent: "key_agent".into() };
            let session = format!("{principal}-{number}");
            let tickets = [format!("{session}-a"), format!("{session}-b")];
            let pending =
                GrantedSession { session, service: "svc".into(), credential, channel: ChannelId(1) };
            sessions.expect(pending, [&tickets[0], &tickets[1]], now)
        };
        let granted = (0..WAITING_PER_CREDENTIAL + 10).filter(|number| asks("link", *number, now)).count();
        assert_eq!(granted, WAITING_PER_CREDENTIAL);
        assert!(asks("other", 0, now));
        assert!(asks("link", WAITING_PER_CREDENTIAL, Time::from_unix(1016)), "the first have lapsed");
    }
}
