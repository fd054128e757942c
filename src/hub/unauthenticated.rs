//! Connections that have shown neither a key nor a ticket yet. They share a budget, so that keys always find room, and each
//! network has a share of it.
//!
//! Nobody is turned away: a newcomer for whom there is no room takes the place of the oldest of its own network, so
//! everybody gets a moment to show a key. None stays longer than `LIFETIME`, whatever it sends.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::net::IpAddr;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use crate::model::address_block::AddressBlock;
use crate::os::limits;
use crate::os::lock::locked;

/// Connections at once: each session needs two, each agent one.
const CONNECTION_LIMIT: usize = 24_000;
/// File descriptors kept free for files, listeners and the hub's own tunnels; half of all if the system grants few.
/// Without a free one, the hub could neither accept a connection nor refuse it.
const RESERVED_DESCRIPTORS: usize = 64;
/// Connections that may be open without a key, and their part of all.
const BUDGET: usize = 4000;
const BUDGET_PART: usize = 6;
/// From accept to close. A request, its answer and an orderly close need well under a second.
pub const LIFETIME: Duration = Duration::from_secs(10);
/// The end of reading: the rest of the lifetime is for the answer.
pub const READ_TIMEOUT: Duration = Duration::from_secs(9);
/// Even a small system has room for so many.
const SMALLEST_BUDGET: usize = 16;

/// The networks that an address is counted in, by their first bits: an address, and what a customer of a provider has. The
/// smallest may use this part of the budget, each larger one twice as much.
const IPV4_NETWORKS: [u32; 2] = [32, 24];
/// A machine, a customer, and a provider: anybody can rent a /48.
const IPV6_NETWORKS: [u32; 3] = [64, 48, 32];
const SMALLEST_PART: usize = 8;

/// Connections at once, as far as the system's limits allow.
pub fn connection_limit() -> usize {
    let descriptors = limits::open_files();
    CONNECTION_LIMIT.min(descriptors - RESERVED_DESCRIPTORS.min(descriptors / 2)).min(limits::tasks()).max(1)
}

pub struct UnauthenticatedPeers {
    table: Mutex<PeerTable>,
}

struct PeerTable {
    /// By arrival, the oldest first.
    open: BTreeMap<u64, OpenPeer>,
    /// The open ones of each network.
    by_network: HashMap<AddressBlock, BTreeSet<u64>>,
    next: u64,
    budget: usize,
    full_budget: usize,
}

struct OpenPeer {
    socket: Arc<TcpStream>,
    since: Instant,
    /// `None` for a proxy's connection until its head has said whose it is.
    address: Option<IpAddr>,
}

/// One counted connection. Dropping it ends the count.
pub struct UnauthenticatedPeer<'p> {
    among: &'p UnauthenticatedPeers,
    id: u64,
    pub since: Instant,
}

impl UnauthenticatedPeers {
    /// Of this many connections, so few may be without a key that the others always find room.
    pub fn new(connection_limit: usize) -> Self {
        let full_budget = BUDGET.min(connection_limit / BUDGET_PART).max(SMALLEST_BUDGET);
        let table = PeerTable {
            open: BTreeMap::new(),
            by_network: HashMap::new(),
            next: 0,
            budget: full_budget,
            full_budget,
        };
        Self { table: Mutex::new(table) }
    }

    /// Counts a connection. Others may be cut for it.
    pub fn admit(&self, socket: &Arc<TcpStream>, address: Option<IpAddr>) -> UnauthenticatedPeer<'_> {
        let since = Instant::now();
        let mut id = 0;
        self.change(|table| {
            table.next += 1;
            id = table.next;
            table.insert(id, OpenPeer { socket: Arc::clone(socket), since, address })
        });
        UnauthenticatedPeer { among: self, id, since }
    }

    /// Cuts those whose time is over, and lets a lowered budget grow again, slowly.
    pub fn sweep(&self) {
        self.change(|table| {
            table.budget = table.full_budget.min(table.budget + 1);
            let late = table.open.values().take_while(|peer| peer.since.elapsed() >= LIFETIME).count();
            table.remove_oldest(late)
        });
    }

    /// The system has no thread or descriptor left for a connection. Cuts the oldest eighth and lowers the budget to what is
    /// left. False if there was nobody to cut.
    pub fn shed(&self) -> bool {
        self.change(|table| {
            let cut = table.remove_oldest(table.open.len().div_ceil(8));
            if !cut.is_empty() {
                table.budget = table.open.len().max(SMALLEST_BUDGET);
            }
            cut
        })
    }

    /// Changes the table under its lock, and cuts what had to go after it. False if nothing had.
    fn change(&self, change: impl FnOnce(&mut PeerTable) -> Vec<OpenPeer>) -> bool {
        let cut = change(&mut locked(&self.table));
        for peer in &cut {
            let _ = peer.socket.shutdown(Shutdown::Both);
        }
        !cut.is_empty()
    }
}

impl UnauthenticatedPeer<'_> {
    /// A proxy has said whose connection this is.
    pub fn belongs_to(&self, address: IpAddr) {
        self.among.change(|table| match table.remove(self.id) {
            Some(peer) => table.insert(self.id, OpenPeer { address: Some(address), ..peer }),
            None => Vec::new(),
        });
    }
}

impl Drop for UnauthenticatedPeer<'_> {
    fn drop(&mut self) {
        let removed = locked(&self.among.table).remove(self.id);
        // Maybe the last handle of the socket, which must not be closed under the lock.
        drop(removed);
    }
}

impl PeerTable {
    /// Inserts a peer, and returns those that must go for it: the oldest of each network that has used up its share, then the
    /// oldest of all.
    fn insert(&mut self, id: u64, peer: OpenPeer) -> Vec<OpenPeer> {
        let mut gone = Vec::new();
        for (level, network) in networks(&peer).into_iter().enumerate() {
            let share = (self.budget << level) / SMALLEST_PART;
            let full = self.by_network.get(&network).filter(|open| open.len() >= share);
            let oldest = full.and_then(|open| open.first().copied());
            gone.extend(oldest.and_then(|id| self.remove(id)));
            self.by_network.entry(network).or_default().insert(id);
        }
        let surplus = (self.open.len() + 1).saturating_sub(self.budget);
        gone.extend(self.remove_oldest(surplus));
        self.open.insert(id, peer);
        gone
    }

    fn remove_oldest(&mut self, count: usize) -> Vec<OpenPeer> {
        let oldest: Vec<u64> = self.open.keys().take(count).copied().collect();
        oldest.into_iter().filter_map(|id| self.remove(id)).collect()
    }

    fn remove(&mut self, id: u64) -> Option<OpenPeer> {
        let peer = self.open.remove(&id)?;
        for network in networks(&peer) {
            let Some(open) = self.by_network.get_mut(&network) else { continue };
            open.remove(&id);
            if open.is_empty() {
                self.by_network.remove(&network);
            }
        }
        Some(peer)
    }
}

/// The networks that a peer is counted in, the smallest first.
fn networks(peer: &OpenPeer) -> Vec<AddressBlock> {
    let Some(address) = peer.address else { return Vec::new() };
    let bits = if address.to_canonical().is_ipv4() { &IPV4_NETWORKS[..] } else { &IPV6_NETWORKS };
    bits.iter().map(|bits| AddressBlock::around(address, *bits)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const SMALL_BUDGET: usize = 80;

    struct Stage {
        peers: UnauthenticatedPeers,
        socket: Arc<TcpStream>,
        _listener: TcpListener,
    }

    impl Stage {
        fn set() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let socket = Arc::new(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
            Self { peers: UnauthenticatedPeers::new(SMALL_BUDGET * BUDGET_PART), socket, _listener: listener }
        }

        fn admit(&self, address: &str) -> UnauthenticatedPeer<'_> {
            self.peers.admit(&self.socket, Some(address.parse().unwrap()))
        }

        fn count(&self, network: &str) -> usize {
            let network = AddressBlock::parse(network).unwrap();
            let table = locked(&self.peers.table);
            table.open.values().filter(|peer| peer.address.is_some_and(|it| network.contains(it))).count()
        }

        fn is_open(&self, peer: &UnauthenticatedPeer<'_>) -> bool {
            locked(&self.peers.table).open.contains_key(&peer.id)
        }
    }

    #[test]
    fn a_network_with_its_share_in_use_gives_up_its_own_oldest_and_nobody_elses() {
        let stage = Stage::set();
        let neighbour = stage.admit("192.0.2.2");
        let stranger = stage.admit("198.51.100.1");
        let here: Vec<_> = (0..=SMALL_BUDGET / 8).map(|_| stage.admit("192.0.2.1")).collect();
        assert!(!stage.is_open(&here[0]) && here[1..].iter().all(|peer| stage.is_open(peer)));
        assert_eq!(stage.count("192.0.2.1/32"), SMALL_BUDGET / 8);
        let more: Vec<_> = (0..SMALL_BUDGET).map(|n| stage.admit(&format!("192.0.2.{}", n + 3))).collect();
        assert_eq!(stage.count("192.0.2.0/24"), SMALL_BUDGET / 4);
        assert!(!stage.is_open(&neighbour) && stage.is_open(&stranger));
        drop((here, more, neighbour, stranger));
        let table = locked(&stage.peers.table);
        assert!(table.open.is_empty() && table.by_network.is_empty());
    }

    #[test]
    fn with_ipv6_a_machine_a_customer_and_a_provider_have_shares() {
        let stage = Stage::set();
        let held: Vec<_> =
            (0..400).map(|n| stage.admit(&format!("2001:db8:{}:{}::{n}", n % 5, n % 50))).collect();
        assert_eq!(stage.count("2001:db8::/32"), SMALL_BUDGET / 2);
        assert!(
            stage.count("2001:db8:1::/48") <= SMALL_BUDGET / 4
                && stage.count("2001:db8:1:1::/64") <= SMALL_BUDGET / 8
        );
        drop(held);
    }

    #[test]
    fn what_is_shed_lowers_the_budget_for_a_while() {
        let stage = Stage::set();
        assert!(!stage.peers.shed());
        let held: Vec<_> = (0..40).map(|n| stage.admit(&format!("10.{n}.0.1"))).collect();
        assert!(stage.peers.shed() && !stage.is_open(&held[4]) && stage.is_open(&held[5]));
        assert_eq!(locked(&stage.peers.table).budget, 35);
        (0..SMALL_BUDGET).for_each(|_| stage.peers.sweep());
        assert_eq!(locked(&stage.peers.table).budget, SMALL_BUDGET);
    }

    #[test]
    fn a_proxys_connection_counts_for_the_address_that_its_head_names() {
        let stage = Stage::set();
        let held: Vec<_> = (0..SMALL_BUDGET / 2).map(|_| stage.peers.admit(&stage.socket, None)).collect();
        held.iter().for_each(|peer| peer.belongs_to("192.0.2.1".parse().unwrap()));
        assert_eq!(stage.count("192.0.2.1/32"), SMALL_BUDGET / 8);
    }
}
