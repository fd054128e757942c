//! How things look on the wire: pure functions of bytes, with no socket, no clock and no file in them.

pub mod api;
pub mod body;
pub mod chunks;
pub mod control;
pub mod forward;
pub mod frame;
pub mod head;
pub mod host;
pub mod journal;
pub mod message;
pub mod page;
pub mod pconnect;
pub mod probe;
pub mod record;
pub mod reply;
mod scan;
