//! Random secrets, and the hashes and signatures made of them.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SecureRandom;
use aws_lc_rs::rand::SystemRandom;

use crate::model::fingerprint::Fingerprint;
use crate::model::fingerprint::base32;

pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Fails only on a kernel without a random source; guessable secrets would be worse than a panic.
    SystemRandom::new().fill(&mut bytes).expect("the system has a source of random bytes");
    bytes
}

pub fn number() -> u32 {
    u32::from_ne_bytes(bytes())
}

/// 128 random bits, 26 characters.
pub fn secret() -> String {
    base32(&bytes::<16>())
}

/// Characters of an identifier: 100 bits. Somebody who chooses the parts of a derived one can try many, but not that many.
const ID_LENGTH: usize = 20;

/// An identifier like `svc_k3v7…`, which no hub sees twice.
pub fn id(prefix: &str) -> String {
    format!("{prefix}_{}", &secret()[..ID_LENGTH])
}

/// An identifier made from the parts, so that a service that comes back has its old one.
pub fn derived_id(prefix: &str, parts: &[&str]) -> String {
    let hash = digest::digest(&digest::SHA256, parts.join("\n").as_bytes());
    format!("{prefix}_{}", &base32(hash.as_ref())[..ID_LENGTH])
}

pub fn sha256(bytes: &[u8]) -> Fingerprint {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    Fingerprint::new(hash)
}

/// A MAC of `message` that only a holder of `key` can make.
pub fn sign(key: &str, message: &str) -> String {
    base32(&derived_key(key, message)[..16])
}

/// A key that `secret` yields for this purpose and nobody without it.
pub fn derived_key(secret: &str, purpose: &str) -> [u8; 32] {
    let signed = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), purpose.as_bytes());
    signed.as_ref().try_into().expect("a MAC of SHA-256 has 32 bytes")
}

/// Compares in constant time, so that timing does not reveal how much of a guess was right.
pub fn is_signed(key: &str, message: &str, signature: &str) -> bool {
    verify_slices_are_equal(sign(key, message).as_bytes(), signature.as_bytes()).is_ok()
}

/// What the hub stores instead of a secret.
pub fn hash(secret: &str) -> String {
    sha256(secret.as_bytes()).to_string()
}
