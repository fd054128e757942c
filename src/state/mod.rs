//! The files under `~/.privateconnect` and their rules.

pub mod agent_pins;
pub mod config;
#[cfg(feature = "join")]
pub mod confirmed;
pub mod home;
pub mod identity;
#[cfg(any(feature = "agent", feature = "join"))]
pub mod ports;
pub mod proxy;
pub mod routes;
pub mod runs;
pub mod service_cache;
