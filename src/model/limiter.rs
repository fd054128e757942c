//! Rate limits: counts what a caller does within a window of time, and says when it is over its limit. A limit is also the
//! size of a token bucket, for what is allowed in a burst and then at an even rate.

use std::collections::HashMap;
use std::net::IpAddr;

use super::address_block::AddressBlock;
use super::time::Time;

/// How many windows are remembered. When a flood from more callers than this arrives, the oldest windows are
/// forgotten first, so memory stays bounded.
const WINDOWS_REMEMBERED: usize = 10_000;

/// How often one caller may do something within a window of seconds.
#[derive(Debug)]
pub struct RateLimit {
    pub name: &'static str,
    pub allowed: u32,
    pub window: u64,
}

#[derive(Debug)]
struct RateWindow {
    began: Time,
    count: u32,
}

/// Counts for any number of limits, which do not share counts.
#[derive(Debug, Default)]
pub struct Limiter {
    windows: HashMap<(&'static str, String), RateWindow>,
}

impl Limiter {
    /// Counts one more for `who`.
    pub fn count(&mut self, limit: &RateLimit, who: &str, now: Time) {
        let window = self.window(limit, who, now);
        if now.since(window.began).as_secs() >= limit.window {
            *window = RateWindow { began: now, count: 0 };
        }
        window.count = window.count.saturating_add(1);
    }

    /// Takes a token from the bucket of `who`, if there is one. The bucket holds `allowed`, a multiple of `window`, and gets as
    /// many again evenly within the window.
    pub fn take(&mut self, bucket: &RateLimit, who: &str, now: Time) -> bool {
        let window = self.window(bucket, who, now);
        let filled = now.since(window.began).as_secs() * u64::from(bucket.allowed) / bucket.window;
        let count = window.count.saturating_sub(u32::try_from(filled).unwrap_or(u32::MAX));
        let taken = count < bucket.allowed;
        *window = RateWindow { began: now, count: count + u32::from(taken) };
        taken
    }

    fn window(&mut self, limit: &RateLimit, who: &str, now: Time) -> &mut RateWindow {
        let key = (limit.name, who.to_owned());
        if self.windows.len() >= WINDOWS_REMEMBERED && !self.windows.contains_key(&key) {
            let oldest = self.windows.values().map(|window| window.began).min();
            self.windows.retain(|_, window| Some(window.began) != oldest);
        }
        self.windows.entry(key).or_insert(RateWindow { began: now, count: 0 })
    }

    /// Seconds until `who` may try again; `None` when it may now.
    pub fn blocked(&self, limit: &RateLimit, who: &str, now: Time) -> Option<u64> {
        let window = self.windows.get(&(limit.name, who.to_owned()))?;
        let left = limit.window.checked_sub(now.since(window.began).as_secs())?;
        (left > 0 && window.count >= limit.allowed).then_some(left)
    }
}

/// What limits count an address as. With IPv6 everybody has 2^64 addresses, so the /64 network counts as one.
pub fn network_of(address: IpAddr) -> IpAddr {
    AddressBlock::around(address, 64).first()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN: RateLimit = RateLimit { name: "ten", allowed: 10, window: 60 };
    const ONE: RateLimit = RateLimit { name: "one", allowed: 1, window: 60 };

    fn at(second: u64) -> Time {
        Time::from_unix(1000 + second)
    }

    /// Counts one more for `who` if the limit still allows it, and says whether it did.
    fn allows(limiter: &mut Limiter, limit: &RateLimit, who: &str, now: Time) -> bool {
        let allowed = limiter.blocked(limit, who, now).is_none();
        if allowed {
            limiter.count(limit, who, now);
        }
        allowed
    }

    #[test]
    fn the_eleventh_try_waits_for_the_window_to_end() {
        let mut limiter = Limiter::default();
        assert!((0..10).all(|second| allows(&mut limiter, &TEN, "a", at(second))));
        assert!(!allows(&mut limiter, &TEN, "a", at(10)) && allows(&mut limiter, &TEN, "b", at(10)));
        assert_eq!(limiter.blocked(&TEN, "a", at(10)), Some(50));
        assert!(!allows(&mut limiter, &TEN, "a", at(59)) && allows(&mut limiter, &TEN, "a", at(60)));
    }

    #[test]
    fn a_bucket_allows_a_burst_and_then_an_even_rate() {
        let bucket = RateLimit { name: "bucket", allowed: 120, window: 60 };
        let mut limiter = Limiter::default();
        let mut taken = |second| (0..500).filter(|_| limiter.take(&bucket, "a", at(second))).count();
        // At the end a clock that was set back, which stops nobody.
        assert_eq!([0, 0, 1, 4, 900, 0, 1].map(&mut taken), [120, 0, 2, 6, 120, 0, 2]);
        assert!(limiter.take(&bucket, "b", at(1)));
    }

    #[test]
    fn limits_do_not_share_their_counts() {
        let mut limiter = Limiter::default();
        assert!(allows(&mut limiter, &ONE, "a", at(0)) && !allows(&mut limiter, &ONE, "a", at(1)));
        assert!(allows(&mut limiter, &TEN, "a", at(1)));
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
    fn a_flood_of_callers_does_not_grow_without_end_and_the_newest_are_remembered() {
        let mut limiter = Limiter::default();
        for caller in 0..50_000_u32 {
            limiter.count(&ONE, &caller.to_string(), at(u64::from(caller / 1000)));
        }
        assert!(limiter.windows.len() <= WINDOWS_REMEMBERED);
        assert!(limiter.blocked(&ONE, "49999", at(50)).is_some());
    }
}
