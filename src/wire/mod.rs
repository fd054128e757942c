//! Our own protocol and disk formats: pure functions of bytes, with no socket, no clock and no file in them.

pub mod api;
pub mod chain;
pub mod control;
pub mod frame;
#[cfg(feature = "hub")]
pub mod journal;
#[cfg(feature = "join")]
pub mod pconnect;
pub mod share_api;
pub mod tls_record;
