//! `make load`: many at once through one hub, agent and joiner, and what the others notice of it: their p50 and
//! p99 beside an idle run's, and memory, threads and descriptors of each process.
#![allow(clippy::cast_precision_loss)] // Figures for people.

mod common;

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::sys::resource::Resource;
use nix::sys::resource::getrlimit;
use nix::sys::resource::setrlimit;

use common::Home;
use common::Hub;
use common::Running;
use common::dial;
use common::echo;
use common::expose;
use common::measure::new_connections;
use common::measure::quantile;
use common::measure::status;
use common::reach;
use common::service;

const IDLE: usize = 4000;
const A_SECOND: usize = 1000;
const AGENTS: usize = 500;
const SEVEN_EACH: &str =
    "each takes seven threads here: see ulimit -u, kernel.pid_max and the cgroup's pids.max
                             (systemd-run --scope -p TasksMax=30000 make load)";
const SLOW_READERS: usize = 20;
/// Threads that make the connections of the storm, each at its own pace.
const MAKERS: usize = 20;

fn main() {
    let seconds = std::env::var("LOAD_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("up to the hard limit");
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let exposed = expose(&owner, "echo", service(echo));
    let flood = expose(&owner, "flood", service(pour));
    let ((reached, port), (_flooding, flooded)) = (reach(&user, "echo"), reach(&user, "flood"));
    let path = [("hub", &hub.running), ("agent", &exposed), ("joiner", &reached)];

    println!("Others' new connections, one a millisecond, and the processes of the path:\n");
    look("nothing else", port, &path);

    let mut idle: Vec<TcpStream> = (0..IDLE).map(|_| dial(port)).take_while(answers).collect();
    if idle.len() < IDLE {
        println!("{:<28} {} of {IDLE} could be made; {SEVEN_EACH}", "", idle.len());
        // So that others find room.
        idle.truncate(idle.len() * 3 / 4);
    }
    look(&format!("{} idle connections", idle.len()), port, &path);
    println!("{:<28} {} of {} still answer", "", idle.iter().filter(|one| answers(one)).count(), idle.len());
    drop(idle);

    let slow: Vec<TcpStream> = (0..SLOW_READERS).map(|_| dial(flooded)).collect();
    look(&format!("{SLOW_READERS} readers that do not read"), port, &path);
    drop((slow, flood));

    storm(port, Duration::from_secs(seconds), &path);

    let homes: Vec<Home> = (0..AGENTS).map(|_| Home::new()).collect();
    // A key is for a hundred agents.
    let keys: Vec<String> = (0..AGENTS / 100).map(|_| hub.key("member")).collect();
    let up = |(at, home)| agent(&hub, home, &keys[at % keys.len()], at);
    let agents: Vec<Running> = homes.iter().enumerate().map(up).collect();
    let listed = user.run(&["services", "--json"]).ok().json();
    let online = listed.as_array().into_iter().flatten().filter(|one| one["status"] == "online").count();
    look(&format!("{AGENTS} agents, {online} services"), port, &path[..1]);
    drop(agents);
}

/// Sends for as long as somebody takes it.
fn pour(mut stream: TcpStream) {
    let piece = vec![7; 256 * 1024];
    while stream.write_all(&piece).is_ok() {}
}

fn answers(mut stream: &TcpStream) -> bool {
    stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0])).is_ok()
}

fn agent(hub: &Hub, home: &Home, key: &str, number: usize) -> Running {
    home.run(&["up", "--hub", &hub.url, "--api-key", key, "--label", &format!("agent-{number}")]).ok();
    expose(home, &format!("service-{number}"), 9)
}

/// What others get, and what the processes hold, at this moment.
fn look(what: &str, port: u16, path: &[(&str, &Running)]) {
    let mut took = new_connections(port);
    told(what, &mut took, path);
}

fn told(what: &str, took: &mut [f64], path: &[(&str, &Running)]) {
    println!("{what:<28} p50 {:>6.0} µs   p99 {:>6.0} µs", quantile(took, 0.5), quantile(took, 0.99));
    for (name, running) in path {
        let pid = running.pid();
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        let (memory, threads) = (status(pid, "VmRSS") / 1024, status(pid, "Threads"));
        println!("{:<28} {name:<7} {memory:>5} MiB {threads:>6} threads {descriptors:>6} descriptors", "");
    }
}

/// New connections at a steady pace, each with a byte there and back.
fn storm(port: u16, length: Duration, path: &[(&str, &Running)]) {
    let (took, failed, late) = (Mutex::new(Vec::new()), AtomicUsize::new(0), AtomicBool::new(false));
    let pace =
        Duration::from_secs(1) * u32::try_from(MAKERS).expect("few") / u32::try_from(A_SECOND).expect("few");
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..MAKERS {
            scope.spawn(|| {
                let mut next = Instant::now();
                while began.elapsed() < length {
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                    late.fetch_or(next.elapsed() > Duration::from_secs(1), Ordering::Relaxed);
                    // From when it was due: waiting in line counts.
                    if TcpStream::connect(("127.0.0.1", port)).is_ok_and(|stream| answers(&stream)) {
                        took.lock().expect("whole").push(next.elapsed().as_secs_f64() * 1e6);
                    } else {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                    next += pace;
                }
            });
        }
    });
    let mut took = took.into_inner().expect("whole");
    let rate = took.len() as f64 / began.elapsed().as_secs_f64();
    told(&format!("{rate:.0} connections a second"), &mut took, path);
    let pace = if late.into_inner() { "the pace was not held" } else { "the pace was held" };
    println!(
        "{:<28} {} made in {} s, {} failed, {pace}",
        "",
        took.len(),
        length.as_secs(),
        failed.into_inner()
    );
}
