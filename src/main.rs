//! connect: reach a private service from somewhere else. Hub, agent, joiner and local proxy in one binary.
//!
//! The rooms, from the bottom: `model` is what is true and `wire` how it looks on the wire, both pure;
//! `os` is the machine, `error` the one error. `net` makes, serves, encrypts and cuts connections; `state`
//! keeps the files under `~/.privateconnect`; `api` is the hub as its clients see it. `hub`, `tunnel` and
//! `proxy` do the work and do not know each other. `cli` reads the command line, puts the rooms together and is
//! the only one that prints.
//!
//! Bytes flow socket → wire → model → wire → socket. Commands flow argv → `cli` → a room's `start()` → a
//! handle that the command waits on and whose drop ends everything.

// A build of one role does not use all that the shared rooms offer. The full build reports what nobody uses.
#![cfg_attr(
    not(all(
        feature = "fleet",
        feature = "agent",
        feature = "join",
        feature = "proxy",
        feature = "discover"
    )),
    allow(dead_code)
)]

mod api;
mod cli;
#[cfg(any(feature = "discover", feature = "agent"))]
mod discover;
mod error;
mod http;
#[cfg(feature = "hub")]
mod hub;
mod model;
mod net;
mod os;
#[cfg(feature = "proxy")]
mod proxy;
mod state;
mod tls;
#[cfg(any(feature = "hub", feature = "agent", feature = "join", feature = "proxy"))]
mod tunnel;
mod wire;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main(std::env::args_os().skip(1).collect())
}
