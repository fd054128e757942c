//! connect: reach a private service from somewhere else. Hub, agent, joiner and local proxy in one binary.
//!
//! # The rooms
//!
//! A room names only rooms below it, and rooms in the same row do not name each other; `tests/layers.rs` checks that.
//!
//! ```text
//! cli        reads the command line, puts the other rooms together; the only one that prints
//!
//! hub        the API, access, sessions, the relay, the audit log; hub/store: the registry on disk or in etcd
//! tunnel     carries connections: the agent's side, the joiner's side, the sessions between them
//! proxy      the local proxy: http://NAME.localhost:3456 leads to a service
//! discover   what listens on a host, recognised by what it answers
//!
//! api        the hub as its clients see it: typed calls, and the upgrades to control channel and relay
//! state      the files under ~/.privateconnect and their rules
//! tls        TLS in both directions at once, identities, certificate authorities, how a peer is recognised
//! net        listening, dialling, copying, HTTP calls, and the stop that cuts all of them
//! os         the machine: files, processes, sockets, terminal; os/setup: units and trust stores
//!
//! http       pure: HTTP/1.1 heads, bodies and what a proxy may forward
//! wire       pure: our own protocol and file formats, as bytes
//! model      pure: names, codes, services, routes, keys, the registry, and what is true of them
//! error      the one error that crosses rooms
//! ```
//!
//! A command goes from the arguments to `cli`, to a room's `start()`, to a handle. The command waits on the handle,
//! and its drop ends everything that was started. A build of one role has only that role's rooms: see `Cargo.toml`.
//!
//! # Where a byte goes
//!
//! `psql` connects to the port that `connect reach` (`cli/commands/reach.rs`) opened.
//!
//! 1. `tunnel/joiner.rs` accepts the connection and takes an idle session from `tunnel/pool.rs`. If there is none, the pool
//!    asks the hub for a new one: `hub/session_request.rs` grants it, and both ends dial the relay, each with a ticket.
//! 2. The byte goes into a frame (`wire/frame.rs`), and the frame into the TLS (`tls`) that joiner and agent speak with each
//!    other. They know each other's certificates, so the hub cannot read it.
//! 3. `hub/listener.rs` sees by the first byte of a connection that it is a relay's. `hub/relay.rs` brings the two
//!    connections of a session together, and `net/relay.rs` copies the bytes from one to the other.
//! 4. The agent got the session's ticket over its control channel (`tunnel/agent/control_channel.rs`). Its end of the
//!    session (`tunnel/agent/serving.rs`) reads the frame, dials the target and writes the byte there. The answer goes the
//!    same way back.
//!
//! `tunnel/mod.rs` walks this path in more detail, `proxy/mod.rs` follows a request through the proxy, and
//! `cli/commands/join.rs` a share code from the command line to the ports it opens.
//!
//! # Who may join
//!
//! `hub/endpoints.rs` lists every call of the API with the role that it needs; `model/access.rs` says what a role may do,
//! and `hub/access.rs` finds out who is asking. `hub/share_join.rs` decides whether a share code or link is good. Without
//! its decision, or a key that may reach services, `hub/session_request.rs` grants no session.
//!
//! # Where to add a command
//!
//! Write its page in `cli/commands.txt`, its function in a file of `cli/commands`, and one line in `cli/table.rs`.
//! The parser, the help, the manual page and the completions follow from the page.

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
