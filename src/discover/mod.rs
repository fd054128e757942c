//! What listens on a host, told by what it answers and not by the port's number.
//!
//! A bounded threads takes one port after the other; every wait has a deadline and is cut by the stop.

mod interview;
pub mod page;
pub mod probe;

use std::io;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use interview::Interview;

use crate::discover::page::Page;
pub use crate::discover::probe::ServiceKind;
pub use crate::discover::probe::usual_ports;
use crate::error;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::target::Target;
use crate::net::connect::DEADLINE;
use crate::net::connect::resolve;
use crate::net::stop::Stop;
use crate::net::threads::STACK;
use crate::os::limits;

/// All usual ports at once, so that a host which drops packets costs one wait. A thread has one connection.
const CREW: usize = 128;
/// Descriptors for everything else: the terminal, signals, a resolver.
const RESERVED: usize = 16;
/// How long a port has to answer, in which a service nearby has long answered.
pub const PATIENCE: Duration = Duration::from_millis(500);
/// How often whoever waits hears how far it is.
const NEWS: Duration = Duration::from_millis(100);

/// What answers on a port, and what it says of itself.
#[derive(Debug, PartialEq)]
pub struct Service {
    pub kind: ServiceKind,
    /// A version, or what stands in the way of more.
    pub note: Option<String>,
    /// What a web server shows.
    pub page: Page,
}

impl Service {
    /// The most telling thing that it says.
    pub fn label(&self) -> Option<&str> {
        let page = &self.page;
        [&self.note, &page.title, &page.framework, &page.server].into_iter().find_map(Option::as_deref)
    }
}

pub struct Scan<'a> {
    pub host: &'a str,
    pub ports: &'a [u16],
    pub patience: Duration,
}

#[derive(Default)]
pub struct Scanned {
    /// By port.
    pub found: Vec<(u16, Service)>,
    /// The host said of a port that nothing is there: so it is up.
    pub refused: bool,
}

enum Answer {
    Found(Service),
    Refused,
    /// No packet went there.
    NoWay(io::Error),
    Silence,
}

/// Looks at every port, telling from time to time how many it has seen. What a stop cuts is left out.
pub fn scan(scan: &Scan<'_>, stop: &Stop, mut progress: impl FnMut(usize)) -> Result<Scanned> {
    let addresses = addresses(scan.host, stop)?;
    let (next, (tell, told)) = (AtomicUsize::new(0), mpsc::channel());
    let work = || {
        while let Some(&port) = scan.ports.get(next.fetch_add(1, Ordering::Relaxed)) {
            let answer = answer(scan.host, &addresses, port, scan.patience, stop);
            if stop.is_stopped() || tell.send((port, answer)).is_err() {
                return;
            }
        }
    };
    let room = limits::open_files().saturating_sub(RESERVED).max(1);
    thread::scope(|scope| {
        for number in 0..CREW.min(room).min(scan.ports.len()) {
            let worker = thread::Builder::new().name("discover".into()).stack_size(STACK);
            match worker.spawn_scoped(scope, work) {
                Err(error) if number == 0 => return Err(error).or_say(|| "Cannot start a thread"),
                Err(_) => break,
                Ok(_) => {}
            }
        }
        let (mut scanned, mut seen, mut news) = (Scanned::default(), 0, Instant::now() + NEWS);
        let mut no_way = None;
        while seen < scan.ports.len() && !stop.is_stopped() {
            match told.recv_timeout(NEWS) {
                Ok((port, Answer::Found(service))) => scanned.found.push((port, service)),
                Ok((_, Answer::Refused)) => scanned.refused = true,
                Ok((_, Answer::NoWay(error))) => no_way = Some(error),
                Ok((_, Answer::Silence)) => {}
                Err(_) => continue,
            }
            seen += 1;
            if Instant::now() >= news {
                progress(seen);
                news += NEWS;
            }
        }
        if let Some(error) = no_way.filter(|_| scanned.found.is_empty() && !scanned.refused) {
            return Err(Error::new(format!("There is no way to {}", scan.host))
                .because(error)
                .hint("Check the address, and that this machine is in its network")
                .kind(error::ErrorKind::Unreachable));
        }
        scanned.found.sort_by_key(|(port, _)| *port);
        Ok(scanned)
    })
}

/// `None` when nothing answers at all.
pub fn identify(target: &Target, patience: Duration, stop: &Stop) -> Option<Service> {
    let addresses = addresses(&target.host, stop).ok()?;
    match answer(&target.host, &addresses, target.port, patience, stop) {
        Answer::Found(service) => Some(service),
        _ => None,
    }
}

/// Both loopbacks for this machine; of another one the address that its system puts first, since each more
/// would be one more wait.
fn addresses(host: &str, stop: &Stop) -> Result<Vec<IpAddr>> {
    let found = resolve(host, 0, Instant::now() + DEADLINE, stop)?;
    let both = found.iter().all(|address| address.ip().is_loopback());
    let few = if both { found.len() } else { 1 };
    Ok(found.iter().map(SocketAddr::ip).take(few).collect())
}

fn answer(host: &str, addresses: &[IpAddr], port: u16, patience: Duration, stop: &Stop) -> Answer {
    let mut answer = Answer::Silence;
    for address in addresses {
        let interview = Interview::new(host, SocketAddr::new(*address, port), patience, stop);
        match interview.begin() {
            Ok(service) => return Answer::Found(service),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => answer = Answer::Refused,
            Err(error)
                if matches!(error.kind(), ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable) =>
            {
                answer = Answer::NoWay(error);
            }
            Err(_) => {}
        }
    }
    answer
}
