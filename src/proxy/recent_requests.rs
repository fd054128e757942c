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
/// A longer path is shortened: the memory for all of them must stay small.
const SHOWN_PATH_LIMIT: usize = 300;

#[derive(Clone, Debug, Default, Serialize)]
pub struct RequestRecord {
    pub number: u64,
    pub at: Time,
    pub method: String,
    pub service: String,
    pub path: String,
    pub status: u16,
    /// Time until the response was complete, in microseconds.
    pub micros: u64,
}

#[derive(Default)]
pub struct RecentRequests {
    log: Mutex<RequestLog>,
    added: Condvar,
}

#[derive(Default)]
struct RequestLog {
    records: VecDeque<RequestRecord>,
    /// How many threads wait for the next record. With none, the system call that wakes them is saved.
    watchers: usize,
}

/// A request that has been answered. Its texts are copied into the memory of an old record.
pub struct FinishedRequest<'a> {
    pub method: &'a str,
    pub service: &'a str,
    pub target: &'a str,
    pub status: u16,
    pub began: Instant,
    /// Why a service gave no response; otherwise empty.
    pub reason: &'a str,
}

impl RecentRequests {
    pub fn add(&self, request: &FinishedRequest<'_>) {
        // Queries often hold secrets, and the page does not need them.
        let path = request.target.split('?').next().unwrap_or_default();
        let path = path.get(..SHOWN_PATH_LIMIT).unwrap_or(path);
        let at = clock::now();
        let mut log = locked(&self.log);
        let number = log.records.back().map_or(1, |last| last.number + 1);
        let oldest = if log.records.len() < RECENT_LIMIT { None } else { log.records.pop_front() };
        let mut record = oldest.unwrap_or_default();
        request.method.clone_into(&mut record.method);
        request.service.clone_into(&mut record.service);
        path.clone_into(&mut record.path);
        record.number = number;
        record.at = at;
        record.status = request.status;
        record.micros = u64::try_from(request.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        log.records.push_back(record);
        let is_watched = log.watchers > 0;
        drop(log);
        if is_watched {
            self.added.notify_all();
        }
    }

    /// The records after `number`. If there is none yet, waits up to `timeout` for one.
    pub fn after(&self, number: u64, timeout: Duration) -> Vec<RequestRecord> {
        let nothing_new = |log: &mut RequestLog| log.records.back().is_none_or(|last| last.number <= number);
        let mut log = locked(&self.log);
        log.watchers += 1;
        let mut log = wait_while(&self.added, log, timeout, nothing_new);
        log.watchers -= 1;
        log.records.iter().filter(|record| record.number > number).cloned().collect()
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
            recent.add(&FinishedRequest {
                method: "GET",
                service: "api",
                target,
                status,
                began: Instant::now(),
                reason: "",
            });
        }
        let records = recent.after(0, Duration::ZERO);
        assert_eq!((records.len(), records[0].status, records[199].status), (RECENT_LIMIT, 100, 299));
        assert_eq!((records[0].path.as_str(), records[0].number), ("/a", 101));
        assert_eq!(recent.after(299, Duration::ZERO).len(), 1);
        assert!(recent.after(300, Duration::from_millis(1)).is_empty());
    }
}
