//! How much an exposed service carries, for `connect status`.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;

/// The bytes of a session or of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct CarriedBytes {
    pub to_agent: u64,
    pub to_joiner: u64,
}

#[derive(Debug, Default)]
pub struct TrafficCounters {
    /// Sessions that are open now.
    pub sessions: AtomicUsize,
    /// Bytes carried so far, in both directions.
    pub bytes: AtomicU64,
    /// What the first session of a joiner agreed on: see `TlsConnection::negotiated`.
    pub negotiated: OnceLock<String>,
}
