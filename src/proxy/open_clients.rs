//! The client connections that are open, and which of them rests the longest: that one goes when there
//! are too many, so that accepting never stops.

use crate::os::lock::locked;
use std::collections::HashMap;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Client connections at once. A browser opens six to a host, so this is some hundred of its windows; each
/// costs a thread with about 30 KiB.
pub const CLIENT_LIMIT: usize = 1024;

pub struct OpenClients {
    began: Instant,
    entries: Mutex<ClientList>,
}

#[derive(Default)]
struct ClientList {
    next: u64,
    open: HashMap<u64, Arc<ClientActivity>>,
}

struct ClientActivity {
    socket: Arc<TcpStream>,
    /// Milliseconds from the start, and 0 while a request is under way.
    resting_since: AtomicU64,
}

/// A connection's own entry; gone when dropped.
pub struct OpenClient<'l> {
    live: &'l OpenClients,
    id: u64,
    slot: Arc<ClientActivity>,
}

impl OpenClients {
    pub fn new() -> Self {
        Self { began: Instant::now(), entries: Mutex::default() }
    }

    pub fn enter(&self, socket: &Arc<TcpStream>) -> OpenClient<'_> {
        let since = AtomicU64::new(self.at(Instant::now()));
        let slot = Arc::new(ClientActivity { socket: Arc::clone(socket), resting_since: since });
        let mut entries = locked(&self.entries);
        if entries.open.len() >= CLIENT_LIMIT {
            close_longest_resting(&entries.open);
        }
        entries.next += 1;
        let id = entries.next;
        entries.open.insert(id, Arc::clone(&slot));
        OpenClient { live: self, id, slot }
    }

    pub fn count(&self) -> usize {
        locked(&self.entries).open.len()
    }

    fn at(&self, now: Instant) -> u64 {
        u64::try_from(now.duration_since(self.began).as_millis()).unwrap_or(u64::MAX).max(1)
    }
}

fn close_longest_resting(open: &HashMap<u64, Arc<ClientActivity>>) {
    let since = |slot: &ClientActivity| slot.resting_since.load(Ordering::Relaxed);
    let resting = open.values().filter(|slot| since(slot) > 0);
    if let Some(longest) = resting.min_by_key(|slot| since(slot)) {
        // It counts as busy from now on, so that the next one to come chooses another.
        longest.resting_since.store(0, Ordering::Relaxed);
        let _ = longest.socket.shutdown(Shutdown::Both);
    }
}

impl OpenClient<'_> {
    pub fn rests(&self, since: Instant) {
        self.slot.resting_since.store(self.live.at(since), Ordering::Relaxed);
    }

    pub fn works(&self) {
        self.slot.resting_since.store(0, Ordering::Relaxed);
    }
}

impl Drop for OpenClient<'_> {
    fn drop(&mut self) {
        locked(&self.live.entries).open.remove(&self.id);
    }
}
