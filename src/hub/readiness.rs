//! Whether the hub is ready: sessions can be opened, and changes can be written.
//!
//! The sweep finds out. `GET /ready` only reads what was found, so nobody without a key makes the hub write.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use super::audit::Actor;
use super::audit::Audit;
use super::fleet::Fleet;
use super::records::Records;
use crate::model::time::Time;
use crate::os::clock;
use crate::os::files;
use crate::os::lock::locked;

/// A sweep that takes longer waits for a disk that does not answer.
const SWEEP_LIMIT: Duration = Duration::from_secs(10);
/// Time servers correct a clock by less than this.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(30);
/// What has to be free: a few changes and lines of the audit log.
const FREE_SPACE: u64 = 32 * 1024;
/// No session lasts that long, and a clock can count as far.
const LONGEST_DRAIN: Duration = Duration::from_hours(24 * 365);
/// As much as a large change.
const WRITE_PROBE: [u8; 4096] = [0; 4096];

/// Why a hub is not ready. The code is in the answer and in the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NotReady {
    Disk,
    Etcd,
    Clock,
    Draining,
}

impl NotReady {
    pub fn code(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Etcd => "etcd",
            Self::Clock => "clock",
            Self::Draining => "draining",
        }
    }

    pub fn reason(self) -> &'static str {
        match self {
            Self::Disk => "The data folder cannot be written: the disk is full, read-only or does not answer",
            Self::Etcd => "etcd does not answer this hub",
            Self::Clock => {
                "The clock is behind the time of the last audit event, so expired keys may work again"
            }
            Self::Draining => "The hub takes no new sessions, and ends when the last one has ended",
        }
    }
}

/// Only the sweep changes it.
pub struct Readiness {
    /// Each with the time since when.
    faults: Mutex<BTreeMap<NotReady, Time>>,
    /// The latest time that this hub has seen.
    latest: Mutex<Time>,
    checked: Mutex<Instant>,
    drain: Mutex<Option<Drain>>,
}

/// The hub is about to end, as its operator wants it.
#[derive(Clone, Copy)]
pub struct Drain {
    pub begun: Instant,
    pub until: Instant,
}

impl Readiness {
    /// `audit_log` was written last when an earlier run saw its last event.
    pub fn new(audit_log: &Path) -> Self {
        let latest = files::changed_at(audit_log).unwrap_or_else(clock::now);
        let (latest, checked) = (Mutex::new(latest), Mutex::new(Instant::now()));
        Self { faults: Mutex::default(), latest, checked, drain: Mutex::default() }
    }

    pub fn drain(&self) -> Option<Drain> {
        *locked(&self.drain)
    }

    pub fn begin_drain(&self, timeout: Duration) {
        let begun = Instant::now();
        *locked(&self.drain) = Some(Drain { begun, until: begun + timeout.min(LONGEST_DRAIN) });
    }

    pub fn faults(&self) -> Vec<NotReady> {
        if locked(&self.checked).elapsed() > SWEEP_LIMIT {
            return vec![NotReady::Disk];
        }
        locked(&self.faults).keys().copied().collect()
    }

    /// Looks at everything. What has begun or is over is logged and audited, without a lock: the log may wait for the disk.
    pub fn check(&self, data: &Path, records: &Records, fleet: Option<&Fleet>, audit: &Audit) {
        let now = clock::now();
        let has_failed = &records.has_failed;
        if has_failed.load(Ordering::Relaxed) && can_write(data) {
            has_failed.store(false, Ordering::Relaxed);
        }
        let is_full = files::free_space(data).is_some_and(|free| free < FREE_SPACE);
        let has_etcd = |fleet: &Fleet| !fleet.replica.is_away() && !fleet.is_fenced();
        let found = [
            (NotReady::Disk, is_full || has_failed.load(Ordering::Relaxed)),
            (NotReady::Etcd, !fleet.is_none_or(has_etcd)),
            (NotReady::Clock, is_behind(&mut locked(&self.latest), now)),
            (NotReady::Draining, self.drain().is_some()),
        ];
        for (fault, is_there) in found {
            let since = locked(&self.faults).get(&fault).copied();
            match since {
                None if is_there => {
                    locked(&self.faults).insert(fault, now);
                    log::warn!("the hub is not ready: {}", fault.reason());
                    audit.say("hub.unready", Actor::HUB, &[("outcome", "failed"), ("reason", fault.code())]);
                }
                Some(since) if !is_there => {
                    locked(&self.faults).remove(&fault);
                    let seconds = now.since(since).as_secs().to_string();
                    log::warn!("over after {seconds} s: {}", fault.reason());
                    let details = [("reason", fault.code()), ("seconds", &seconds)];
                    audit.say("hub.ready", Actor::HUB, &details);
                }
                _ => {}
            }
        }
        *locked(&self.checked) = Instant::now();
    }
}

fn is_behind(latest: &mut Time, now: Time) -> bool {
    *latest = now.max(*latest);
    latest.since(now) > CLOCK_TOLERANCE
}

/// Whether a change could be written now. There is none, so another file stands in for it.
fn can_write(data: &Path) -> bool {
    let probe = data.join("write-probe");
    files::write(&probe, &WRITE_PROBE).and_then(|()| files::remove(&probe)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_is_behind_until_it_has_caught_up() {
        let at = Time::from_unix;
        let mut latest = at(1000);
        assert!(!is_behind(&mut latest, at(970)) && !is_behind(&mut latest, at(2000)));
        assert!(is_behind(&mut latest, at(1969)) && !is_behind(&mut latest, at(1970)));
    }
}
