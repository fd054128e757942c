//! The hub: authenticates, keeps the registry, relays bytes that it cannot read.

mod access;
mod agents;
pub mod audit;
mod ca;
mod carry;
mod core;
mod endpoints;
mod fleet;
mod front;
mod keys;
mod pages;
mod relay;
mod services;
mod sessions;
mod shares;
pub mod store;

pub use core::Core;
pub use core::Settings;
pub use core::TunnelOpener;
pub use endpoints::answer_locally;
pub use front::start;
