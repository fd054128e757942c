//! What an identity has signed: the one that replaces it, and who speaks for its agent.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::identity::CHAIN_LIMIT;
use super::identity::SUCCESSOR;
use super::identity::statement;
use super::trust;
use crate::model::fingerprint::Fingerprint;
use crate::os::secret;

/// More than `CHAIN_LIMIT` certificates of ours take. The hub keeps a chain as it came.
const CHAIN_TEXT_LIMIT: usize = 8 * 1024;

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    if pem.len() > CHAIN_TEXT_LIMIT {
        return Vec::new();
    }
    CertificateDer::pem_slice_iter(pem.as_bytes()).flatten().take(CHAIN_LIMIT).collect()
}

/// The identities that this one has replaced, as its chain proves: each has signed the one before.
pub fn replaced_by(identity: Fingerprint, chain: &str) -> Vec<Fingerprint> {
    let chain = certificates(chain);
    if chain.first().is_none_or(|own| secret::sha256(own) != identity) {
        return Vec::new();
    }
    let signed = chain.windows(2).take_while(|pair| trust::vouches(&pair[1], &pair[0], SUCCESSOR));
    signed.map(|pair| secret::sha256(&pair[1])).collect()
}

/// Whether the identity at the head of the chain has said that the holder of the key speaks for its agent.
pub fn is_spoken_for(identity: Fingerprint, chain: &str, agent: &str, key_hash: &str, proof: &str) -> bool {
    let (chain, proof) = (certificates(chain), certificates(proof));
    let Some((own, proof)) = chain.first().zip(proof.first()) else { return false };
    secret::sha256(own) == identity && trust::vouches(own, proof, &statement(agent, key_hash))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::identity::Identity;

    fn next(replaced: Option<&Identity>) -> Identity {
        Identity::parse(Identity::generate(replaced).unwrap().as_bytes()).unwrap()
    }

    #[test]
    fn a_chain_proves_what_was_replaced_and_only_by_the_replaced_ones_key() {
        let first = next(None);
        let second = next(Some(&first));
        let third = next(Some(&second));
        assert_eq!(replaced_by(third.fingerprint, &third.chain), [second.fingerprint, first.fingerprint]);
        assert!(replaced_by(first.fingerprint, &first.chain).is_empty());
        // Who has not the old key can only put its certificate behind another one.
        let thief = next(None);
        for chain in [format!("{}{}", thief.chain, first.chain), second.chain.clone(), String::new()] {
            assert!(replaced_by(thief.fingerprint, &chain).is_empty());
        }
        // A statement for the hub is no successor.
        let said = first.speaks_for("agent_a", "hash").unwrap();
        let fingerprint = secret::sha256(&certificates(&said)[0]);
        assert!(replaced_by(fingerprint, &format!("{said}{}", first.chain)).is_empty());
        // The hub keeps a chain as it came, so it takes none with a large rest.
        let long = format!("{}{}", third.chain, "x".repeat(CHAIN_TEXT_LIMIT));
        assert!(replaced_by(third.fingerprint, &long).is_empty());
        let mut last = third;
        for _ in 0..20 {
            last = next(Some(&last));
        }
        assert_eq!(replaced_by(last.fingerprint, &last.chain).len(), CHAIN_LIMIT - 1);
    }

    #[test]
    fn an_identity_speaks_for_one_agent_and_one_key() {
        let (own, other) = (next(None), next(None));
        let said = own.speaks_for("agent_a", "hash").unwrap();
        let is_good = |of: &Identity, agent, key| is_spoken_for(of.fingerprint, &of.chain, agent, key, &said);
        assert!(is_good(&own, "agent_a", "hash"));
        assert!(!is_good(&own, "agent_b", "hash") && !is_good(&own, "agent_a", "another"));
        assert!(!is_good(&other, "agent_a", "hash"));
        assert!(!is_spoken_for(own.fingerprint, &other.chain, "agent_a", "hash", &said));
    }
}
