//! The domain's types and rules. They are pure: no I/O, no clock, no randomness. The caller passes in the time and the
//! random bytes.

pub mod access;
pub mod address_block;
pub mod backoff;
pub mod code;
#[cfg(any(feature = "agent", feature = "join"))]
pub mod fair_share;
pub mod fingerprint;
pub mod host_port;
pub mod hub_records;
#[cfg(feature = "hub")]
pub mod hub_session;
pub mod hub_trust;
#[cfg(feature = "hub")]
pub mod limiter;
pub mod name;
#[cfg(any(feature = "agent", feature = "join"))]
pub mod port_choice;
#[cfg(feature = "hub")]
pub mod registry;
pub mod route;
pub mod service;
pub mod session_protocol;
#[cfg(feature = "hub")]
pub mod sessions;
pub mod suggest;
pub mod target;
pub mod text;
pub mod time;
pub mod tls_policy;
pub mod version;
