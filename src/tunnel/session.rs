//! A session: carries one connection after another through an encrypted connection between joiner and agent.
//!
//! Both ends are this one shell around `model/session_protocol.rs`; only what begins a connection differs. The joiner's
//! `carry` opens one for a local client, the agent's `serve` answers OPEN by dialling its target. Each end has two
//! threads, one for each direction:
//!
//! - The session's own thread reads frames all the time, idle or not, so that the end of a session is noticed when it
//!   happens. It writes to the local socket. At the agent it also dials.
//! - The owner's thread, which is in `carry` or `serve`, reads the local socket. Nobody else writes frames, so no frame
//!   is ever written into another.
//!
//! They share the state machine and the local socket under a mutex, which never covers I/O: an event goes in, an action
//! comes out, and the thread that caused it acts after the mutex is released.

use std::io;
use std::net::Shutdown;
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
use super::local_socket::abort;
use super::local_socket::poll_while_blocked;
use super::served::Beginning;
use super::served::SessionRecord;
use super::traffic::CarriedBytes;
use super::traffic::TrafficCounters;
use crate::model::fingerprint::Fingerprint;
use crate::model::session_protocol::FrameKind;
use crate::model::session_protocol::LocalEnd;
use crate::model::session_protocol::OutOfTurn;
use crate::model::session_protocol::SessionAction;
use crate::model::session_protocol::SessionProtocol;
use crate::model::session_protocol::SessionRole;
use crate::model::target::Target;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::connect::dial;
use crate::net::stop::Registration;
use crate::net::stop::Stop;
use crate::net::threads;
use crate::os::lock::FOREVER;
use crate::os::lock::locked;
use crate::os::lock::wait_while;
use crate::os::socket;
use crate::tls::TlsConnection;
use crate::wire::frame::FrameHeader;
use crate::wire::frame::parse_addresses;

/// A session whose other end was heard this recently is used without asking whether it is still alive.
pub const FRESH: Duration = Duration::from_secs(2);
/// PING is answered within this, or the session is dead.
const PONG_TIMEOUT: Duration = Duration::from_millis(1500);
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

/// What the two threads share.
struct SharedSession {
    state: Mutex<SessionState>,
    changed: Condvar,
    /// Below the session's TLS.
    socket: Arc<TcpStream>,
    traffic: Arc<TrafficCounters>,
    sent: AtomicU64,
    received: AtomicU64,
    /// Agent: dropped when the session is over.
    record: Mutex<Option<SessionRecord>>,
}

struct SessionState {
    protocol: SessionProtocol,
    /// The connection being carried. A joiner that only checks the target has none.
    local: Option<Arc<TcpStream>>,
    /// The reason in REFUSED, received or about to be sent.
    refusal: Option<String>,
    /// Joiner: where the agent can be reached without the relay, if it has said so.
    addresses: Option<Vec<SocketAddr>>,
    /// When the last frame other than DATA arrived.
    heard: Instant,
    /// Agent: the connection whose end is to be recorded.
    connection: Option<CarriedConnection>,
}

struct CarriedConnection {
    begun: Beginning,
    /// What the session had carried before it.
    before: CarriedBytes,
    is_refused: bool,
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
            let ended = incoming.receive_all();
            log::debug!("a session ended: {ended:?}");
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

impl SharedSession {
    /// Tells the state machine of an event, and wakes the other thread. Returns the result together with the local
    /// connection, of which the state keeps nothing once the session is idle.
    fn update<T>(&self, event: impl FnOnce(&mut SessionState) -> T) -> (T, Option<Arc<TcpStream>>) {
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
    fn apply(
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
    fn close(&self) {
        let _ = self.apply(|state| Ok(state.protocol.end()));
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    fn local_failed(&self) -> io::Result<()> {
        self.apply(|state| Ok(state.protocol.local_failed())).map(drop)
    }

    fn count_sent(&self, bytes: usize) {
        self.traffic.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn count_received(&self, bytes: usize) {
        self.traffic.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes of all connections so far.
    fn carried(&self) -> CarriedBytes {
        let [to_agent, to_joiner] = [&self.received, &self.sent].map(|bytes| bytes.load(Ordering::Relaxed));
        CarriedBytes { to_agent, to_joiner }
    }

    /// Agent: a connection has ended, by itself or with its session.
    fn record_end(&self, connection: &CarriedConnection, is_cut: bool) {
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

    fn take_refusal(&self) -> Option<String> {
        locked(&self.state).refusal.take()
    }

    /// False if it did not come in time, or the session is over.
    fn wait(&self, limit: Duration, wanted: impl Fn(&SessionState) -> bool) -> bool {
        let waiting = |state: &mut SessionState| !state.protocol.is_over() && !wanted(state);
        let state = wait_while(&self.changed, locked(&self.state), limit, waiting);
        !state.protocol.is_over() && wanted(&state)
    }

    /// Waits for any frame. If none comes, the session is over from that very moment, so that a late answer cannot reach
    /// the client.
    fn answers_or_ends(&self, asked: Instant) -> bool {
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
    fn is_left(&self, idle_timeout: Duration) -> bool {
        let state = locked(&self.state);
        state.protocol.is_over() || (state.protocol.is_idle() && state.heard.elapsed() >= idle_timeout)
    }

    /// Waits for a frame that is due. `None` if `until` holds, the session is over, or the time is up.
    fn wait_for_frame(&self, limit: Duration, until: impl Fn(&SessionProtocol) -> bool) -> Option<FrameKind> {
        let mut due = None;
        let state = wait_while(&self.changed, locked(&self.state), limit, |state| {
            due = state.protocol.next_frame();
            due.is_none() && !until(&state.protocol) && !state.protocol.is_over()
        });
        drop(state);
        due
    }
}

/// The half of a session that reads.
struct IncomingFrames {
    frames: FrameReader,
    shared: Arc<SharedSession>,
    /// Agent: what to dial for each connection.
    target: Option<Target>,
    stop: Stop,
}

impl IncomingFrames {
    /// Ends with the session.
    fn receive_all(&mut self) -> io::Result<()> {
        loop {
            let header = self.frames.next_header()?;
            match header.kind {
                FrameKind::Data => self.receive_data(header.length)?,
                _ => self.receive(header)?,
            }
        }
    }

    fn receive_data(&mut self, length: usize) -> io::Result<()> {
        let (action, local) = {
            let mut state = locked(&self.shared.state);
            (state.protocol.received(FrameKind::Data).map_err(out_of_turn)?, state.local.clone())
        };
        let local = local.filter(|_| action == SessionAction::Deliver);
        if self.frames.data_into(length, local.as_deref())?.is_err() {
            // The owner's thread wakes and sends a RESET, while this one reads on and drops the rest.
            self.shared.local_failed()?;
        } else if local.is_some() {
            self.shared.count_received(length);
        }
        Ok(())
    }

    fn receive(&mut self, header: FrameHeader) -> io::Result<()> {
        let text = match header.kind {
            FrameKind::Refused | FrameKind::Addresses => self.frames.text(header.length)?,
            _ => String::new(),
        };
        let action = self.shared.apply(|state| {
            state.heard = Instant::now();
            let action = state.protocol.received(header.kind)?;
            match header.kind {
                FrameKind::Refused => state.refusal = Some(text),
                FrameKind::Addresses => state.addresses = Some(parse_addresses(&text)),
                _ => {}
            }
            Ok(action)
        })?;
        if action == SessionAction::DialTarget {
            self.dial_target();
        }
        if header.kind == FrameKind::Eof {
            self.frames.shrink();
        }
        Ok(())
    }

    fn dial_target(&self) {
        let Some(target) = &self.target else { return };
        let before = self.shared.carried();
        let connection = CarriedConnection { begun: Beginning::now(), before, is_refused: false };
        // The one before has ended with a frame that this end has sent.
        let ended = locked(&self.shared.state).connection.replace(connection);
        if let Some(ended) = ended {
            self.shared.record_end(&ended, false);
        }
        let local = dial(&target.host, target.port, Instant::now() + NETWORK_TIMEOUT, &self.stop).ok();
        if let Some(local) = &local {
            poll_while_blocked(local);
        }
        self.shared.update(|state| {
            state.protocol.dialled(local.is_some());
            state.connection.iter_mut().for_each(|connection| connection.is_refused = local.is_none());
            state.refusal = local.is_none().then(|| format!("Nothing is listening at {target}"));
            state.local = local;
        });
    }
}

fn out_of_turn(bad: OutOfTurn) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{:?} out of turn", bad.0))
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let config =
            trust::session_client(&identity, Arc::new(Mutex::new(Some(identity.fingerprint)))).unwrap();
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
        let expected = Arc::new(Mutex::new(Some(identity.fingerprint)));
        let config = trust::session_client(&identity, expected).unwrap();
        assert!(tls::client(&config, "any.agent", Duplex::plain(near), deadline).is_err());
        let error = serving.join().unwrap().err().unwrap().to_string();
        assert!(error.contains("alert"), "{error}");
    }
}
