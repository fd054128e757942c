//! Connections: how they are made, accepted, encrypted, copied and cut.

pub mod address;
pub mod channel;
pub mod connect;
pub mod crew;
pub mod duplex;
pub mod http;
pub mod identity;
pub mod mint;
pub mod relay;
pub mod serve;
pub mod stop;
pub mod tls;
pub mod trust;
