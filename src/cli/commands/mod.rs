//! One file for each command.

pub mod dev;
pub mod discover;
pub mod expose;
pub mod help;
pub mod hub;
pub mod hub_admin;
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
