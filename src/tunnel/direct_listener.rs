//! The agent's listener for direct sessions: for whom it waits, how many may knock, and which sessions it has.
//!
//! `direct.rs` has the whole path. What a stranger costs is a place among the handshakes for a moment, the reading of one
//! hello, and an alert.

use std::collections::HashMap;
use std::io::Read;
use std::io::Write;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use rustls::server::Acceptor;

use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::address_block::AddressBlock;
use crate::model::session_protocol::TICKET_SECONDS;
use crate::net::connect::set_deadline;
use crate::net::duplex::Duplex;
use crate::net::places::Place;
use crate::net::places::Places;
use crate::net::stop::Stop;
use crate::os::interfaces;
use crate::os::lock::locked;
use crate::os::lock::wait_while;
use crate::wire::control::DirectReport;
use crate::wire::control::SessionOffer;
use crate::wire::frame::addresses_text;

/// A free port of each of the machine's addresses.
pub const ANY_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
/// Connections to the listener that have not proved yet whose they are. A joiner that finds no room uses the relay.
pub const DIRECT_HANDSHAKES: usize = 64;
/// Of them, those of one address; of IPv6, of one /64.
const ADDRESS_HANDSHAKES: usize = 8;
/// From accept to the end of the handshake. A joiner gives up long before.
pub const DIRECT_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// The hub answers joiner and agent at the same moment, so a joiner may come before its announcement.
const ANNOUNCEMENT_TIMEOUT: Duration = Duration::from_millis(300);
/// A hello with all its extensions is below 2 KiB.
const HELLO_LIMIT: usize = 8 * 1024;
/// Joiners that are expected at the same time: as many as an agent may have sessions.
const EXPECTED_JOINERS: usize = 4096;
/// A fatal alert: access denied.
const ALERT: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 49];

/// The agent's side: where it listens, and for whom.
pub struct DirectListener {
    address: SocketAddr,
    /// By what they name in their hello.
    expected: Mutex<HashMap<Vec<u8>, ExpectedJoiner>>,
    announced: Condvar,
    handshakes: Places,
    /// The same, by the address that they come from.
    of_address: Places,
    /// The direct sessions of this agent, with what ends each.
    open: Mutex<HashMap<String, Stop>>,
    /// What the hub has not heard yet. It may be away.
    reports: Mutex<Vec<DirectReport>>,
    ended: Condvar,
}

/// A joiner that the hub has announced.
struct ExpectedJoiner {
    offer: SessionOffer,
    until: Instant,
}

impl DirectListener {
    /// `ANY_ADDRESS` is IPv4 alone on a machine without IPv6.
    pub fn bind(address: SocketAddr) -> Result<(Self, TcpListener)> {
        let bound = match TcpListener::bind(address) {
            Err(_) if address == ANY_ADDRESS => TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)),
            bound => bound,
        };
        let listener = bound.map_err(|error| {
            Error::new(format!("Cannot listen on {address} for direct sessions"))
                .because(error)
                .hint("Name an address of this machine and a free port: --direct=ADDR:PORT, or only --direct")
        })?;
        let address = listener.local_addr().or_say(|| "Cannot tell the listener's address")?;
        let own = Self {
            address,
            expected: Mutex::default(),
            handshakes: Places::of(DIRECT_HANDSHAKES),
            of_address: Places::of(ADDRESS_HANDSHAKES),
            open: Mutex::default(),
            reports: Mutex::default(),
            ended: Condvar::new(),
            announced: Condvar::new(),
        };
        Ok((own, listener))
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where joiners may try to reach it, as ADDRESSES has it.
    pub fn reachable_at(&self) -> String {
        let (ip, port) = (self.address.ip(), self.address.port());
        let all = if ip.is_unspecified() { interfaces::addresses() } else { vec![ip] };
        let usable = all.into_iter().filter(|one| ip.is_ipv6() || one.is_ipv4());
        addresses_text(&usable.map(|ip| SocketAddr::new(ip, port)).collect::<Vec<_>>())
    }

    /// Expects a joiner that names `application`. False if too many are expected.
    pub fn expect(&self, application: Vec<u8>, offer: SessionOffer) -> bool {
        let now = Instant::now();
        let mut expected = locked(&self.expected);
        expected.retain(|_, joiner| joiner.until > now);
        let has_room = expected.len() < EXPECTED_JOINERS;
        if has_room {
            let until = now + Duration::from_secs(TICKET_SECONDS);
            expected.insert(application, ExpectedJoiner { offer, until });
        }
        drop(expected);
        self.announced.notify_all();
        has_room
    }

    /// What was announced under one of these names. It stays expected: nothing is proved yet.
    fn find(&self, names: &[Vec<u8>]) -> Option<SessionOffer> {
        let known = |expected: &HashMap<Vec<u8>, ExpectedJoiner>| {
            names.iter().find_map(|name| {
                let joiner = expected.get(name).filter(|joiner| joiner.until > Instant::now())?;
                Some(joiner.offer.clone())
            })
        };
        let is_unknown = |expected: &mut HashMap<Vec<u8>, ExpectedJoiner>| known(expected).is_none();
        known(&wait_while(&self.announced, locked(&self.expected), ANNOUNCEMENT_TIMEOUT, is_unknown))
    }

    /// The joiner has proved to be the expected one. True once.
    pub fn take(&self, application: &[u8]) -> bool {
        locked(&self.expected).remove(application).is_some()
    }

    /// Room for a handshake with this address, until it is dropped.
    pub fn admit(&self, address: IpAddr) -> Option<[Place<'_>; 2]> {
        let network = AddressBlock::around(address, 64).first();
        let own = self.of_address.take(network.to_string(), Duration::ZERO)?;
        Some([own, self.handshakes.take(String::new(), Duration::ZERO)?])
    }

    /// Reads the TLS hello of a connection. Returns what it names and the connection, from its first byte, if that is
    /// expected. Anybody else gets an alert.
    pub fn hear(&self, socket: &Arc<TcpStream>, deadline: Instant) -> Option<ExpectedConnection> {
        let (mut acceptor, mut hello, mut room) = (Acceptor::default(), Vec::new(), [0; 2048]);
        while hello.len() < HELLO_LIMIT {
            set_deadline(socket, deadline).ok()?;
            let count = (&**socket).read(&mut room).ok().filter(|count| *count > 0)?;
            hello.extend_from_slice(&room[..count]);
            let mut new = &room[..count];
            while !new.is_empty() && acceptor.read_tls(&mut new).is_ok_and(|read| read > 0) {}
            let Ok(accepted) = acceptor.accept() else { break };
            let Some(accepted) = accepted else { continue };
            let named = accepted.client_hello().alpn().into_iter().flatten();
            let named: Vec<Vec<u8>> = named.map(<[u8]>::to_vec).collect();
            let Some(offer) = self.find(&named) else { break };
            let mut connection = Duplex::plain(Arc::clone(socket));
            connection.reader.push_back(hello);
            return Some(ExpectedConnection { offer, connection });
        }
        let _ = (&**socket).write_all(&ALERT);
        None
    }

    pub fn begin(&self, session: &str, stop: &Stop) {
        locked(&self.open).insert(session.to_owned(), stop.clone());
        self.add_report(DirectReport::begun(session));
    }

    pub fn over(&self, report: DirectReport) {
        locked(&self.open).remove(&report.session);
        self.add_report(report);
        self.ended.notify_all();
    }

    /// Waits for the end of all sessions, after they were cut.
    pub fn wait_until_over(&self, limit: Duration) {
        drop(wait_while(&self.ended, locked(&self.open), limit, |open| !open.is_empty()));
    }

    fn add_report(&self, report: DirectReport) {
        let mut reports = locked(&self.reports);
        if reports.len() < EXPECTED_JOINERS {
            reports.push(report);
        }
    }

    /// A hub that is back must confirm the sessions that are open.
    pub fn report_again(&self) {
        let open: Vec<String> = locked(&self.open).keys().cloned().collect();
        open.iter().for_each(|session| self.add_report(DirectReport::begun(session)));
    }

    pub fn take_reports(&self) -> Vec<DirectReport> {
        std::mem::take(&mut *locked(&self.reports))
    }

    /// Cuts a session, as the hub says.
    pub fn end(&self, session: &str) {
        let stop = locked(&self.open).get(session).cloned();
        locked(&self.expected).retain(|_, joiner| joiner.offer.session != session);
        if let Some(stop) = stop {
            stop.stop();
        }
    }

    /// Cuts all sessions: nobody can say any more whether they are still right.
    pub fn end_all(&self) {
        let all: Vec<Stop> = locked(&self.open).values().cloned().collect();
        locked(&self.expected).clear();
        all.iter().for_each(Stop::stop);
    }
}

/// A connection whose hello names what is expected.
pub struct ExpectedConnection {
    pub offer: SessionOffer,
    /// From the first byte of the hello.
    pub connection: Duplex,
}
