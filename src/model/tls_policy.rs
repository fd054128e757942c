//! Which key exchange and cipher suites the other end of a connection must offer.

use serde::Deserialize;
use serde::Serialize;

/// In options as in config.json.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsPolicy {
    /// Post-quantum key exchange first; a peer without it is accepted.
    #[default]
    Any,
    /// Post-quantum key exchange only: X25519MLKEM768, or ML-KEM-1024 for a peer with the next policy.
    Pq,
    /// The key exchange and the cipher of CNSA 2.0: ML-KEM-1024 and AES-256. Certificates stay ECDSA.
    Cnsa2,
}
