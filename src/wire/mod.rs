//! Our own protocol and disk formats: pure functions of bytes, with no socket, no clock and no file in them.

pub mod api;
pub mod control;
pub mod frame;
pub mod journal;
pub mod pconnect;
pub mod tls_record;
