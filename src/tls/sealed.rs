//! Text that only the holder of a secret can read (HPKE, RFC 9180). The private key is derived from the secret. Whoever saw
//! the secret once and kept the public key can seal something for its holder, and cannot open that again.

use aws_lc_rs::agreement::PrivateKey;
use aws_lc_rs::agreement::X25519;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE;
use rustls::crypto::hpke::EncapsulatedSecret;
use rustls::crypto::hpke::Hpke;
use rustls::crypto::hpke::HpkePrivateKey;
use rustls::crypto::hpke::HpkePublicKey;

use crate::os::secret;

const PURPOSE: &str = "connect: the next secret of an API key";
/// An X25519 key, and what HPKE sends of its own one.
const ENCAPSULATED: usize = 32;

/// The public key of this secret. It reveals nothing of the secret, which is too long to be guessed.
pub fn public_key(secret: &str) -> String {
    let key = PrivateKey::from_private_key(&X25519, &secret::derived_key(secret, PURPOSE));
    let key = key.and_then(|key| Ok(STANDARD.encode(key.compute_public_key()?)));
    key.expect("32 bytes of any value are an X25519 key")
}

/// `None` if that is no public key.
pub fn seal(public_key: &str, text: &str) -> Option<String> {
    let key = HpkePublicKey(STANDARD.decode(public_key).ok()?);
    let (encapsulated, text) = SUITE.seal(PURPOSE.as_bytes(), &[], text.as_bytes(), &key).ok()?;
    Some(STANDARD.encode([encapsulated.0, text].concat()))
}

/// `None` if it was sealed for another secret, or changed.
pub fn open(secret: &str, sealed: &str) -> Option<String> {
    let sealed = STANDARD.decode(sealed).ok()?;
    let (encapsulated, text) = sealed.split_at_checked(ENCAPSULATED)?;
    let key = HpkePrivateKey::from(secret::derived_key(secret, PURPOSE).to_vec());
    let encapsulated = EncapsulatedSecret(encapsulated.to_vec());
    String::from_utf8(SUITE.open(&encapsulated, PURPOSE.as_bytes(), &[], text, &key).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_for_one_secret_is_opened_by_no_other() {
        let sealed = seal(&public_key("pc_old"), "pc_new").unwrap();
        assert_eq!(open("pc_old", &sealed).as_deref(), Some("pc_new"));
        assert_eq!(open("pc_other", &sealed), None);
        let mut changed = STANDARD.decode(&sealed).unwrap();
        changed[40] ^= 1;
        assert_eq!(open("pc_old", &STANDARD.encode(changed)), None);
        for odd in ["", "AAAA", "not base64"] {
            assert_eq!(open("pc_old", odd), None);
            assert_eq!(seal(odd, "pc_new"), None);
        }
    }
}
