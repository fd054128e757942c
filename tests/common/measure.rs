//! What is measured of a path: bulk, round trips, new connections, and what its processes cost. Figures are
//! for people; no test asserts them.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use super::dial;

pub const MEBI: usize = 1024 * 1024;
const REQUESTS: usize = 5000;
const CONNECTIONS: usize = 500;
/// How long paced requests come.
const PACED_FOR: Duration = Duration::from_secs(1);

/// Greets, is told how much comes, and answers with one byte when all of it has. Not every peer keeps a
/// half-closed connection, so the end of the stream says nothing.
pub fn drink(mut stream: TcpStream) {
    let mut buffer = vec![0; 256 * 1024];
    let mut length = [0; 8];
    if stream.write_all(b"+").and_then(|()| stream.read_exact(&mut length)).is_err() {
        return;
    }
    let mut left = u64::from_be_bytes(length);
    while left > 0
        && let Ok(count @ 1..) = stream.read(&mut buffer)
    {
        left -= count as u64;
    }
    let _ = stream.write_all(b".");
}

/// A connection to a sink that has reached its target.
pub fn opened(port: u16) -> TcpStream {
    let mut stream = dial(port);
    stream.read_exact(&mut [0]).expect("the target greets");
    stream
}

/// MiB a second into a sink.
pub fn throughput(port: u16, streams: usize, bytes: usize) -> f64 {
    let piece = vec![7; 256 * 1024];
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..streams {
            scope.spawn(|| {
                let mut stream = opened(port);
                let pieces = bytes / streams / piece.len();
                let length = (pieces * piece.len()) as u64;
                stream.write_all(&length.to_be_bytes()).expect("the path takes data");
                (0..pieces).for_each(|_| stream.write_all(&piece).expect("the path takes data"));
                stream.read_exact(&mut [0]).expect("all has arrived");
            });
        }
    });
    (bytes / MEBI) as f64 / began.elapsed().as_secs_f64()
}

/// What one request on an open connection takes, in µs: 128 bytes there and back.
pub fn round_trip(port: u16) -> f64 {
    let mut stream = dial(port);
    let mut one = || {
        let began = Instant::now();
        ask(&mut stream);
        began.elapsed().as_secs_f64() * 1e6
    };
    median(&mut (0..REQUESTS).map(|_| one()).collect::<Vec<_>>())
}

/// Requests a second on so many open connections at once.
pub fn requests_a_second(port: u16, connections: usize) -> f64 {
    let each = 4 * REQUESTS / connections;
    let mut open: Vec<TcpStream> = (0..connections).map(|_| dial(port)).collect();
    open.iter_mut().for_each(ask);
    let began = Instant::now();
    thread::scope(|scope| {
        for stream in &mut open {
            scope.spawn(move || (0..each).for_each(|_| ask(stream)));
        }
    });
    (connections * each) as f64 / began.elapsed().as_secs_f64()
}

/// How often requests come, on how many connections.
pub struct Pace {
    pub a_second: f64,
    pub connections: u32,
}

/// How long requests take that come at a given pace, in µs. A request that has to wait because the one before it is late
/// counts from when it was due.
pub fn paced(port: u16, pace: &Pace, ask: fn(&mut TcpStream)) -> Vec<f64> {
    let interval = Duration::from_secs_f64(f64::from(pace.connections) / pace.a_second);
    let begun = Instant::now() + interval;
    let one = move |number: u32| {
        let mut stream = dial(port);
        ask(&mut stream);
        let mut due = begun + interval * number / pace.connections;
        let mut times = Vec::new();
        while due < begun + PACED_FOR {
            let wait = due.saturating_duration_since(Instant::now());
            thread::sleep(wait);
            // The system's timer may be late, which is not the tunnel's fault.
            let from = if wait.is_zero() { due } else { Instant::now() };
            ask(&mut stream);
            times.push(from.elapsed().as_secs_f64() * 1e6);
            due += interval;
        }
        times
    };
    thread::scope(|scope| {
        let all: Vec<_> = (0..pace.connections).map(|number| scope.spawn(move || one(number))).collect();
        all.into_iter().flat_map(|one| one.join().expect("a paced connection")).collect()
    })
}

/// A request to an echo.
pub fn ask(stream: &mut TcpStream) {
    let mut buffer = [7; 128];
    stream.write_all(&buffer).expect("it is open");
    stream.read_exact(&mut buffer).expect("it echoes");
}

/// Connect, one byte there and back, close; in µs, paced so that each stands for itself.
pub fn new_connections(port: u16) -> Vec<f64> {
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

/// New connections a second, each with a byte there and back, 32 at once.
pub fn connections_a_second(port: u16) -> f64 {
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| (0..CONNECTIONS / 8).for_each(|_| touch(port)));
        }
    });
    (32 * (CONNECTIONS / 8)) as f64 / began.elapsed().as_secs_f64()
}

pub fn median(figures: &mut [f64]) -> f64 {
    quantile(figures, 0.5)
}

pub fn quantile(figures: &mut [f64], part: f64) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[((figures.len() - 1) as f64 * part) as usize]
}

/// CPU seconds that these processes and those they started have used, as the kernel accounts for them.
pub fn cpu(pids: &[u32]) -> f64 {
    let mut all = pids.to_vec();
    for (pid, parent) in processes() {
        if all.contains(&parent) && !all.contains(&pid) {
            all.push(pid);
        }
    }
    let used = |pid: &u32| {
        let fields = fields(*pid);
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        (ticks(11) + ticks(12)) / 100.0
    };
    all.iter().map(used).sum()
}

/// Every process and its parent, oldest first.
fn processes() -> Vec<(u32, u32)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids.into_iter().filter_map(|pid| Some((pid, fields(pid).get(1)?.parse().ok()?))).collect()
}

/// What stands in `/proc/PID/stat` behind the name: state, parent, …
fn fields(pid: u32) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// A number of `/proc/PID/status`, like `VmRSS` in KiB.
pub fn status(pid: u32, name: &str) -> usize {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
