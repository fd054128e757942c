//! The hub: authenticates, keeps the registry, relays bytes that it cannot read.
//!
//! A request, from accept to answer:
//!
//! 1. `running_hub.rs` has the port. `listener.rs` serves a connection to it, and counts its sender's network
//!    (`unauthenticated.rs`). The first byte tells TLS, for which `ca.rs` has a certificate, from a plain request, which
//!    may only ask for the relay.
//! 2. An upgrade leaves the API here. The relay's is checked by its ticket (`relay.rs`, `sessions.rs`). An agent's
//!    goes through step 3 and then to `control_channel.rs`, where the agent exposes and withdraws services.
//! 3. `endpoints.rs` finds the call in its table. The row says who may make the call and how often; `access.rs`
//!    finds out whom the key stands for (`Principal`) and whether its role is enough.
//! 4. The row hands the call (`api_call.rs`) and the parts that it may touch to the endpoint: `status.rs`,
//!    `directory.rs`, `keys.rs`, `logins.rs`, `shares.rs`, `share_join.rs`, `session_request.rs`, `pages.rs`.
//! 5. The endpoint reads or changes the registry through `records.rs`, which writes every change to the store
//!    (`store/`: this hub's disk, or the etcd of a fleet) before anybody sees it.
//! 6. A refusal is one row of `refusal.rs`; `refusal/counts.rs` counts it and makes the answer. Events go to `audit.rs`,
//!    and from there to a collector (`audit_forward.rs`).
//!
//! `core.rs` holds the parts. Who may join a share is decided in `share_join.rs`, and what a role may do in
//! `model/access.rs`. `fleet.rs`, `membership.rs` and `carry.rs` are
//! for hubs that share one etcd. `readiness.rs` says whether a load balancer should send anybody here.

mod access;
mod agent_channels;
mod api_call;
pub mod audit;
pub mod audit_forward;
pub mod backup;
mod ca;
mod ca_rotation;
mod carry;
pub mod code_key;
mod control_channel;
mod core;
mod directory;
mod endpoints;
mod fleet;
mod key_rotation;
mod keys;
mod listener;
mod logins;
mod membership;
mod pages;
mod places;
mod readiness;
mod records;
mod refusal;
mod relay;
mod running_hub;
mod session_request;
mod sessions;
mod share_join;
mod shares;
mod status;
pub mod store;
pub mod tunnel_ports;
mod unauthenticated;

pub use ca_rotation::NOTE_FILE;
pub use core::Core;
pub use core::HubSettings;
pub use endpoints::answer_locally;
pub use running_hub::start;
