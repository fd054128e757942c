//! The hub: authenticates, keeps the registry, relays bytes that it cannot read.

mod access;
mod agent_channels;
mod api_call;
pub mod audit;
mod ca;
mod carry;
mod control_channel;
mod core;
mod directory;
mod endpoints;
mod fleet;
mod keys;
mod listener;
mod logins;
mod pages;
mod records;
mod refusal;
mod relay;
mod session_request;
mod sessions;
mod share_join;
mod shares;
mod status;
pub mod store;
mod tunnel_ports;
mod unauthenticated;

pub use core::Core;
pub use core::HubSettings;
pub use endpoints::answer_locally;
pub use listener::start;
pub use tunnel_ports::TunnelOpener;
