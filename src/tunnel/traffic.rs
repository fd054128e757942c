//! How much an exposed service carries, for `connect status`.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;

#[derive(Debug, Default)]
pub struct TrafficCounters {
    /// Sessions that are open now.
    pub sessions: AtomicUsize,
    /// Bytes carried so far, in both directions.
    pub bytes: AtomicU64,
    /// What the first session of a joiner agreed on: see `TlsConnection::negotiated`.
    pub negotiated: OnceLock<String>,
}
