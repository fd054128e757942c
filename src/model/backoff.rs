//! How long to wait before the next attempt: doubling from 0.2 s to a limit, with jitter, without giving up.

use std::time::Duration;

const FIRST_RETRY_WAIT: Duration = Duration::from_millis(200);
/// A connection must work within three seconds of a hub's or agent's return, so no wait may be longer than this. A hub
/// that is down is not burdened by attempts, and jitter spreads the others.
const LONGEST_RETRY_WAIT: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure: between half of the step and the whole, chosen by `random`.
    pub fn next(&mut self, random: u32) -> Duration {
        let step = FIRST_RETRY_WAIT.saturating_mul(1 << self.failures.min(8)).min(LONGEST_RETRY_WAIT);
        self.failures = self.failures.saturating_add(1);
        let half = step / 2;
        half + half.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_the_ceiling_and_stay_there() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..100).map(|_| backoff.next(u32::MAX).as_millis()).collect();
        assert_eq!(waits[..5], [200, 400, 800, 1600, 2000]);
        assert!(waits[5..].iter().all(|wait| *wait == 2000));
        backoff.reset();
        assert_eq!(backoff.next(0), FIRST_RETRY_WAIT / 2);
    }
}
