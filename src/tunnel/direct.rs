//! The direct path: a joiner connects to the agent itself, and the hub only decides.
//!
//! # How a session comes about
//!
//! 1. The agent listens where its user says (`DirectListener`). At the beginning of each session through the relay it tells
//!    the joiner its addresses, inside that session's TLS (frame ADDRESSES). The hub cannot name any, so it cannot send
//!    joiners around a network.
//! 2. The joiner's pool asks the hub for a session that is `direct`. The hub decides as always, tells the agent of the joiner
//!    (`open`, without a relay ticket), and grants the session without a ticket.
//! 3. The agent expects that joiner (`expect`), for the ticket's fifteen seconds. The joiner connects (`reach_agent`) and
//!    names service and session in its ALPN. A connection that names nothing that is expected gets a TLS alert before
//!    anything is computed for it.
//! 4. The handshake is that of a session through the relay. The joiner breaks it off before it shows its own certificate if
//!    the other end is not the agent. The agent accepts only the certificate that the hub named, and only once.
//! 5. What runs over it is the same `Session`. The agent reports its beginning, its end and its bytes to the hub.
//!
//! # How it ends
//!
//! - The hub takes the right away: it sends CLOSE over the control channel, and `end` cuts the session.
//! - The agent has lost its hub: after a minute, or as soon as the hub rejects its key, `end_all`. A hub that is back is told
//!   of all sessions, and sends CLOSE for those that it does not know.
//! - The path dies: the session ends as broken. The pool goes through the relay at once, and tries the direct path again
//!   after a minute.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use crate::error::Error;
use crate::error::Result;
use crate::model::fingerprint::Fingerprint;
use crate::net::connect::dial;
use crate::net::duplex::Duplex;
use crate::net::stop::Stop;
use crate::os::lock::locked;

/// The joiner tries the direct path for this long before it uses the relay.
const DIRECT_TIMEOUT: Duration = Duration::from_millis(300);
/// A direct path that failed is not tried again for this long.
const FAILURE_MEMORY: Duration = Duration::from_mins(1);

/// The joiner's side: what a tunnel knows of the ways to its agent.
#[derive(Default)]
pub struct DirectPath {
    is_allowed: bool,
    state: Mutex<DirectPathState>,
}

#[derive(Default)]
struct DirectPathState {
    /// Whose addresses these are.
    agent: Option<Fingerprint>,
    addresses: Vec<SocketAddr>,
    /// The one at which the agent answered.
    working: Option<SocketAddr>,
    tried: Option<Instant>,
}

impl DirectPath {
    pub fn allowed() -> Self {
        Self { is_allowed: true, ..Self::default() }
    }

    /// The agent says where it can be reached. New addresses are worth a try at once.
    pub fn learn(&self, agent: Option<Fingerprint>, addresses: Vec<SocketAddr>) {
        let mut state = locked(&self.state);
        if self.is_allowed && (state.agent != agent || state.addresses != addresses) {
            *state = DirectPathState { agent, addresses, working: None, tried: None };
        }
    }

    pub fn working(&self) -> Option<SocketAddr> {
        locked(&self.state).working
    }

    /// The addresses to try now, if none works and the last try was long ago. Only one caller gets them.
    pub fn untried(&self) -> Vec<SocketAddr> {
        let mut state = locked(&self.state);
        let is_due = state.tried.is_none_or(|tried| tried.elapsed() >= FAILURE_MEMORY);
        if state.working.is_some() || state.addresses.is_empty() || !is_due {
            return Vec::new();
        }
        state.tried = Some(Instant::now());
        state.addresses.clone()
    }

    pub fn works(&self, address: SocketAddr) {
        locked(&self.state).working = Some(address);
    }

    pub fn failed(&self, why: &dyn fmt::Display) {
        log::debug!("the direct path fails, and the relay is used: {why}");
        let mut state = locked(&self.state);
        state.working = None;
        state.tried = Some(Instant::now());
    }
}

/// Connects to all addresses at once, and hands the connections to `prove` as they come, until one is the agent's. The first to
/// connect need not be: another machine may have that address where we are.
pub fn reach_agent<T>(
    addresses: &[SocketAddr],
    stop: &Stop,
    mut prove: impl FnMut(Duplex, Instant) -> Result<T>,
) -> Result<(T, SocketAddr)> {
    let deadline = Instant::now() + DIRECT_TIMEOUT;
    let found = stop.child();
    let (connected, arrivals) = mpsc::channel();
    thread::scope(|scope| {
        for address in addresses {
            let (connected, found) = (connected.clone(), &found);
            scope.spawn(move || {
                let dialled = dial(&address.ip().to_string(), address.port(), deadline, found);
                let _ = connected.send(dialled.map(|socket| (socket, *address)));
            });
        }
        drop(connected);
        let mut failure = Error::new("The agent has no address");
        for arrival in arrivals {
            let proved = arrival.and_then(|(socket, address)| {
                let _cut = stop.attach(&socket).ok_or_else(Error::stopped)?;
                Ok((prove(Duplex::plain(socket), deadline)?, address))
            });
            match proved {
                Ok(proved) => {
                    found.stop();
                    return Ok(proved);
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    })
}
