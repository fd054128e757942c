//! What the two threads of a session share: the state machine and the local socket under a mutex, the counts of bytes, and
//! the record of what was carried.
//!
//! The mutex never covers I/O: an event goes in, an action comes out, and the thread that caused it acts after the mutex is
//! released.

use std::io;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use super::local_socket::abort;
use super::served::Beginning;
use super::served::SessionRecord;
use super::traffic::CarriedBytes;
use super::traffic::TrafficCounters;
use crate::model::session_protocol::FrameKind;
use crate::model::session_protocol::OutOfTurn;
use crate::model::session_protocol::SessionAction;
use crate::model::session_protocol::SessionProtocol;
use crate::os::lock::locked;
use crate::os::lock::wait_while;

/// PING is answered within this, or the session is dead.
pub const PONG_TIMEOUT: Duration = Duration::from_millis(1500);

pub struct SharedSession {
    pub state: Mutex<SessionState>,
    pub changed: Condvar,
    /// Below the session's TLS.
    pub socket: Arc<TcpStream>,
    pub traffic: Arc<TrafficCounters>,
    pub sent: AtomicU64,
    pub received: AtomicU64,
    /// Agent: dropped when the session is over.
    pub record: Mutex<Option<SessionRecord>>,
}

pub struct SessionState {
    pub protocol: SessionProtocol,
    /// The connection being carried. A joiner that only checks the target has none.
    pub local: Option<Arc<TcpStream>>,
    /// The reason in REFUSED, received or about to be sent.
    pub refusal: Option<String>,
    /// Joiner: where the agent can be reached without the relay, if it has said so.
    pub addresses: Option<Vec<SocketAddr>>,
    /// When the last frame other than DATA arrived.
    pub heard: Instant,
    /// Agent: the connection whose end is to be recorded.
    pub connection: Option<CarriedConnection>,
}

pub struct CarriedConnection {
    pub begun: Beginning,
    /// What the session had carried before it.
    pub before: CarriedBytes,
    pub is_refused: bool,
}

impl SharedSession {
    /// Tells the state machine of an event, and wakes the other thread. Returns the result together with the local
    /// connection, of which the state keeps nothing once the session is idle.
    pub fn update<T>(&self, event: impl FnOnce(&mut SessionState) -> T) -> (T, Option<Arc<TcpStream>>) {
        let mut state = locked(&self.state);
        let result = event(&mut state);
        let local = if state.protocol.is_idle() { state.local.take() } else { state.local.clone() };
        let is_dialling = state.protocol.is_dialling();
        let is_cut = state.protocol.is_over();
        let ended = if state.protocol.is_idle() { state.connection.take() } else { None };
        drop(state);
        if let Some(ended) = ended {
            self.record_end(&ended, is_cut);
        }
        // While the target is being dialled there is nothing to send, and a thread woken for nothing costs the connection
        // that it delays.
        if !is_dialling {
            self.changed.notify_all();
        }
        (result, local)
    }

    /// Does to the local connection what follows from an event.
    pub fn apply(
        &self,
        event: impl FnOnce(&mut SessionState) -> Result<SessionAction, OutOfTurn>,
    ) -> io::Result<SessionAction> {
        let (action, local) = self.update(event);
        let action = action.map_err(out_of_turn)?;
        match (action, local) {
            (SessionAction::Abort, Some(local)) => abort(&local),
            (SessionAction::HalfClose, Some(local)) => _ = local.shutdown(Shutdown::Write),
            _ => {}
        }
        Ok(action)
    }

    /// The session is over. A connection that it carries ends as broken.
    pub fn close(&self) {
        let _ = self.apply(|state| Ok(state.protocol.end()));
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    pub fn local_failed(&self) -> io::Result<()> {
        self.apply(|state| Ok(state.protocol.local_failed())).map(drop)
    }

    pub fn count_sent(&self, bytes: usize) {
        self.traffic.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn count_received(&self, bytes: usize) {
        self.traffic.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes of all connections so far.
    pub fn carried(&self) -> CarriedBytes {
        let [to_agent, to_joiner] = [&self.received, &self.sent].map(|bytes| bytes.load(Ordering::Relaxed));
        CarriedBytes { to_agent, to_joiner }
    }

    /// Agent: a connection has ended, by itself or with its session.
    pub fn record_end(&self, connection: &CarriedConnection, is_cut: bool) {
        let mut record = locked(&self.record);
        let Some(record) = record.as_mut() else { return };
        let outcome = match (is_cut, connection.is_refused) {
            (true, _) => "cut",
            (_, true) => "refused",
            _ => "ok",
        };
        if is_cut {
            record.outcome = outcome;
        }
        let (now, before) = (self.carried(), &connection.before);
        let bytes = CarriedBytes {
            to_agent: now.to_agent - before.to_agent,
            to_joiner: now.to_joiner - before.to_joiner,
        };
        record.connection_closed(&connection.begun, outcome, &bytes);
    }

    pub fn take_refusal(&self) -> Option<String> {
        locked(&self.state).refusal.take()
    }

    /// False if it did not come in time, or the session is over.
    pub fn wait(&self, limit: Duration, wanted: impl Fn(&SessionState) -> bool) -> bool {
        let waiting = |state: &mut SessionState| !state.protocol.is_over() && !wanted(state);
        let state = wait_while(&self.changed, locked(&self.state), limit, waiting);
        !state.protocol.is_over() && wanted(&state)
    }

    /// Waits for any frame. If none comes, the session is over from that very moment, so that a late answer cannot reach
    /// the client.
    pub fn answers_or_ends(&self, asked: Instant) -> bool {
        let waiting = |state: &mut SessionState| !state.protocol.is_over() && state.heard < asked;
        let state = locked(&self.state);
        let mut state = wait_while(&self.changed, state, PONG_TIMEOUT, waiting);
        if state.heard < asked {
            state.local = None;
            state.protocol.end();
        }
        !state.protocol.is_over()
    }

    /// Agent: whether nothing more will be sent. A connection that only the target has ended goes on for as long as the joiner
    /// wants.
    pub fn is_left(&self, idle_timeout: Duration) -> bool {
        let state = locked(&self.state);
        state.protocol.is_over() || (state.protocol.is_idle() && state.heard.elapsed() >= idle_timeout)
    }

    /// Waits for a frame that is due. `None` if `until` holds, the session is over, or the time is up.
    pub fn wait_for_frame(
        &self,
        limit: Duration,
        until: impl Fn(&SessionProtocol) -> bool,
    ) -> Option<FrameKind> {
        let mut due = None;
        let state = wait_while(&self.changed, locked(&self.state), limit, |state| {
            due = state.protocol.next_frame();
            due.is_none() && !until(&state.protocol) && !state.protocol.is_over()
        });
        drop(state);
        due
    }
}

pub fn out_of_turn(bad: OutOfTurn) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{:?} out of turn", bad.0))
}
