//! Transport: how connections are made, accepted, copied and cut.

pub mod address;
#[cfg(any(feature = "hub", feature = "agent", feature = "join"))]
pub mod channel;
pub mod connect;
pub mod duplex;
pub mod forward_proxy;
pub mod http_client;
pub mod http_server;
pub mod http_stream;
#[cfg(any(feature = "hub", feature = "agent", feature = "join", feature = "proxy"))]
pub mod places;
pub mod relay;
pub mod serve;
pub mod stop;
pub mod threads;
