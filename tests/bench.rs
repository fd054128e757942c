//! `make bench`: figures of the tunnel beside the direct loopback connection, taken in the same run, turn by
//! turn. Nothing here asserts a time; machines differ. Quote the ratios.
#![allow(clippy::cast_precision_loss)] // Figures for people.

mod common;

use std::net::TcpStream;
use std::time::Instant;

use common::Home;
use common::Hub;
use common::echo;
use common::echoes;
use common::expose;
use common::measure::MEBI;
use common::measure::connections_a_second;
use common::measure::cpu;
use common::measure::drink;
use common::measure::median;
use common::measure::new_connections;
use common::measure::opened;
use common::measure::quantile;
use common::measure::round_trip;
use common::measure::status;
use common::measure::throughput;
use common::reach;
use common::service;

const ROUNDS: usize = 5;
const BULK: usize = 512 * MEBI;
/// Seven threads each; a session of systemd may have 4915.
const IDLE: usize = 500;

fn main() {
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let (sink_port, echo_port) = (service(drink), service(echo));
    let agent = owner.start(&["expose", "--json", "sink", &sink_port.to_string()]);
    agent.wait_event("exposed");
    let _exposed_echo = expose(&owner, "echo", echo_port);
    let ((joiner, sink), (_echoing, echo)) = (reach(&user, "sink"), reach(&user, "echo"));
    let path = [("hub", hub.running.pid()), ("agent", agent.pid()), ("joiner", joiner.pid())];

    println!(
        "Medians of {ROUNDS} rounds, direct and tunnelled in turn; end-to-end encrypted through the hub.\n"
    );
    println!("{:<34} {:>12} {:>12} {:>8}", "", "direct", "tunnel", "ratio");
    for streams in [1, 8] {
        let [direct, tunnel] = in_turn(|port| throughput(port, streams, BULK), [sink_port, sink]);
        row(&format!("bulk, {streams} stream(s), MiB/s"), direct, tunnel);
    }
    let [direct, tunnel] = in_turn(round_trip, [echo_port, echo]);
    row("request on an open tunnel, µs", direct, tunnel);
    for (what, part) in [("p50", 0.5), ("p99", 0.99)] {
        let [direct, tunnel] = in_turn(|port| quantile(&mut new_connections(port), part), [echo_port, echo]);
        row(&format!("new connection, {what}, µs"), direct, tunnel);
    }
    let [direct, tunnel] = in_turn(connections_a_second, [echo_port, echo]);
    row("connections/s, 32 at once", direct, tunnel);
    println!("\nconnect reach, from its start to the first byte: {:.0} ms", first_byte(&user));

    println!("\nCPU seconds for each GB, one stream:");
    let spent = || path.map(|(_, pid)| cpu(&[pid]));
    let before = spent();
    let rounds = 4;
    (0..rounds).for_each(|_| _ = throughput(sink, 1, BULK));
    let gigabytes = (rounds * BULK) as f64 / 1e9;
    let mut together = 0.0;
    for ((name, _), (now, then)) in path.iter().zip(spent().iter().zip(&before)) {
        let seconds = (now - then) / gigabytes;
        together += seconds;
        println!("  {name:<8} {seconds:>6.2}");
    }
    println!("  {:<8} {together:>6.2}", "together");

    println!("\nMemory of {IDLE} idle tunnelled connections, each with a session of its own:");
    let memory = || path.map(|(_, pid)| status(pid, "VmRSS"));
    let before = memory();
    let idle: Vec<TcpStream> = (0..IDLE).map(|_| opened(sink)).collect();
    for ((name, pid), (now, then)) in path.iter().zip(memory().iter().zip(&before)) {
        println!(
            "  {name:<8} {:>6} KiB each, {} threads",
            (now.saturating_sub(*then)) / IDLE,
            status(*pid, "Threads")
        );
    }
    drop(idle);
}

fn first_byte(user: &Home) -> f64 {
    let once = || {
        let began = Instant::now();
        let (_reached, port) = reach(user, "echo");
        assert!(echoes(port, b"x"));
        began.elapsed().as_secs_f64() * 1e3
    };
    median(&mut (0..ROUNDS).map(|_| once()).collect::<Vec<_>>())
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

fn row(what: &str, direct: f64, tunnel: f64) {
    println!("{what:<34} {direct:>12.1} {tunnel:>12.1} {:>8.2}", tunnel / direct);
}
