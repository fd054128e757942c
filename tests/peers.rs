//! `make bench-peers`: the tunnel, through the hub and by the direct path, beside rathole, bore, dumbpipe, ssh, haproxy,
//! nginx and no tunnel, each with the same work, turn by turn in one run. Medians; what counts are the ratios. Ours is
//! end-to-end encrypted through three processes, or two by the direct path; the others have two, the proxies one.
//! `OTHER_BUILD=FILE` adds another build of connect.
//! The figures are printed as a table and as bars, which are in target/bench-peers.svg too. `ROUNDS=1 BULK_MIB=4` is
//! enough to see that all of it works; ONLY=WORDS takes the measures in whose name the words are.
#![allow(clippy::cast_precision_loss)] // Figures for people.

#[path = "common/chart.rs"]
mod chart;
mod common;

use std::any::Any;
use std::fmt::Write;
use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::sync::OnceLock;

use chart::Row;
use common::Home;
use common::Hub;
use common::PATIENCE;
use common::Running;
use common::Said;
use common::echo;
use common::echoes;
use common::eventually;
use common::measure;
use common::measure::MEBI;
use common::measure::Pace;
use common::reach;
use common::service;

/// Bytes of a bulk transfer.
static BULK: LazyLock<usize> = LazyLock::new(|| setting("BULK_MIB", 256) * MEBI);
/// Requests a second of the paced measures: half of what the slowest contender can.
static PACE: OnceLock<f64> = OnceLock::new();
const PACED_CONNECTIONS: u32 = 8;

/// A way from a loopback port to the two services.
struct Contender {
    name: &'static str,
    sink: u16,
    echo: u16,
    pids: Vec<u32>,
    /// Its programs and their folders, for as long as it is measured.
    _alive: Box<dyn Any>,
}

struct Measure {
    what: &'static str,
    /// More is better; else less is.
    more: bool,
    take: fn(&Contender) -> f64,
}

const MEASURES: [Measure; 9] = [
    Measure { what: "bulk, 1 stream, MiB/s", more: true, take: |c| measure::throughput(c.sink, 1, *BULK) },
    Measure { what: "bulk, 8 streams, MiB/s", more: true, take: |c| measure::throughput(c.sink, 8, *BULK) },
    Measure { what: "CPU s per GB, 1 stream", more: false, take: cpu_for_a_gigabyte },
    Measure { what: "new connection, p50, µs", more: false, take: |c| fresh(c.echo) },
    Measure {
        what: "connections/s, 32 at once",
        more: true,
        take: |c| measure::connections_a_second(c.echo),
    },
    Measure { what: "requests/s, 1 connection", more: true, take: |c| 1e6 / measure::round_trip(c.echo) },
    Measure {
        what: "requests/s, 50 connections",
        more: true,
        take: |c| measure::requests_a_second(c.echo, 50),
    },
    Measure { what: "paced request, p50, µs", more: false, take: |c| paced(c, 0.5) },
    Measure { what: "paced request, p99, µs", more: false, take: |c| paced(c, 0.99) },
];

fn main() {
    let rounds = setting("ROUNDS", 5);
    let only = std::env::var("ONLY").unwrap_or_default();
    let targets = (service(measure::drink), service(echo));
    let mut contenders =
        vec![connect("connect", targets, &[]), connect("connect, direct path", targets, &DIRECT)];
    let makers = [rathole_plain, rathole_tls, rathole_noise, bore, dumbpipe, ssh, haproxy, nginx];
    if let Some(build) = std::env::var_os("OTHER_BUILD") {
        contenders.push(common::with_build(Path::new(&build), || connect("other build", targets, &[])));
    }
    contenders.extend(makers.iter().filter_map(|maker| maker(targets)));
    contenders.push(contender("no tunnel", targets, Home::new(), Vec::new()));
    for contender in &contenders {
        eventually(contender.name, PATIENCE, || echoes(contender.echo, b"ready") && greets(contender.sink));
    }
    let measures: Vec<&Measure> = MEASURES.iter().filter(|measure| measure.what.contains(&only)).collect();
    let slowest = contenders.iter().map(|contender| measure::requests_a_second(contender.echo, 50));
    let pace = PACE.get_or_init(|| slowest.fold(f64::MAX, f64::min) / 2.0);
    let mut rows = Vec::new();
    for measure in measures {
        let mut figures = vec![Vec::new(); contenders.len()];
        for _ in 0..rounds {
            for (figures, contender) in figures.iter_mut().zip(&contenders) {
                figures.push((measure.take)(contender));
            }
        }
        let medians = figures.iter_mut().map(|figures| measure::median(figures)).collect();
        rows.push(Row { what: measure.what, more: measure.more, figures: medians });
        eprintln!("{} done", measure.what);
    }
    let names: Vec<&str> = contenders.iter().map(|contender| contender.name).collect();
    println!(
        "{rounds} rounds, every contender in turn. A ratio over 1 says that connect was the better one.\n\
         Paced: {pace:.0} requests a second, half of what the slowest can.\n\n{}\n{}",
        table(&names, &rows),
        chart::bars(&names, &rows)
    );
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-peers.svg");
    fs::write(&file, chart::svg(&names, &rows, "connect")).expect("target/ can be written");
    println!("The bars as a picture: {}", file.display());
}

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// In Markdown, with the ratio of the first contender's figure to each.
fn table(names: &[&str], rows: &[Row]) -> String {
    let mut table = String::from("| median of the rounds, and connect's ratio to each |");
    names.iter().for_each(|name| _ = write!(table, " {name} |"));
    table += &format!("\n|{}\n", " --- |".repeat(names.len() + 1));
    for row in rows {
        table += &format!("| {} |", row.what);
        for (at, figure) in row.figures.iter().enumerate() {
            let ratio = if row.more { row.figures[0] / figure } else { figure / row.figures[0] };
            let ratio = if at > 0 { format!(" ({ratio:.2}×)") } else { String::new() };
            table += &format!(" {}{ratio} |", chart::shown(*figure));
        }
        table += "\n";
    }
    table
}

fn paced(contender: &Contender, part: f64) -> f64 {
    let a_second = *PACE.get().expect("set before the first measure");
    let pace = Pace { a_second, connections: PACED_CONNECTIONS };
    measure::quantile(&mut measure::paced(contender.echo, &pace, measure::ask), part)
}

fn fresh(port: u16) -> f64 {
    measure::median(&mut measure::new_connections(port))
}

fn cpu_for_a_gigabyte(contender: &Contender) -> f64 {
    let before = measure::cpu(&contender.pids);
    measure::throughput(contender.sink, 1, 4 * *BULK);
    (measure::cpu(&contender.pids) - before) / ((4 * *BULK) as f64 / 1e9)
}

/// Whether the way to the sink stands.
fn greets(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port))
        .and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.read_exact(&mut [0])
        })
        .is_ok()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

fn contender(name: &'static str, (sink, echo): (u16, u16), home: Home, running: Vec<Running>) -> Contender {
    let pids = running.iter().map(Running::pid).collect();
    Contender { name, sink, echo, pids, _alive: Box::new((home, running)) }
}

/// Without the relay: the joiner connects to the agent itself.
const DIRECT: [&str; 1] = ["--direct=127.0.0.1:0"];

fn connect(name: &'static str, (sink, echo): (u16, u16), options: &[&str]) -> Contender {
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let exposed = [("sink", sink), ("echo", echo)].map(|(name, port)| {
        let port = port.to_string();
        let running =
            owner.start(&[&["expose", "--json", name, &port, "--protocol", "tcp"], options].concat());
        running.wait_event("exposed");
        running
    });
    let ((joiner, sink), (echoing, echo)) = (reach(&user, "sink"), reach(&user, "echo"));
    let is_direct = joiner.wait_event("up")["path"].as_str().is_some_and(|path| path.starts_with("direct"));
    assert_eq!(is_direct, !options.is_empty());
    let pids = vec![hub.running.pid(), exposed[0].pid(), joiner.pid()];
    Contender { name, sink, echo, pids, _alive: Box::new((hub, owner, user, exposed, joiner, echoing)) }
}

/// Starts a peer's program; `None`, said loudly, where it is not installed.
fn start(home: &Home, package: &str, line: &str) -> Option<Running> {
    let mut words = line.split_whitespace();
    let program = words.next()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<_> = std::env::split_paths(&path).collect();
    folders.extend(["target/peers/bin".into(), "/usr/sbin".into()]);
    let Some(program) = folders.iter().map(|folder| folder.join(program)).find(|path| path.is_file()) else {
        eprintln!("*** LEFT OUT: there is no {program}; get it with: {package} ***");
        return None;
    };
    let mut command = Command::new(fs::canonicalize(program).ok()?);
    command.args(words).current_dir(home.path()).env("HOME", home.path());
    Some(Running::start(command))
}

fn rathole_plain(targets: (u16, u16)) -> Option<Contender> {
    rathole("rathole", targets, "type = \"tcp\"", "type = \"tcp\"", Home::new())
}

fn rathole_tls(targets: (u16, u16)) -> Option<Contender> {
    let home = Home::new();
    let script = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=bench -keyout ca.key -out ca.pem
        openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout leaf.key -out leaf.csr
        printf 'subjectAltName=DNS:localhost\n' > san
        openssl x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out leaf.pem
        openssl pkcs12 -export -in leaf.pem -inkey leaf.key -certfile ca.pem -passout pass:bench -out leaf.p12";
    sh(&home, script);
    let server = "type = \"tls\"\n[server.transport.tls]\npkcs12 = \"leaf.p12\"\npkcs12_password = \"bench\"";
    let client =
        "type = \"tls\"\n[client.transport.tls]\ntrusted_root = \"ca.pem\"\nhostname = \"localhost\"";
    rathole("rathole TLS", targets, server, client, home)
}

fn rathole_noise(targets: (u16, u16)) -> Option<Contender> {
    let home = Home::new();
    let keys = start(&home, "cargo install rathole", "rathole --genkey")?.finish();
    let said: Vec<&str> = keys.out.lines().map(str::trim).collect();
    let after = |what: &str| said.iter().skip_while(|line| !line.starts_with(what)).nth(1).copied();
    let (private, public) = (after("Private Key")?, after("Public Key")?);
    let server = format!("type = \"noise\"\n[server.transport.noise]\nlocal_private_key = \"{private}\"");
    let client = format!("type = \"noise\"\n[client.transport.noise]\nremote_public_key = \"{public}\"");
    rathole("rathole noise", targets, &server, &client, home)
}

fn rathole(
    name: &'static str,
    (sink, echo): (u16, u16),
    server: &str,
    client: &str,
    home: Home,
) -> Option<Contender> {
    let (control, sink_at, echo_at) = (free_port(), free_port(), free_port());
    let server = format!(
        "[server]\nbind_addr = \"127.0.0.1:{control}\"\ndefault_token = \"bench\"\n[server.transport]\n{server}\n\
         [server.services.sink]\nbind_addr = \"127.0.0.1:{sink_at}\"\n\
         [server.services.echo]\nbind_addr = \"127.0.0.1:{echo_at}\"\n"
    );
    let client = format!(
        "[client]\nremote_addr = \"localhost:{control}\"\ndefault_token = \"bench\"\n[client.transport]\n{client}\n\
         [client.services.sink]\nlocal_addr = \"127.0.0.1:{sink}\"\n\
         [client.services.echo]\nlocal_addr = \"127.0.0.1:{echo}\"\n"
    );
    write(&home, "server.toml", &server);
    write(&home, "client.toml", &client);
    let running = ["rathole --server server.toml", "rathole --client client.toml"];
    let running = running.map(|line| start(&home, "cargo install rathole", line));
    Some(contender(name, (sink_at, echo_at), home, running.into_iter().collect::<Option<_>>()?))
}

fn bore((sink, echo): (u16, u16)) -> Option<Contender> {
    let (home, sink_at, echo_at) = (Home::new(), free_port(), free_port());
    let package = "cargo install bore-cli";
    let server = start(&home, package, "bore server --bind-addr 127.0.0.1")?;
    server.wait_out(|line| line.contains("listening"));
    let client = |port, at| format!("bore local {port} --local-host 127.0.0.1 --to 127.0.0.1 --port {at}");
    let clients = [client(sink, sink_at), client(echo, echo_at)].map(|line| start(&home, package, &line));
    let mut running: Vec<Running> = clients.into_iter().collect::<Option<_>>()?;
    running.push(server);
    Some(contender("bore", (sink_at, echo_at), home, running))
}

/// QUIC without a hub in between, beside which our direct path stands. Without the internet it says that it has no relay,
/// and works with the address in the ticket.
fn dumbpipe((sink, echo): (u16, u16)) -> Option<Contender> {
    let home = Home::new();
    let (mut running, ports) = (Vec::new(), (free_port(), free_port()));
    for (target, at) in [(sink, ports.0), (echo, ports.1)] {
        let package = "cargo install --locked dumbpipe";
        let line = format!("dumbpipe listen-tcp --ipv4-addr 127.0.0.1:0 --host 127.0.0.1:{target}");
        let listener = start(&home, package, &line)?;
        let said = listener.wait_err(|line| line.starts_with("dumbpipe connect-tcp"));
        let ticket = said.split_whitespace().last()?;
        let line = format!("dumbpipe connect-tcp --addr 127.0.0.1:{at} {ticket}");
        running.extend([listener, start(&home, package, &line)?]);
    }
    Some(contender("dumbpipe", ports, home, running))
}

/// With the cipher that is fastest where the CPU has AES.
fn ssh((sink, echo): (u16, u16)) -> Option<Contender> {
    let (home, port, sink_at, echo_at) = (Home::new(), free_port(), free_port(), free_port());
    let at = home.path().display();
    let make =
        "ssh-keygen -q -t ed25519 -N '' -f host; ssh-keygen -q -t ed25519 -N '' -f user; mkdir -p /run/sshd";
    sh(&home, make);
    let settings = format!(
        "ListenAddress 127.0.0.1:{port}\nHostKey {at}/host\nAuthorizedKeysFile {at}/user.pub\nStrictModes no\n\
         UsePAM no\nPidFile none\nPermitRootLogin yes\n"
    );
    write(&home, "sshd_config", &settings);
    let server = start(&home, "apt-get install openssh-server", &format!("sshd -D -e -f {at}/sshd_config"))?;
    server.wait_err(|line| line.contains("listening"));
    let line = format!(
        "ssh -F none -N -i user -p {port} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
         -o LogLevel=ERROR -o Ciphers=aes128-gcm@openssh.com -L 127.0.0.1:{sink_at}:127.0.0.1:{sink} \
         -L 127.0.0.1:{echo_at}:127.0.0.1:{echo} 127.0.0.1"
    );
    let client = start(&home, "apt-get install openssh-client", &line)?;
    Some(contender("ssh -L", (sink_at, echo_at), home, vec![server, client]))
}

fn haproxy((sink, echo): (u16, u16)) -> Option<Contender> {
    let (home, sink_at, echo_at) = (Home::new(), free_port(), free_port());
    let settings = format!(
        "global\n maxconn 4000\n nbthread 2\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n\
         timeout server 60s\nlisten sink\n bind 127.0.0.1:{sink_at}\n server s 127.0.0.1:{sink}\n\
         listen echo\n bind 127.0.0.1:{echo_at}\n server s 127.0.0.1:{echo}\n"
    );
    write(&home, "haproxy.cfg", &settings);
    let running = start(&home, "apt-get install haproxy", "haproxy -db -f haproxy.cfg")?;
    Some(contender("haproxy", (sink_at, echo_at), home, vec![running]))
}

fn nginx((sink, echo): (u16, u16)) -> Option<Contender> {
    let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
    if !Path::new(module).is_file() {
        eprintln!(
            "*** LEFT OUT: nginx has no streams; get them with: apt-get install libnginx-mod-stream ***"
        );
        return None;
    }
    let (home, sink_at, echo_at) = (Home::new(), free_port(), free_port());
    let at = home.path().display();
    let settings = format!(
        "load_module {module};\ndaemon off;\nworker_processes 2;\npid {at}/pid;\nerror_log {at}/log;\n\
         events {{ worker_connections 4000; }}\nstream {{\n\
         proxy_half_close on;\n\
         server {{ listen 127.0.0.1:{sink_at}; proxy_pass 127.0.0.1:{sink}; }}\n\
         server {{ listen 127.0.0.1:{echo_at}; proxy_pass 127.0.0.1:{echo}; }}\n}}\n"
    );
    write(&home, "nginx.conf", &settings);
    let running =
        start(&home, "apt-get install nginx-light", &format!("nginx -c {at}/nginx.conf -e {at}/log"))?;
    Some(contender("nginx", (sink_at, echo_at), home, vec![running]))
}

fn write(home: &Home, name: &str, text: &str) {
    fs::write(home.file(name), text).expect("a folder of our own");
}

fn sh(home: &Home, script: &str) {
    let mut command = Command::new("sh");
    command.args(["-ec", script]).current_dir(home.path());
    Said::of(command).ok();
}
