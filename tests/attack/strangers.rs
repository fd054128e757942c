//! Twenty-four addresses without a key try everything at once, for as long as they are let. Meanwhile an admin calls the
//! hub and somebody connects through an agent: both must hardly notice, and afterwards the hub is what it was before.

use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use crate::Report;
use crate::common::Hub;
use crate::common::echo;
use crate::common::expose;
use crate::common::https::LOOPBACK;
use crate::common::https::Tls;
use crate::common::https::dial_from;
use crate::common::https::request;
use crate::common::https::tls_over;
use crate::common::measure::quantile;
use crate::common::measure::status;
use crate::common::reach;
use crate::common::service;

const ADDRESSES: u8 = 24;
const DURATION: Duration = Duration::from_secs(15);
const QUIET: Duration = Duration::from_secs(3);
/// What glibc keeps of some 3,000 connections, measured: 7 to 12 MiB. It keeps 160 stacks for the next threads, with some 28
/// KiB of each, and pages of the heap in which a little is in use.
const KEPT_BY_THE_ALLOCATOR: usize = 16;
/// Connections that one address holds at a time: the attacker's descriptors and memory are bounded too.
const HELD_BY_EACH: usize = 400;
/// A new connection of one address each; together some 700 a second, which two cores of a client can sustain.
const PACE: Duration = Duration::from_millis(35);
const KIB: usize = 1024;

/// What one hostile connection does. It is kept until the hub ends it.
enum Hold {
    Plain(TcpStream),
    Tls(Box<Tls>),
}

impl Hold {
    /// Says a little more, as a slow client would; false once the hub has ended the connection.
    fn drip(&mut self) -> bool {
        match self {
            Self::Plain(stream) => (&*stream).write_all(b"x").is_ok(),
            Self::Tls(stream) => stream.write_all(b"x").and_then(|()| stream.flush()).is_ok(),
        }
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        }
    }
}

pub fn attack(report: &mut Report) {
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let _exposed = expose(&owner, "echo", service(echo));
    let (_reached, port) = reach(&user, "echo");
    let pid = hub.running.pid();
    let before = Held::of(pid);
    // The machine may be busy with other things, so the bounds are on top of what a quiet hub takes.
    let (mut quiet_calls, mut quiet_connections) = probe(&hub, port, QUIET);
    let (mut calls, mut connections) = (Vec::new(), Vec::new());
    let peak = AtomicUsize::new(0);
    let (refused, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let longest = Mutex::new(Duration::ZERO);
    thread::scope(|scope| {
        for at in 0..ADDRESSES {
            let (hub, refused, longest) = (&hub, &refused, &longest);
            scope.spawn(move || hold_all(hub, Ipv4Addr::new(127, 0, at + 1, 1), refused, longest));
        }
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                peak.fetch_max(status(pid, "VmRSS"), Ordering::SeqCst);
                thread::sleep(Duration::from_millis(50));
            }
        });
        (calls, connections) = probe(&hub, port, DURATION);
        over.store(true, Ordering::SeqCst);
    });
    report.at_most("hub's memory under attack", peak.into_inner() as f64 / KIB as f64, 150.0, "MiB");
    let bound = |quiet: &mut [f64]| 100.0 + quantile(quiet, 0.99);
    report.p99_at_most("an admin's call", &mut calls, bound(&mut quiet_calls));
    report.p99_at_most("a new connection through an agent", &mut connections, bound(&mut quiet_connections));
    let longest = longest.into_inner().expect("whole");
    report.at_most("longest life of a connection without a key", longest.as_secs_f64(), 11.0, "s");
    let quiet = Instant::now();
    let mut after = Held::of(pid);
    while quiet.elapsed() < Duration::from_secs(15) && !after.is_like(&before) {
        thread::sleep(Duration::from_millis(250));
        after = Held::of(pid);
    }
    report.must("everything is back 15 s later", &after.to_string(), after.is_like(&before));
    println!("       before: {before}; {} connections were refused or ended", refused.into_inner());
}

/// For that long, how many milliseconds an admin's call takes, and a new connection through an agent. Infinite if it fails.
fn probe(hub: &Hub, port: u16, duration: Duration) -> (Vec<f64>, Vec<f64>) {
    let (mut calls, mut connections) = (Vec::new(), Vec::new());
    let until = Instant::now() + duration;
    while Instant::now() < until {
        let began = Instant::now();
        let answered = admin_call(hub);
        calls.push(if answered { milliseconds(began) } else { f64::INFINITY });
        let began = Instant::now();
        let echoed = crate::common::echoes(port, b"x");
        connections.push(if echoed { milliseconds(began) } else { f64::INFINITY });
        thread::sleep(Duration::from_millis(20));
    }
    (calls, connections)
}

fn milliseconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}

fn admin_call(hub: &Hub) -> bool {
    let Ok(stream) = dial_from(LOOPBACK, &hub.address) else { return false };
    let mut tls = tls_over(stream, "127.0.0.1", &hub.ca());
    let asked = request("GET /v1/whoami", &hub.address, &[("x-api-key", &hub.admin_key)], "");
    let mut answer = Vec::new();
    tls.write_all(asked.as_bytes()).is_ok() && {
        let _ = tls.read_to_end(&mut answer);
        answer.starts_with(b"HTTP/1.1 200")
    }
}

/// One address: holds as many connections as it gets, of every kind in turn, and makes new ones for those that end.
fn hold_all(hub: &Hub, source: Ipv4Addr, refused: &AtomicUsize, longest: &Mutex<Duration>) {
    let ca = hub.ca();
    let mut held: Vec<(Instant, Hold)> = Vec::new();
    let began = Instant::now();
    let mut number = 0;
    while began.elapsed() < DURATION {
        let next = Instant::now() + PACE;
        if held.len() < HELD_BY_EACH {
            match begin(hub, source, number, &ca) {
                Some(hold) => held.push((Instant::now(), hold)),
                None => _ = refused.fetch_add(1, Ordering::Relaxed),
            }
            number += 1;
        }
        if number % 25 == 0 {
            held.retain_mut(|(since, hold)| {
                let is_open = !is_ended(hold.socket()) && hold.drip();
                if is_open {
                    let mut longest = longest.lock().expect("whole");
                    *longest = since.elapsed().max(*longest);
                } else {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                is_open
            });
        }
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// Whether the hub has closed or reset it; what the hub said before that is read and dropped.
fn is_ended(mut stream: &TcpStream) -> bool {
    let mut room = [0; 4 * KIB];
    let _ = stream.set_nonblocking(true);
    let ended = loop {
        match stream.read(&mut room) {
            Ok(0) => break true,
            Ok(_) => {}
            Err(error) => break error.kind() != std::io::ErrorKind::WouldBlock,
        }
    };
    let _ = stream.set_nonblocking(false);
    ended
}

/// A hostile connection. Each kind has held something of a hub at one time: a thread, a buffer, a place.
fn begin(hub: &Hub, source: Ipv4Addr, number: usize, ca: &str) -> Option<Hold> {
    let stream = dial_from(source, &hub.address).ok()?;
    stream.set_write_timeout(Some(Duration::from_millis(500))).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
    let filler = "x".repeat(63 * KIB);
    let by_tls = |text: &str| {
        let mut tls = tls_over(stream.try_clone().ok()?, "127.0.0.1", ca);
        tls.write_all(text.as_bytes()).and_then(|()| tls.flush()).ok()?;
        Some(Hold::Tls(Box::new(tls)))
    };
    let plain = |bytes: &[u8]| {
        (&stream).write_all(bytes).ok()?;
        Some(Hold::Plain(stream.try_clone().ok()?))
    };
    match number % 9 {
        0 => plain(b""),
        // A head that does not end, in the clear.
        1 => plain(format!("GET /v1/relay HTTP/1.1\r\nx-filler: {filler}").as_bytes()),
        // The beginning of a ClientHello whose record never ends.
        2 => plain(&[&[0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3][..], &filler.as_bytes()[..16 * KIB - 100]].concat()),
        3 => by_tls(&format!("GET /v1/services HTTP/1.1\r\nx-filler: {filler}")),
        4 => by_tls(&format!(
            "POST /v1/shares HTTP/1.1\r\nHost: {}\r\nContent-Length: 65000\r\n\r\n{filler}",
            hub.address
        )),
        // Kept alive with a request now and then.
        5 => by_tls(&format!("GET /health HTTP/1.1\r\nHost: {}\r\n\r\n", hub.address)),
        6 => by_tls(&format!("GET /v1/agent HTTP/1.1\r\nHost: {}\r\nx-api-key: pc_wrong\r\n\r\n", hub.address)),
        7 => plain(b"GET /v1/relay HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: connect-relay/1\r\nx-ticket: none\r\n\r\n"),
        // TLS that stands and says nothing.
        _ => by_tls(""),
    }
}

/// What a process holds.
struct Held {
    mebibytes: usize,
    threads: usize,
    descriptors: usize,
}

impl Held {
    fn of(pid: u32) -> Self {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        Self { mebibytes: status(pid, "VmRSS") / KIB, threads: status(pid, "Threads"), descriptors }
    }

    /// Up to what an allocator and a few spare threads make of it.
    fn is_like(&self, before: &Self) -> bool {
        self.mebibytes <= before.mebibytes + KEPT_BY_THE_ALLOCATOR
            && self.threads <= before.threads + 64
            && self.descriptors <= before.descriptors + 16
    }
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} MiB, {} threads, {} descriptors", self.mebibytes, self.threads, self.descriptors)
    }
}
