//! The algorithms that we offer: to our own peers as the policy of this process says, to all others everything.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;

use rustls::CipherSuite;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::cipher_suite;
use rustls::crypto::aws_lc_rs::kx_group::MLKEM1024;
use rustls::crypto::aws_lc_rs::kx_group::X25519MLKEM768;

use crate::model::tls_policy::TlsPolicy;
use crate::os::lock::locked;

/// One for the whole process, so that no connection can be made without it.
static POLICY: Mutex<TlsPolicy> = Mutex::new(TlsPolicy::Any);

/// For the connections that are set up from now on.
pub fn set_policy(policy: TlsPolicy) {
    *locked(&POLICY) = policy;
}

/// For the connections of hub, agent and joiner with each other, and of a hub with etcd.
pub fn peer_provider() -> Arc<CryptoProvider> {
    let mut offered = CryptoProvider::clone(&provider());
    match *locked(&POLICY) {
        // Last, and only for a peer that accepts nothing else.
        TlsPolicy::Any => offered.kx_groups.push(MLKEM1024),
        TlsPolicy::Pq => offered.kx_groups = vec![X25519MLKEM768, MLKEM1024],
        TlsPolicy::Cnsa2 => {
            offered.kx_groups = vec![MLKEM1024];
            offered.cipher_suites.retain(|suite| suite.suite() == CipherSuite::TLS13_AES_256_GCM_SHA384);
        }
    }
    Arc::new(offered)
}

/// aws-lc-rs's algorithms, the key exchange that a quantum computer cannot undo (X25519MLKEM768) first. AES first where the CPU
/// computes it, `ChaCha20` where it does not.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let made = PROVIDER.get_or_init(|| {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        let first = if has_aes() {
            cipher_suite::TLS13_AES_128_GCM_SHA256
        } else {
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256
        };
        provider.cipher_suites.sort_by_key(|suite| *suite != first);
        Arc::new(provider)
    });
    Arc::clone(made)
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
fn has_aes() -> bool {
    std::is_x86_feature_detected!("aes") && std::is_x86_feature_detected!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes() -> bool {
    false
}
