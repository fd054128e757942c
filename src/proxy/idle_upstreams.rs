//! The idle connections to services that a thread keeps: from one request to the next, and from one client to the next
//! if nothing in them belongs to the client before.

use super::route_table::ProxyRoute;
use super::upstream::Upstream;

/// One thread keeps connections to this many services. A page seldom needs more.
const IDLE_UPSTREAM_LIMIT: usize = 4;

#[derive(Default)]
pub struct IdleUpstreams {
    list: Vec<Upstream>,
}

impl IdleUpstreams {
    pub fn take(&mut self, route: &ProxyRoute) -> Option<Upstream> {
        let at = self.list.iter().position(|idle| idle.service == route.name)?;
        let idle = self.list.swap_remove(at);
        // The route may have a different port by now. A tunnel keeps its port.
        (!route.is_local() || idle.port == route.port).then_some(idle)
    }

    pub fn keep(&mut self, mut upstream: Upstream) {
        upstream.used = true;
        if self.list.len() == IDLE_UPSTREAM_LIMIT {
            self.list.remove(0);
        }
        self.list.push(upstream);
    }

    /// Drops what the next client must not get. Bytes that have come since the last response were meant for the client
    /// before. Where that client has logged in for the whole connection (NTLM, Negotiate), the next one would be
    /// taken for it. And where it sent a body, a careless service may have left a part of it unread, which would become
    /// the beginning of the next client's request.
    pub fn start_client(&mut self) {
        self.list.retain(|idle| !idle.personal && idle.is_idle_and_open());
    }
}
