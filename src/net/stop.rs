//! The one way to end things: a flag that sleepers watch, and the cuts that wake whoever blocks.
//!
//! Whoever is about to block registers its cut first. A stop that comes before the registration is seen
//! by it, one that comes after finds the cut in the set; there is no moment in between.

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
    /// Of a child with its parent, for as long as anybody has the child.
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

    /// Sets the flag and makes every registered cut. The second call finds nothing left to do.
    pub fn stop(&self) {
        let cuts = {
            let mut state = locked(&self.shared.state);
            state.stopped = true;
            std::mem::take(&mut state.cuts)
        };
        self.shared.wake.notify_all();
        cuts.into_values().for_each(|cut| cut());
    }

    /// Sleeps, and says whether it was woken by a stop.
    pub fn wait_for(&self, duration: Duration) -> bool {
        wait_while(&self.shared.wake, locked(&self.shared.state), duration, |state| !state.stopped).stopped
    }

    pub fn wait(&self) {
        self.wait_for(FOREVER);
    }

    /// `None` when it has stopped already: then there is nothing to begin.
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

    /// The socket is cut when this stops.
    pub fn attach(&self, socket: &Arc<TcpStream>) -> Option<Registration> {
        let socket = Arc::clone(socket);
        self.on_stop(move || drop(socket.shutdown(Shutdown::Both)))
    }

    /// Stops when this does, or alone.
    pub fn child(&self) -> Self {
        let child = Self::new();
        // A parent does not keep its children: each takes itself out when nobody has it any more.
        let weak = Arc::downgrade(&child.shared);
        match self.on_stop(move || weak.upgrade().into_iter().for_each(|shared| Self { shared }.stop())) {
            Some(registration) => drop(child.shared.parent.set(registration)),
            None => child.stop(),
        }
        child
    }
}

/// Takes its cut out of the set when dropped.
pub struct Registration {
    stop: Stop,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        // It may hold the last of a socket, whose closing is not for others to wait for.
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
