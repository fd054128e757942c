//! Connections that have shown neither a key nor a ticket yet. They are counted by network, so that one network cannot use
//! up the connections of all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;

use crate::model::limiter::network_of;
use crate::os::lock::locked;

/// More than an office behind one address has at a time. Each has ten seconds to show a key or a ticket.
const PEERS_PER_NETWORK: usize = 1000;

#[derive(Default)]
pub struct UnauthenticatedPeers {
    by_network: Mutex<HashMap<IpAddr, usize>>,
}

/// One counted connection. Dropping it ends the count.
pub struct UnauthenticatedPeer<'g> {
    among: &'g UnauthenticatedPeers,
    network: IpAddr,
}

impl UnauthenticatedPeers {
    /// `None` if this network has too many already.
    pub fn admit(&self, address: IpAddr) -> Option<UnauthenticatedPeer<'_>> {
        let network = network_of(address);
        let mut by_network = locked(&self.by_network);
        let count = by_network.entry(network).or_default();
        if *count >= PEERS_PER_NETWORK {
            return None;
        }
        *count += 1;
        Some(UnauthenticatedPeer { among: self, network })
    }
}

impl Drop for UnauthenticatedPeer<'_> {
    fn drop(&mut self) {
        let mut by_network = locked(&self.among.by_network);
        if let Some(count) = by_network.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                by_network.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_leaves_room_for_the_others_and_gets_its_own_back() {
        let peers = UnauthenticatedPeers::default();
        let [one, other] = [1, 2].map(|last| IpAddr::from([192, 0, 2, last]));
        let mut here: Vec<_> = (0..PEERS_PER_NETWORK).map(|_| peers.admit(one).unwrap()).collect();
        assert!(peers.admit(one).is_none() && peers.admit(other).is_some());
        here.pop();
        assert!(peers.admit(one).is_some());
        here.clear();
        assert!(locked(&peers.by_network).is_empty());
    }
}
