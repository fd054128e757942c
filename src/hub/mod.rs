//! The hub: authenticates, keeps the registry, relays bytes that it cannot read.

mod access;
mod agents;
mod api_call;
pub mod audit;
mod ca;
mod carry;
mod core;
mod directory;
mod endpoints;
mod fleet;
mod keys;
mod listener;
mod pages;
mod relay;
mod session_request;
mod sessions;
mod share_join;
mod shares;
pub mod store;
mod tunnel_ports;
mod unauthenticated;

pub use core::Core;
pub use core::HubSettings;
pub use endpoints::answer_locally;
pub use listener::start;
pub use tunnel_ports::TunnelOpener;
