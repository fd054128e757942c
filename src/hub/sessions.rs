//! Sessions: tickets that wait for their two ends, and pairs of connections that are being relayed.

use std::collections::HashMap;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;

use crate::model::pairing::Offer;
use crate::model::pairing::Pairing;
use crate::model::pairing::TICKET_SECONDS;
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
pub struct Pending {
    pub session: String,
    pub joiner_ticket: String,
    pub service: String,
    pub credential: Credential,
}

/// One connection of a session, as it waits for the other.
pub struct Half {
    pub socket: Arc<TcpStream>,
    pub meet: SyncSender<Met>,
}

/// What a waiting half is told.
pub enum Met {
    Partner(Arc<TcpStream>, Arc<Open>),
    Declined(String),
}

/// A pair that is being relayed.
pub struct Open {
    pub session: String,
    pub service: String,
    pub credential: Credential,
    sockets: [Arc<TcpStream>; 2],
    pub to_agent: AtomicU64,
    pub to_joiner: AtomicU64,
    directions: AtomicU8,
}

impl Open {
    pub fn is_joiner(&self, socket: &Arc<TcpStream>) -> bool {
        Arc::ptr_eq(&self.sockets[0], socket)
    }

    /// To the agent and to the joiner, as the audit log writes them.
    pub fn bytes(&self) -> (String, String) {
        let text = |count: &AtomicU64| count.load(Ordering::Relaxed).to_string();
        (text(&self.to_agent), text(&self.to_joiner))
    }
}

/// What is kept of the reason that an agent gives for not coming.
const REASON: usize = 200;

#[derive(Default)]
pub struct Sessions {
    pairing: Mutex<Pairing<Half>>,
    pending: Mutex<HashMap<String, (Pending, Time)>>,
    /// Why the agent does not come, by the ticket of a joiner who is not here yet.
    declined: Mutex<HashMap<String, (String, Time)>>,
    open: Mutex<HashMap<String, Arc<Open>>>,
    opened: AtomicU64,
    /// Of sessions that have ended.
    to_agent: AtomicU64,
    to_joiner: AtomicU64,
}

pub struct Totals {
    pub open: u64,
    pub opened: u64,
    pub to_agent: u64,
    pub to_joiner: u64,
}

impl Sessions {
    /// The first ticket is the joiner's, the other one the agent's.
    pub fn expect(&self, pending: Pending, tickets: [&str; 2], now: Time) -> bool {
        let mut all = locked(&self.pending);
        all.retain(|_, (_, made)| now.since(*made).as_secs() <= TICKET_SECONDS);
        let session = pending.session.clone();
        all.insert(session.clone(), (pending, now));
        drop(all);
        locked(&self.pairing).expect(&session, tickets, now)
    }

    /// Brings one half; the second one gets its partner and the pair.
    pub fn offer(&self, ticket: &str, half: Half, now: Time) -> Offer<Half> {
        let offered = locked(&self.pairing).offer(ticket, half, now);
        let Offer::Unknown(half) = offered else { return offered };
        let Some((reason, _)) = locked(&self.declined).remove(ticket) else { return Offer::Unknown(half) };
        let _ = half.meet.try_send(Met::Declined(reason));
        Offer::First { session: String::new() }
    }

    pub fn begin(&self, session: &str, sockets: [Arc<TcpStream>; 2]) -> Option<Arc<Open>> {
        let (pending, _) = locked(&self.pending).remove(session)?;
        let open = Arc::new(Open {
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
    pub fn end_direction(&self, open: &Open) -> bool {
        let last = open.directions.fetch_sub(1, Ordering::SeqCst) == 1;
        if last {
            locked(&self.open).remove(&open.session);
            self.to_agent.fetch_add(open.to_agent.load(Ordering::Relaxed), Ordering::Relaxed);
            self.to_joiner.fetch_add(open.to_joiner.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        last
    }

    /// The agent will not come: whoever waits, or comes later, is told.
    pub fn decline(&self, session: &str, service_of: impl Fn(&str) -> bool, reason: &str, now: Time) {
        let mut all = locked(&self.pending);
        if !all.get(session).is_some_and(|(pending, _)| service_of(&pending.service)) {
            return;
        }
        let Some((pending, _)) = all.remove(session) else { return };
        drop(all);
        let reason: String = reason.chars().take(REASON).collect();
        let mut declined = locked(&self.declined);
        declined.retain(|_, (_, since)| now.since(*since).as_secs() <= TICKET_SECONDS);
        declined.insert(pending.joiner_ticket.clone(), (reason.clone(), now));
        drop(declined);
        // Between the two the joiner may come, and then it is one of those who wait.
        if let Some(half) = locked(&self.pairing).give_up(session) {
            locked(&self.declined).remove(&pending.joiner_ticket);
            let _ = half.meet.try_send(Met::Declined(reason));
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

    pub fn totals(&self) -> Totals {
        let open = locked(&self.open);
        let running = |count: fn(&Open) -> &AtomicU64| {
            open.values().map(|one| count(one).load(Ordering::Relaxed)).sum::<u64>()
        };
        Totals {
            open: open.len() as u64,
            opened: self.opened.load(Ordering::Relaxed),
            to_agent: self.to_agent.load(Ordering::Relaxed) + running(|one| &one.to_agent),
            to_joiner: self.to_joiner.load(Ordering::Relaxed) + running(|one| &one.to_joiner),
        }
    }
}
