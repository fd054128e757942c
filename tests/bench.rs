//! `make bench`: figures of the tunnel beside the direct loopback connection, taken in the same run, turn by
//! turn. Nothing here asserts a time; machines differ. Quote the ratios.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Figures for people.

mod common;

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use common::Hub;
use common::dial;
use common::echo;
use common::etcd::Fleet;
use common::expose;
use common::https::RawAgent;
use common::reach;
use common::service;

const ROUNDS: usize = 5;
const MEBI: usize = 1024 * 1024;
const BULK: usize = 512 * MEBI;
const REQUESTS: usize = 5000;
const CONNECTIONS: usize = 500;
const IDLE: usize = 1000;

/// The processes of the path, as the kernel accounts for them.
struct Path {
    names: [(&'static str, u32); 3],
}

fn main() {
    fleet();
    if std::env::args().any(|argument| argument == "fleet") {
        return;
    }
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let (sink_port, echo_port) = (service(drink), service(echo));
    let exposed_sink = owner.start(&["expose", "--json", "sink", &sink_port.to_string()]);
    exposed_sink.wait_event("exposed");
    let _exposed_echo = expose(&owner, "echo", echo_port);
    let ((joiner, sink), (_echoing, echo)) = (reach(&user, "sink"), reach(&user, "echo"));
    let path =
        Path { names: [("hub", hub.running.pid()), ("agent", exposed_sink.pid()), ("joiner", joiner.pid())] };

    println!(
        "Medians of {ROUNDS} rounds, direct and tunnelled in turn; end-to-end encrypted through the hub.\n"
    );
    println!("{:<34} {:>12} {:>12} {:>8}", "", "direct", "tunnel", "ratio");
    for streams in [1, 8] {
        let [direct, tunnel] = in_turn(|port| throughput(port, streams), [sink_port, sink]);
        row(&format!("bulk, {streams} stream(s), MiB/s"), direct, tunnel);
    }
    let [direct, tunnel] = in_turn(|port| median(&mut round_trips(port)), [echo_port, echo]);
    row("request on an open tunnel, µs", direct, tunnel);
    for (what, part) in [("p50", 0.5), ("p99", 0.99)] {
        let [direct, tunnel] = in_turn(|port| quantile(&mut new_connections(port), part), [echo_port, echo]);
        row(&format!("new connection, {what}, µs"), direct, tunnel);
    }
    let [direct, tunnel] = in_turn(connections_a_second, [echo_port, echo]);
    row("connections/s, 32 at once", direct, tunnel);

    println!("\nCPU seconds for each GB, one stream:");
    let before = path.cpu();
    let rounds = 4;
    (0..rounds).for_each(|_| drop(throughput(sink, 1)));
    let gigabytes = (rounds * BULK) as f64 / 1e9;
    let spent: Vec<f64> =
        path.cpu().iter().zip(&before).map(|(now, then)| (now - then) / gigabytes).collect();
    for ((name, _), seconds) in path.names.iter().zip(&spent) {
        println!("  {name:<8} {seconds:>6.2}");
    }
    println!("  {:<8} {:>6.2}", "together", spent.iter().sum::<f64>());

    println!("\nMemory of {IDLE} idle tunnelled connections, each with a session of its own:");
    let before = path.memory();
    let idle: Vec<TcpStream> = (0..IDLE).map(|_| opened(sink)).collect();
    for ((name, pid), (now, then)) in path.names.iter().zip(path.memory().iter().zip(&before)) {
        println!(
            "  {name:<8} {:>6} KiB each, {} threads",
            (now.saturating_sub(*then)) / IDLE,
            status(*pid, "Threads")
        );
    }
    drop(idle);
}

/// What a fleet of three hubs costs etcd and the hubs: 500 agents, 2000 services.
fn fleet() {
    const AGENTS: usize = 500;
    const EACH: usize = 4;
    let Some(fleet) = Fleet::of(3) else { return };
    let key = fleet.key("member");
    let revision = || {
        let status = fleet.etcd.ctl(&["endpoint", "status", "--write-out=json"]).expect("etcd answers");
        let status: serde_json::Value = serde_json::from_str(&status).expect("it is JSON");
        let header = &status[0]["Status"]["header"]["revision"];
        header.as_u64().expect("a revision")
    };
    let memory = || fleet.hubs.iter().map(|hub| status(hub.running.pid(), "VmRSS")).collect::<Vec<_>>();
    let (before, revision_before, began) = (memory(), revision(), Instant::now());
    let agents: Vec<RawAgent> = thread::scope(|scope| {
        let up = |hub: usize| {
            let (fleet, key) = (&fleet, &key);
            move || {
                let own = (hub..AGENTS).step_by(3);
                let up = own.map(|number| {
                    let mut agent = RawAgent::up(&fleet.hubs[hub], key, &format!("agent_{number}"));
                    (0..EACH).for_each(|service| drop(agent.expose(&format!("svc-{number}-{service}"))));
                    agent
                });
                up.collect::<Vec<_>>()
            }
        };
        let started: Vec<_> = (0..3).map(|hub| scope.spawn(up(hub))).collect();
        started.into_iter().flat_map(|one| one.join().expect("agents come up")).collect()
    });
    let (took, writes) = (began.elapsed(), revision() - revision_before);
    let known = |hub: &Hub| hub.ask("GET /v1/services", &key, "").json().as_array().map_or(0, Vec::len);
    let spread = common::eventually("all hubs know all services", common::PATIENCE, || {
        fleet.hubs.iter().all(|hub| known(hub) == AGENTS * EACH)
    });
    let quiet = revision();
    thread::sleep(Duration::from_secs(6));
    let stored = fleet.etcd.ctl(&["get", "--prefix", "/connect/"]).expect("etcd answers").len();
    let services = AGENTS * EACH;
    println!("A fleet of 3 hubs on one etcd, {AGENTS} agents with {EACH} services each:\n");
    println!(
        "  registered in {took:.1?}, {:.0} changes/s; known to all {spread:.1?} later",
        writes as f64 / took.as_secs_f64()
    );
    println!(
        "  writes      {writes}, {:.1} an agent, {:.2} a service",
        writes as f64 / AGENTS as f64,
        writes as f64 / services as f64
    );
    println!("  while quiet {} writes in 6 s", revision() - quiet);
    println!("  in etcd     {stored} bytes, {} an agent with its services", stored / AGENTS);
    for (hub, (now, then)) in memory().iter().zip(&before).enumerate() {
        println!(
            "  hub {hub}       {} KiB more, {} KiB in all, {} threads",
            now.saturating_sub(*then),
            now,
            status(fleet.hubs[hub].running.pid(), "Threads")
        );
    }
    let asked = Instant::now();
    (0..100).for_each(|n| drop(fleet.hubs[n % 3].ask("GET /v1/whoami", &key, "")));
    println!("  a call      {:.1?}, its own TLS handshake included\n", asked.elapsed() / 100);
    drop(agents);
}

/// Reads all there is, and answers with one byte when it ends.
fn drink(mut stream: TcpStream) {
    let mut buffer = vec![0; 256 * 1024];
    let _ = stream.write_all(b"+");
    while let Ok(1..) = stream.read(&mut buffer) {}
    let _ = stream.write_all(b".");
}

/// A connection that has reached its target.
fn opened(port: u16) -> TcpStream {
    let mut stream = dial(port);
    stream.read_exact(&mut [0]).expect("the target greets");
    stream
}

fn throughput(port: u16, streams: usize) -> f64 {
    let piece = vec![7; 256 * 1024];
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..streams {
            scope.spawn(|| {
                let mut stream = opened(port);
                for _ in 0..BULK / streams / piece.len() {
                    stream.write_all(&piece).expect("the tunnel takes data");
                }
                stream.shutdown(Shutdown::Write).expect("it is open");
                stream.read_exact(&mut [0]).expect("all has arrived");
            });
        }
    });
    (BULK / MEBI) as f64 / began.elapsed().as_secs_f64()
}

fn round_trips(port: u16) -> Vec<f64> {
    let mut stream = dial(port);
    let mut buffer = [7; 128];
    let mut one = || {
        let began = Instant::now();
        stream.write_all(&buffer).expect("it is open");
        stream.read_exact(&mut buffer).expect("it echoes");
        began.elapsed().as_secs_f64() * 1e6
    };
    (0..REQUESTS).map(|_| one()).collect()
}

/// Connect, one byte there and back, close; paced, so that each stands for itself.
fn new_connections(port: u16) -> Vec<f64> {
    let one = |_| {
        thread::sleep(Duration::from_millis(1));
        let began = Instant::now();
        touch(port);
        began.elapsed().as_secs_f64() * 1e6
    };
    (0..CONNECTIONS).map(one).collect()
}

fn touch(port: u16) {
    let mut stream = dial(port);
    stream.write_all(b"x").expect("it is open");
    stream.read_exact(&mut [0]).expect("it echoes");
}

fn connections_a_second(port: u16) -> f64 {
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| (0..CONNECTIONS / 8).for_each(|_| touch(port)));
        }
    });
    (32 * (CONNECTIONS / 8)) as f64 / began.elapsed().as_secs_f64()
}

fn in_turn(measure: impl Fn(u16) -> f64, ports: [u16; 2]) -> [f64; 2] {
    let mut figures = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (figures, port) in figures.iter_mut().zip(ports) {
            figures.push(measure(port));
        }
    }
    figures.map(|mut figures| median(&mut figures))
}

fn median(figures: &mut [f64]) -> f64 {
    quantile(figures, 0.5)
}

fn quantile(figures: &mut [f64], part: f64) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[((figures.len() - 1) as f64 * part) as usize]
}

fn row(what: &str, direct: f64, tunnel: f64) {
    println!("{what:<34} {direct:>12.1} {tunnel:>12.1} {:>8.2}", tunnel / direct);
}

impl Path {
    fn cpu(&self) -> [f64; 3] {
        self.names.map(|(_, pid)| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
            (ticks(11) + ticks(12)) / 100.0
        })
    }

    fn memory(&self) -> [usize; 3] {
        self.names.map(|(_, pid)| status(pid, "VmRSS"))
    }
}

fn status(pid: u32, name: &str) -> usize {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
