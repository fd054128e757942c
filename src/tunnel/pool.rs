//! The sessions of one tunnel: which are idle, and how another is opened.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use rustls::AlertDescription;
use rustls::ClientConfig;

use super::application;
use super::session::FRESH;
use super::session::Session;
use super::traffic::TrafficCounters;
use crate::api::Hub;
use crate::api::hub_client::understand;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::name::Name;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::stop::Stop;
use crate::net::threads::ThreadGroup;
use crate::os::lock::locked;
use crate::tls;
use crate::tls::identity::Identity;
use crate::tls::trust;
use crate::wire::api::AskSession;
use crate::wire::api::SessionGrant;

/// Sessions of one tunnel, busy and idle. Each costs two threads and two descriptors at this end.
pub const TUNNEL_SESSION_LIMIT: usize = 4096;
/// An idle session beyond the first is dropped after this long.
const IDLE_SESSION_TIMEOUT: Duration = Duration::from_mins(1);
/// A busy session is idle again a moment after its client has received the last byte, so a new connection waits this
/// long for one before another is opened.
const BUSY_SESSION_WAIT: Duration = Duration::from_millis(2);
/// A session that takes longer to open may never be ready, since its agent may be gone: no caller waits for it alone.
const SLOW_OPEN: Duration = Duration::from_secs(2);
/// An idle session that has received nothing for this long is pinged.
const PING_AFTER_SILENCE: Duration = Duration::from_secs(5);

/// Decides whether the agent that the hub names is the right one, before anything is sent to it.
pub type AgentCheck = Box<dyn Fn(&SessionGrant) -> Result<()> + Send + Sync>;

/// Opens sessions to one service.
pub struct SessionOpener {
    hub: Arc<Hub>,
    tls: Arc<ClientConfig>,
    ask: AskSession,
    /// The name that the service must have; `None` accepts the name that the hub gives.
    expected: Option<Name>,
    agent_check: AgentCheck,
}

impl SessionOpener {
    pub fn new(hub: Arc<Hub>, identity: &Identity, ask: AskSession, agent_check: AgentCheck) -> Result<Self> {
        Ok(Self { hub, tls: trust::session_client(identity)?, ask, expected: None, agent_check })
    }

    /// The agent must serve the service of this name, even if the hub names another.
    pub fn expected(self, name: &Name) -> Self {
        Self { expected: Some(name.clone()), ..self }
    }

    pub fn open(&self, traffic: &Arc<TrafficCounters>, stop: &Stop) -> Result<Session> {
        let deadline = Instant::now() + NETWORK_TIMEOUT;
        let (granted, at) = self.hub.ask_session(&self.ask)?;
        let whose = format!("the agent's machine, {}", granted.agent_label);
        understand("The agent", &whose, granted.agent_speaks)?;
        (self.agent_check)(&granted)?;
        let below = self.hub.relay(&at, &granted.relay, &granted.ticket, deadline)?;
        let _cut = stop.attach(&below.socket).ok_or_else(Error::stopped)?;
        let service = self.expected.as_ref().unwrap_or(&granted.name);
        let meant = application(granted.agent_fingerprint, service);
        let mut tls = ClientConfig::clone(&self.tls);
        tls.alpn_protocols = vec![meant.clone()];
        // rustls stores resumption data under this name. It proves nothing; the fingerprint below does.
        let name = format!("{}.agent", granted.agent_fingerprint.pin());
        let established = tls::client(&Arc::new(tls), &name, below, deadline).map_err(|error| {
            if is_another_service(&error) {
                return another_service(service);
            }
            Error::new(format!("The agent of {service} does not answer"))
                .because(error)
                .kind(ErrorKind::Unreachable)
        })?;
        if established.peer != Some(granted.agent_fingerprint) {
            return Err(Error::new(format!("Another agent answered for {service}"))
                .hint("Somebody may stand in between. Nothing was sent; ask the owner for a verified code"));
        }
        if established.application != Some(meant) {
            return Err(another_service(service));
        }
        Session::start(established, None, Arc::clone(traffic), stop).or_say(|| "Cannot start a session")
    }
}

/// The agent refused the handshake because it serves another service than the one named in it.
fn is_another_service(error: &io::Error) -> bool {
    let why = error.get_ref().and_then(|why| why.downcast_ref::<rustls::Error>());
    matches!(why, Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)))
}

fn another_service(wanted: &Name) -> Error {
    Error::new(format!("The hub connected us to a different service than {wanted}"))
        .hint("Nothing was sent to it. Ask whoever runs the hub")
}

pub struct Pool {
    opener: SessionOpener,
    pub traffic: Arc<TrafficCounters>,
    state: Mutex<PoolState>,
    changed: Condvar,
    stop: Stop,
    threads: ThreadGroup,
}

#[derive(Default)]
struct PoolState {
    /// Used last, taken first, so that the surplus of a burst grows old at the front.
    idle: VecDeque<(Session, Instant)>,
    /// Idle, busy and being opened.
    total: usize,
    /// When each that is being opened was begun, the oldest first.
    opening: Vec<Instant>,
    /// Callers that wait for a session. Each may have one opened, and takes the first that is ready.
    wanting: usize,
    /// Failed opens, each for one of the waiting callers.
    failures: Vec<Error>,
}

impl PoolState {
    /// When each open began that is not overdue (`SLOW_OPEN`).
    fn coming(&self) -> &[Instant] {
        let now = Instant::now();
        let slow = self.opening.partition_point(|begun| now.duration_since(*begun) >= SLOW_OPEN);
        &self.opening[slow..]
    }

    /// The session used last that is still good.
    fn idle_one(&mut self, leaving: &mut Vec<Session>) -> Option<Session> {
        loop {
            let (session, _) = self.idle.pop_back()?;
            if !session.is_over() {
                return Some(session);
            }
            self.total -= 1;
            leaving.push(session);
        }
    }
}

impl Pool {
    pub fn new(opener: SessionOpener, stop: Stop) -> Self {
        Self {
            opener,
            traffic: Arc::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
            stop,
            threads: ThreadGroup::default(),
        }
    }

    pub fn total(&self) -> usize {
        let state = locked(&self.state);
        state.total - state.opening.len()
    }

    /// An idle session, or a new one, or one that has become idle while the new one was being opened.
    pub fn take(self: &Arc<Self>, deadline: Instant) -> Result<Session> {
        let mut leaving = Vec::new();
        locked(&self.state).wanting += 1;
        let taken = self.wait_for_one(deadline, &mut leaving);
        let mut state = locked(&self.state);
        state.wanting -= 1;
        if state.wanting == 0 {
            state.failures.clear();
        }
        drop(state);
        taken
    }

    fn wait_for_one(self: &Arc<Self>, deadline: Instant, leaving: &mut Vec<Session>) -> Result<Session> {
        let moment = Instant::now() + BUSY_SESSION_WAIT;
        let mut state = locked(&self.state);
        loop {
            if self.stop.is_stopped() {
                return Err(Error::stopped());
            }
            if let Some(session) = state.idle_one(leaving) {
                return Ok(session);
            }
            if let Some(error) = state.failures.pop() {
                return Err(error);
            }
            let coming = state.coming();
            let may_open = coming.len() < state.wanting && state.total < TUNNEL_SESSION_LIMIT;
            let slow = coming.first().map_or(deadline, |begun| *begun + SLOW_OPEN);
            let none_is_busy = state.total == state.opening.len();
            if may_open && (none_is_busy || Instant::now() >= moment) {
                let now = Instant::now();
                state.opening.push(now);
                state.total += 1;
                drop(state);
                self.open_aside(now);
                state = locked(&self.state);
                continue;
            }
            let until = if may_open { moment } else { slow }.min(deadline);
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() && Instant::now() >= deadline {
                return Err(Error::new("The agent did not come in time")
                    .hint("Look at it on its machine: connect status")
                    .kind(ErrorKind::Unreachable));
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Opens a session in a thread of its own. The caller that takes it may be another one.
    fn open_aside(self: &Arc<Self>, begun: Instant) {
        let own = Arc::clone(self);
        let spawned = self.threads.spawn("session-open", move || {
            own.opened(begun, own.opener.open(&own.traffic, &own.stop));
        });
        if let Err(error) = spawned {
            self.opened(begun, Err(error));
        }
    }

    fn opened(&self, begun: Instant, opened: Result<Session>) {
        let mut state = locked(&self.state);
        if let Ok(at) = state.opening.binary_search(&begun) {
            state.opening.remove(at);
        }
        match opened {
            Ok(session) => {
                state.idle.push_back((session, Instant::now()));
            }
            Err(error) => {
                state.total -= 1;
                // A caller needs the error only if no other session is being opened for it.
                if state.wanting > state.coming().len() {
                    state.failures.push(error);
                }
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// The session is idle again. After a stop it is dropped, since `drain` may have run already.
    pub fn give_back(&self, session: Session) {
        let mut state = locked(&self.state);
        if session.is_over() || self.stop.is_stopped() {
            state.total -= 1;
            drop(state);
            return;
        }
        state.idle.push_back((session, Instant::now()));
        drop(state);
        self.changed.notify_one();
    }

    /// A session that was taken has broken. Whatever broke it is about to break the idle ones, too.
    pub fn lost(&self) {
        self.lost_with(|_| true);
    }

    /// A session that was taken did not answer. Idle ones that have been silent for as long are dead as well.
    pub fn lost_to_silence(&self) {
        self.lost_with(|session| session.silent_for() >= FRESH);
    }

    fn lost_with(&self, is_lost: impl Fn(&Session) -> bool) {
        let mut state = locked(&self.state);
        state.total -= 1;
        let (lost, kept) =
            std::mem::take(&mut state.idle).into_iter().partition(|(session, _)| is_lost(session));
        let lost: VecDeque<(Session, Instant)> = lost;
        (state.idle, state.total) = (kept, state.total - lost.len());
        drop(state);
        drop(lost);
        self.changed.notify_all();
    }

    /// Drops sessions that are dead or have been idle for long, but keeps one, and pings those that are silent.
    pub fn check_idle(&self) {
        let mut leaving = Vec::new();
        let mut doubtful = Vec::new();
        {
            let mut state = locked(&self.state);
            let mut kept = VecDeque::new();
            let mut standing = state.idle.len();
            while let Some((session, since)) = state.idle.pop_front() {
                if session.is_over() || (standing > 1 && since.elapsed() > IDLE_SESSION_TIMEOUT) {
                    standing -= 1;
                    state.total -= 1;
                    leaving.push(session);
                } else if session.silent_for() > PING_AFTER_SILENCE {
                    doubtful.push((session, since));
                } else {
                    kept.push_back((session, since));
                }
            }
            state.idle = kept;
        }
        drop(leaving);
        // All are pinged before the first answer is waited for: a dead path costs one wait, not one for each.
        let asked: Vec<_> = doubtful.into_iter().map(|(mut one, since)| (one.ping(), one, since)).collect();
        for (question, session, since) in asked {
            let alive = question.is_some_and(|question| session.answers(question));
            let mut state = locked(&self.state);
            if alive && !self.stop.is_stopped() {
                state.idle.push_front((session, since));
            } else {
                state.total -= 1;
                drop(state);
            }
            self.changed.notify_one();
        }
    }

    /// Drops every idle session. After a stop no more are opened.
    pub fn drain(&self) {
        self.changed.notify_all();
        self.threads.join(|| ());
        let idle = {
            let mut state = locked(&self.state);
            state.total -= state.idle.len();
            std::mem::take(&mut state.idle)
        };
        drop(idle);
    }
}
