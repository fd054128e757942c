//! The joiner's side: a loopback listener whose connections go to one service.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use super::local_socket::abort;
use super::pool::Pool;
use super::pool::TUNNEL_SESSION_LIMIT;
use super::session::ConnectionOutcome;
use super::session_opener::SessionOpener;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::model::backoff::Backoff;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::serve::BoundPort;
use crate::net::serve::ServeOptions;
use crate::net::serve::Server;
use crate::net::serve::each;
use crate::net::stop::Stop;
use crate::net::threads::ThreadGroup;
use crate::os::lock::locked;
use crate::os::secret;

/// A new connection is retried for this long, in case the hub or the agent is just coming back.
const COMEBACK_TIMEOUT: Duration = Duration::from_secs(3);
/// How often the idle sessions are checked, and the service if it is down.
const POOL_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Reported to the tunnel's owner, once for each change.
#[derive(Debug)]
pub enum JoinerEvent {
    /// The service answers, for the first time or again.
    Up,
    Down(Error),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReportedState {
    Nothing,
    Up,
    Down(ErrorKind),
}

pub type OnJoinerEvent = Box<dyn Fn(JoinerEvent) + Send + Sync>;

/// Who may connect to a tunnel's port: see `os::peer_user`, too.
pub type PeerCheck = fn(&TcpStream) -> bool;

pub fn any_user(_: &TcpStream) -> bool {
    true
}

pub struct Tunnel {
    /// 0 until it listens.
    pub port: u16,
    peer_check: PeerCheck,
    inner: Arc<TunnelInner>,
    stop: Stop,
    servers: Vec<Server>,
    threads: ThreadGroup,
}

struct TunnelInner {
    pool: Pool,
    stop: Stop,
    on_event: OnJoinerEvent,
    /// The last state that the owner knows.
    reported: Mutex<ReportedState>,
    /// Signalled when the owner wants events. Until then the maintenance thread waits.
    watched: Stop,
}

impl Tunnel {
    /// A tunnel that does not listen yet. First `check_target` or the maintenance thread sees whether the service
    /// answers. On a machine that is both agent and joiner, a port taken earlier could be the one that the service is
    /// about to take, and the tunnel would lead into itself.
    pub fn new(
        opener: SessionOpener,
        peer_check: PeerCheck,
        on_event: OnJoinerEvent,
        stop: &Stop,
    ) -> Result<Self> {
        let stop = stop.child();
        let inner = Arc::new(TunnelInner {
            pool: Pool::new(opener, stop.clone()),
            stop: stop.clone(),
            on_event,
            reported: Mutex::new(ReportedState::Nothing),
            watched: Stop::new(),
        });
        let own = Arc::clone(&inner);
        let threads = ThreadGroup::default();
        threads.spawn("tunnel-maintain", move || own.maintain())?;
        Ok(Self { port: 0, peer_check, inner, stop, servers: Vec::new(), threads })
    }

    pub fn listen(&mut self, bound: BoundPort) -> Result<()> {
        let port = bound.port;
        let peer_check = self.peer_check;
        let servers = bound.listeners.into_iter().map(|listener| {
            let own = Arc::clone(&self.inner);
            let service = ServeOptions {
                name: "tunnel",
                limit: TUNNEL_SESSION_LIMIT,
                new_worker: each(
                    move |local| if peer_check(&local) { own.carry(&local) } else { abort(&local) },
                ),
                idle: None,
                cut: abort,
                make_room: None,
                turn_away: Box::new(abort),
            };
            Server::start(listener, service, &self.stop)
        });
        self.servers = servers.collect::<Result<_>>()?;
        self.port = port;
        Ok(())
    }

    /// Opens the first session and has the agent reach its target. Returns how long that took. After an error the
    /// maintenance thread keeps trying.
    pub fn check_target(&self, timeout: Duration) -> Result<Duration> {
        let began = Instant::now();
        let checked = self.inner.check_target(timeout);
        if checked.is_ok() {
            self.inner.pool.try_direct();
        }
        *locked(&self.inner.reported) =
            checked.as_ref().map_or_else(|error| ReportedState::Down(error.kind), |()| ReportedState::Up);
        checked.map(|()| began.elapsed())
    }

    /// Starts the maintenance thread's work. From now on it reports changes; until now the owner saw to that.
    pub fn report_changes(&self) {
        self.inner.watched.stop();
    }

    pub fn bytes(&self) -> u64 {
        self.inner.pool.traffic.bytes.load(Ordering::Relaxed)
    }

    /// `relay`, or `direct` and the agent's address.
    pub fn path(&self) -> String {
        self.inner.pool.path()
    }

    pub fn sessions(&self) -> usize {
        self.inner.pool.total()
    }

    pub fn negotiated(&self) -> Option<&String> {
        self.inner.pool.traffic.negotiated.get()
    }

    pub fn is_up(&self) -> bool {
        *locked(&self.inner.reported) == ReportedState::Up
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop.stop();
        self.inner.watched.stop();
        self.servers.clear();
        self.threads.join(|| ());
        // No other thread holds `inner` any more: the pool and its idle sessions are dropped with it.
    }
}

impl TunnelInner {
    /// One local connection, from accept to close.
    fn carry(&self, local: &Arc<TcpStream>) {
        let (began, from) = (Instant::now(), local.peer_addr());
        let deadline = began + COMEBACK_TIMEOUT;
        let mut backoff = Backoff::default();
        loop {
            let mut session = match self.pool.take(Instant::now() + NETWORK_TIMEOUT) {
                Ok(session) => session,
                Err(error) => {
                    let wait = backoff.next(secret::number());
                    if error.may_pass() && Instant::now() + wait < deadline && !self.stop.wait_for(wait) {
                        continue;
                    }
                    log::debug!("a connection is reset: {error}");
                    self.report(JoinerEvent::Down(error));
                    return abort(local);
                }
            };
            match session.carry(local) {
                ConnectionOutcome::Finished => {
                    if let Ok(from) = from {
                        let took = began.elapsed().as_millis();
                        log::debug!("carried a connection from {from} for {took} ms");
                    }
                    self.pool.give_back(session);
                    return self.pool.try_direct();
                }
                ConnectionOutcome::Refused(reason) => {
                    self.report(JoinerEvent::Down(refusal(&reason)));
                    return self.pool.give_back(session);
                }
                ConnectionOutcome::SessionLost => return self.pool.lost(session),
                ConnectionOutcome::NotStarted => {
                    self.pool.lost_to_silence(session);
                    if Instant::now() >= deadline {
                        return abort(local);
                    }
                }
            }
        }
    }

    fn check_target(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let mut session = self.pool.take(deadline)?;
        match session.check_target(deadline.saturating_duration_since(Instant::now())) {
            Ok(()) => {
                self.pool.give_back(session);
                Ok(())
            }
            Err(ConnectionOutcome::Refused(reason)) => {
                self.pool.give_back(session);
                Err(refusal(&reason))
            }
            Err(_) => {
                self.pool.lost(session);
                let error = if Instant::now() < deadline {
                    Error::new("The session ended before the service answered")
                } else {
                    Error::new("The agent has not reached the service in time")
                        .hint("Look on its machine: the service may hang, or a firewall between the two drops packets")
                };
                Err(error.kind(ErrorKind::Unreachable))
            }
        }
    }

    /// The maintenance thread: keeps one session open while the tunnel lives, checks the idle ones, and reports when the
    /// service goes down and comes back.
    fn maintain(&self) {
        self.watched.wait();
        let mut backoff = Backoff::default();
        let mut wait = POOL_CHECK_INTERVAL;
        while !self.stop.wait_for(wait) {
            wait = POOL_CHECK_INTERVAL;
            self.pool.check_idle();
            self.pool.try_direct();
            if self.pool.total() > 0 && *locked(&self.reported) == ReportedState::Up {
                continue;
            }
            match self.check_target(NETWORK_TIMEOUT) {
                Ok(()) => {
                    backoff.reset();
                    self.report(JoinerEvent::Up);
                }
                Err(error) => {
                    wait = backoff.next(secret::number());
                    self.report(JoinerEvent::Down(error));
                }
            }
        }
    }

    /// Reports each change once, and nothing before the owner asked for events.
    fn report(&self, event: JoinerEvent) {
        if !self.watched.is_stopped() || self.stop.is_stopped() {
            return;
        }
        let now = match &event {
            JoinerEvent::Up => ReportedState::Up,
            JoinerEvent::Down(error) => ReportedState::Down(error.kind),
        };
        let before = std::mem::replace(&mut *locked(&self.reported), now);
        if before != now {
            (self.on_event)(event);
        }
    }
}

fn refusal(reason: &str) -> Error {
    Error::new(format!("{} on the agent's machine", reason.escape_debug()))
        .hint("Start the service there; it needs nothing else")
        .kind(ErrorKind::Unreachable)
}
