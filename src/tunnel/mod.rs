//! Carrying connections: the agent's side, the joiner's side, and the encrypted session between them.

#[cfg(any(feature = "agent", feature = "join"))]
pub mod agent;
mod frames;
#[cfg(any(feature = "hub", feature = "join", feature = "proxy"))]
pub mod joiner;
mod local_socket;
#[cfg(any(feature = "hub", feature = "join", feature = "proxy"))]
pub mod pool;
mod session;
pub mod traffic;

use crate::model::fingerprint::Fingerprint;
use crate::model::name::Name;
use crate::os::secret;

/// What both ends of a session name in their handshake (by ALPN), where no relay can change it unseen: this agent's
/// service of this name. So a hub that leads a joiner to another service of the same agent is found out. It is
/// a hash, since the joiner says it before anything is encrypted, and the network need not know the name.
fn application(agent: Fingerprint, service: &Name) -> Vec<u8> {
    secret::sha256(format!("connect-service {agent} {service}").as_bytes()).to_string().into_bytes()
}
