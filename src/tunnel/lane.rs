//! What the two threads of a session tell each other: how far the connection is that it carries, and where the
//! agent's data goes. The thread that reads runs in here.

use std::io;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use super::frames::FrameReader;
use super::frames::abort;
use super::frames::out_of_turn;
use crate::os::lock::FOREVER;
use crate::os::lock::locked;
use crate::os::lock::wait_while;
use crate::wire::frame::FrameKind;

/// A question is answered within this, or the session is dead.
pub const ANSWER: Duration = Duration::from_millis(1500);

pub struct Lane {
    state: Mutex<State>,
    changed: Condvar,
    /// That the whole tunnel has carried, as its clients see them.
    pub bytes: Arc<AtomicU64>,
}

pub struct State {
    pub phase: Phase,
    /// Where the agent's data goes; `None` while the answer is only a proof.
    pub local: Option<Arc<TcpStream>>,
    /// The local connection broke while the agent still sent.
    pub broken: bool,
    pub heard: Instant,
    pub dead: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    Idle,
    Opening,
    Open,
    /// The agent's direction has ended.
    Ended,
    Refused(String),
}

impl State {
    pub fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended | Phase::Refused(_))
    }
}

impl Lane {
    pub fn new(bytes: Arc<AtomicU64>) -> Self {
        let (phase, heard) = (Phase::Idle, Instant::now());
        let state = State { phase, local: None, broken: false, heard, dead: false };
        Self { state: Mutex::new(state), changed: Condvar::new(), bytes }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    pub fn is_refused(&self) -> bool {
        matches!(self.lock().phase, Phase::Refused(_))
    }

    pub fn take_refusal(&self) -> Option<String> {
        let mut state = self.lock();
        let Phase::Refused(reason) = &mut state.phase else { return None };
        let reason = std::mem::take(reason);
        state.phase = Phase::Idle;
        Some(reason)
    }

    /// Waits for `wanted`, for a while; false when it did not come or the session died.
    pub fn wait(&self, limit: Duration, wanted: impl Fn(&State) -> bool) -> bool {
        let waiting = |state: &mut State| !state.dead && !wanted(state);
        let state = wait_while(&self.changed, self.lock(), limit, waiting);
        !state.dead && wanted(&state)
    }

    /// Waits for any word of the agent's; when none comes, the session is dead from that very moment, so
    /// that a late answer reaches nobody.
    pub fn heard_since_or_dead(&self, asked: Instant) -> bool {
        let waiting = |state: &mut State| !state.dead && state.heard < asked;
        let mut state = wait_while(&self.changed, self.lock(), ANSWER, waiting);
        state.dead |= state.heard < asked;
        !state.dead
    }

    /// True when the agent's direction ended; false when the local connection broke or the session died.
    pub fn wait_for_end_or_break(&self) -> bool {
        let waiting = |state: &mut State| !state.dead && !state.broken && !state.is_ended();
        wait_while(&self.changed, self.lock(), FOREVER, waiting).is_ended()
    }

    /// From here on nothing that arrives reaches the local connection.
    pub fn abandon(&self) {
        let mut state = self.lock();
        state.local = None;
        state.dead = true;
    }

    /// The session is over; a connection that it carries ends as broken.
    pub fn die(&self) {
        self.end(|state| {
            state.dead = true;
            true
        });
    }

    /// Breaks off the local connection, if `change` says that it has ended.
    fn end(&self, change: impl FnOnce(&mut State) -> bool) {
        let mut local = None;
        self.change(|state| {
            if change(state) {
                local = state.local.take();
            }
        });
        if let Some(local) = local {
            abort(&local);
        }
    }

    pub fn read_all(&self, frames: &mut FrameReader) -> io::Result<()> {
        let mut current: Option<Arc<TcpStream>> = None;
        let mut open = false;
        loop {
            let header = frames.next_header()?;
            match header.kind {
                FrameKind::Pong => self.change(|_| ()),
                FrameKind::Opened => {
                    current = self.opened()?;
                    open = true;
                }
                FrameKind::Refused => {
                    let reason = frames.reason(header.length)?;
                    self.refused(reason)?;
                }
                FrameKind::Data if open => {
                    if frames.data_into(header.length, current.as_deref())?.is_err() {
                        self.local_broke(current.take());
                    } else {
                        self.bytes.fetch_add(header.length as u64, Ordering::Relaxed);
                    }
                }
                FrameKind::Eof if open => {
                    if let Some(local) = current.take() {
                        let _ = local.shutdown(Shutdown::Write);
                    }
                    open = false;
                    frames.shrink();
                    self.change(|state| state.phase = Phase::Ended);
                }
                FrameKind::Reset => {
                    current = None;
                    self.reset(std::mem::take(&mut open));
                }
                kind => return Err(out_of_turn(kind)),
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        state.heard = Instant::now();
        change(&mut state);
        drop(state);
        self.changed.notify_all();
    }

    fn opened(&self) -> io::Result<Option<Arc<TcpStream>>> {
        let mut opened = Err(out_of_turn(FrameKind::Opened));
        self.change(|state| {
            if !state.dead && state.phase == Phase::Opening {
                state.phase = Phase::Open;
                opened = Ok(state.local.clone());
            }
        });
        opened
    }

    /// The agent says that the connection is broken. When this end considers it over already, or waits for
    /// the answer to its next OPEN, that speaks of the connection before.
    fn reset(&self, open: bool) {
        self.end(|state| {
            let ours = open || state.phase == Phase::Ended;
            if ours {
                state.phase = Phase::Ended;
                state.broken = true;
            }
            ours
        });
    }

    fn refused(&self, reason: String) -> io::Result<()> {
        let mut in_turn = false;
        self.end(|state| {
            in_turn = state.phase == Phase::Opening;
            if in_turn {
                state.phase = Phase::Refused(reason);
            }
            in_turn
        });
        if in_turn { Ok(()) } else { Err(out_of_turn(FrameKind::Refused)) }
    }

    /// The client is gone: its writer wakes and tells the agent, while this thread reads and drops the rest.
    fn local_broke(&self, local: Option<Arc<TcpStream>>) {
        self.change(|state| state.broken = true);
        if let Some(local) = local {
            abort(&local);
        }
    }
}
