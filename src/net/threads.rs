//! Threads with an owner. Those that have ended are reaped; the owner joins the others before it goes.

use crate::error::OrSay;
use crate::error::Result;
use crate::os::lock::locked;
use crate::os::memory;
use crate::os::scheduling::prefer_throughput;
use std::panic;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

/// Enough for a TLS handshake and the JSON of the API. Only the pages that are touched take memory.
pub const THREAD_STACK: usize = 256 * 1024;
const JOIN_POLL: Duration = Duration::from_millis(1);
/// The fewest threads at once whose memory is worth a walk through the heap.
const BURST: usize = 32;

/// Of this process.
static THREADS: ThreadCount = ThreadCount { running: AtomicUsize::new(0), most: AtomicUsize::new(0) };

/// Tells when a burst of threads is over, so that its memory can be given back.
struct ThreadCount {
    running: AtomicUsize,
    /// Most at once, since memory was given back for the last time.
    most: AtomicUsize,
}

impl ThreadCount {
    fn begun(&self) {
        let running = self.running.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(running, Ordering::Relaxed);
    }

    /// Whether half of a burst has gone with this one. Only one thread is told so for each half.
    fn ended(&self) -> bool {
        let running = self.running.fetch_sub(1, Ordering::Relaxed) - 1;
        let most = self.most.load(Ordering::Relaxed);
        most >= BURST
            && running <= most / 2
            && self.most.compare_exchange(most, running, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[derive(Default)]
pub struct ThreadGroup {
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl ThreadGroup {
    /// Spawns a thread of the group. A panic in `work` is logged and ends only that thread.
    pub fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let handle = spawn(name, work)?;
        self.reap();
        locked(&self.handles).push(handle);
        Ok(())
    }

    /// Frees the stacks of threads that have ended. Each thread to spawn does so; after a burst, one that ends should.
    pub fn reap(&self) {
        locked(&self.handles).retain(|handle| !handle.is_finished());
    }

    /// Waits for all threads, but not longer than this. False if one still runs.
    pub fn join_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while locked(&self.handles).iter().any(|handle| !handle.is_finished()) {
            if Instant::now() >= deadline {
                return false;
            }
            thread::park_timeout(JOIN_POLL);
        }
        self.join(|| ());
        true
    }

    /// Waits for all threads, and calls `nudge` again and again while one still runs. The owner must have cut what they
    /// block on.
    pub fn join(&self, nudge: impl Fn()) {
        loop {
            let popped = locked(&self.handles).pop();
            let Some(handle) = popped else { return };
            while !handle.is_finished() {
                nudge();
                thread::park_timeout(JOIN_POLL);
            }
            let _ = handle.join();
        }
    }
}

pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let label = name.to_owned();
    let spawned = thread::Builder::new().name(label.clone()).stack_size(THREAD_STACK).spawn(move || {
        THREADS.begun();
        prefer_throughput();
        if panic::catch_unwind(AssertUnwindSafe(work)).is_err() {
            log::error!("a bug of connect ended the thread {label}; the others continue");
        }
        if THREADS.ended() {
            memory::give_back();
        }
    });
    spawned.or_say(|| "Cannot start a thread")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_told_once_for_each_half_that_goes() {
        let count = ThreadCount { running: AtomicUsize::new(0), most: AtomicUsize::new(0) };
        let told = |threads: usize| (0..threads).filter(|_| count.ended()).count();
        (0..BURST - 1).for_each(|_| count.begun());
        assert_eq!(told(BURST - 1), 0, "no burst");
        (0..4 * BURST).for_each(|_| count.begun());
        assert_eq!(told(2 * BURST - 1), 0);
        assert_eq!(told(1), 1);
        assert_eq!(told(2 * BURST), 2, "at a quarter and at an eighth");
    }
}
