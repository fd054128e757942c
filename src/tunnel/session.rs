//! A session: carries one connection after another through an encrypted connection between joiner and agent.
//!
//! Both ends are this one shell around `model/session_protocol.rs`; only what begins a connection differs. The joiner's
//! `carry` opens one for a local client, the agent's `serve` answers OPEN by dialling its target. Each end has two
//! threads, one for each direction:
//!
//! - The session's own thread (`incoming_frames.rs`) reads frames all the time, idle or not, so that the end of a session
//!   is noticed when it happens. It writes to the local socket. At the agent it also dials.
//! - The owner's thread, which is in `carry` or `serve`, reads the local socket. Nobody else writes frames, so no frame
//!   is ever written into another.
//!
//! What they share is in `shared_session.rs`.

use std::io;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use super::frames::FrameReader;
use super::frames::FrameWriter;
use super::incoming_frames::IncomingFrames;
use super::local_socket::abort;
use super::local_socket::poll_while_blocked;
use super::served::SessionRecord;
use super::shared_session::PONG_TIMEOUT;
use super::shared_session::SessionState;
use super::shared_session::SharedSession;
use super::traffic::CarriedBytes;
use super::traffic::TrafficCounters;
use crate::model::fingerprint::Fingerprint;
use crate::model::session_protocol::FrameKind;
use crate::model::session_protocol::LocalEnd;
use crate::model::session_protocol::SessionProtocol;
use crate::model::session_protocol::SessionRole;
use crate::model::target::Target;
use crate::net::stop::Registration;
use crate::net::stop::Stop;
use crate::net::threads;
use crate::os::lock::FOREVER;
use crate::os::lock::locked;
use crate::os::socket;
use crate::tls::TlsConnection;

/// A session whose other end was heard this recently is used without asking whether it is still alive.
pub const FRESH: Duration = Duration::from_secs(2);
/// After a reset, the other end has this long to end its direction; a session that does not is dropped.
const RESET_TIMEOUT: Duration = Duration::from_secs(2);
/// When the target is only checked, it has this long to answer our end of file with its own.
const CHECK_EOF_TIMEOUT: Duration = Duration::from_millis(300);
/// The joiner's client does not wait for OPENED, so it may wait this long for the target's first bytes to go with it.
const FIRST_BYTES_WAIT: Duration = Duration::from_millis(1);
/// Closing a session may take this long, if the other end does not read.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(200);

pub struct Session {
    /// The other end's certificate.
    pub peer: Option<Fingerprint>,
    /// Without the relay in between.
    pub is_direct: bool,
    writer: FrameWriter,
    shared: Arc<SharedSession>,
    reader: Option<JoinHandle<()>>,
    _closed_on_stop: Registration,
}

/// How a connection through a session went.
#[derive(Debug, PartialEq, Eq)]
pub enum ConnectionOutcome {
    /// Both directions have ended, and the session is idle again.
    Finished,
    /// The session is no longer usable. The connection has ended as broken.
    SessionLost,
    /// The session is no longer usable. None of the client's data was sent: the connection may be tried on another.
    NotStarted,
    /// The agent does not reach its target. The session is idle again.
    Refused(String),
}

/// What an agent's end of a session needs.
pub struct ServingEnd {
    /// What to dial for each connection.
    pub target: Target,
    /// `None` if there is no log.
    pub record: Option<SessionRecord>,
}

impl Session {
    /// With something to serve this is the agent's end, otherwise the joiner's.
    pub fn start(
        established: TlsConnection,
        serving: Option<ServingEnd>,
        traffic: Arc<TrafficCounters>,
        stop: &Stop,
    ) -> io::Result<Self> {
        let TlsConnection { reader, writer, socket, peer, .. } = established;
        let role = if serving.is_some() { SessionRole::Agent } else { SessionRole::Joiner };
        let (target, record) = serving.map(|end| (end.target, end.record)).unzip();
        let shared = Arc::new(SharedSession {
            state: Mutex::new(SessionState {
                protocol: SessionProtocol::new(role),
                local: None,
                refusal: None,
                addresses: None,
                heard: Instant::now(),
                connection: None,
            }),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            record: Mutex::new(record.flatten()),
            changed: Condvar::new(),
            socket: Arc::clone(&socket),
            traffic,
        });
        let closing = Arc::clone(&shared);
        let registration = stop.on_stop(move || closing.close()).ok_or(io::ErrorKind::Interrupted)?;
        let mut incoming = IncomingFrames {
            frames: FrameReader::new(reader, socket),
            shared: Arc::clone(&shared),
            target,
            stop: stop.clone(),
        };
        let thread = threads::spawn("session-read", move || {
            if let Err(ended) = incoming.receive_all() {
                log::debug!("a session ended: {ended}");
            }
            incoming.shared.close();
        });
        let thread = thread.map_err(io::Error::other)?;
        shared.traffic.sessions.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            peer,
            is_direct: false,
            writer: FrameWriter::new(writer),
            shared,
            reader: Some(thread),
            _closed_on_stop: registration,
        })
    }

    pub fn is_over(&self) -> bool {
        locked(&self.shared.state).protocol.is_over()
    }

    /// Joiner: what the agent has said of its addresses since the last call.
    pub fn take_addresses(&self) -> Option<Vec<SocketAddr>> {
        locked(&self.shared.state).addresses.take()
    }

    /// How long the other end has not been heard.
    pub fn silent_for(&self) -> Duration {
        locked(&self.shared.state).heard.elapsed()
    }

    /// Joiner: asks an idle session's agent whether it is alive. Returns when it was asked, for `answers`.
    pub fn ping(&mut self) -> Option<Instant> {
        let asked = Instant::now();
        self.writer.send(&[FrameKind::Ping]).is_ok().then_some(asked)
    }

    pub fn answers(&self, asked: Instant) -> bool {
        let left = (asked + PONG_TIMEOUT).saturating_duration_since(Instant::now());
        self.shared.wait(left, |state| state.heard >= asked)
    }

    /// Joiner: carries one local connection from its beginning to its end.
    pub fn carry(&mut self, local: &Arc<TcpStream>) -> ConnectionOutcome {
        poll_while_blocked(local);
        let sent = match self.open(Some(local)) {
            Ok(sent) => sent,
            Err(outcome) => return outcome,
        };
        self.shared.count_sent(sent);
        if self.send_all(local).and_then(|limit| self.wait_until_idle(limit)).is_err() {
            self.shared.close();
            abort(local);
            return ConnectionOutcome::SessionLost;
        }
        match self.shared.take_refusal() {
            Some(reason) => ConnectionOutcome::Refused(reason),
            None => ConnectionOutcome::Finished,
        }
    }

    /// Joiner: opens a connection and ends it at once, to see whether the agent reaches its target.
    pub fn check_target(&mut self, timeout: Duration) -> Result<(), ConnectionOutcome> {
        self.open(None)?;
        if !self.shared.wait(timeout, |state| state.protocol.is_answered()) {
            return Err(ConnectionOutcome::SessionLost);
        }
        let refusal = self.shared.take_refusal();
        self.end_check().map_err(|_| ConnectionOutcome::SessionLost)?;
        refusal.map_or(Ok(()), |reason| Err(ConnectionOutcome::Refused(reason)))
    }

    /// Agent: tells the joiner where it can come without the relay.
    pub fn say_addresses(&mut self, addresses: &str) -> io::Result<()> {
        self.writer.say(FrameKind::Addresses, addresses)
    }

    /// Agent: answers what the joiner asks, until the session is over or has been idle and silent for `idle_timeout`.
    /// Returns what has crossed the connection.
    pub fn serve(mut self, idle_timeout: Duration, ends_when_idle: impl Fn() -> bool) -> CarriedBytes {
        if let Err(error) = self.send_answers(idle_timeout, &ends_when_idle) {
            log::debug!("a session cannot be written to: {error}");
            self.shared.close();
        }
        self.finish();
        self.writer.record_bytes()
    }

    /// Ends it in order, and waits for its other thread. A second call has nothing left to do.
    fn finish(&mut self) {
        if !self.is_over() {
            let _ = self.shared.socket.set_write_timeout(Some(CLOSE_TIMEOUT));
            self.writer.close_notify();
        }
        self.shared.close();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }

    /// An idle joiner pings, so `ends_when_idle` is asked every few seconds.
    fn send_answers(&mut self, idle_timeout: Duration, ends_when_idle: &dyn Fn() -> bool) -> io::Result<()> {
        loop {
            if ends_when_idle() && self.shared.is_left(Duration::ZERO) {
                return Ok(());
            }
            match self.shared.wait_for_frame(idle_timeout, |_| false) {
                None if self.shared.is_left(idle_timeout) => return Ok(()),
                None => {}
                Some(FrameKind::Opened) => {
                    let Some(target) = locked(&self.shared.state).local.clone() else { continue };
                    let _ = socket::wait_for_data(&target, &target, FIRST_BYTES_WAIT);
                    let sent = self.writer.begin(FrameKind::Opened, &target)?;
                    self.shared.count_sent(sent);
                    self.send_all(&target)?;
                }
                Some(FrameKind::Refused) => {
                    let reason = self.shared.take_refusal().unwrap_or_default();
                    self.writer.say(FrameKind::Refused, &reason)?;
                }
                Some(kind) => self.writer.send(&[kind])?,
            }
        }
    }

    /// Sends OPEN, with the client's first data if there is some. Returns the length of that data. If the other end has
    /// been silent for a while, PING goes first and the data waits for the answer.
    fn open(&mut self, local: Option<&Arc<TcpStream>>) -> Result<usize, ConnectionOutcome> {
        let is_fresh = {
            let mut state = locked(&self.shared.state);
            if !state.protocol.open() {
                return Err(ConnectionOutcome::NotStarted);
            }
            state.local = local.cloned();
            state.heard.elapsed() < FRESH
        };
        let asked = Instant::now();
        let sent = match local {
            Some(local) if is_fresh => self.writer.begin(FrameKind::Open, local),
            None if is_fresh => self.writer.send(&[FrameKind::Open]).map(|()| 0),
            _ => self.writer.send(&[FrameKind::Ping, FrameKind::Open]).map(|()| 0),
        };
        match sent {
            Ok(sent) if is_fresh || self.shared.answers_or_ends(asked) => Ok(sent),
            _ => {
                // Another session may carry the client: it must not be aborted.
                locked(&self.shared.state).local = None;
                self.shared.close();
                Err(ConnectionOutcome::NotStarted)
            }
        }
    }

    /// Sends what `local` brings, then its end. Returns how long the other end may take to end its own direction: a
    /// half-closed connection has all the time it needs, a broken one has not.
    fn send_all(&mut self, local: &TcpStream) -> io::Result<Duration> {
        let shared = Arc::clone(&self.shared);
        let end = self.writer.copy_from(local, |count| shared.count_sent(count))?;
        self.end_direction(end)
    }

    /// Ends the connection of `check_target`. After REFUSED the state machine makes a RESET of the EOF.
    fn end_check(&mut self) -> io::Result<()> {
        self.end_direction(LocalEnd::Eof)?;
        if !self.shared.wait(CHECK_EOF_TIMEOUT, |state| state.protocol.is_idle()) {
            self.shared.local_failed()?;
        }
        self.wait_until_idle(RESET_TIMEOUT)
    }

    fn end_direction(&mut self, end: LocalEnd) -> io::Result<Duration> {
        let (frame, local) = self.shared.update(|state| state.protocol.local_ended(end));
        let is_broken = frame == Some(FrameKind::Reset);
        if is_broken && let Some(local) = local {
            abort(&local);
        }
        self.writer.shrink();
        self.writer.send(frame.as_slice())?;
        Ok(if is_broken { RESET_TIMEOUT } else { FOREVER })
    }

    /// Joiner: waits until the agent's direction has ended, and sends a RESET if the connection breaks meanwhile.
    fn wait_until_idle(&mut self, limit: Duration) -> io::Result<()> {
        let mut limit = limit;
        while let Some(kind) = self.shared.wait_for_frame(limit, SessionProtocol::is_idle) {
            self.writer.send(&[kind])?;
            limit = RESET_TIMEOUT;
        }
        let state = locked(&self.shared.state);
        let is_idle = state.protocol.is_idle() && !state.protocol.is_over();
        if is_idle { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.finish();
        self.shared.traffic.sessions.fetch_sub(1, Ordering::Relaxed);
        // What it writes when it is dropped is the session's end.
        let record = locked(&self.shared.record).take();
        if let Some(mut record) = record {
            record.outcome = if record.outcome == "cut" { "cut" } else { "ok" };
            record.bytes = self.writer.record_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::connect::NETWORK_TIMEOUT;
    use crate::net::duplex::Duplex;
    use crate::tls;
    use crate::tls::identity::Identity;
    use crate::tls::trust;
    use std::net::TcpListener;
    use std::thread;

    /// The joiner's and the agent's end of one session. Nothing listens at the agent's target.
    fn session() -> (Session, Session) {
        let identity = Identity::parse(Identity::generate(None).unwrap().as_bytes()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = Arc::new(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let far = Arc::new(listener.accept().unwrap().0);
        let deadline = Instant::now() + NETWORK_TIMEOUT;
        let config = trust::session_server(&identity).unwrap();
        let serving = thread::spawn(move || {
            tls::server(&config, Duplex::plain(far), deadline, tls::BUFFER_BUSY).unwrap()
        });
        let config = trust::session_client(&identity, identity.fingerprint).unwrap();
        let joiner = tls::client(&config, "any.agent", Duplex::plain(near), deadline).unwrap();
        let start = |end, target| Session::start(end, target, Arc::default(), &Stop::new()).unwrap();
        let target = Target::parse("127.0.0.1:1").unwrap();
        let serving_end = Some(ServingEnd { target, record: None });
        (start(joiner, None), start(serving.join().unwrap(), serving_end))
    }

    #[test]
    fn an_agent_ends_a_session_that_is_idle_and_silent_but_none_that_is_pinged() {
        const IDLE: Duration = Duration::from_millis(400);
        let (mut joiner, agent) = session();
        let began = Instant::now();
        let serving = thread::spawn(move || agent.serve(IDLE, || false));
        while began.elapsed() < 3 * IDLE {
            let asked = joiner.ping().unwrap();
            assert!(joiner.answers(asked));
            thread::sleep(IDLE / 8);
        }
        assert!(!joiner.is_over());
        serving.join().unwrap();
        assert!(joiner.shared.wait(FOREVER, |_| false) || joiner.is_over());
        assert!(began.elapsed() >= 3 * IDLE + IDLE / 2, "{:?}", began.elapsed());
    }

    #[test]
    fn a_joiner_breaks_off_before_it_shows_itself_to_another_agent() {
        let identity = Identity::parse(Identity::generate(None).unwrap().as_bytes()).unwrap();
        let other = Identity::parse(Identity::generate(None).unwrap().as_bytes()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = Arc::new(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let far = Arc::new(listener.accept().unwrap().0);
        let deadline = Instant::now() + NETWORK_TIMEOUT;
        let config = trust::session_server(&other).unwrap();
        let serving =
            thread::spawn(move || tls::server(&config, Duplex::plain(far), deadline, tls::BUFFER_BUSY));
        let config = trust::session_client(&identity, identity.fingerprint).unwrap();
        assert!(tls::client(&config, "any.agent", Duplex::plain(near), deadline).is_err());
        let error = serving.join().unwrap().err().unwrap().to_string();
        assert!(error.contains("alert"), "{error}");
    }
}
