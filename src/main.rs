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

mod api;
mod cli;
mod discover;
mod error;
mod http;
mod hub;
mod model;
mod net;
mod os;
mod proxy;
mod state;
mod tls;
mod tunnel;
mod wire;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main(std::env::args_os().skip(1).collect())
}
