//! The commands: one file for each, or for a family like `proxy start` and `proxy stop`. What several commands share
//! is one folder above.

pub mod completions;
#[cfg(feature = "agent")]
pub mod daemon;
#[cfg(feature = "demo")]
pub mod demo;
#[cfg(feature = "join")]
pub mod dev;
#[cfg(any(feature = "discover", feature = "agent"))]
pub mod discover;
pub mod doctor;
#[cfg(feature = "agent")]
pub mod expose;
pub mod forget;
#[cfg(feature = "hub")]
pub mod hub;
#[cfg(feature = "hub")]
pub mod hub_audit;
#[cfg(feature = "hub")]
mod hub_audit_compare;
#[cfg(feature = "hub")]
pub mod hub_backup;
#[cfg(feature = "hub")]
pub mod hub_drain;
#[cfg(feature = "hub")]
pub mod hub_key;
#[cfg(feature = "fleet")]
pub mod hub_migrate;
#[cfg(feature = "hub")]
pub mod hub_records;
#[cfg(feature = "hub")]
pub mod hub_status;
#[cfg(feature = "agent")]
pub mod identity;
#[cfg(any(feature = "hub", feature = "agent", feature = "proxy"))]
pub mod install;
#[cfg(feature = "join")]
pub mod join;
pub mod logout;
#[cfg(feature = "proxy")]
pub mod proxy;
#[cfg(feature = "proxy")]
pub mod proxy_trust;
#[cfg(feature = "join")]
pub mod reach;
pub mod services;
#[cfg(feature = "agent")]
pub mod share;
#[cfg(feature = "agent")]
pub mod share_services;
pub mod status;
pub mod up;
pub mod whoami;
