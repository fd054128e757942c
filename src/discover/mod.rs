//! What listens on a host, recognised by what it answers and not by its port number.
//!
//! A bounded number of threads takes one port after the other. Every wait has a deadline and ends at a stop.

mod port;
pub mod probe;
pub mod web_page;

use std::io;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use port::PortProber;

pub use crate::discover::port::FoundService;
use crate::discover::probe::ServiceKind;
pub use crate::discover::probe::usual_ports;
use crate::error;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::service::Protocol;
use crate::model::target::Target;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::connect::resolve;
use crate::net::stop::Stop;
use crate::net::threads::THREAD_STACK;
use crate::os::limits;

/// Enough for all usual ports at once, so that a host which drops packets costs one wait. Each thread has one
/// connection at a time.
const SCAN_THREADS: usize = 128;
/// Descriptors that are kept free for everything else: the terminal, signals, the resolver.
const SPARE_DESCRIPTORS: usize = 16;
/// How long a port has to answer. A service nearby needs a small part of that.
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// The same for a service that is about to be exposed. Its user waits, and a service that says nothing costs several.
pub const IDENTIFY_TIMEOUT: Duration = Duration::from_millis(250);
/// How often the scan reports its progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Asks the ports of one host what they are.
pub struct Scanner<'a> {
    host: &'a str,
    addresses: Vec<IpAddr>,
    timeout: Duration,
    stop: &'a Stop,
}

#[derive(Default)]
pub struct ScanReport {
    /// What answers, sorted by port.
    pub found: Vec<(u16, FoundService)>,
    /// Some port refused the connection, so the host is up.
    pub refused: bool,
}

/// What a single port is; `None` if nothing answers.
pub fn identify(target: &Target, stop: &Stop) -> Option<FoundService> {
    Scanner::new(&target.host, IDENTIFY_TIMEOUT, stop).ok()?.ask(target.port).ok()
}

/// What a service at this port speaks. A web server may be too slow to be recognised, or not run yet; then its port counts.
pub fn protocol_of(service: Option<&FoundService>, port: u16) -> Protocol {
    let Some(service) = service.filter(|service| service.kind != ServiceKind::Tcp) else {
        return Protocol::usual_at(port);
    };
    match service.kind.protocol() {
        Protocol::Http if service.in_tls => Protocol::Https,
        protocol => protocol,
    }
}

impl<'a> Scanner<'a> {
    /// Resolves the host. `timeout` is what each port has to answer.
    pub fn new(host: &'a str, timeout: Duration, stop: &'a Stop) -> Result<Self> {
        let found = resolve(host, 0, Instant::now() + NETWORK_TIMEOUT, stop)?;
        // This machine is asked on both of its loopbacks. Of another host only the address that the system
        // puts first is asked, since each more would cost one more wait.
        let is_local = found.iter().all(|address| address.ip().is_loopback());
        let count = if is_local { found.len() } else { 1 };
        let addresses = found.iter().map(SocketAddr::ip).take(count).collect();
        Ok(Self { host, addresses, timeout, stop })
    }

    /// Asks every port and calls `progress` from time to time with the number of ports done. After a stop the
    /// report holds what was found until then.
    pub fn scan(&self, ports: &[u16], progress: impl FnMut(usize)) -> Result<ScanReport> {
        let next = AtomicUsize::new(0);
        let (sender, answers) = mpsc::channel();
        let work = || {
            while let Some(&port) = ports.get(next.fetch_add(1, Ordering::Relaxed)) {
                let answer = self.ask(port);
                if self.stop.is_stopped() || sender.send((port, answer)).is_err() {
                    return;
                }
            }
        };
        let descriptors = limits::open_files().saturating_sub(SPARE_DESCRIPTORS).max(1);
        thread::scope(|scope| {
            for number in 0..SCAN_THREADS.min(descriptors).min(ports.len()) {
                let worker = thread::Builder::new().name("discover".into()).stack_size(THREAD_STACK);
                match worker.spawn_scoped(scope, work) {
                    Err(error) if number == 0 => return Err(error).or_say(|| "Cannot start a thread"),
                    Err(_) => break,
                    Ok(_) => {}
                }
            }
            self.collect(&answers, ports.len(), progress)
        })
    }

    /// Takes the workers' answers until there is one for each port, or until the stop. It is an error only if no packet
    /// reached the host: one refused connection proves that the host is up.
    fn collect(
        &self,
        answers: &Receiver<(u16, io::Result<FoundService>)>,
        ports: usize,
        mut progress: impl FnMut(usize),
    ) -> Result<ScanReport> {
        let mut report = ScanReport::default();
        let mut unreachable = None;
        let mut done = 0;
        let mut next_progress = Instant::now() + PROGRESS_INTERVAL;
        while done < ports && !self.stop.is_stopped() {
            match answers.recv_timeout(PROGRESS_INTERVAL) {
                Ok((port, Ok(service))) => report.found.push((port, service)),
                Ok((_, Err(error))) => match error.kind() {
                    ErrorKind::ConnectionRefused => report.refused = true,
                    ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => unreachable = Some(error),
                    _ => {}
                },
                Err(_) => continue,
            }
            done += 1;
            if Instant::now() >= next_progress {
                progress(done);
                next_progress += PROGRESS_INTERVAL;
            }
        }
        if let Some(error) = unreachable.filter(|_| report.found.is_empty() && !report.refused) {
            return Err(Error::new(format!("Cannot reach {}", self.host))
                .because(error)
                .hint("Check the address, and that this machine is in its network")
                .kind(error::ErrorKind::Unreachable));
        }
        report.found.sort_by_key(|(port, _)| *port);
        Ok(report)
    }

    /// Asks one port, on each address until a service answers.
    fn ask(&self, port: u16) -> io::Result<FoundService> {
        let mut failure = io::Error::from(ErrorKind::TimedOut);
        for address in &self.addresses {
            let prober = PortProber::new(self.host, SocketAddr::new(*address, port), self.timeout, self.stop);
            match prober.identify() {
                Ok(service) => return Ok(service),
                // Silence says less than what another address answered.
                Err(error) if error.kind() == ErrorKind::TimedOut => {}
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}
