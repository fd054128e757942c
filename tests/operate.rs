//! Running connect on servers: readiness, backup, drain, and the units that systemd starts.

mod common;
#[path = "common/proxy.rs"]
mod proxy;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
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
use common::dial;
use common::echo;
use common::etcd::Etcd;
use common::etcd::Fleet;
use common::eventually;
use common::expose;
use common::https::Answer;
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
