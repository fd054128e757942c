//! One file for each command.

pub mod completions;
pub mod daemon;
pub mod daemon_service;
pub mod dev;
pub mod discover;
pub mod doctor;
mod doctor_checks;
mod doctor_way;
pub mod expose;
pub mod hub;
pub mod hub_admin;
pub mod hub_migrate;
pub mod join;
pub mod proxy;
mod proxy_parts;
pub mod proxy_trust;
pub mod reach;
pub mod services;
pub mod share;
pub mod status;
pub mod up;
pub mod whoami;
