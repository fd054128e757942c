//! Counts what somebody does within a window of time, and says when it was too much.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::net::Ipv6Addr;

use super::time::Time;

/// How many different callers are remembered. A flood from more addresses than this forgets the oldest
/// windows first, so memory stays bounded.
const CALLERS_REMEMBERED: usize = 10_000;

#[derive(Debug)]
pub struct Limiter<K> {
    allowed: u32,
    window: u64,
    counts: HashMap<K, (Time, u32)>,
}

impl<K: Clone + Eq + Hash> Limiter<K> {
    pub fn new(allowed: u32, window_seconds: u64) -> Self {
        Self { allowed, window: window_seconds, counts: HashMap::new() }
    }

    /// Counts one more of `who`, and says whether that is still allowed.
    pub fn allows(&mut self, who: &K, now: Time) -> bool {
        if self.counts.len() >= CALLERS_REMEMBERED && !self.counts.contains_key(who) {
            self.forget_old(now);
        }
        let entry = self.counts.entry(who.clone()).or_insert((now, 0));
        if now.since(entry.0).as_secs() >= self.window {
            *entry = (now, 0);
        }
        entry.1 = entry.1.saturating_add(1);
        entry.1 <= self.allowed
    }

    fn forget_old(&mut self, now: Time) {
        let window = self.window;
        self.counts.retain(|_, (began, _)| now.since(*began).as_secs() < window);
        if self.counts.len() >= CALLERS_REMEMBERED {
            self.counts.clear();
        }
    }
}

/// What an address is counted as: with IPv6 everybody has 2^64 of them, so the network is what counts.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Time {
        Time::from_unix(1000 + second)
    }

    #[test]
    fn the_eleventh_try_waits_for_the_window_to_end() {
        let mut limiter = Limiter::new(10, 60);
        assert!((0..10).all(|second| limiter.allows(&"a", at(second))));
        assert!(!limiter.allows(&"a", at(10)) && limiter.allows(&"b", at(10)));
        assert!(!limiter.allows(&"a", at(59)) && limiter.allows(&"a", at(60)));
    }

    #[test]
    fn a_network_of_ipv6_is_one_caller() {
        for (address, network) in [
            ("10.1.2.3", "10.1.2.3"),
            ("::ffff:10.1.2.3", "10.1.2.3"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ] {
            assert_eq!(network_of(address.parse().unwrap()).to_string(), network);
        }
    }

    #[test]
    fn a_flood_of_callers_does_not_grow_without_end() {
        let mut limiter = Limiter::new(10, 60);
        for caller in 0..50_000_u32 {
            limiter.allows(&caller, at(0));
        }
        assert!(limiter.counts.len() <= CALLERS_REMEMBERED);
    }
}
