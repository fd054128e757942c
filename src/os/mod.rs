//! The machine: files, clock, randomness, socket options, processes. The only module that knows which operating
//! system it runs on. Changes to the machine's own setup are in `setup`.

pub mod clock;
pub mod command;
pub mod detach;
pub mod environment;
pub mod files;
#[cfg(any(feature = "agent", feature = "join"))]
pub mod interfaces;
pub mod limits;
pub mod lock;
pub mod memory;
#[cfg(any(feature = "hub", feature = "proxy"))]
pub mod passed_socket;
pub mod paths;
pub mod peer_user;
pub mod process;
pub mod scheduling;
pub mod secret;
#[cfg(any(feature = "hub", feature = "agent", feature = "proxy"))]
pub mod setup;
pub mod socket;
#[cfg(feature = "proxy")]
pub mod splice;
pub mod terminal;
pub mod user;
