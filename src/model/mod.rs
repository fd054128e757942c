//! What is true: the domain's types and rules. Pure: no I/O, no clock, no randomness; whoever calls
//! brings the time and the random bytes.

pub mod access;
pub mod backoff;
pub mod code;
pub mod fingerprint;
pub mod limiter;
pub mod name;
pub mod pairing;
pub mod port_choice;
pub mod record;
pub mod registry;
pub mod route;
pub mod suggest;
pub mod target;
pub mod time;
pub mod version;
