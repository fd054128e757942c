//! Running connect on servers: readiness, backup, drain, and the units that systemd starts.

mod common;
#[path = "common/proxy.rs"]
mod proxy;

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use nix::sys::signal::Signal;
use serde_json::Value;

use common::Disk;
use common::Home;
use common::Hub;
use common::PATIENCE;
use common::Running;
use common::Said;
use common::Tunnelled;
use common::dial;
use common::echo;
use common::echoes;
use common::ends::exchanges;
use common::etcd::Etcd;
use common::etcd::Fleet;
use common::eventually;
use common::expose;
use common::https::Answer;
use common::https::dial_from;
use common::https::request;
use common::reach;
use common::service;
use common::team::Team;
use proxy::Proxy;

/// The reasons that `GET /ready` gives; none if the hub is ready.
fn why(hub: &Hub) -> Vec<String> {
    let answer = hub.ask("GET /ready", "", "");
    let body = answer.json();
    let why: Vec<_> = body["why"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(
        (answer.status, body["ready"] == true),
        if why.is_empty() { (200, true) } else { (503, false) }
    );
    why
}

fn audited(hub: &Hub, event: &str, why: &str) -> bool {
    let has = |line: &str, name: &str, value: &str| line.contains(&format!("\"{name}\":\"{value}\""));
    hub.audit().lines().any(|line| has(line, "event", event) && has(line, "reason", why))
}

#[test]
fn a_full_disk_is_seen_by_ready_and_audited_when_it_is_over() {
    let home = Home::new();
    let Some(disk) = Disk::mount(&home.file("hub")) else { return };
    let command = home.hub(&["hub", "--json", "--listen", "127.0.0.1:0", "--tunnel-ports", "off"]);
    let hub = Hub::start_by(home, command, &[]);
    assert!(why(&hub).is_empty());
    disk.fill();
    eventually("the full disk is seen", PATIENCE, || why(&hub) == ["disk"]);
    assert_eq!(hub.ask("GET /health", "", "").status, 200);
    assert_eq!(hub.home.run(&["hub", "status", "--json"]).ok().json()["ready"], false);
    disk.free();
    eventually("it is over", PATIENCE, || why(&hub).is_empty());
    eventually("both are audited", PATIENCE, || {
        audited(&hub, "hub.unready", "disk") && audited(&hub, "hub.ready", "disk")
    });
    let metrics = hub.ask("GET /metrics", &hub.admin_key, "");
    let text = metrics.body;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split([' ', '{']).next().unwrap();
        for kind in ["HELP", "TYPE"] {
            assert!(text.contains(&format!("# {kind} {name} ")), "{name} has no {kind}: {text}");
        }
    }
    assert!(text.contains("\nconnect_ready 1\n"), "{text}");
}

#[test]
fn a_clock_behind_the_audit_log_is_seen_by_ready() {
    let mut hub = Hub::start();
    hub.running.kill();
    let log = fs::File::options().append(true).open(hub.home.file("hub/audit.log")).unwrap();
    log.set_modified(SystemTime::now() + Duration::from_hours(1)).unwrap();
    drop(log);
    hub.restart();
    assert_eq!(why(&hub), ["clock"]);
    // It wrote of this with the time that is right now, so the next start believes that.
    eventually("it is audited", PATIENCE, || audited(&hub, "hub.unready", "clock"));
    hub.restart();
    assert!(why(&hub).is_empty());
}

#[test]
fn while_etcd_is_away_its_hubs_are_not_ready() {
    let Some(mut fleet) = Fleet::of(2) else { return };
    assert!(fleet.hubs.iter().all(|hub| why(hub).is_empty()));
    fleet.etcd[0].kill();
    eventually("it is seen", PATIENCE, || fleet.hubs.iter().all(|hub| why(hub) == ["etcd"]));
    fleet.etcd[0].restart();
    eventually("it is over", PATIENCE, || fleet.hubs.iter().all(|hub| why(hub).is_empty()));
    assert!(audited(&fleet.hubs[0], "hub.ready", "etcd"));
}

/// Where `--health 127.0.0.1:0` listens.
fn health_port(running: &Running) -> u16 {
    let said = running.wait_event("health");
    said["address"].as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap()
}

fn get(port: u16, path: &str) -> (u16, Value) {
    let mut stream = dial(port);
    stream.write_all(request(&format!("GET {path}"), "localhost", &[], "").as_bytes()).unwrap();
    let answer = Answer::read(&mut stream);
    (answer.status, answer.json())
}

fn is_ready(port: u16) -> bool {
    let (status, body) = get(port, "/ready");
    assert_eq!((body["ready"] == true, body["why"][0].is_null()), (status == 200, status == 200), "{body}");
    status == 200
}

#[test]
fn join_is_ready_when_every_service_was_proved() {
    let team = Team::new();
    let shared = team.share(&["--name", "env", &format!("db={}", service(echo))]);
    let (joined, _) = team.join(&[&shared.code, "--health", "127.0.0.1:0"]);
    let port = health_port(&joined);
    // Whoever is silent there keeps nobody else's probe out.
    let crowd = Ipv4Addr::new(127, 0, 0, 9);
    let _silent: Vec<_> = (0..80).map(|_| dial_from(crowd, &format!("127.0.0.1:{port}")).unwrap()).collect();
    assert_eq!(get(port, "/health").0, 200);
    assert_eq!(get(port, "/other").0, 404);
    eventually("it is ready", PATIENCE, || is_ready(port));
    drop(shared);
    eventually("it is not any more", PATIENCE, || !is_ready(port));
    assert_eq!(get(port, "/health").0, 200);
}

#[test]
fn the_daemon_and_the_proxy_are_ready_when_every_service_was_proved() {
    let mut hub = Hub::start();
    let machine = hub.machine("member");
    let port = service(echo);
    machine.run(&["expose", "db", &port.to_string(), "--keep"]).ok();
    machine.run(&["daemon", "stop"]).ok();
    let daemon = machine.start(&["daemon", "start", "--foreground", "--json", "--health", "127.0.0.1:0"]);
    let at = health_port(&daemon);
    eventually("the daemon is ready", PATIENCE, || is_ready(at));

    let user = hub.machine("member");
    let (_reached, _) = reach(&user, "db");
    let proxy = Proxy::start_in(user, &["--health", "127.0.0.1:0"]);
    let proxy_at = health_port(&proxy.running);
    eventually("the proxy is ready", PATIENCE, || is_ready(proxy_at));

    hub.running.kill();
    eventually("the daemon is not any more", PATIENCE, || !is_ready(at));
    hub.restart();
    eventually("the daemon is ready again", PATIENCE, || is_ready(at));
}

/// Makes keys without a pause until `stop`; returns their ids in the order in which the hub acknowledged them.
fn make_keys<'s>(scope: &'s thread::Scope<'s, '_>, hub: &'s Hub, stop: &'s AtomicBool) -> Maker<'s> {
    let made = Arc::new(Mutex::new(Vec::new()));
    let own = Arc::clone(&made);
    let thread = scope.spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            let answer = hub.ask("POST /v1/keys", &hub.admin_key, r#"{"role":"member"}"#);
            assert_eq!(answer.status, 201, "{answer:?}");
            own.lock().unwrap().push(answer.text("id"));
        }
    });
    Maker { made, thread }
}

struct Maker<'s> {
    made: Arc<Mutex<Vec<String>>>,
    thread: thread::ScopedJoinHandle<'s, ()>,
}

fn key_ids(hub: &Hub) -> Vec<String> {
    let keys = hub.home.run(&["hub", "key", "list", "--json"]).ok().json();
    keys.as_array().unwrap().iter().map(|key| key["id"].as_str().unwrap().to_owned()).collect()
}

/// Backups under load, and what a hub has that is made from the last one.
fn backed_up_and_restored(hub: &Hub) {
    let machine = hub.machine("member");
    let exposed = expose(&machine, "db", service(echo));
    let file = hub.home.file("hub.backup");
    let path = file.to_str().unwrap();
    let before = thread::scope(|scope| {
        let stop = AtomicBool::new(false);
        // The thread ends before this closure does.
        let stop: &AtomicBool = Box::leak(Box::new(stop));
        let maker = make_keys(scope, hub, stop);
        let mut before = Vec::new();
        for round in 1..=3 {
            eventually("keys are made", PATIENCE, || maker.made.lock().unwrap().len() >= 10 * round);
            before.clone_from(&maker.made.lock().unwrap());
            let said = hub.home.run(&["hub", "backup", path]).ok();
            assert!(said.out.starts_with(&format!("[ok] {path} has ")), "{said:?}");
        }
        stop.store(true, Ordering::Relaxed);
        maker.thread.join().unwrap();
        before
    });
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let (revoked, kept) = (&before[0], &before[1]);
    hub.home.run(&["hub", "key", "revoke", revoked]).ok();

    let home = Home::new();
    let damaged = home.file("damaged");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    assert!(home.run(&["hub", "restore", damaged.to_str().unwrap()]).err.contains(" is damaged"));
    assert!(!home.file("hub").exists());

    // With the old log the keys that come back are named.
    fs::create_dir(home.file("hub")).unwrap();
    fs::set_permissions(home.file("hub"), fs::Permissions::from_mode(0o700)).unwrap();
    eventually("the revocation is logged", PATIENCE, || audited_key(hub, revoked));
    fs::copy(hub.home.file("hub/audit.log"), home.file("hub/audit.log")).unwrap();
    let said = home.run(&["hub", "restore", path]).ok();
    assert!(said.err.contains("work again"), "{said:?}");
    assert!(
        said.out.contains(&format!("    connect hub key revoke {revoked}")) && !said.out.contains(kept),
        "{said:?}"
    );
    let again = home.run(&["hub", "restore", path]);
    assert_eq!(again.code, Some(1));
    assert!(again.err.contains("is not empty"), "{again:?}");

    let command = home.hub(&["hub", "--json", "--listen", "127.0.0.1:0", "--tunnel-ports", "off"]);
    let mut restored = Hub::start_by(home, command, &[]);
    restored.admin_key.clone_from(&hub.admin_key);
    let there = key_ids(&restored);
    assert!(before.iter().all(|id| there.contains(id)), "{} of {}", there.len(), before.len());
    assert_eq!(restored.ca(), hub.ca(), "clients know it by another pin");
    // The same key and pin, the same agent with its service.
    assert_eq!(restored.ask("GET /v1/whoami", &hub.admin_key, "").status, 200);
    let services = restored.ask("GET /v1/services", &hub.admin_key, "").json();
    assert_eq!((&services[0]["name"], &services[0]["status"]), (&"db".into(), &"offline".into()));
    drop(exposed);
}

fn audited_key(hub: &Hub, id: &str) -> bool {
    hub.audit().lines().any(|line| line.contains("key.revoked") && line.contains(id))
}

#[test]
fn a_backup_under_load_loses_nothing_and_makes_the_same_hub_again() {
    backed_up_and_restored(&Hub::start());
}

#[test]
fn a_backup_of_a_fleet_reads_etcd_and_makes_the_same_hub_on_a_disk() {
    let Some(etcd) = Etcd::start() else { return };
    backed_up_and_restored(&etcd.hub());
}

#[test]
fn a_backup_needs_a_hub_and_restore_a_backup() {
    let home = Home::new();
    assert!(home.run(&["hub", "backup", "x"]).err.starts_with("[x] There is no hub on this machine"));
    fs::write(home.file("other"), "{}").unwrap();
    let said = home.run(&["hub", "restore", home.file("other").to_str().unwrap()]);
    assert!(said.err.contains("is not a hub's backup of this version"), "{said:?}");
}

#[test]
fn a_draining_hub_takes_no_sessions_and_ends_after_the_last_one() {
    let mut tunnelled = Tunnelled::to(service(echo));
    let mut held = dial(tunnelled.port);
    assert!(exchanges(&mut held, b"before"));
    let draining = tunnelled.hub.home.start(&["hub", "drain", "--json"]);
    assert!(draining.wait_event("draining")["sessionsOpen"].as_u64().unwrap() >= 1);
    eventually("it is seen", PATIENCE, || why(&tunnelled.hub) == ["draining"]);
    let ask = format!(r#"{{"service":"service","fingerprint":"{}"}}"#, "00".repeat(32));
    let refused = tunnelled.hub.ask("POST /v1/sessions", &tunnelled.hub.admin_key, &ask);
    assert_eq!((refused.status, refused.text("code").as_str()), (503, "draining"), "{refused:?}");
    assert_eq!(tunnelled.hub.ask("POST /v1/drain", &tunnelled.hub.admin_key, "{}").status, 403);
    assert!(exchanges(&mut held, b"while") && tunnelled.hub.running.is_running());
    drop(held);
    // The joiner's idle session would keep the hub for ever, so its agent ends it.
    assert_eq!(tunnelled.hub.running.wait().code(), Some(0));
    let said = draining.finish().ok();
    assert!(said.out.lines().last().unwrap().contains("ended"), "{said:?}");
    assert!(audited(&tunnelled.hub, "hub.unready", "draining"));
    let again = tunnelled.hub.home.run(&["hub", "drain"]);
    assert!(again.code == Some(1) && again.err.contains("No hub runs on this data folder"), "{again:?}");
}

#[test]
fn a_drain_ends_when_its_time_is_up() {
    let mut tunnelled = Tunnelled::to(service(echo));
    let mut held = dial(tunnelled.port);
    assert!(exchanges(&mut held, b"before"));
    let said = tunnelled.hub.home.run(&["hub", "drain", "--timeout", "1s"]).ok();
    assert!(said.out.ends_with("[ok] The hub has ended"), "{said:?}");
    assert_eq!(tunnelled.hub.running.wait().code(), Some(0));
    assert!(!exchanges(&mut held, b"after"));
}

#[test]
fn the_agents_of_a_draining_hub_move_to_the_others_and_no_connection_breaks() {
    let Some(mut fleet) = Fleet::of(2) else { return };
    let (owner, user) = (fleet.machine(0), fleet.machine(1));
    let exposed = expose(&owner, "db", service(echo));
    let (reached, port) = reach(&user, "db");
    let mut held = dial(port);
    assert!(exchanges(&mut held, b"before"));
    let draining = fleet.hubs[0].home.start(&["hub", "drain", "--json"]);
    draining.wait_event("draining");
    eventually("the agent is at the other hub", PATIENCE, || {
        fleet.hubs[1].home.run(&["hub", "status", "--json"]).ok().json()["agents"] == 1
    });
    eventually("new connections work", PATIENCE, || echoes(port, b"new"));
    assert!(exchanges(&mut held, b"while") && fleet.hubs[0].running.is_running());
    drop(held);
    assert_eq!(fleet.hubs[0].running.wait().code(), Some(0));
    assert!(echoes(port, b"after"));
    drop((exposed, reached));
}

/// Asks for a page, and whether it came.
fn is_answered(mut stream: TcpStream) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent = stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    sent.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 ")
}

/// `start` starts a program on the listening socket and waits until it serves. Clients come without a pause while it
/// ends and another takes its place.
fn nobody_is_refused(socket: &TcpListener, start: impl Fn() -> Running) {
    let address = socket.local_addr().unwrap();
    let connect = move || TcpStream::connect(address);
    let mut first = start();
    assert!(is_answered(connect().unwrap()));
    let stdin = fs::read_link(format!("/proc/{}/fd/0", first.pid())).unwrap();
    assert_eq!(stdin.to_str(), Some("/dev/null"), "programs that it starts would have its socket");
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let clients = thread::spawn(move || {
        let (mut answered, mut refused) = (0, Vec::new());
        while !over.load(Ordering::Relaxed) {
            match connect() {
                Ok(stream) => answered += u32::from(is_answered(stream)),
                Err(error) => refused.push(error),
            }
        }
        (answered, refused)
    });
    for _ in 0..3 {
        first.signal(Signal::SIGTERM);
        assert_eq!(first.wait().code(), Some(0));
        let waiting = [(); 20].map(|()| connect().unwrap());
        first = start();
        assert!(waiting.into_iter().all(is_answered));
    }
    is_over.store(true, Ordering::Relaxed);
    let (answered, refused) = clients.join().unwrap();
    assert!(answered > 3 && refused.is_empty(), "{answered} answered, {refused:?}");
}

/// A listening socket as systemd makes it, and where it listens.
fn systemds_socket() -> (TcpListener, String) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    (socket, address)
}

#[test]
fn a_hub_that_restarts_on_the_socket_that_it_is_given_refuses_nobody() {
    let (socket, address) = systemds_socket();
    let home = Home::new();
    nobody_is_refused(&socket, || {
        let command = home.connect(&["hub", "--json", "--behind-proxy", "--listen", &address]);
        let hub = Running::start_with_socket(command, socket.try_clone().unwrap());
        assert_eq!(hub.wait_event("listening")["address"], address);
        hub
    });
}

#[test]
fn a_drain_ends_though_the_next_hub_starts_at_once() {
    let (socket, address) = systemds_socket();
    let home = Home::new();
    let start = || {
        let command = home.connect(&["hub", "--json", "--listen", &address]);
        Running::start_with_socket(command, socket.try_clone().unwrap())
    };
    let mut first = start();
    first.wait_event("listening");
    thread::scope(|scope| {
        let next = scope.spawn(|| {
            assert_eq!(first.wait().code(), Some(0));
            let next = start();
            next.wait_event("listening");
            next
        });
        let said = home.run(&["hub", "drain"]).ok();
        assert!(said.out.ends_with("[ok] The hub has ended"), "{said:?}");
        assert!(next.join().unwrap().is_running());
    });
}

#[test]
fn a_drain_goes_on_while_the_root_is_replaced() {
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let _exposed = expose(&owner, "db", service(echo));
    let (mut reached, port) = reach(&user, "db");
    let mut held = dial(port);
    assert!(exchanges(&mut held, b"held"));
    let mut drain = hub.home.start(&["hub", "drain"]);
    drain.wait_out(|line| line.contains("Sessions open: 1"));
    hub.home.run(&["hub", "ca", "rotate"]).ok();
    // Longer than the command takes to look again.
    for _ in 0..10 {
        hub.home.run(&["hub", "ca"]).ok();
    }
    assert!(drain.is_running(), "{}", drain.out());
    reached.interrupt();
    assert_eq!(drain.wait().code(), Some(0));
}

#[test]
fn a_proxy_that_restarts_on_the_socket_that_it_is_given_refuses_nobody() {
    let (socket, address) = systemds_socket();
    let home = Home::new();
    // In the background, as its unit says: then it also looks for a handover at its stdin.
    let log = home.file("proxy.log");
    nobody_is_refused(&socket, || {
        let port = address.rsplit(':').next().unwrap();
        let mut command = home.connect(&["proxy", "start", "--json", "--port", port]);
        command.env("CONNECT_BACKGROUND_LOG", &log);
        let proxy = Running::start_with_socket(command, socket.try_clone().unwrap());
        proxy.wait_event("listening");
        proxy
    });
}

#[test]
fn a_socket_that_is_not_the_hubs_own_is_refused_and_what_does_not_listen_is_ignored() {
    let (socket, address) = systemds_socket();
    let home = Home::new();
    let hub = |listen: &str, stdin: OwnedFd| {
        Running::start_with_socket(home.connect(&["hub", "--json", "--listen", listen]), stdin)
    };
    let unix = UnixListener::bind(home.file("socket")).unwrap();
    for (listen, stdin, why) in [
        ("127.0.0.1:1", OwnedFd::from(socket.try_clone().unwrap()), format!("listens on {address};")),
        ("127.0.0.2:0", OwnedFd::from(socket), format!("listens on {address};")),
        ("127.0.0.1:0", OwnedFd::from(unix), "is not TCP".to_owned()),
    ] {
        let said = hub(listen, stdin).finish();
        let is_said = said.err.contains(&format!("Cannot listen on {listen}")) && said.err.contains(&why);
        assert!(said.code == Some(1) && is_said, "{said:#?}");
    }
    // As sshd may pass one.
    let (stdin, _other) = UnixStream::pair().unwrap();
    hub("127.0.0.1:0", stdin.into()).wait_event("listening");
}

#[test]
fn a_hub_that_has_ended_is_said_to_whoever_listens_at_its_address() {
    let mut hub = Hub::start();
    hub.running.kill();
    // Nobody answers there, as when systemd holds the socket and cannot start the hub.
    let _socket = TcpListener::bind(&hub.address).unwrap();
    let began = Instant::now();
    let said = hub.home.run(&["hub", "status"]);
    assert!(said.code == Some(1) && said.out.contains("not running"), "{said:#?}");
    assert!(began.elapsed() < PATIENCE / 3);
    hub.home.run(&["hub", "key", "create", "--role", "join", "--label", "x"]).ok();
}

/// Units that `--dry-run` shows, in files by the names that they would have.
struct Units {
    files: Vec<String>,
    /// The last.
    service: String,
    socket: Option<String>,
}

/// The daemon's unit is for the user who called sudo.
fn units(home: &Home, args: &[&str], sudo_user: Option<&str>) -> Units {
    let mut command = home.connect(&[args, &["--dry-run", "--json"]].concat());
    command.env_remove("SUDO_USER").envs(sudo_user.map(|user| ("SUDO_USER", user)));
    let said = Said::of(command).ok().json();
    let text = |unit: &Value| unit["text"].as_str().unwrap().to_owned();
    let all = said["units"].as_array().unwrap();
    let files = all.iter().map(|unit| {
        let file = home.file(unit["file"].as_str().unwrap().rsplit('/').next().unwrap());
        fs::write(&file, text(unit)).unwrap();
        file.to_str().unwrap().to_owned()
    });
    let files: Vec<String> = files.collect();
    assert!(files.last().unwrap().ends_with(".service"), "{files:?}");
    let socket = (all.len() == 2).then(|| text(&all[0]));
    Units { files, service: text(all.last().unwrap()), socket }
}

#[test]
fn systemd_finds_little_to_blame_in_the_units_of_hub_and_daemon() {
    if !common::is_here("systemd-analyze", "systemd") {
        return;
    }
    let home = Home::new();
    let hub = ["hub", "install", "--listen", "0.0.0.0:7443", "--name", "hub.example"];
    let etcd = [&hub[..], &["--store", "etcd=http://10.0.0.1:2379"]].concat();
    let by_name = ["hub", "install", "--listen", "hub.example:443"];
    let daemon = ["daemon", "install", "--system"];
    for (args, sudo_user) in [
        (&hub[..], None),
        (&etcd, None),
        (&by_name, None),
        (&["hub", "install"], None),
        (&daemon, Some("daemon")),
        // By root itself, or for it.
        (&daemon, Some("root")),
        (&daemon, None),
    ] {
        let Units { files, service, .. } = units(&home, args, sudo_user);
        let mut verify = Command::new("systemd-analyze");
        verify.args(["--system", "--man=no", "verify"]).args(&files);
        let said = Said::of(verify);
        assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (Some(0), "", ""), "{service}");
        let mut judge = Command::new("systemd-analyze");
        judge.args(["security", "--offline=true", "--no-pager", files.last().unwrap()]);
        let said = Said::of(judge);
        let level =
            said.out.rsplit("exposure level for ").next().unwrap().split(' ').nth(1).unwrap().to_owned();
        assert!(level.parse::<f64>().unwrap() <= 1.5, "{args:?} {sudo_user:?}: {level}");
    }
}

fn has(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|said| said == *line), "{line}: {text}");
    }
}

#[test]
fn the_hubs_units_say_what_its_configuration_needs_and_no_more() {
    let home = Home::new();
    let units = |args: &[&str]| units(&home, &[&["hub", "install"], args].concat(), None);
    let Units { service, socket, .. } = units(&[]);
    has(
        &service,
        &["User=connect-hub", "ProtectSystem=strict", "CapabilityBoundingSet=", "IPAddressDeny=any"],
    );
    has(&service, &["IPAddressAllow=localhost", "SocketBindDeny=any", "SocketBindAllow=tcp:45000-45999"]);
    has(&service, &["ReadWritePaths=/var/lib/connect-hub", "Requires=connect-hub.socket"]);
    has(&service, &["After=connect-hub.socket", "StandardInput=socket"]);
    assert!(service.contains(" hub --data /var/lib/connect-hub/data\n"), "{service}");
    assert!(!service.contains("7443"), "{service}");
    let local = ["ListenStream=127.0.0.1:7443", "IPAddressDeny=any", "IPAddressAllow=localhost"];
    has(&socket.unwrap(), &local);

    // systemd binds the port below 1024. The hub dials nobody, but others come to the socket.
    let open = ["--listen", "0.0.0.0:443", "--tunnel-ports", "off", "--data", "/srv/hub"];
    let Units { service, socket, .. } =
        units(&[&open[..], &["--name", "a b", "--behind-proxy", "--proxy", "10.0.0.5"]].concat());
    has(&service, &["CapabilityBoundingSet=", "AmbientCapabilities=", "PrivateUsers=yes"]);
    has(&service, &["SocketBindDeny=any", "ReadWritePaths=/srv/hub", "IPAddressAllow=localhost"]);
    assert!(!service.contains("SocketBindAllow"), "{service}");
    let words = " hub --data /srv/hub --listen 0.0.0.0:443 --tunnel-ports off --name \"a b\" --behind-proxy --proxy 10.0.0.5";
    assert!(service.contains(&format!("{words}\n")), "{service}");
    let socket = socket.unwrap();
    has(&socket, &["ListenStream=0.0.0.0:443", "WantedBy=sockets.target"]);
    assert!(!socket.contains("IPAddress"), "{socket}");

    // What it dials is anywhere, unless it is named.
    for dials in [["--store", "etcd=http://10.0.0.1:2379"], ["--audit-to", "tcp://10.0.0.1:601"]] {
        assert!(!units(&[&open[..], &dials].concat()).service.contains("IPAddress"), "{dials:?}");
    }
    let allow = ["--listen", "[fd00::1]:7443", "--allow", "10.0.0.0/8", "--allow", "fd00::/8"];
    let Units { service, socket, .. } = units(&allow);
    let both = ["IPAddressDeny=any", "IPAddressAllow=10.0.0.0/8 fd00::/8 localhost fd00::1"];
    has(&service, &both);
    has(&socket.unwrap(), &[&both[..], &["ListenStream=[fd00::1]:7443"]].concat());

    // A name is resolved by the hub itself: nothing can listen for it in advance.
    let Units { service, socket, .. } = units(&["--listen", "hub.example:443"]);
    has(&service, &["CapabilityBoundingSet=CAP_NET_BIND_SERVICE", "SocketBindAllow=tcp:443-443"]);
    assert!(socket.is_none() && !service.contains("StandardInput") && !service.contains("IPAddress"));
}

#[test]
fn the_units_of_proxy_and_daemon_say_what_they_need_and_no_more() {
    let home = Home::new();
    let Units { service, socket, .. } =
        units(&home, &["proxy", "install", "--https", "--port", "8443", "--replace"], None);
    assert!(service.contains(" proxy start --https --port 8443\n"), "{service}");
    has(&service, &["WantedBy=default.target", "Requires=connect-proxy.socket", "StandardInput=socket"]);
    has(&socket.unwrap(), &["ListenStream=127.0.0.1:8443"]);

    // Of the homes it sees what it is told to read, and no more.
    let mut daemon = home.connect(&["daemon", "install", "--system", "--dry-run", "--json"]);
    daemon.args(["--config", "/home/ann/own/config.json"]);
    daemon.env("PRIVATECONNECT_HOME", "/home/ann/.privateconnect");
    daemon.env("PRIVATECONNECT_CA", "/home/ann/certs/ca.crt");
    let said = Said::of(daemon).ok().json();
    let service = said["units"][0]["text"].as_str().unwrap();
    has(service, &["ProtectHome=tmpfs", "BindPaths=/home/ann/.privateconnect"]);
    has(service, &["BindReadOnlyPaths=/home/ann/certs", "BindReadOnlyPaths=/home/ann/own"]);
    assert!(said["units"].as_array().unwrap().len() == 1 && !service.contains("StandardInput"), "{service}");
}

#[test]
fn the_units_that_cannot_be_made_are_refused_and_the_steps_are_shown() {
    let home = Home::new();
    for (args, code) in [
        (&["hub", "install", "--dry-run", "--allow", "everywhere"][..], 2),
        (&["hub", "install", "--dry-run", "--listen", "somewhere"], 2),
        (&["daemon", "install", "--dry-run", "--allow", "10.0.0.0/8"], 2),
    ] {
        assert_eq!(home.run(args).code, Some(code), "{args:?}");
    }
    let said = home.run(&["hub", "install", "--dry-run"]).ok();
    assert!(said.out.contains("  useradd --system --create-home"), "{said:?}");
    for shown in
        ["/etc/systemd/system/connect-hub.socket:\n\n    [Unit]", "connect-hub.service:\n\n    [Unit]"]
    {
        assert!(said.out.contains(shown), "{said:?}");
    }
    assert!(said.out.contains("  systemctl restart connect-hub.socket connect-hub.service\n"), "{said:?}");
    let said = home.run(&["hub", "uninstall", "--dry-run"]).ok();
    let steps = "  systemctl disable --now connect-hub.socket\n  systemctl disable --now connect-hub.service\n  rm -f /etc/systemd/system/connect-hub.socket /etc/systemd/system/connect-hub.service ";
    assert!(said.out.contains(steps), "{said:?}");
}
