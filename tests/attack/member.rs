//! A stolen member key does its worst from many connections: it fills the registry up to its limits, asks for the longest
//! answers and does not read them, holds half-sent requests and control channels. Others must hardly notice.

use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use crate::Report;
use crate::common::Hub;
use crate::common::https::LOOPBACK;
use crate::common::https::RawAgent;
use crate::common::https::Tls;
use crate::common::https::dial_from;
use crate::common::https::request;
use crate::common::https::tls_over;
use crate::common::measure::quantile;
use crate::common::measure::status;

const DURATION: Duration = Duration::from_secs(10);
/// Long enough to make more shares than one key may have.
const FILLING: Duration = Duration::from_secs(30);
/// What fits into 1 MiB, as the help says it.
const SHARES_OF_A_KEY: f64 = 280.0;
const ATTACKERS: u8 = 8;
/// Connections that each attacker holds.
const HELD_BY_EACH: usize = 200;
/// New connections of one attacker. All together make 250 a second, which two cores of a client can sustain.
const PACE: Duration = Duration::from_millis(32);
/// How many times slower a call may be, where it was slow before.
const BUSY: f64 = 10.0;
/// Names that a control channel withdraws at once and does not hold.
const WITHDRAWN: usize = 400;
const KIB: usize = 1024;

pub fn attack(report: &mut Report) {
    let hub = Hub::start();
    let (stolen, id) = hub.new_key(&[]);
    let honest = hub.key("member");
    let pid = hub.running.pid();
    let _agent = fill(report, &hub, &stolen);
    let (over, peak) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut calls = Vec::new();
    let before = quantile(&mut honest_calls(&hub, &honest, Duration::from_secs(2)), 0.99);
    println!("       another key's call took {before:.0} ms before that (p99)");
    thread::scope(|scope| {
        for at in 0..ATTACKERS {
            let (hub, stolen) = (&hub, &stolen);
            scope.spawn(move || hold(hub, stolen, Ipv4Addr::new(127, 0, 2, at + 1)));
        }
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                peak.fetch_max(status(pid, "VmRSS"), Ordering::SeqCst);
                thread::sleep(Duration::from_millis(50));
            }
        });
        calls = honest_calls(&hub, &honest, DURATION);
        over.store(true, Ordering::SeqCst);
    });
    report.at_most("hub's memory under a stolen member key", (peak.into_inner() / KIB) as f64, 100.0, "MiB");
    // On a machine that is busy with other things, calls were slow before.
    report.p99_at_most("another key's call", &mut calls, (before * BUSY).max(50.0));
    hub.home.run(&["hub", "key", "revoke", &id, "--with-all-it-made"]).ok();
    let left = hub.ask("GET /v1/services", &honest, "").json().as_array().map_or(0, Vec::len);
    report.must("nothing of it is left after its revocation", &format!("{left} services"), left == 0);
}

/// One call after another, each on a connection of its own, and how long each took in milliseconds.
fn honest_calls(hub: &Hub, key: &str, length: Duration) -> Vec<f64> {
    let (mut calls, until) = (Vec::new(), Instant::now() + length);
    while Instant::now() < until {
        let began = Instant::now();
        let answered = whoami(hub, key);
        calls.push(if answered { began.elapsed().as_secs_f64() * 1e3 } else { f64::INFINITY });
        thread::sleep(Duration::from_millis(20));
    }
    calls
}

/// Up to the limits: services, and shares of a hundred of them.
fn fill(report: &mut Report, hub: &Hub, key: &str) -> RawAgent {
    let mut agent = RawAgent::up(hub, key, "agent_evil");
    let names: Vec<String> = (0..1000).map(|n| format!("{:x<50}{n}", "db")).collect();
    for name in &names {
        agent.expose(name);
    }
    let share = json!({ "name": "s".repeat(64), "agent": "agent_evil", "services": names[..100], "expiresInSeconds": 600 });
    let (began, mut made) = (Instant::now(), 0);
    while began.elapsed() < FILLING {
        match hub.ask("POST /v1/shares", key, &share.to_string()).status {
            201 => made += 1,
            // Too fast.
            429 => thread::sleep(Duration::from_millis(100)),
            _ => break,
        }
    }
    report.at_most("shares of 100 services that one key makes", f64::from(made), SHARES_OF_A_KEY, "");
    agent
}

fn whoami(hub: &Hub, key: &str) -> bool {
    let Ok(stream) = dial_from(LOOPBACK, &hub.address) else { return false };
    let mut tls = tls_over(stream, "127.0.0.1", &hub.ca());
    let mut answer = Vec::new();
    let asked = request("GET /v1/whoami", &hub.address, &[("x-api-key", key), ("Connection", "close")], "");
    tls.write_all(asked.as_bytes()).is_ok() && {
        let _ = tls.read_to_end(&mut answer);
        answer.starts_with(b"HTTP/1.1 200")
    }
}

/// Holds as many connections as it gets, and begins again with those that the hub has ended.
fn hold(hub: &Hub, key: &str, source: Ipv4Addr) {
    let ca = hub.ca();
    let mut held: Vec<Tls> = Vec::new();
    let until = Instant::now() + DURATION;
    let mut number = 0;
    while Instant::now() < until {
        if held.len() == HELD_BY_EACH {
            held.remove(0);
        }
        held.extend(begin(hub, key, source, number, &ca));
        number += 1;
        thread::sleep(PACE);
    }
}

fn begin(hub: &Hub, key: &str, source: Ipv4Addr, number: usize, ca: &str) -> Option<Tls> {
    let stream = dial_from(source, &hub.address).ok()?;
    stream.set_write_timeout(Some(Duration::from_millis(500))).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
    let mut tls = tls_over(stream, "127.0.0.1", ca);
    let fields = [("x-api-key", key), ("Connection", "keep-alive")];
    let text = match number % 4 {
        // Long answers, one behind another, that nobody reads.
        0 => request("GET /v1/shares", &hub.address, &fields, "").repeat(8),
        1 => request("GET /v1/services", &hub.address, &fields, "").repeat(8),
        // A body that does not end.
        2 => format!(
            "POST /v1/shares HTTP/1.1\r\nHost: {}\r\nx-api-key: {key}\r\nContent-Length: 65000\r\n\r\n{}",
            hub.address,
            "x".repeat(63 * KIB)
        ),
        _ => {
            let upgrade = [fields[0], ("Connection", "Upgrade"), ("Upgrade", "connect-control/1")];
            request("GET /v1/agent", &hub.address, &upgrade, "")
                + "{\"type\":\"hello\",\"agent\":\"agent_evil\",\"version\":\"x\"}\n"
                + &"{\"type\":\"withdraw\",\"name\":\"nothing\"}\n".repeat(WITHDRAWN)
        }
    };
    tls.write_all(text.as_bytes()).and_then(|()| tls.flush()).ok()?;
    Some(tls)
}
