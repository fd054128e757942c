//! Stopping: a flag that sleeping threads wait on, and the cuts that wake threads blocked in I/O.
//!
//! A thread registers its cut before it blocks. If the stop comes first, the registration fails; if it comes later, it
//! finds the cut in the set. Nothing falls between the two, because both happen under one lock.

use crate::os::lock::FOREVER;
use crate::os::lock::locked;
use crate::os::lock::wait_while;
use std::collections::HashMap;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::time::Duration;

type CutAction = Box<dyn FnOnce() + Send>;

#[derive(Clone, Default)]
pub struct Stop {
    shared: Arc<StopShared>,
}

#[derive(Default)]
struct StopShared {
    state: Mutex<StopState>,
    wake: Condvar,
    /// A child's registration with its parent. It ends with the last clone of the child.
    parent: OnceLock<Registration>,
}

#[derive(Default)]
struct StopState {
    stopped: bool,
    next: u64,
    cuts: HashMap<u64, CutAction>,
}

impl Stop {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn is_stopped(&self) -> bool {
        locked(&self.shared.state).stopped
    }

    /// Sets the flag and runs every registered cut. A second call has nothing left to do.
    pub fn stop(&self) {
        let cuts = {
            let mut state = locked(&self.shared.state);
            state.stopped = true;
            std::mem::take(&mut state.cuts)
        };
        self.shared.wake.notify_all();
        cuts.into_values().for_each(|cut| cut());
    }

    /// Sleeps for `duration` at most. True if it has been stopped.
    pub fn wait_for(&self, duration: Duration) -> bool {
        wait_while(&self.shared.wake, locked(&self.shared.state), duration, |state| !state.stopped).stopped
    }

    pub fn wait(&self) {
        self.wait_for(FOREVER);
    }

    /// Registers a cut. If the stop has happened already, returns `None` and the caller must not begin.
    pub fn on_stop(&self, cut: impl FnOnce() + Send + 'static) -> Option<Registration> {
        let mut state = locked(&self.shared.state);
        if state.stopped {
            return None;
        }
        state.next += 1;
        let id = state.next;
        state.cuts.insert(id, Box::new(cut));
        Some(Registration { stop: self.clone(), id })
    }

    /// Cuts the socket when this stops.
    pub fn attach(&self, socket: &Arc<TcpStream>) -> Option<Registration> {
        let socket = Arc::clone(socket);
        self.on_stop(move || drop(socket.shutdown(Shutdown::Both)))
    }

    /// A `Stop` that also stops when this one does, but that can be stopped alone.
    pub fn child(&self) -> Self {
        let child = Self::new();
        // The parent keeps only a weak reference: a child that is dropped removes itself from the set.
        let weak = Arc::downgrade(&child.shared);
        match self.on_stop(move || {
            if let Some(shared) = weak.upgrade() {
                Self { shared }.stop();
            }
        }) {
            Some(registration) => drop(child.shared.parent.set(registration)),
            None => child.stop(),
        }
        child
    }
}

/// A registered cut. Dropping it removes the cut from the set.
pub struct Registration {
    stop: Stop,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        // The cut may own the last handle of a socket. Closing that must not happen under the lock.
        let cut = locked(&self.stop.shared.state).cuts.remove(&self.id);
        drop(cut);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;
    use std::sync::atomic::Ordering;

    #[test]
    fn a_stop_wakes_sleepers_and_cuts_what_is_registered_once() {
        let (stop, count) = (Stop::new(), Arc::new(AtomicU32::new(0)));
        let counted = |by: u32| {
            let count = Arc::clone(&count);
            move || _ = count.fetch_add(by, Ordering::SeqCst)
        };
        let _kept = stop.on_stop(counted(1));
        drop(stop.on_stop(counted(10)));
        let sleeper = std::thread::spawn({
            let stop = stop.clone();
            move || stop.wait_for(Duration::from_mins(1))
        });
        stop.stop();
        stop.stop();
        assert!(sleeper.join().unwrap());
        assert_eq!(count.load(Ordering::SeqCst), 1);
        assert!(stop.on_stop(counted(100)).is_none());
    }

    #[test]
    fn a_parent_forgets_a_child_that_nobody_has_any_more() {
        let parent = Stop::new();
        let child = parent.child();
        assert_eq!(locked(&parent.shared.state).cuts.len(), 1);
        drop(child);
        assert!(locked(&parent.shared.state).cuts.is_empty());
    }

    #[test]
    fn a_child_stops_with_its_parent_and_not_the_other_way_round() {
        let parent = Stop::new();
        let (alone, with) = (parent.child(), parent.child());
        alone.stop();
        assert!(alone.is_stopped() && !parent.is_stopped());
        parent.stop();
        assert!(with.is_stopped() && parent.child().is_stopped());
    }
}
