//! The hub's sessions with their connections: the table behind a lock, and the bytes that were relayed.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;

use crate::model::hub_session::HubSession;
use crate::model::sessions::SessionTable;
use crate::os::lock::locked;

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
