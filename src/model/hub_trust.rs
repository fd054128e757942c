//! How a client recognises its hub.

use super::fingerprint::Pin;

#[derive(Clone, PartialEq, Eq)]
pub enum HubTrust {
    /// By the system's roots, or Mozilla's where a system has none.
    Public,
    /// By these certificates, in PEM.
    Roots(String),
    /// By the pin of the hub's own CA, which it sends in its chain.
    Pin(Pin),
}
