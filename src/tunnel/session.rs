//! A session from the joiner's end: stands ready, carries one connection after another.
//!
//! Two threads meet here. The thread that accepted a local connection writes: OPEN, the client's data,
//! EOF or RESET. The session's own thread reads all the time, idle or not, so that the end of a session
//! is noticed when it happens. What they must tell each other stands in the `Lane`.

use std::io;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use super::frames::CopyEnd;
use super::frames::FrameReader;
use super::frames::FrameWriter;
use super::frames::abort;
use super::lane::ANSWER;
use super::lane::Lane;
use super::lane::Phase;
use super::lane::State;
use crate::net::stop::Registration;
use crate::net::stop::Stop;
use crate::net::threads;
use crate::tls::TlsConnection;
use crate::wire::frame::FrameKind;

/// A session heard from this recently needs no question whether it is still there.
pub const FRESH: Duration = Duration::from_secs(2);
/// After a reset, the other end has this long to end its direction; a session that does not is dropped.
const CLEAN_UP: Duration = Duration::from_secs(2);
/// After the proof that a target answers, it has this long to take our end of file.
const PROOF_END: Duration = Duration::from_millis(300);

pub struct Session {
    writer: FrameWriter,
    lane: Arc<Lane>,
    thread: Option<JoinHandle<()>>,
    socket: Arc<TcpStream>,
    _attached: Option<Registration>,
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
    pub fn start(established: TlsConnection, bytes: Arc<AtomicU64>, stop: &Stop) -> io::Result<Self> {
        let TlsConnection { reader, writer, socket, .. } = established;
        let attached = stop.attach(&socket);
        if attached.is_none() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let lane = Arc::new(Lane::new(bytes));
        let (own, cut) = (Arc::clone(&lane), Arc::clone(&socket));
        let mut frames = FrameReader::new(reader, Arc::clone(&socket));
        let thread = threads::spawn("session-read", move || {
            let ended = own.read_all(&mut frames);
            log::debug!("a session ended: {ended:?}");
            own.die();
            let _ = cut.shutdown(Shutdown::Both);
        });
        let thread = thread.map_err(io::Error::other)?;
        Ok(Self { writer: FrameWriter::new(writer), lane, thread: Some(thread), socket, _attached: attached })
    }

    pub fn is_dead(&self) -> bool {
        self.lane.lock().dead
    }

    /// Since when the other end has not been heard.
    pub fn silent_for(&self) -> Duration {
        self.lane.lock().heard.elapsed()
    }

    /// Asks the agent whether it is there; only between connections. When it was asked, or nothing.
    pub fn ask(&mut self) -> Option<Instant> {
        let asked = Instant::now();
        self.writer.send(&[FrameKind::Ping]).is_ok().then_some(asked)
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
        let bytes = Arc::clone(&self.lane.bytes);
        bytes.fetch_add(begun as u64, Ordering::Relaxed);
        let copied = self.writer.copy_from(local, |count| {
            bytes.fetch_add(count as u64, Ordering::Relaxed);
        });
        let Ok(mut end) = copied else { return self.spoiled(local) };
        if self.lane.lock().broken {
            end = CopyEnd::Broken;
        }
        self.close(local, end)
    }

    /// Whether the agent reaches its target: opens a connection, and ends it at once.
    pub fn check_target(&mut self, patience: Duration) -> Result<(), Carried> {
        self.open(None)?;
        let answered = self.lane.wait(patience, |state| state.phase != Phase::Opening);
        if let Some(reason) = self.lane.take_refusal() {
            self.end_direction(FrameKind::Reset)?;
            return Err(Carried::Refused(reason));
        }
        if !answered {
            return Err(Carried::Spoiled);
        }
        self.end_direction(FrameKind::Eof)?;
        if !self.lane.wait(PROOF_END, State::is_ended) {
            self.end_direction(FrameKind::Reset)?;
        }
        self.settle(Some(CLEAN_UP)).map_err(|()| Carried::Spoiled)
    }

    pub fn shrink(&mut self) {
        self.writer.shrink();
    }

    fn end_direction(&mut self, how: FrameKind) -> Result<(), Carried> {
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
            (true, Some(local)) => self.writer.begin(FrameKind::Open, local),
            (true, None) => self.writer.send(&[FrameKind::Open]).map(|()| 0),
            (false, _) => self.writer.send(&[FrameKind::Ping, FrameKind::Open]).map(|()| 0),
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
        if self.writer.send(&[if broken { FrameKind::Reset } else { FrameKind::Eof }]).is_err() {
            return self.spoiled(local);
        }
        if broken {
            abort(local);
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
            self.writer.send(&[FrameKind::Reset]).map_err(|_| ())?;
            limit = Some(CLEAN_UP);
        }
    }

    fn spoiled(&mut self, local: &TcpStream) -> Carried {
        self.lane.abandon();
        abort(local);
        let _ = self.socket.shutdown(Shutdown::Both);
        Carried::Spoiled
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.is_dead() {
            let _ = self.socket.set_write_timeout(Some(Duration::from_millis(200)));
            self.writer.close_notify();
        }
        let _ = self.socket.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
