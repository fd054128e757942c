//! One file for each command.

pub mod expose;
pub mod help;
pub mod hub;
pub mod hub_admin;
pub mod proxy;
mod proxy_parts;
pub mod proxy_trust;
pub mod reach;
pub mod services;
pub mod up;
pub mod whoami;
