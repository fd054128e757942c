//! Transport: how connections are made, accepted, copied and cut.

pub mod address;
pub mod channel;
pub mod connect;
pub mod duplex;
pub mod http;
pub mod relay;
pub mod serve;
pub mod stop;
pub mod threads;
