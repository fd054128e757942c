//! Carrying connections: the agent's side, the joiner's side, and the encrypted sessions between them.
//!
//! Sessions go through the hub's relay, or directly from joiner to agent: `direct.rs`.
//!
//! # The way of a byte
//!
//! From `psql` at the joiner to the target:
//!
//! 1. `net/serve.rs` `accept_and_serve`: a thread accepts the connection, makes sure that another thread accepts the
//!    next one, and serves it itself. Its worker, made in `joiner.rs` `listen`, calls
//!    `TunnelInner::carry`.
//! 2. `pool.rs` `take`: an idle session, or a new one that this thread opens. `session_opener.rs` `open` asks the hub
//!    for a session, checks the agent that the hub names, dials the relay with the ticket and does the TLS handshake with
//!    the agent.
//! 3. `session.rs` `Session::carry`: `open` sends OPEN together with the first bytes of `psql`; `send_all` copies the rest.
//! 4. `frames.rs` `FrameWriter::copy_from`: each read of the local socket becomes one DATA frame (`wire/frame.rs`).
//! 5. `tls/mod.rs` `TlsWriter`: encrypts the frame and writes it to the connection to the hub.
//! 6. `hub/relay.rs` `serve`, `copy_to_partner`: one thread for each direction copies between the two connections of the session
//!    (`net/relay.rs` `copy`). The hub sees TLS records only.
//! 7. `incoming_frames.rs` `receive_all`, at the agent: the session's own thread decrypts, reads the header and
//!    asks the state machine (`model/session_protocol.rs`) what to do. OPEN: `dial_target`. DATA: `FrameReader::data_into`
//!    writes the payload to the target (`local_socket.rs` `write_all`).
//!
//! And back:
//!
//! 8. `session.rs` `Session::serve`, at the agent: the thread that `agent/serving.rs` `begin_session` made for this
//!    session sends OPENED with the target's first bytes, then `send_all` copies what the target says, as in 4 and 5.
//! 9. The hub's other thread copies it, as in 6.
//! 10. `IncomingFrames`, at the joiner: the session's own thread writes the payload to `psql`.
//!
//! How it ends:
//!
//! - Half-close: when `psql` ends its direction, `copy_from` returns and `end_direction` sends EOF. The agent shuts down
//!   the target's write direction, and the other way goes on until the target ends it in the same manner. Then both ends
//!   are idle, `carry` returns, and `Pool::give_back` keeps the session for the next connection.
//! - Reset: when a local connection breaks, `end_direction` sends RESET. The other end aborts its local connection
//!   (`local_socket.rs` `abort`), which wakes the thread that reads it, and that thread sends a RESET in turn. The session
//!   survives.
//! - When the session itself is cut, `SharedSession::close` aborts the local connections at both ends, so that neither client
//!   nor target takes a part of the data for the whole.

#[cfg(any(feature = "agent", feature = "join"))]
pub mod agent;
mod direct;
#[cfg(any(feature = "agent", feature = "join"))]
pub mod direct_listener;
mod frames;
mod incoming_frames;
pub mod joiner;
mod local_socket;
mod pool;
pub mod served;
mod session;
pub mod session_opener;
mod shared_session;
pub mod traffic;

use crate::model::fingerprint::Fingerprint;
use crate::model::name::Name;
use crate::os::secret;

/// What both ends of a session name in their handshake (by ALPN), where no relay can change it unseen: this agent's
/// service of this name, in this session. So a hub that leads a joiner to another service of the same agent is found out,
/// and an agent knows which session somebody means who comes directly. It is a hash, since the joiner says it before
/// anything is encrypted, and the network need not know the name.
fn application(agent: Fingerprint, service: &Name, session: &str) -> Vec<u8> {
    let named = format!("connect-service {agent} {service} {session}");
    secret::sha256(named.as_bytes()).to_string().into_bytes()
}
