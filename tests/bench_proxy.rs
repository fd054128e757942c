//! `make bench`, the proxy's part: ours beside nginx, haproxy and, where they are installed, caddy and Node, in
//! front of one backend, turn by turn. Nothing here asserts a time; machines differ. Quote the ratios.
//!
//! `cargo test --release --test bench_proxy -- https` runs the rows whose names hold that word. `OTHER_BUILD=FILE` adds
//! another build of connect.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Figures for people.

mod common;
#[path = "common/proxy.rs"]
mod proxy;

use std::fmt::Write;
use std::fs;
use std::io::Read;
use std::io::Write as _;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use common::Home;
use common::PATIENCE;
use common::Running;
use common::eventually;
use common::is_here;
use common::measure;
use common::measure::Pace;
use common::measure::median;
use common::measure::quantile;

const ROUNDS: usize = 5;
/// Long enough that the handshakes of the first moment are not a hundredth of all requests.
const SECONDS: &str = "3";
/// What each may use: the machine that is quoted has two cores.
const THREADS: usize = 2;

/// Name, path, connections at once, whether by https, whether each request has a connection of its own.
const ROWS: [(&str, &str, u32, bool, bool); 14] = [
    ("2 bytes, 64 connections", "/2", 64, false, false),
    ("2 bytes, 256 connections", "/2", 256, false, false),
    ("10 KiB, 1 connection", "/10k", 1, false, false),
    ("10 KiB, 16 connections", "/10k", 16, false, false),
    ("10 KiB, 64 connections", "/10k", 64, false, false),
    ("10 KiB, 256 connections", "/10k", 256, false, false),
    ("1 MiB, 1 connection", "/1m", 1, false, false),
    ("1 MiB, 16 connections", "/1m", 16, false, false),
    ("a connection per request, 1", "/10k", 1, false, true),
    ("a connection per request, 64", "/10k", 64, false, true),
    ("https, 10 KiB, 1 connection", "/10k", 1, true, false),
    ("https, 10 KiB, 64 connections", "/10k", 64, true, false),
    ("https, 1 MiB, 1 connection", "/1m", 1, true, false),
    ("https, a connection per request, 16", "/2", 16, true, true),
];

const PACED: &str = "2 bytes, 64 connections, paced at half of nginx's rate";

/// A proxy with its two fronts.
struct Contender {
    name: &'static str,
    plain: u16,
    secure: u16,
    pids: [u32; 2],
    _running: Vec<Running>,
}

/// What one run of wrk says, and what it cost the proxy.
#[derive(Default)]
struct Figures {
    rate: Vec<f64>,
    p99: Vec<f64>,
    cpu: Vec<f64>,
    memory: f64,
}

/// Our own two, which run in the background as users have them.
struct Ours(Vec<Home>);

impl Drop for Ours {
    fn drop(&mut self) {
        self.0.iter().for_each(|home| drop(home.run(&["proxy", "stop"])));
    }
}

fn main() {
    if !["wrk", "nginx", "haproxy"].iter().all(|program| is_here(program, "wrk nginx-light haproxy")) {
        return;
    }
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let place = Home::new();
    let backend = free();
    let direct = backend_on(&place, backend);
    let (mut ours, this) = connect(backend);
    let mut others = Ours(Vec::new());
    let pem = certificate(&place, &ours.0[1]);
    let mut contenders = vec![this, nginx(&place, backend), haproxy(&place, backend, &pem)];
    if let Some(build) = std::env::var_os("OTHER_BUILD") {
        let (other, contender) = common::with_build(Path::new(&build), || connect(backend));
        others = other;
        contenders.push(Contender { name: "other", ..contender });
    }
    contenders.extend(caddy(&place, backend));
    contenders.extend(node(&place, backend));
    contenders.push(direct);
    println!(
        "Medians of {ROUNDS} rounds of {SECONDS} s, in turn; one backend (nginx) for all, {THREADS} threads each."
    );
    println!("`ours` is the rate of connect beside this one: the median of the rounds' ratios.\n");
    for row in ROWS.iter().filter(|row| row.0.contains(&wanted)) {
        let mut figures: Vec<Figures> = contenders.iter().map(|_| Figures::default()).collect();
        for _ in 0..ROUNDS {
            for (contender, figures) in contenders.iter().zip(&mut figures) {
                if contender.speaks(row.3) {
                    contender.measure(row, figures);
                }
            }
        }
        show(row.0, &contenders, &mut figures);
    }
    if PACED.contains(&wanted) {
        show_paced(&contenders);
    }
    ours.0.truncate(2);
    others.0.truncate(2);
}

fn show(row: &str, contenders: &[Contender], figures: &mut [Figures]) {
    println!(
        "{row}\n  {:<10}{:>12}{:>8}{:>12}{:>12}{:>10}",
        "", "requests/s", "ours", "p99 ms", "CPU µs", "MiB"
    );
    let own = figures[0].rate.clone();
    let measured = contenders.iter().zip(figures).filter(|(_, figures)| !figures.rate.is_empty());
    for (contender, figures) in measured {
        let mut ratios: Vec<f64> =
            own.iter().zip(&figures.rate).map(|(ours, theirs)| ours / theirs).collect();
        println!(
            "  {:<10}{:>12.0}{:>8.2}{:>12.2}{:>12.1}{:>10.1}",
            contender.name,
            median(&mut figures.rate),
            median(&mut ratios),
            median(&mut figures.p99),
            median(&mut figures.cpu),
            figures.memory
        );
    }
}

/// How long requests take that come at half of what nginx can do: nobody is at the limit, so the time is the proxy's.
fn show_paced(contenders: &[Contender]) {
    let nginx = contenders.iter().find(|contender| contender.name == "nginx").expect("a contender");
    let mut top = Figures::default();
    (0..ROUNDS).for_each(|_| nginx.measure(&ROWS[0], &mut top));
    let pace = Pace { a_second: median(&mut top.rate) / 2.0, connections: ROWS[0].2 };
    let mut parts: Vec<[Vec<f64>; 2]> = contenders.iter().map(|_| [Vec::new(), Vec::new()]).collect();
    for _ in 0..ROUNDS {
        for (contender, [p50, p99]) in contenders.iter().zip(&mut parts) {
            let mut times = measure::paced(contender.plain, &pace, ask_for_two_bytes);
            p50.push(quantile(&mut times, 0.5));
            p99.push(quantile(&mut times, 0.99));
        }
    }
    println!("{PACED}, {:.0} a second\n  {:<10}{:>12}{:>12}", pace.a_second, "", "p50 µs", "p99 µs");
    for (contender, [p50, p99]) in contenders.iter().zip(&mut parts) {
        println!("  {:<10}{:>12.0}{:>12.0}", contender.name, median(p50), median(p99));
    }
}

fn ask_for_two_bytes(stream: &mut TcpStream) {
    stream.write_all(b"GET /2 HTTP/1.1\r\nHost: api.localhost\r\n\r\n").expect("it is open");
    let (mut answer, mut filled) = ([0; 1024], 0);
    while !answer[..filled].ends_with(b"\r\n\r\nok") {
        let read = stream.read(&mut answer[filled..]).expect("it answers");
        assert!(read > 0, "ended after {}", String::from_utf8_lossy(&answer[..filled]));
        filled += read;
    }
}

impl Contender {
    fn speaks(&self, secure: bool) -> bool {
        !secure || self.secure > 0
    }

    fn measure(&self, row: &(&str, &str, u32, bool, bool), figures: &mut Figures) {
        let &(_, path, connections, secure, anew) = row;
        let (scheme, port) = if secure { ("https", self.secure) } else { ("http", self.plain) };
        let mut wrk = Command::new("wrk");
        wrk.args([
            "-t1",
            "--latency",
            "-d",
            SECONDS,
            "-c",
            &connections.to_string(),
            "-H",
            "Host: api.localhost",
        ]);
        if anew {
            wrk.args(["-H", "Connection: close"]);
        }
        let before = measure::cpu(&[self.pids[usize::from(secure)]]);
        let mut running = Running::start({
            wrk.arg(format!("{scheme}://127.0.0.1:{port}{path}"));
            wrk
        });
        running.wait();
        let said = running.finish().out;
        let number = |name: &str| {
            let line = said.lines().find_map(|line| line.trim().strip_prefix(name));
            line.map(|rest| rest.trim().to_owned()).unwrap_or_default()
        };
        let rate: f64 = number("Requests/sec:").parse().unwrap_or(0.0);
        assert!(rate > 0.0 && !said.contains("Non-2xx"), "{} {}: {said}", self.name, row.0);
        figures.rate.push(rate);
        figures.p99.push(millis(&number("99%")));
        figures.cpu.push(
            (measure::cpu(&[self.pids[usize::from(secure)]]) - before) * 1e6
                / (rate * SECONDS.parse::<f64>().unwrap()),
        );
        figures.memory = figures.memory.max(self.memory(secure));
    }

    /// The process and those that it started.
    fn family(&self, secure: bool) -> Vec<u32> {
        let pid = self.pids[usize::from(secure)];
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        std::iter::once(pid).chain(children.split_whitespace().filter_map(|pid| pid.parse().ok())).collect()
    }

    /// MiB, what processes share counted once.
    fn memory(&self, secure: bool) -> f64 {
        let pss = |pid: u32| {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default();
            line.split_whitespace().next().and_then(|number| number.parse::<f64>().ok()).unwrap_or(0.0)
        };
        self.family(secure).into_iter().map(pss).sum::<f64>() / 1024.0
    }
}

/// wrk writes `850.00us`, `1.20ms`, `1.01s`.
fn millis(text: &str) -> f64 {
    let split = text.find(|c: char| c.is_alphabetic()).unwrap_or(text.len());
    let factor = match &text[split..] {
        "us" => 1e-3,
        "s" => 1e3,
        _ => 1.0,
    };
    text[..split].parse::<f64>().unwrap_or(0.0) * factor
}

fn free() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn started(command: Command, port: u16) -> Running {
    let running = Running::start(command);
    eventually("it listens", PATIENCE, || TcpStream::connect(("127.0.0.1", port)).is_ok());
    running
}

fn file(place: &Home, name: &str, text: &str) -> String {
    fs::write(place.file(name), text).unwrap();
    place.file(name).display().to_string()
}

/// In a session of its own, as ours is in the background: systems share their time out by session.
fn with(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new("setsid");
    command.arg(program).args(args);
    command
}

fn nginx_of(place: &Home, name: &str, http: &str, port: u16) -> Running {
    let prefix = place.path().display();
    let text = format!(
        "worker_processes {THREADS}; daemon off; pid {prefix}/{name}.pid; error_log stderr crit;\n\
         events {{ worker_connections 4096; }}\n\
         http {{ access_log off; default_type text/plain; keepalive_requests 1000000000; client_body_temp_path {prefix}/{name}.body;\n\
         proxy_temp_path {prefix}/{name}.proxy; fastcgi_temp_path {prefix}/f; uwsgi_temp_path {prefix}/u; scgi_temp_path {prefix}/s;\n{http} }}\n"
    );
    let file = file(place, &format!("{name}.conf"), &text);
    started(with("nginx", &["-e", "stderr", "-c", &file]), port)
}

/// What all of them ask, and itself a contender: nobody in front of it can be faster.
fn backend_on(place: &Home, port: u16) -> Contender {
    fs::create_dir_all(place.file("www")).unwrap();
    fs::write(place.file("www/2"), "ok").unwrap();
    fs::write(place.file("www/10k"), common::noise(1, 10 * 1024)).unwrap();
    fs::write(place.file("www/1m"), common::noise(2, 1024 * 1024)).unwrap();
    let www = place.file("www").display().to_string();
    let server = format!(
        "sendfile on; tcp_nopush on; open_file_cache max=10; server {{ listen 127.0.0.1:{port} backlog=4096; root {www}; }}"
    );
    let running = nginx_of(place, "backend", &server, port);
    let pid = running.pid();
    Contender { name: "(direct)", plain: port, secure: 0, pids: [pid; 2], _running: vec![running] }
}

fn connect(backend: u16) -> (Ours, Contender) {
    let mut it = Contender { name: "connect", plain: 0, secure: 0, pids: [0; 2], _running: Vec::new() };
    let mut homes = Vec::new();
    for (at, options) in [&[] as &[&str], &["--https"]].into_iter().enumerate() {
        let home = Home::new();
        proxy::write_routes(&home, &[("api", backend)]);
        let said = home.run(&[&["proxy", "start", "--json", "--port", "0"], options].concat()).ok().json();
        let number = |name: &str| said[name].as_u64().unwrap();
        *(if at == 0 { &mut it.plain } else { &mut it.secure }) = number("port") as u16;
        it.pids[at] = number("pid") as u32;
        homes.push(home);
    }
    (Ours(homes), it)
}

/// Our own leaf, so that everyone signs with the same kind of key.
fn certificate(place: &Home, home: &Home) -> [String; 3] {
    let read = |name: &str| fs::read_to_string(home.file("certs").join(name)).unwrap();
    let (certificate, key) = (read("server.crt"), read("server.key"));
    [file(place, "crt", &certificate), file(place, "key", &key), file(place, "pem", &(certificate + &key))]
}

fn nginx(place: &Home, backend: u16) -> Contender {
    let (plain, secure) = (free(), free());
    let (crt, key) = (place.file("crt"), place.file("key"));
    let location = "location / { proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection \"\"; \
         proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $remote_addr; \
         proxy_set_header X-Forwarded-Host $http_host; proxy_set_header X-Forwarded-Proto $scheme; }";
    let http = format!(
        "upstream up {{ server 127.0.0.1:{backend}; keepalive 512; keepalive_requests 1000000000; }}\n\
         server {{ listen 127.0.0.1:{plain} backlog=4096; {location} }}\n\
         server {{ listen 127.0.0.1:{secure} ssl backlog=4096; ssl_certificate {}; ssl_certificate_key {}; {location} }}\n",
        crt.display(),
        key.display()
    );
    let running = nginx_of(place, "nginx", &http, plain);
    let pid = running.pid();
    Contender { name: "nginx", plain, secure, pids: [pid; 2], _running: vec![running] }
}

fn haproxy(place: &Home, backend: u16, [_, _, pem]: &[String; 3]) -> Contender {
    let (plain, secure) = (free(), free());
    let text = format!(
        "global\n nbthread {THREADS}\n maxconn 4096\n tune.ssl.default-dh-param 2048\n\
         defaults\n mode http\n timeout connect 5s\n timeout client 300s\n timeout server 300s\n http-reuse always\n option forwardfor\n\
         frontend f\n bind 127.0.0.1:{plain}\n bind 127.0.0.1:{secure} ssl crt {pem} alpn http/1.1\n \
         http-request set-header X-Forwarded-Proto http\n default_backend b\n\
         backend b\n server s 127.0.0.1:{backend}\n"
    );
    let running = started(with("haproxy", &["-db", "-q", "-f", &file(place, "haproxy.cfg", &text)]), plain);
    let pid = running.pid();
    Contender { name: "haproxy", plain, secure, pids: [pid; 2], _running: vec![running] }
}

fn caddy(place: &Home, backend: u16) -> Option<Contender> {
    let (plain, secure) = (free(), free());
    let (crt, key) = (place.file("crt"), place.file("key"));
    let text = format!(
        "{{\n admin off\n auto_https off\n}}\n\
         http://:{plain} {{\n bind 127.0.0.1\n reverse_proxy 127.0.0.1:{backend}\n}}\n\
         https://:{secure} {{\n bind 127.0.0.1\n tls {} {}\n reverse_proxy 127.0.0.1:{backend}\n}}\n",
        crt.display(),
        key.display()
    );
    let config = file(place, "Caddyfile", &text);
    if !is_here("caddy", "caddy") {
        return None;
    }
    let mut command = with("caddy", &["run", "--adapter", "caddyfile", "--config", &config]);
    command.env("HOME", place.path()).env("GOMAXPROCS", THREADS.to_string());
    let running = started(command, plain);
    let pid = running.pid();
    Some(Contender { name: "caddy", plain, secure, pids: [pid; 2], _running: vec![running] })
}

/// With what Node itself has: the modules that every proxy written for it stands on.
fn node(place: &Home, backend: u16) -> Option<Contender> {
    let (plain, secure) = (free(), free());
    let mut text = format!(
        "const http = require('http'), https = require('https'), fs = require('fs');\n\
         const agent = new http.Agent({{ keepAlive: true, maxSockets: 512 }});\n\
         const serve = (req, res) => {{\n\
           const up = http.request({{ host: '127.0.0.1', port: {backend}, agent, method: req.method, path: req.url,\n\
             headers: {{ ...req.headers, connection: 'keep-alive', 'x-forwarded-for': req.socket.remoteAddress }} }},\n\
             back => {{ const h = {{ ...back.headers }}; delete h.connection; res.writeHead(back.statusCode, h); back.pipe(res); }});\n\
           up.on('error', () => res.destroy()); req.pipe(up);\n\
         }};\n\
         http.createServer(serve).listen({plain}, '127.0.0.1');\n"
    );
    let _ = writeln!(
        text,
        "https.createServer({{ cert: fs.readFileSync('{}'), key: fs.readFileSync('{}') }}, serve).listen({secure}, '127.0.0.1');",
        place.file("crt").display(),
        place.file("key").display()
    );
    let script = file(place, "proxy.js", &text);
    if !is_here("node", "nodejs") {
        return None;
    }
    let running = started(with("node", &[&script]), plain);
    eventually("it listens for https", PATIENCE, || TcpStream::connect(("127.0.0.1", secure)).is_ok());
    let pid = running.pid();
    Some(Contender { name: "node", plain, secure, pids: [pid; 2], _running: vec![running] })
}
