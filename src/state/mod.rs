//! The files under `~/.privateconnect` and their rules.

#[cfg(any(feature = "join", feature = "proxy"))]
pub mod agent_pins;
pub mod config;
pub mod home;
pub mod identity;
#[cfg(feature = "join")]
pub mod ports;
pub mod proxy;
pub mod routes;
pub mod runs;
pub mod service_cache;
