//! How things look on the wire: pure functions of bytes, with no socket, no clock and no file in them.

pub mod body;
pub mod chunks;
pub mod forward;
pub mod head;
pub mod host;
pub mod reply;
mod scan;
