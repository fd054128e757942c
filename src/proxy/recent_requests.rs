//! The last requests: method, host, path, status and time, never a header's value or a body.

use std::collections::VecDeque;
use std::sync::Condvar;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use serde::Serialize;

use crate::model::time::Time;
use crate::os::clock;
use crate::os::lock::locked;
use crate::os::lock::wait_while;

/// What the page shows; older ones are forgotten.
const RECENT_LIMIT: usize = 200;
/// What is kept of a long path.
const SHOWN_PATH_LIMIT: usize = 300;

#[derive(Clone, Debug, Default, Serialize)]
pub struct RequestRecord {
    pub number: u64,
    pub at: Time,
    pub method: String,
    pub service: String,
    pub path: String,
    pub status: u16,
    /// Until the answer was through, in microseconds.
    pub micros: u64,
}

#[derive(Default)]
pub struct RecentRequests {
    log: Mutex<RequestLog>,
    more: Condvar,
}

#[derive(Default)]
struct RequestLog {
    seen: VecDeque<RequestRecord>,
    /// Who waits for more. Waking nobody costs a system call as well.
    watchers: usize,
}

/// A request as it is noted; the words are copied into memory that is used again.
pub struct FinishedRequest<'a> {
    pub method: &'a str,
    pub service: &'a str,
    pub target: &'a str,
    pub status: u16,
    pub began: Instant,
}

impl RecentRequests {
    pub fn note(&self, note: &FinishedRequest<'_>) {
        // Secrets travel in queries; the page needs none of them.
        let path = note.target.split('?').next().unwrap_or_default();
        let path = path.get(..SHOWN_PATH_LIMIT).unwrap_or(path);
        let at = clock::now();
        let mut log = locked(&self.log);
        let RequestLog { seen, watchers } = &mut *log;
        let number = seen.back().map_or(1, |last| last.number + 1);
        let mut entry = if seen.len() < RECENT_LIMIT {
            RequestRecord::default()
        } else {
            seen.pop_front().unwrap_or_default()
        };
        note.method.clone_into(&mut entry.method);
        note.service.clone_into(&mut entry.service);
        path.clone_into(&mut entry.path);
        (entry.number, entry.at, entry.status) = (number, at, note.status);
        entry.micros = u64::try_from(note.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        seen.push_back(entry);
        let watched = *watchers > 0;
        drop(log);
        if watched {
            self.more.notify_all();
        }
    }

    /// Those after `number`, waiting for one if there is none yet.
    pub fn after(&self, number: u64, patience: Duration) -> Vec<RequestRecord> {
        let nothing_new = |log: &mut RequestLog| log.seen.back().is_none_or(|last| last.number <= number);
        let mut log = locked(&self.log);
        log.watchers += 1;
        let mut log = wait_while(&self.more, log, patience, nothing_new);
        log.watchers -= 1;
        log.seen.iter().filter(|entry| entry.number > number).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept_without_their_queries() {
        let recent = RecentRequests::default();
        for status in 0..300 {
            let target = "/a?token=secret";
            recent.note(&FinishedRequest {
                method: "GET",
                service: "api",
                target,
                status,
                began: Instant::now(),
            });
        }
        let seen = recent.after(0, Duration::ZERO);
        assert_eq!((seen.len(), seen[0].status, seen[199].status), (RECENT_LIMIT, 100, 299));
        assert_eq!((seen[0].path.as_str(), seen[0].number), ("/a", 101));
        assert_eq!(recent.after(299, Duration::ZERO).len(), 1);
        assert!(recent.after(300, Duration::from_millis(1)).is_empty());
    }
}
