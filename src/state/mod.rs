//! The files under `~/.privateconnect` and their rules.

pub mod agent_pins;
pub mod config;
pub mod home;
pub mod identity;
pub mod ports;
pub mod proxy;
pub mod routes;
pub mod runs;
pub mod service_cache;
