//! The sessions of one tunnel: which are idle, and when another is opened (`session_opener.rs`).
//!
//! A connection takes an idle session. If there is none, it waits a moment for a busy one, then opens a session in its
//! own thread. No connection waits for a session that another one is opening, so an agent that does not come holds up
//! nobody else. The tunnel's maintenance thread pings and drops idle sessions (`check_idle`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use super::session::FRESH;
use super::session::Session;
use super::session_opener::SessionOpener;
use super::traffic::TrafficCounters;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::stop::Stop;
use crate::os::lock::locked;

/// Sessions of one tunnel, busy and idle. Each costs two threads and two descriptors at this end.
pub const TUNNEL_SESSION_LIMIT: usize = 4096;
/// An idle session beyond the first is dropped after this long.
const IDLE_SESSION_TIMEOUT: Duration = Duration::from_mins(1);
/// A busy session is idle again a moment after its client has received the last byte, so a new connection waits this
/// long for one before it opens another.
const BUSY_SESSION_WAIT: Duration = Duration::from_millis(2);
/// The first attempt to open a session gets this long. An agent or hub that went away silently costs no more: by then
/// it may be back, or another session may be idle.
const FIRST_OPEN_TIMEOUT: Duration = Duration::from_secs(3);
/// An idle session that has received nothing for this long is pinged.
const PING_AFTER_SILENCE: Duration = Duration::from_secs(5);

pub struct Pool {
    opener: SessionOpener,
    /// Its `sessions` counts the busy and the idle ones.
    pub traffic: Arc<TrafficCounters>,
    state: Mutex<PoolState>,
    /// A session is idle, or there is room for another.
    changed: Condvar,
    stop: Stop,
}

#[derive(Default)]
struct PoolState {
    /// With the time since when. The one used last is at the back and is taken first, so that the surplus of a burst
    /// grows old at the front.
    idle: VecDeque<(Session, Instant)>,
    /// Sessions that their callers are opening now.
    opening: usize,
}

/// What a caller does that found no idle session.
#[derive(Debug, PartialEq, Eq)]
enum PoolStep {
    Open,
    Wait(Duration),
    GiveUp,
}

impl PoolStep {
    fn next(sessions: usize, opening: usize, waited: Duration, left: Duration) -> Self {
        let grace = if sessions == 0 { Duration::ZERO } else { BUSY_SESSION_WAIT.saturating_sub(waited) };
        if left.is_zero() {
            Self::GiveUp
        } else if sessions + opening >= TUNNEL_SESSION_LIMIT {
            Self::Wait(left)
        } else if grace.is_zero() {
            Self::Open
        } else {
            Self::Wait(grace.min(left))
        }
    }
}

impl Pool {
    pub fn new(opener: SessionOpener, stop: Stop) -> Self {
        Self { opener, traffic: Arc::default(), state: Mutex::default(), changed: Condvar::new(), stop }
    }

    /// Where new sessions go.
    pub fn path(&self) -> String {
        let direct = self.opener.direct.working().map(|address| format!("direct, {address}"));
        direct.unwrap_or_else(|| "relay".to_owned())
    }

    /// Sessions that are open, busy or idle.
    pub fn total(&self) -> usize {
        self.traffic.sessions.load(Ordering::Relaxed)
    }

    /// An idle session, or a new one. An attempt that takes too long is followed by one more, which has the rest of
    /// the time.
    pub fn take(&self, deadline: Instant) -> Result<Session> {
        let first_deadline = deadline.min(Instant::now() + FIRST_OPEN_TIMEOUT);
        match self.take_or_open(first_deadline) {
            Err(error)
                if error.may_pass() && first_deadline < deadline && Instant::now() >= first_deadline =>
            {
                log::debug!("opening a session took too long and begins again: {error}");
                self.take_or_open(deadline)
            }
            taken => taken,
        }
    }

    fn take_or_open(&self, deadline: Instant) -> Result<Session> {
        if let Some(session) = self.take_or_reserve(deadline)? {
            return Ok(session);
        }
        let opened = self.opener.open(&self.traffic, deadline, &self.stop);
        locked(&self.state).opening -= 1;
        if opened.is_err() {
            self.changed.notify_all();
        }
        opened
    }

    /// An idle session. `None`: the caller may open one and is counted in `opening`.
    fn take_or_reserve(&self, deadline: Instant) -> Result<Option<Session>> {
        let began = Instant::now();
        while !self.stop.is_stopped() {
            let mut state = locked(&self.state);
            if let Some((session, _)) = state.idle.pop_back() {
                // A dead session is dropped without the lock, since that joins its thread.
                drop(state);
                if session.is_over() {
                    continue;
                }
                return Ok(Some(session));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match PoolStep::next(self.total(), state.opening, began.elapsed(), left) {
                PoolStep::Open => {
                    state.opening += 1;
                    return Ok(None);
                }
                PoolStep::Wait(time) => drop(self.changed.wait_timeout(state, time)),
                PoolStep::GiveUp => {
                    return Err(Error::new("No session of the tunnel was idle in time")
                        .hint("Close some of its connections")
                        .kind(ErrorKind::Unreachable));
                }
            }
        }
        Err(Error::stopped())
    }

    /// The session is idle again. One through the relay is not kept where the direct path works.
    pub fn give_back(&self, session: Session) {
        if let Some(addresses) = session.take_addresses() {
            self.opener.direct.learn(session.peer, addresses);
        }
        if session.is_over() || (!session.is_direct && self.opener.direct.working().is_some()) {
            drop(session);
        } else {
            locked(&self.state).idle.push_back((session, Instant::now()));
        }
        self.changed.notify_one();
    }

    /// Opens a session to the agent itself if it has said where, and that was not tried lately. If it works, all sessions
    /// go there.
    pub fn try_direct(&self) {
        let addresses = self.opener.direct.untried();
        if addresses.is_empty() {
            return;
        }
        let deadline = Instant::now() + NETWORK_TIMEOUT;
        match self.opener.open_direct(&addresses, &self.traffic, deadline, &self.stop) {
            Ok(session) => {
                self.give_back(session);
                self.drop_idle(|idle| !idle.is_direct);
            }
            Err(error) => log::debug!("there is no direct path: {error}"),
        }
    }

    /// The session that was taken has broken. Whatever broke it is about to break the idle ones on the same path, too.
    pub fn lost(&self, session: Session) {
        let is_direct = session.is_direct;
        self.lost_with(session, |idle| idle.is_direct == is_direct);
    }

    /// The session that was taken did not answer. Idle ones that have been silent for as long are dead as well.
    pub fn lost_to_silence(&self, session: Session) {
        self.lost_with(session, |idle| idle.silent_for() >= FRESH);
    }

    fn lost_with(&self, session: Session, is_lost: impl Fn(&Session) -> bool) {
        if session.is_direct {
            self.opener.direct.failed(&"its session broke");
        }
        drop(session);
        self.drop_idle(is_lost);
    }

    fn drop_idle(&self, is_lost: impl Fn(&Session) -> bool) {
        let mut state = locked(&self.state);
        let (lost, kept): (VecDeque<_>, VecDeque<_>) =
            state.idle.drain(..).partition(|(session, _)| is_lost(session));
        state.idle = kept;
        drop(state);
        // Without the lock, since each drop joins a thread.
        drop(lost);
        self.changed.notify_all();
    }

    /// Drops sessions that are dead or have been idle for long, but keeps one, and pings those that are silent.
    pub fn check_idle(&self) {
        let mut surplus = Vec::new();
        let mut silent = Vec::new();
        let mut kept = VecDeque::new();
        let mut state = locked(&self.state);
        let mut remaining = state.idle.len();
        while let Some((session, since)) = state.idle.pop_front() {
            if session.is_over() || (remaining > 1 && since.elapsed() > IDLE_SESSION_TIMEOUT) {
                remaining -= 1;
                surplus.push(session);
            } else if session.silent_for() > PING_AFTER_SILENCE {
                silent.push((session, since));
            } else {
                kept.push_back((session, since));
            }
        }
        state.idle = kept;
        drop(state);
        drop(surplus);
        self.ping_all(silent);
        self.changed.notify_all();
    }

    /// Keeps the sessions that answer. All are pinged before the first answer is waited for, so a dead path costs one
    /// wait and not one for each.
    fn ping_all(&self, silent: Vec<(Session, Instant)>) {
        let mut pinged = Vec::new();
        for (mut session, since) in silent {
            if let Some(asked) = session.ping() {
                pinged.push((session, since, asked));
            }
        }
        for (session, since, asked) in pinged {
            if session.answers(asked) {
                locked(&self.state).idle.push_front((session, since));
                self.changed.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);
    const LEFT: Duration = Duration::from_secs(3);

    #[test]
    fn a_first_session_is_opened_at_once() {
        assert_eq!(PoolStep::next(0, 0, Duration::ZERO, LEFT), PoolStep::Open);
    }

    #[test]
    fn sessions_that_others_open_are_not_waited_for() {
        assert_eq!(PoolStep::next(0, 5, Duration::ZERO, LEFT), PoolStep::Open);
    }

    #[test]
    fn a_busy_session_is_waited_for_a_moment() {
        let rest = BUSY_SESSION_WAIT.saturating_sub(MOMENT);
        assert_eq!(PoolStep::next(1, 0, MOMENT, LEFT), PoolStep::Wait(rest));
        assert_eq!(PoolStep::next(1, 0, Duration::ZERO, MOMENT), PoolStep::Wait(MOMENT));
        assert_eq!(PoolStep::next(1, 0, BUSY_SESSION_WAIT, LEFT), PoolStep::Open);
        assert_eq!(PoolStep::next(1, 0, LEFT, LEFT), PoolStep::Open);
    }

    #[test]
    fn at_the_limit_none_is_opened() {
        for sessions in [0, 1, TUNNEL_SESSION_LIMIT - 1, TUNNEL_SESSION_LIMIT, TUNNEL_SESSION_LIMIT + 1] {
            let opening = TUNNEL_SESSION_LIMIT.saturating_sub(sessions);
            assert_eq!(PoolStep::next(sessions, opening, LEFT, LEFT), PoolStep::Wait(LEFT));
        }
        assert_eq!(PoolStep::next(TUNNEL_SESSION_LIMIT - 1, 0, LEFT, LEFT), PoolStep::Open);
    }

    #[test]
    fn nothing_is_opened_when_the_time_is_up() {
        for sessions in [0, 1, TUNNEL_SESSION_LIMIT] {
            assert_eq!(PoolStep::next(sessions, 0, LEFT, Duration::ZERO), PoolStep::GiveUp);
        }
    }
}
