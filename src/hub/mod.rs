//! The hub: authenticates, keeps the registry, relays bytes that it cannot read.

mod access;
mod agents;
pub mod audit;
mod ca;
mod call;
mod carry;
mod core;
mod endpoints;
mod fleet;
mod front;
mod guests;
mod joining;
mod keys;
mod pages;
mod relay;
mod services;
mod session_request;
mod sessions;
mod shares;
pub mod store;
mod tunnels;

pub use core::Core;
pub use core::Settings;
pub use endpoints::answer_locally;
pub use front::start;
pub use tunnels::TunnelOpener;
