//! HTTP/1.1 as pure functions of bytes: heads, framing, hosts, forwarding, and whole messages for the API.

pub mod bad_message;
pub mod body;
pub mod chunks;
#[cfg(feature = "proxy")]
pub mod forward;
pub mod head;
#[cfg(feature = "proxy")]
pub mod host;
pub mod message;
pub mod reply;

mod cursor;
