//! A session from the joiner's end: stands ready, carries one connection after another.
//!
//! Two threads meet here. The thread that accepted a local connection writes: OPEN, the client's data,
//! EOF or RESET. The session's own thread reads all the time, idle or not, so that the end of a session
//! is noticed when it happens. What they must tell each other stands in the `Lane`.

use std::io;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use super::frames::CopyEnd;
use super::frames::FrameReader;
use super::frames::FrameWriter;
use super::frames::break_off;
use super::frames::out_of_turn;
use crate::net::crew;
use crate::net::stop::Registration;
use crate::net::stop::Stop;
use crate::net::tls::Established;
use crate::os::lock::locked;
use crate::wire::frame::Kind;

/// A session heard from this recently needs no question whether it is still there.
const FRESH: Duration = Duration::from_secs(2);
/// A question is answered within this, or the session is dead.
const ANSWER: Duration = Duration::from_millis(1500);
/// After a reset, the other end has this long to end its direction; a session that does not is dropped.
const CLEAN_UP: Duration = Duration::from_secs(2);
/// After the proof that a target answers, it has this long to take our end of file.
const PROOF_END: Duration = Duration::from_millis(300);

/// Bytes that a tunnel has carried, as its client sees them.
#[derive(Debug, Default)]
pub struct Traffic {
    pub up: AtomicU64,
    pub down: AtomicU64,
}

pub struct Session {
    writer: FrameWriter,
    lane: Arc<Lane>,
    thread: Option<JoinHandle<()>>,
    socket: Arc<TcpStream>,
    _attached: Option<Registration>,
}

struct Lane {
    state: Mutex<State>,
    changed: Condvar,
    traffic: Arc<Traffic>,
}

struct State {
    phase: Phase,
    /// Where the agent's data goes; `None` while the answer is only a proof.
    local: Option<Arc<TcpStream>>,
    /// The local connection broke while the agent still sent.
    broken: bool,
    heard: Instant,
    dead: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Opening,
    Open,
    /// The agent's direction has ended.
    Ended,
    Refused(String),
}

/// How a connection through a session went.
#[derive(Debug, PartialEq, Eq)]
pub enum Carried {
    /// To its end; the session is idle again.
    Clean,
    /// The session is no longer usable; the connection has been served as far as it went.
    Spoiled,
    /// Nothing of the client's was sent: it may be tried on another session.
    Untouched,
    Refused(String),
}

impl Session {
    pub fn start(established: Established, traffic: Arc<Traffic>, stop: &Stop) -> io::Result<Self> {
        let Established { reader, writer, socket, .. } = established;
        let attached = stop.attach(&socket);
        if attached.is_none() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let state =
            State { phase: Phase::Idle, local: None, broken: false, heard: Instant::now(), dead: false };
        let lane = Arc::new(Lane { state: Mutex::new(state), changed: Condvar::new(), traffic });
        let (own, cut) = (Arc::clone(&lane), Arc::clone(&socket));
        let mut frames = FrameReader::new(reader, Arc::clone(&socket));
        let thread = crew::spawn("session-read", move || {
            let ended = own.read_all(&mut frames);
            log::debug!("a session ended: {ended:?}");
            own.die();
            let _ = cut.shutdown(Shutdown::Both);
        })?;
        Ok(Self { writer: FrameWriter::new(writer), lane, thread: Some(thread), socket, _attached: attached })
    }

    pub fn is_dead(&self) -> bool {
        self.lane.lock().dead
    }

    /// Since when the other end has not been heard.
    pub fn silent_for(&self) -> Duration {
        self.lane.lock().heard.elapsed()
    }

    /// Heard so recently that nothing need be asked.
    pub fn is_fresh(&self) -> bool {
        self.silent_for() < FRESH
    }

    /// Asks the agent whether it is there; only between connections. When it was asked, or nothing.
    pub fn ask(&mut self) -> Option<Instant> {
        let asked = Instant::now();
        self.writer.send(&[Kind::Ping]).is_ok().then_some(asked)
    }

    pub fn answers(&self, asked: Instant) -> bool {
        let left = (asked + ANSWER).saturating_duration_since(Instant::now());
        self.lane.wait(left, |state| state.heard >= asked)
    }

    /// Serves one local connection from its beginning to its end.
    pub fn carry(&mut self, local: &Arc<TcpStream>) -> Carried {
        let begun = match self.open(Some(local)) {
            Ok(begun) => begun,
            Err(unopened) => return unopened,
        };
        let traffic = Arc::clone(&self.lane.traffic);
        traffic.up.fetch_add(begun as u64, Ordering::Relaxed);
        let copied = self.writer.copy_from(local, |count| {
            traffic.up.fetch_add(count as u64, Ordering::Relaxed);
        });
        let Ok(mut end) = copied else { return self.spoiled(local) };
        if self.lane.lock().broken {
            end = CopyEnd::Broken;
        }
        self.close(local, end)
    }

    /// Whether the agent reaches its target: opens a connection, and ends it at once.
    pub fn prove(&mut self, patience: Duration) -> Result<(), Carried> {
        self.open(None)?;
        let answered = self.lane.wait(patience, |state| state.phase != Phase::Opening);
        if let Some(reason) = self.lane.take_refusal() {
            self.end_direction(Kind::Reset)?;
            return Err(Carried::Refused(reason));
        }
        if !answered {
            return Err(Carried::Spoiled);
        }
        self.end_direction(Kind::Eof)?;
        if !self.lane.wait(PROOF_END, State::is_ended) {
            self.end_direction(Kind::Reset)?;
        }
        self.settle(Some(CLEAN_UP)).map_err(|()| Carried::Spoiled)
    }

    pub fn shrink(&mut self) {
        self.writer.shrink();
    }

    fn end_direction(&mut self, how: Kind) -> Result<(), Carried> {
        self.writer.send(&[how]).map_err(|_| Carried::Spoiled)
    }

    /// Sends OPEN, with the client's first data where they are here; how much that was. When the other end
    /// has been silent for a while, the data waits for its word.
    fn open(&mut self, local: Option<&Arc<TcpStream>>) -> Result<usize, Carried> {
        let fresh = {
            let mut state = self.lane.lock();
            if state.dead {
                return Err(Carried::Untouched);
            }
            state.phase = Phase::Opening;
            state.local = local.cloned();
            state.broken = false;
            state.heard.elapsed() < FRESH
        };
        let asked = Instant::now();
        let begun = match (fresh, local) {
            (true, Some(local)) => self.writer.begin(Kind::Open, local),
            (true, None) => self.writer.send(&[Kind::Open]).map(|()| 0),
            (false, _) => self.writer.send(&[Kind::Ping, Kind::Open]).map(|()| 0),
        };
        match begun {
            Ok(count) if fresh || self.lane.heard_since_or_dead(asked) => Ok(count),
            _ => {
                self.lane.abandon();
                let _ = self.socket.shutdown(Shutdown::Both);
                Err(Carried::Untouched)
            }
        }
    }

    /// Ends our direction and waits for the other one.
    fn close(&mut self, local: &Arc<TcpStream>, end: CopyEnd) -> Carried {
        let broken = end == CopyEnd::Broken || self.lane.is_refused();
        if self.writer.send(&[if broken { Kind::Reset } else { Kind::Eof }]).is_err() {
            return self.spoiled(local);
        }
        if broken {
            break_off(local);
        }
        if self.settle(broken.then_some(CLEAN_UP)).is_err() {
            return self.spoiled(local);
        }
        match self.lane.take_refusal() {
            Some(reason) => Carried::Refused(reason),
            None => Carried::Clean,
        }
    }

    /// Waits until the agent's direction has ended: as long as it takes for a half-closed connection, and
    /// bounded once it is broken. Then the session is idle.
    fn settle(&mut self, limit: Option<Duration>) -> Result<(), ()> {
        let mut limit = limit;
        loop {
            let ended = match limit {
                Some(limit) => self.lane.wait(limit, State::is_ended),
                None => self.lane.wait_for_end_or_break(),
            };
            let mut state = self.lane.lock();
            if state.dead {
                return Err(());
            }
            if ended {
                if !matches!(state.phase, Phase::Refused(_)) {
                    state.phase = Phase::Idle;
                }
                state.local = None;
                return Ok(());
            }
            drop(state);
            if limit.is_some() {
                return Err(());
            }
            // The client went away while the agent was still sending: say so, and give it a moment.
            self.writer.send(&[Kind::Reset]).map_err(|_| ())?;
            limit = Some(CLEAN_UP);
        }
    }

    fn spoiled(&mut self, local: &TcpStream) -> Carried {
        self.lane.abandon();
        break_off(local);
        let _ = self.socket.shutdown(Shutdown::Both);
        Carried::Spoiled
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.is_dead() {
            let _ = self.socket.set_write_timeout(Some(Duration::from_millis(200)));
            self.writer.farewell();
        }
        let _ = self.socket.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended | Phase::Refused(_))
    }
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    fn is_refused(&self) -> bool {
        matches!(self.lock().phase, Phase::Refused(_))
    }

    fn take_refusal(&self) -> Option<String> {
        let mut state = self.lock();
        let Phase::Refused(reason) = &mut state.phase else { return None };
        let reason = std::mem::take(reason);
        state.phase = Phase::Idle;
        Some(reason)
    }

    /// Waits for `wanted`, for a while; false when it did not come or the session died.
    fn wait(&self, limit: Duration, wanted: impl Fn(&State) -> bool) -> bool {
        let waiting = |state: &mut State| !state.dead && !wanted(state);
        let waited = self.changed.wait_timeout_while(self.lock(), limit, waiting);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !state.dead && wanted(&state)
    }

    /// Waits for any word of the agent's; when none comes, the session is dead from that very moment, so
    /// that a late answer reaches nobody.
    fn heard_since_or_dead(&self, asked: Instant) -> bool {
        let waiting = |state: &mut State| !state.dead && state.heard < asked;
        let waited = self.changed.wait_timeout_while(self.lock(), ANSWER, waiting);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.dead |= state.heard < asked;
        !state.dead
    }

    /// True when the agent's direction ended; false when the local connection broke or the session died.
    fn wait_for_end_or_break(&self) -> bool {
        let waiting = |state: &mut State| !state.dead && !state.broken && !state.is_ended();
        let state = self.changed.wait_while(self.lock(), waiting).unwrap_or_else(PoisonError::into_inner);
        state.is_ended()
    }

    /// From here on nothing that arrives reaches the local connection.
    fn abandon(&self) {
        let mut state = self.lock();
        state.local = None;
        state.dead = true;
    }

    /// The session is over; a connection that it carries ends as broken.
    fn die(&self) {
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
            break_off(&local);
        }
    }

    fn read_all(&self, frames: &mut FrameReader) -> io::Result<()> {
        let mut current: Option<Arc<TcpStream>> = None;
        let mut open = false;
        loop {
            let header = frames.next_header()?;
            match header.kind {
                Kind::Pong => self.change(|_| ()),
                Kind::Opened => {
                    current = self.opened()?;
                    open = true;
                }
                Kind::Refused => {
                    let reason = frames.reason(header.length)?;
                    self.refused(reason)?;
                }
                Kind::Data if open => {
                    if frames.data_into(header.length, current.as_deref())?.is_err() {
                        self.local_broke(current.take());
                    } else {
                        self.traffic.down.fetch_add(header.length as u64, Ordering::Relaxed);
                    }
                }
                Kind::Eof if open => {
                    if let Some(local) = current.take() {
                        let _ = local.shutdown(Shutdown::Write);
                    }
                    open = false;
                    frames.shrink();
                    self.change(|state| state.phase = Phase::Ended);
                }
                Kind::Reset => {
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
        let mut opened = Err(out_of_turn(Kind::Opened));
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
        if in_turn { Ok(()) } else { Err(out_of_turn(Kind::Refused)) }
    }

    /// The client is gone: its writer wakes and tells the agent, while this thread reads and drops the rest.
    fn local_broke(&self, local: Option<Arc<TcpStream>>) {
        self.change(|state| state.broken = true);
        if let Some(local) = local {
            break_off(&local);
        }
    }
}
