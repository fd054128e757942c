//! The files under `~/.privateconnect` and their rules.

pub mod agent_pins;
pub mod chain_files;
pub mod chained_log;
pub mod config;
#[cfg(feature = "join")]
pub mod confirmed;
pub mod home;
#[cfg(any(feature = "hub", feature = "agent", feature = "join"))]
pub mod hub_heads;
pub mod identity;
#[cfg(any(feature = "agent", feature = "join"))]
pub mod ports;
pub mod proxy;
pub mod routes;
pub mod runs;
pub mod service_cache;
