//! The commands: one file for each, or for a family like `proxy start` and `proxy stop`. What several commands share
//! is one folder above.

pub mod completions;
pub mod daemon;
pub mod daemon_service;
pub mod dev;
pub mod discover;
pub mod doctor;
pub mod expose;
pub mod hub;
pub mod hub_audit;
pub mod hub_key;
pub mod hub_migrate;
pub mod hub_status;
pub mod join;
pub mod logout;
pub mod proxy;
pub mod proxy_trust;
pub mod reach;
pub mod services;
pub mod share;
pub mod status;
pub mod up;
pub mod whoami;
