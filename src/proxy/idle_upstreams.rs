//! The connections to services that a thread keeps: from one request to the next, and from one client to the next
//! when nothing in them is the former client's.

use super::route_table::ProxyRoute;
use super::upstream::Upstream;

/// Services of which one thread keeps a connection.
const IDLE_LIMIT: usize = 4;

#[derive(Default)]
pub struct IdleUpstreams {
    kept: Vec<Upstream>,
}

impl IdleUpstreams {
    pub fn take(&mut self, route: &ProxyRoute) -> Option<Upstream> {
        let at = self.kept.iter().position(|kept| kept.service == route.name)?;
        let kept = self.kept.swap_remove(at);
        // The name may lead elsewhere by now. A tunnel keeps its port.
        (!route.is_local() || kept.port == route.port).then_some(kept)
    }

    pub fn keep(&mut self, mut upstream: Upstream) {
        upstream.used = true;
        if self.kept.len() == IDLE_LIMIT {
            self.kept.remove(0);
        }
        self.kept.push(upstream);
    }

    /// What a service says though nobody asked was meant for the client before. Where that one has proved who it is
    /// for the connection as a whole (NTLM, Negotiate), the next one must not be taken for it; and where it sent a
    /// body, a careless service may have left some of it unread, to be the beginning of the next one's request.
    pub fn next_client(&mut self) {
        self.kept.retain(|kept| !kept.personal && kept.is_at_rest());
    }
}
