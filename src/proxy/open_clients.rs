//! The open client connections, and which of them has been idle for the longest time: that one is closed when there are
//! too many, so that accepting never stops.

use std::collections::HashMap;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Instant;

use crate::os::lock::locked;

/// Client connections at once. A browser opens six to each host, so this is a few hundred of its windows; each
/// connection costs a thread with about 30 KiB.
pub const CLIENT_LIMIT: usize = 1024;

#[derive(Default)]
pub struct OpenClients {
    list: Mutex<ClientList>,
}

#[derive(Default)]
struct ClientList {
    last_id: u64,
    by_id: HashMap<u64, Arc<ClientActivity>>,
}

struct ClientActivity {
    socket: Arc<TcpStream>,
    /// `None` while a request is being served.
    idle_since: Mutex<Option<Instant>>,
}

/// A connection's own entry; removed when dropped.
pub struct OpenClient<'l> {
    clients: &'l OpenClients,
    id: u64,
    activity: Arc<ClientActivity>,
}

impl OpenClients {
    pub fn add(&self, socket: &Arc<TcpStream>) -> OpenClient<'_> {
        let idle_since = Mutex::new(Some(Instant::now()));
        let activity = Arc::new(ClientActivity { socket: Arc::clone(socket), idle_since });
        let mut list = locked(&self.list);
        if list.by_id.len() >= CLIENT_LIMIT {
            close_longest_idle(&list.by_id);
        }
        list.last_id += 1;
        let id = list.last_id;
        list.by_id.insert(id, Arc::clone(&activity));
        OpenClient { clients: self, id, activity }
    }

    pub fn count(&self) -> usize {
        locked(&self.list).by_id.len()
    }
}

fn close_longest_idle(by_id: &HashMap<u64, Arc<ClientActivity>>) {
    let since = |client: &ClientActivity| *locked(&client.idle_since);
    let idle = by_id.values().filter(|client| since(client).is_some());
    if let Some(longest) = idle.min_by_key(|client| since(client)) {
        // It counts as busy now, so that the next call closes a different one.
        *locked(&longest.idle_since) = None;
        let _ = longest.socket.shutdown(Shutdown::Both);
    }
}

impl OpenClient<'_> {
    pub fn set_idle(&self, since: Instant) {
        *locked(&self.activity.idle_since) = Some(since);
    }

    pub fn set_busy(&self) {
        *locked(&self.activity.idle_since) = None;
    }
}

impl Drop for OpenClient<'_> {
    fn drop(&mut self) {
        locked(&self.clients.list).by_id.remove(&self.id);
    }
}
