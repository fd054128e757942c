//! The machine: files, clock, randomness, sockets' options, processes. The only room that knows which
//! system it runs on.

pub mod clock;
pub mod daemon;
pub mod files;
pub mod limits;
pub mod lock;
pub mod paths;
pub mod process;
pub mod secret;
pub mod service;
pub mod socket;
pub mod splice;
pub mod step;
pub mod terminal;
pub mod trust;
pub mod user;
