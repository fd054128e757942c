//! The hub's sessions with their connections: the table behind a lock, and the bytes that were relayed.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;

use crate::model::hub_records::ChannelId;
use crate::model::hub_session::HubSession;
use crate::model::sessions::SessionTable;
use crate::model::time::Time;
use crate::os::lock::locked;

/// What is kept of the reason that an agent gives for not coming.
const DECLINE_REASON_LIMIT: usize = 200;
/// What an agent's sessions are told when its control channel ends.
const AGENT_LEFT: &str = "it has left";

/// One end of a session: the connection that came with a ticket.
pub struct RelayEnd {
    pub socket: Arc<TcpStream>,
    /// Bytes that it has sent to the other end.
    pub sent: AtomicU64,
    /// Wakes the thread that waits for the other end: with that end, or with nothing if the agent has declined.
    pub partner: SyncSender<Option<Arc<RelayEnd>>>,
}

#[derive(Default)]
pub struct Sessions {
    table: Mutex<SessionTable<Arc<RelayEnd>>>,
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

impl RelayEnd {
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Sessions {
    /// For everything that needs no more than the table. Held for moments, never over I/O.
    pub fn table(&self) -> MutexGuard<'_, SessionTable<Arc<RelayEnd>>> {
        locked(&self.table)
    }

    /// The agent that was told of the session on this channel does not come.
    pub fn decline(&self, session: &str, channel: ChannelId, reason: &str) {
        let reason: String = reason.chars().take(DECLINE_REASON_LIMIT).collect();
        tell_declined(self.table().decline(session, channel, &reason));
    }

    /// The agent is gone, and comes to none of the sessions that it was told of on this channel.
    pub fn agent_left(&self, channel: ChannelId, now: Time) {
        tell_declined(self.table().decline_all(channel, AGENT_LEFT, now));
    }

    pub fn count_opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    /// One direction has ended. Returns the session and what was sent to its agent and to its joiner after the last.
    pub fn end_direction(&self, session: &str) -> Option<(HubSession, u64, u64)> {
        let (session, joiner, agent) = self.table().end_direction(session)?;
        self.to_agent.fetch_add(joiner.sent(), Ordering::Relaxed);
        self.to_joiner.fetch_add(agent.sent(), Ordering::Relaxed);
        Some((session, joiner.sent(), agent.sent()))
    }

    pub fn count_direct(&self, to_agent: u64, to_joiner: u64) {
        self.to_agent.fetch_add(to_agent, Ordering::Relaxed);
        self.to_joiner.fetch_add(to_joiner, Ordering::Relaxed);
    }

    pub fn totals(&self) -> SessionTotals {
        let table = self.table();
        let mut totals = SessionTotals {
            open: table.count_direct() as u64,
            opened: self.opened.load(Ordering::Relaxed),
            to_agent: self.to_agent.load(Ordering::Relaxed),
            to_joiner: self.to_joiner.load(Ordering::Relaxed),
        };
        for [joiner, agent] in table.open_sessions() {
            totals.open += 1;
            totals.to_agent += joiner.sent();
            totals.to_joiner += agent.sent();
        }
        totals
    }
}

fn tell_declined(waiting: impl IntoIterator<Item = Arc<RelayEnd>>) {
    for end in waiting {
        let _ = end.partner.try_send(None);
    }
}
