//! The joiner's side: a loopback listener whose connections go to one service.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use super::frames::break_off;
use super::frames::look_up;
use super::pool::Opener;
use super::pool::Pool;
use super::pool::SESSIONS;
use super::session::Carried;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::model::backoff::Backoff;
use crate::net::connect::DEADLINE;
use crate::net::serve::Bound;
use crate::net::serve::ServeOptions;
use crate::net::serve::Server;
use crate::net::serve::each;
use crate::net::stop::Stop;
use crate::net::threads::ThreadGroup;
use crate::os::lock::locked;
use crate::os::secret;
use crate::os::socket;
use crate::os::user;

/// How long a new connection may wait for a hub or agent that is just coming back.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often the standing sessions are looked after.
const TEND: Duration = Duration::from_secs(1);

/// What its owner is told, once for each change.
#[derive(Debug)]
pub enum Event {
    /// The service answers: at first, or again.
    Up,
    Down(Error),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Up,
    Down(ErrorKind),
}

pub type Report = Box<dyn Fn(Event) + Send + Sync>;

/// Who may connect to a tunnel's port.
pub type Admit = fn(&TcpStream) -> bool;

pub fn everyone(_: &TcpStream) -> bool {
    true
}

/// Only the user who runs this process.
pub fn same_user(local: &TcpStream) -> bool {
    let ends = local.local_addr().and_then(|own| Ok((own, local.peer_addr()?)));
    ends.is_ok_and(|(own, peer)| socket::peer_uid(own, peer) == Some(user::uid()))
}

pub struct Tunnel {
    /// 0 until it listens.
    pub port: u16,
    admit: Admit,
    shared: Arc<Shared>,
    stop: Stop,
    servers: Vec<Server>,
    threads: ThreadGroup,
}

struct Shared {
    pool: Arc<Pool>,
    stop: Stop,
    report: Report,
    /// What the owner was last told.
    told: Mutex<Told>,
    wake: Stop,
}

impl Tunnel {
    /// Listens at once; whether the service answers is seen when somebody connects.
    pub fn start(bound: Bound, opener: Opener, admit: Admit, report: Report, stop: &Stop) -> Result<Self> {
        let mut tunnel = Self::new(opener, admit, report, stop)?;
        tunnel.listen(bound)?;
        Ok(tunnel)
    }

    /// Does not listen yet: whether the service answers is proved by `prove`, or in the background. A port
    /// that were taken before could be the very one that the service has yet to take, on a machine that is
    /// agent and joiner both; the tunnel would lead into itself.
    pub fn new(opener: Opener, admit: Admit, report: Report, stop: &Stop) -> Result<Self> {
        let stop = stop.child();
        let pool = Arc::new(Pool::new(opener, stop.clone()));
        let shared = Arc::new(Shared {
            pool,
            stop: stop.clone(),
            report,
            told: Mutex::new(Told::Nothing),
            wake: Stop::new(),
        });
        let own = Arc::clone(&shared);
        let (servers, threads) = (Vec::new(), ThreadGroup::default());
        threads.spawn("tunnel-keeper", move || own.keep())?;
        Ok(Self { port: 0, admit, shared, stop, servers, threads })
    }

    pub fn listen(&mut self, bound: Bound) -> Result<()> {
        let (port, admit) = (bound.port, self.admit);
        let servers = bound.listeners.into_iter().map(|listener| {
            let own = Arc::clone(&self.shared);
            let service = ServeOptions {
                name: "tunnel",
                limit: SESSIONS,
                new_worker: each(
                    move |local, _| if admit(&local) { own.carry(&local) } else { break_off(&local) },
                ),
                idle: None,
                cut: break_off,
                turn_away: break_off,
            };
            Server::start(listener, service, &self.stop)
        });
        self.servers = servers.collect::<Result<_>>()?;
        self.port = port;
        Ok(())
    }

    /// Opens the first session and has the agent reach its target. An error leaves the tunnel trying in the
    /// background.
    pub fn prove(&self, patience: Duration) -> Result<Duration> {
        let began = Instant::now();
        let proved = self.shared.prove(patience);
        *locked(&self.shared.told) =
            proved.as_ref().map_or_else(|error| Told::Down(error.kind), |()| Told::Up);
        proved.map(|()| began.elapsed())
    }

    /// From here on the background tells of changes: until now only its owner did.
    pub fn watch(&self) {
        self.shared.wake.stop();
    }

    pub fn bytes(&self) -> u64 {
        self.shared.pool.bytes.load(Ordering::Relaxed)
    }

    pub fn sessions(&self) -> usize {
        self.shared.pool.total()
    }

    pub fn is_up(&self) -> bool {
        *locked(&self.shared.told) == Told::Up
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop.stop();
        self.shared.wake.stop();
        self.servers.clear();
        self.threads.join(|| ());
        self.shared.pool.drain();
    }
}

impl Shared {
    /// One local connection, from accept to close.
    fn carry(&self, local: &Arc<TcpStream>) {
        look_up(local);
        let deadline = Instant::now() + PATIENCE;
        let mut backoff = Backoff::default();
        loop {
            let mut session = match self.pool.take(Instant::now() + DEADLINE) {
                Ok(session) => session,
                Err(error) => {
                    let wait = backoff.next(secret::number());
                    if error.may_pass() && Instant::now() + wait < deadline && !self.stop.wait_for(wait) {
                        continue;
                    }
                    log::debug!("a connection is reset: {error}");
                    self.tell(Event::Down(error));
                    return break_off(local);
                }
            };
            match session.carry(local) {
                Carried::Clean => return self.pool.give_back(session),
                Carried::Refused(reason) => {
                    self.tell(Event::Down(refusal(&reason)));
                    return self.pool.give_back(session);
                }
                Carried::Spoiled => return self.pool.lost(),
                Carried::Untouched => {
                    self.pool.lost_to_silence();
                    drop(session);
                    if Instant::now() >= deadline {
                        return break_off(local);
                    }
                }
            }
        }
    }

    fn prove(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        let mut session = self.pool.take(deadline)?;
        match session.prove(deadline.saturating_duration_since(Instant::now())) {
            Ok(()) => {
                self.pool.give_back(session);
                Ok(())
            }
            Err(Carried::Refused(reason)) => {
                self.pool.give_back(session);
                Err(refusal(&reason))
            }
            Err(_) => {
                self.pool.lost();
                Err(Error::new("The session ended before the service answered").kind(ErrorKind::Unreachable))
            }
        }
    }

    /// Keeps one session standing while the tunnel lives, and tells when the service goes and comes.
    fn keep(&self) {
        self.wake.wait();
        let mut backoff = Backoff::default();
        let mut wait = TEND;
        while !self.stop.wait_for(wait) {
            wait = TEND;
            self.pool.tend();
            if self.pool.total() > 0 && *locked(&self.told) == Told::Up {
                continue;
            }
            match self.prove(DEADLINE) {
                Ok(()) => {
                    backoff.reset();
                    self.tell(Event::Up);
                }
                Err(error) => {
                    wait = backoff.next(secret::number());
                    self.tell(Event::Down(error));
                }
            }
        }
    }

    /// Once for each change, and not at all before the owner wants to hear it.
    fn tell(&self, event: Event) {
        if !self.wake.is_stopped() || self.stop.is_stopped() {
            return;
        }
        let now = match &event {
            Event::Up => Told::Up,
            Event::Down(error) => Told::Down(error.kind),
        };
        let before = std::mem::replace(&mut *locked(&self.told), now);
        if before != now {
            (self.report)(event);
        }
    }
}

fn refusal(reason: &str) -> Error {
    Error::new(format!("{} beside its agent", reason.escape_debug()))
        .hint("Start the service there; it needs nothing else")
        .kind(ErrorKind::Unreachable)
}
