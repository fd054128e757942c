//! Running connect on servers: readiness, backup, drain, and the units that systemd starts.

mod common;
#[path = "common/proxy.rs"]
mod proxy;

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::SystemTime;

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

/// The unit that `--dry-run` shows, in a file by the name that it would have.
fn unit(home: &Home, args: &[&str]) -> (String, String) {
    let mut command = home.connect(&[args, &["--dry-run", "--json"]].concat());
    // The daemon's unit is for the user who called sudo.
    command.env("SUDO_USER", "daemon");
    let said = Said::of(command).ok().json();
    let name = said["file"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    let text = said["text"].as_str().unwrap().to_owned();
    fs::write(home.file(&name), &text).unwrap();
    (home.file(&name).to_str().unwrap().to_owned(), text)
}

#[test]
fn systemd_finds_little_to_blame_in_the_units_of_hub_and_daemon() {
    if !common::is_here("systemd-analyze", "systemd") {
        return;
    }
    let home = Home::new();
    let hub = ["hub", "install", "--listen", "0.0.0.0:7443", "--name", "hub.example"];
    let etcd = [&hub[..], &["--store", "etcd=http://10.0.0.1:2379", "--allow", "10.0.0.0/8"]].concat();
    for args in [&hub[..], &etcd, &["hub", "install"], &["daemon", "install", "--system"]] {
        let (file, text) = unit(&home, args);
        let mut verify = Command::new("systemd-analyze");
        verify.args(["--system", "--man=no", "verify", &file]);
        let said = Said::of(verify);
        assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (Some(0), "", ""), "{text}");
        let mut judge = Command::new("systemd-analyze");
        judge.args(["security", "--offline=true", "--no-pager", &file]);
        let said = Said::of(judge);
        let level =
            said.out.rsplit("exposure level for ").next().unwrap().split(' ').nth(1).unwrap().to_owned();
        assert!(level.parse::<f64>().unwrap() <= 1.5, "{args:?}: {level}");
    }
}

#[test]
fn the_hubs_unit_says_what_its_configuration_needs_and_no_more() {
    let home = Home::new();
    let has = |text: &str, lines: &[&str]| {
        for line in lines {
            assert!(text.lines().any(|said| said == *line), "{line}: {text}");
        }
    };
    let (_, text) = unit(&home, &["hub", "install"]);
    has(&text, &["User=connect-hub", "ProtectSystem=strict", "CapabilityBoundingSet=", "IPAddressDeny=any"]);
    has(&text, &["IPAddressAllow=localhost", "SocketBindDeny=any", "SocketBindAllow=tcp:7443-7443"]);
    has(&text, &["SocketBindAllow=tcp:45000-45999", "ReadWritePaths=/var/lib/connect-hub"]);
    assert!(text.contains(" hub --data /var/lib/connect-hub/data\n"), "{text}");

    let open = ["hub", "install", "--listen", "0.0.0.0:443", "--tunnel-ports", "off", "--data", "/srv/hub"];
    let (_, text) =
        unit(&home, &[&open[..], &["--name", "a b", "--behind-proxy", "--proxy", "10.0.0.5"]].concat());
    has(&text, &["CapabilityBoundingSet=CAP_NET_BIND_SERVICE", "AmbientCapabilities=CAP_NET_BIND_SERVICE"]);
    has(&text, &["SocketBindAllow=tcp:443-443", "ReadWritePaths=/srv/hub"]);
    assert!(
        !text.contains("45000") && !text.contains("IPAddress") && !text.contains("PrivateUsers"),
        "{text}"
    );
    let words = " hub --data /srv/hub --listen 0.0.0.0:443 --tunnel-ports off --name \"a b\" --behind-proxy --proxy 10.0.0.5";
    assert!(text.contains(&format!("{words}\n")), "{text}");

    let (_, text) = unit(
        &home,
        &["hub", "install", "--listen", "0.0.0.0:7443", "--allow", "10.0.0.0/8", "--allow", "fd00::/8"],
    );
    has(&text, &["IPAddressDeny=any", "IPAddressAllow=10.0.0.0/8 fd00::/8 localhost", "PrivateUsers=yes"]);
    let (_, text) = unit(&home, &["proxy", "install", "--https", "--port", "8443"]);
    assert!(
        text.contains(" proxy start --https --port 8443\n") && text.contains("WantedBy=default.target"),
        "{text}"
    );
    for (args, code) in [
        (&["hub", "install", "--dry-run", "--allow", "everywhere"][..], 2),
        (&["hub", "install", "--dry-run", "--listen", "somewhere"], 2),
        (&["daemon", "install", "--dry-run", "--allow", "10.0.0.0/8"], 2),
    ] {
        assert_eq!(home.run(args).code, Some(code), "{args:?}");
    }
    let said = home.run(&["hub", "install", "--dry-run"]).ok();
    assert!(said.out.contains("  useradd --system --create-home"), "{said:?}");
    let said = home.run(&["hub", "uninstall", "--dry-run"]).ok();
    assert!(said.out.contains("  systemctl disable --now connect-hub.service"), "{said:?}");
}
