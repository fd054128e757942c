//! Several hubs on one etcd are one hub to everybody: they agree on every change, find each other's agents, and
//! lose a hub, the network or etcd without their clients noticing for long.

mod common;

use std::fs;
use std::net::Ipv4Addr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use common::Home;
use common::Hub;
use common::PATIENCE;
use common::dial;
use common::echo;
use common::echoes;
use common::ends::Ending;
use common::etcd::Etcd;
use common::etcd::Fleet;
use common::eventually;
use common::expose;
use common::fake_hub::FakeHub;
use common::https::RawAgent;
use common::reach;
use common::service;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;
use serde_json::json;

/// Three seconds, and what a machine that runs many tests at once takes on top.
const SOON: Duration = Duration::from_millis(4500);

fn status(hub: &Hub, what: &str) -> u64 {
    let status = hub.home.run(&["hub", "status", "--json"]).ok().json();
    status[what].as_u64().unwrap()
}

fn config(home: &Home) -> Value {
    serde_json::from_str(&fs::read_to_string(home.file("config.json")).unwrap()).unwrap()
}

#[test]
fn a_joiner_finds_an_agent_at_another_hub_and_goes_there() {
    let Some(fleet) = Fleet::of(3) else { return };
    let (owner, user) = (fleet.machine(0), fleet.machine(1));
    let hubs = &config(&user)["hubs"];
    assert!((0..3).all(|n| n == 1 || hubs.as_array().unwrap().contains(&json!(fleet.hubs[n].url))), "{hubs}");
    let _exposed = expose(&owner, "db", service(echo));
    let (_reached, port) = reach(&user, "db");
    assert!(echoes(port, b"over there"));
    let relayed = fleet.hubs.iter().map(|hub| status(hub, "sessionsTotal")).collect::<Vec<_>>();
    assert!(relayed[0] > 0 && relayed[1] + relayed[2] == 0, "{relayed:?}");
}

#[test]
fn a_key_that_one_hub_rotates_reaches_the_agents_of_another() {
    let Some(fleet) = Fleet::of(2) else { return };
    let owner = fleet.machine(1);
    let exposed = expose(&owner, "db", service(echo));
    let keys = fleet.hubs[0].ask("GET /v1/keys", &fleet.admin_key, "").json();
    let member = keys.as_array().unwrap().iter().find(|key| key["role"] == "member").unwrap();
    let old = config(&owner)["apiKey"].as_str().unwrap().to_owned();
    let call = format!("POST /v1/keys/{}/rotate", member["id"].as_str().unwrap());
    let next = fleet.hubs[0].ask(&call, &fleet.admin_key, "").text("key");
    exposed.wait_event("keyRotated");
    assert_eq!(config(&owner)["apiKey"], next.as_str());
    for hub in &fleet.hubs {
        let status = |key: &str| hub.ask("GET /v1/whoami", key, "").status;
        eventually("the old secret ends at both", PATIENCE, || status(&old) == 401);
        assert_eq!(status(&next), 200);
    }
}

#[test]
fn a_root_that_one_hub_replaces_is_the_fleets_even_if_that_hub_dies_then() {
    let Some(mut fleet) = Fleet::of(2) else { return };
    let (owner, user, late) = (fleet.machine(1), fleet.machine(0), fleet.machine(0));
    let exposed = expose(&owner, "db", service(echo));
    let pin = |home: &Home| config(home)["apiKey"].as_str().unwrap().rsplit('.').next().unwrap().to_owned();
    let shown = fleet.hubs[0].home.run(&["hub", "ca", "rotate", "--json"]).ok().json();
    user.run(&["reach", "db", "--check"]).ok();
    fleet.hubs[0].running.kill();
    eventually("the agent of the other hub learns it", PATIENCE, || shown["pin"] == pin(&owner).as_str());
    assert_eq!(fleet.hubs[1].home.run(&["hub", "ca", "--json"]).ok().json(), shown);
    for home in [&user, &late] {
        home.run(&["reach", "db", "--check"]).ok();
        assert_eq!(shown["pin"], pin(home).as_str());
    }
    fleet.hubs[0].restart();
    assert_eq!(fleet.hubs[0].home.run(&["hub", "ca", "--json"]).ok().json(), shown);
    assert_eq!(exposed.events("lost"), 0, "{}", exposed.out());
}

#[test]
fn a_root_that_somebody_writes_into_etcd_is_nobodys() {
    let Some(fleet) = Fleet::of(2) else { return };
    let user = fleet.machine(0);
    let etcd = &fleet.etcd[0];
    let keys = etcd.ctl(&["get", "--prefix", "", "--keys-only"]).unwrap();
    let key = keys.lines().find(|key| key.ends_with("ca")).unwrap();
    let stored = etcd.ctl(&["get", key, "--print-value-only"]).unwrap();
    let own: Value = serde_json::from_str(&stored).unwrap();
    let other = Hub::start();
    other.home.run(&["hub", "ca", "rotate"]).ok();
    let foreign = fs::read_to_string(other.home.file("hub/certs/ca.json")).unwrap();
    let mut foreign: Value = serde_json::from_str(&foreign).unwrap();
    foreign["codeKeyId"] = own["codeKeyId"].clone();
    foreign["replaced"]["certificate"] = own["certificate"].clone();
    etcd.ctl(&["put", key, &foreign.to_string()]).unwrap();
    for hub in &fleet.hubs {
        hub.running.wait_err(|line| line.contains("root has not signed the one in etcd"));
    }
    user.run(&["services"]).ok();
    etcd.ctl(&["put", key, stored.trim_end()]).unwrap();
    fleet.hubs[1].home.run(&["hub", "ca", "rotate"]).ok();
    eventually("it is followed", PATIENCE, || {
        let shown = fleet.hubs.iter().map(|hub| hub.home.run(&["hub", "ca"]).ok().out);
        let shown: Vec<String> = shown.collect();
        shown[0] == shown[1] && shown[0].matches("BEGIN").count() == 2
    });
}

#[test]
fn where_the_agents_hub_cannot_be_reached_the_asked_one_carries() {
    let Some(fleet) = Fleet::of(2) else { return };
    let owner = fleet.machine(0);
    let _exposed = expose(&owner, "db", service(echo));
    // This joiner comes to one hub by a name, and to addresses only through a proxy that is not there.
    let port = fleet.hubs[1].address.rsplit(':').next().unwrap().to_owned();
    let user = Home::new();
    let outside = |args: &[&str]| {
        let mut command = user.connect(args);
        command.env("HTTPS_PROXY", "http://127.0.0.1:1").env("NO_PROXY", "localhost");
        command
    };
    let url = format!("https://localhost:{port}");
    common::Said::of(outside(&["up", "--hub", &url, "--api-key", &fleet.key("member")])).ok();
    let reached = common::Running::start(outside(&["reach", "--json", "db"]));
    let port = u16::try_from(reached.wait_event("up")["localPort"].as_u64().unwrap()).unwrap();
    for size in [1, 3_000_000] {
        assert!(echoes(port, &common::noise(3, size)));
    }
    assert!(fleet.hubs[1].audit().contains("session.carried"));
    // Each hub has its own log, whose head is in the common store; only the agent's hub has its sessions.
    let served = owner.file("served.log");
    let verify =
        |hub: &Hub, more: &[&str]| hub.home.run(&[&["hub", "audit", "verify", "--json"], more].concat());
    let said = verify(&fleet.hubs[0], &["--with", served.to_str().unwrap()]).ok().json();
    let other = verify(&fleet.hubs[1], &[]).ok().json();
    assert!(said["compared"].as_u64() >= Some(1) && said["hub"] != other["hub"], "{said} {other}");
    // Revoking the joiner's key at any hub cuts what another one carries for it.
    let mut held = dial(port);
    assert!(common::ends::exchanges(&mut held, b"still"));
    let keys = fleet.hubs[1].ask("GET /v1/keys", &fleet.admin_key, "").json();
    let member = |key: &&Value| key["role"] == "member";
    for key in keys.as_array().unwrap().iter().filter(member) {
        let call = format!("DELETE /v1/keys/{}", key["id"].as_str().unwrap());
        assert_eq!(fleet.hubs[1].ask(&call, &fleet.admin_key, "").status, 204);
    }
    let began = Instant::now();
    assert_ne!(common::ends::read_out(&held).1, Ending::Hung);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[test]
fn hubs_behind_proxies_know_each_other_by_the_pin_and_a_false_one_in_etcd_gets_no_key() {
    let Some(etcd) = Etcd::start() else { return };
    // A host that every browser would believe.
    let impostor = FakeHub::start(common::fake_hub::friendly);
    let shared = Home::new();
    let code_key = shared.file("code.key");
    let start = |name: &str| {
        let home = Home::new();
        fs::write(home.file("public.pem"), &impostor.certificates.ca).unwrap();
        let (store, code_key) = (etcd.store(), code_key.display().to_string());
        let mut command =
            home.connect(&["hub", "--json", "--listen", "127.0.0.1:0", "--tunnel-ports", "off"]);
        command.args(["--behind-proxy", "--name", name, "--store", &store, "--code-key-file", &code_key]);
        command.env("SSL_CERT_FILE", home.file("public.pem"));
        Hub::start_by(home, command, &[])
    };
    fs::write(&code_key, "k".repeat(64)).unwrap();
    let (first, second) = (start("hub-a.invalid"), start("hub-b.invalid"));
    let key = first.key("member");
    let mut agent = RawAgent::up(&first, &key, "agent_a");
    agent.expose("db");
    let ask = json!({ "service": "db", "fingerprint": "a".repeat(64), "carry": true }).to_string();
    eventually("the other hub carries", PATIENCE, || {
        second.ask("POST /v1/sessions", &key, &ask).status == 200
    });
    // A key's addresses are those that the joiner's own hub sees, and not of the hub that carries.
    let (limited, _) = first.new_key(&["--from", "127.0.0.7"]);
    let there = Ipv4Addr::new(127, 0, 0, 7);
    eventually("the other hub knows the key", PATIENCE, || {
        second.from(there).ask("POST /v1/sessions", &limited, &ask).status == 200
    });
    assert_eq!(second.ask("POST /v1/sessions", &limited, &ask).text("code"), "key-elsewhere");
    assert_eq!(first.ask("POST /v1/sessions", &limited, &ask).text("code"), "key-elsewhere");
    // Somebody who may write to etcd, but has no key of the fleet's CA, puts himself in the place of the agent's hub.
    let stored = etcd.ctl(&["get", "--prefix", "", "--print-value-only=false"]).unwrap();
    let lines: Vec<&str> = stored.lines().collect();
    let entry =
        lines.windows(2).find(|pair| pair[1].contains("\"direct\"") && pair[1].contains("hub-a.invalid"));
    let [name, value] = entry.expect("the hub's entry") else { unreachable!() };
    let direct = format!("https://{}", first.address);
    assert!(value.contains(&direct), "{value}");
    etcd.ctl(&["put", name, &value.replace(&direct, &impostor.url)]).unwrap();
    eventually("the false hub is not asked", PATIENCE, || {
        second.ask("POST /v1/sessions", &key, &ask).status == 503
    });
    assert!(impostor.asked().is_empty(), "{:?}", impostor.asked());
}

#[test]
fn the_time_of_reach_covers_all_hubs_that_it_asks() {
    let Some(fleet) = Fleet::of(2) else { return };
    let owner = fleet.machine(0);
    let _exposed = expose(&owner, "db", service(echo));
    let user = fleet.machine(1);
    let stopped = Pid::from_raw(i32::try_from(fleet.hubs[0].running.pid()).unwrap());
    kill(stopped, Signal::SIGSTOP).unwrap();
    let began = Instant::now();
    let said = user.run(&["reach", "db", "--check", "--timeout", "4s", "--hub", &fleet.hubs[1].url]);
    let took = began.elapsed();
    kill(stopped, Signal::SIGCONT).unwrap();
    assert_eq!(said.code, Some(1), "{said:#?}");
    assert!(took < Duration::from_millis(6500), "{took:?}: {said:#?}");
}

#[test]
fn a_link_whose_hub_is_away_opens_at_another_hub_that_is_named() {
    let Some(mut fleet) = Fleet::of(2) else { return };
    let owner = fleet.machine(0);
    let target = format!("db={}", service(echo));
    let sharing = owner.start(&["share", "--json", "--link", &target]);
    let link = sharing.wait_event("shared")["link"].as_str().unwrap().to_owned();
    // Another one with a service of that name, at another hub, and revoked at the first.
    let other = fleet.machine(1);
    let revoked = other.start(&["share", "--json", "--code", "gone12", &target]);
    revoked.wait_event("shared");
    let key = fleet.key("admin");
    let listed = |hub: &Hub| hub.ask("GET /v1/services", &key, "").json().as_array().unwrap().len();
    eventually("both hubs have both", PATIENCE, || fleet.hubs.iter().all(|hub| listed(hub) == 2));
    other.run(&["share", "revoke", "gone12", "--hub", &fleet.hubs[0].url]).ok();
    eventually("it goes with its share", PATIENCE, || fleet.hubs.iter().all(|hub| listed(hub) == 1));
    assert_eq!(revoked.finish().code, Some(1));
    fleet.hubs[0].running.kill();
    sharing.wait_event("back");
    let user = Home::new();
    let refused = user.run(&["join", &link]);
    assert!(refused.code == Some(1) && refused.err.contains("hub"), "{refused:?}");
    let both = format!("{},{}", fleet.hubs[0].url, fleet.hubs[1].url);
    let joined = user.start(&["join", "--json", "--hub", &both, &link]);
    let port = joined.wait_event("joined")["services"][0]["localPort"].as_u64().unwrap();
    assert!(echoes(u16::try_from(port).unwrap(), b"by the other hub"));
}

/// A fleet with a member's key, and an agent of that key that exposes `db`.
fn with_agent() -> Option<(Fleet, String, RawAgent)> {
    let fleet = Fleet::of(3)?;
    let key = fleet.key("member");
    let mut agent = RawAgent::up(&fleet.hubs[0], &key, "agent_a");
    agent.expose("db");
    for hub in &fleet.hubs {
        eventually("the service is known", PATIENCE, || {
            hub.ask("GET /v1/services", &key, "").json()[0]["status"] == "online"
        });
    }
    Some((fleet, key, agent))
}

fn share(code: &str, joins: u32) -> String {
    json!({ "name": "s", "agent": "agent_a", "services": ["db"], "expiresInSeconds": 600, "code": code,
        "maxJoins": joins })
    .to_string()
}

/// Until every hub lists this many shares. Asking for a code that is not there yet would be a guess.
fn shares_everywhere(fleet: &Fleet, key: &str, count: usize) {
    for hub in &fleet.hubs {
        eventually("all know the shares", PATIENCE, || {
            hub.ask("GET /v1/shares", key, "").json().as_array().unwrap().len() == count
        });
    }
}

#[test]
fn two_hubs_never_disagree_on_a_code_the_last_join_or_a_revocation() {
    let Some((fleet, _, _agent)) = with_agent() else { return };
    for round in 0..8 {
        // Codes that are taken or unknown count as guesses: each round has a key and an address of its own.
        let (code, key, from) =
            (format!("race{round:03}"), fleet.key("admin"), Ipv4Addr::new(127, 0, 1, round));
        let by_code = json!({ "code": code }).to_string();
        let at_all = |call: &str, body: &str| -> Vec<u16> {
            let ask = |hub: &Hub| hub.from(from).ask(call, &key, body).status;
            let mut statuses: Vec<u16> = thread::scope(|scope| {
                let asked: Vec<_> = fleet.hubs.iter().map(|hub| scope.spawn(move || ask(hub))).collect();
                asked.into_iter().map(|one| one.join().unwrap()).collect()
            });
            statuses.sort_unstable();
            statuses
        };
        assert_eq!(at_all("POST /v1/shares", &share(&code, 2)), [201, 409, 409], "{code}");
        shares_everywhere(&fleet, &key, 1);
        assert_eq!(at_all("POST /v1/shares/join", &by_code), [200, 200, 409], "{code}");
        assert_eq!(at_all("POST /v1/shares/revoke", &by_code), [204, 404, 404], "{code}");
    }
}

#[test]
fn joins_at_all_hubs_at_once_are_all_counted_and_end_with_the_share() {
    let Some((fleet, key, _agent)) = with_agent() else { return };
    let made = fleet.hubs[0].ask("POST /v1/shares", &key, &share("counted", 1000));
    shares_everywhere(&fleet, &key, 1);
    let join = |hub: &Hub| hub.share("join", &key, "counted").status;
    thread::scope(|scope| {
        for hub in fleet.hubs.iter().chain(&fleet.hubs) {
            scope.spawn(move || (0..20).for_each(|_| assert_eq!(join(hub), 200)));
        }
    });
    for hub in &fleet.hubs {
        eventually("every join is counted", PATIENCE, || {
            hub.ask("GET /v1/shares", &key, "").json()[0]["joinCount"] == 120
        });
    }
    // Revoked while others join: whoever joined was first, and afterwards nobody does.
    thread::scope(|scope| {
        let until_refused = |hub| (0..200).map(|_| join(hub)).find(|status| *status != 200);
        let joining: Vec<_> =
            fleet.hubs[..2].iter().map(|hub| scope.spawn(move || until_refused(hub))).collect();
        assert_eq!(fleet.hubs[2].share("revoke", &key, &made.text("id")).status, 204);
        joining.into_iter().for_each(|one| assert_eq!(one.join().unwrap(), Some(404)));
    });
    shares_everywhere(&fleet, &key, 0);
}

#[test]
fn each_hub_counts_wrong_codes_and_keys_by_itself() {
    let Some(fleet) = Fleet::of(3) else { return };
    let key = fleet.key("join");
    let from = Ipv4Addr::new(127, 0, 1, 1);
    for hub in &fleet.hubs {
        let guess = |n: usize| hub.share("preview", &key, &format!("wrong{n:02}")).status;
        assert_eq!(tries_until_429(10, guess), 404);
        let login = |n: usize| hub.from(from).ask("GET /v1/whoami", &format!("pc_{n}"), "").status;
        assert_eq!(tries_until_429(20, login), 401);
    }
}

#[test]
fn a_burst_of_guesses_gets_no_more_answers_than_the_limit_while_the_store_is_busy() {
    let Some(fleet) = Fleet::of(2) else { return };
    let (key, hub) = (fleet.key("join"), &fleet.hubs[0]);
    let busy = AtomicBool::new(true);
    let answers = thread::scope(|scope| {
        scope.spawn(|| {
            while busy.load(Ordering::SeqCst) {
                hub.ask("POST /v1/keys", &fleet.hubs[0].admin_key, "{}");
            }
        });
        let guess = |n: usize| hub.share("join", &key, &format!("guess{n:03}")).status;
        let guessing: Vec<_> = (0..200).map(|n| scope.spawn(move || guess(n))).collect();
        let answers: Vec<u16> = guessing.into_iter().map(|one| one.join().unwrap()).collect();
        busy.store(false, Ordering::SeqCst);
        answers
    });
    let count = |status: u16| answers.iter().filter(|answer| **answer == status).count();
    assert_eq!((count(404), count(429)), (10, 190));
}

/// What every try is answered before the limit is reached.
fn tries_until_429(allowed: usize, answer: impl Fn(usize) -> u16) -> u16 {
    let statuses: Vec<u16> = (0..2 * allowed).map(answer).take_while(|status| *status != 429).collect();
    assert_eq!(statuses.len(), allowed, "{statuses:?}");
    assert!(statuses.iter().all(|status| *status == statuses[0]), "{statuses:?}");
    statuses[0]
}

/// Connects anew all the time until told to stop; counts what worked, and the longest time that nothing did.
fn load(port: u16, stop: &AtomicBool) -> (usize, Duration) {
    let (mut worked, mut last, mut longest) = (0, Instant::now(), Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        if echoes(port, b"load") {
            longest = longest.max(last.elapsed());
            (worked, last) = (worked + 1, Instant::now());
        }
    }
    (worked, longest.max(last.elapsed()))
}

#[test]
fn after_kill_9_of_a_hub_under_load_its_agents_are_reached_soon_and_the_others_notice_nothing() {
    let Some(mut fleet) = Fleet::of(3) else { return };
    let (owner, user) = (fleet.machine(0), fleet.machine(1));
    let other = fleet.machine(2);
    let _at_dying = expose(&owner, "dying", service(echo));
    let _at_other = expose(&other, "other", service(echo));
    let ((_reached, port), (_kept, other_port)) = (reach(&user, "dying"), reach(&user, "other"));
    let mut held = dial(other_port);
    assert!(common::ends::exchanges(&mut held, b"before"));
    let stop = AtomicBool::new(false);
    let (worked, longest) = thread::scope(|scope| {
        let loads: Vec<_> = (0..4).map(|_| scope.spawn(|| load(port, &stop))).collect();
        eventually("the load runs", PATIENCE, || echoes(port, b"under load"));
        fleet.hubs[0].running.kill();
        let back = eventually("a new connection works", PATIENCE, || echoes(port, b"again"));
        println!("new connections work {back:?} after kill -9");
        assert!(back < SOON, "{back:?}");
        assert!(common::ends::exchanges(&mut held, b"after"), "a session at another hub was disturbed");
        stop.store(true, Ordering::Relaxed);
        let done: Vec<_> = loads.into_iter().map(|load| load.join().unwrap()).collect();
        (done.iter().map(|one| one.0).sum::<usize>(), done.iter().map(|one| one.1).max().unwrap())
    });
    println!("{worked} connections under load, the longest gap {longest:?}");
    assert!(worked > 0 && longest < SOON, "{worked} {longest:?}");
    fleet.hubs[0].restart();
    fleet.wait_for(3);
}

#[test]
fn while_etcd_is_away_what_is_known_works_changes_are_refused_and_all_heals() {
    let Some(mut fleet) = Fleet::of(2) else { return };
    let (owner, user) = (fleet.machine(0), fleet.machine(1));
    let exposed = expose(&owner, "db", service(echo));
    let (_reached, port) = reach(&user, "db");
    let mut held = dial(port);
    assert!(common::ends::exchanges(&mut held, b"before"));
    fleet.etcd[0].kill();
    let make = |hub: &Hub| hub.ask("POST /v1/keys", &fleet.admin_key, "");
    for hub in &fleet.hubs {
        let refused = make(hub);
        assert_eq!(refused.status, 503, "{refused:?}");
        assert!(refused.text("error").contains("store of its fleet"), "{refused:?}");
        let began = Instant::now();
        assert_eq!(make(hub).status, 503);
        assert!(began.elapsed() < Duration::from_secs(1), "a refusal takes {:?}", began.elapsed());
        assert_eq!(hub.ask("GET /health", "", "").json()["store"], "away");
    }
    // Longer than the lease: nobody has etcd, so nobody lets go of an agent.
    thread::sleep(Duration::from_secs(8));
    assert!(common::ends::exchanges(&mut held, b"while"));
    let (again, new_port) = reach(&user, "db");
    assert!(echoes(new_port, b"a new session"));
    drop(again);
    fleet.etcd[0].restart();
    eventually("changes work again", PATIENCE, || fleet.hubs.iter().all(|hub| make(hub).status == 201));
    fleet.wait_for(2);
    // It is claimed again under a new lease, and known to a hub that starts only now.
    let late = fleet.etcd[0].another_hub(&fleet.hubs[0]);
    eventually("the service is online for all", PATIENCE, || {
        late.ask("GET /v1/services", &fleet.admin_key, "").json()[0]["status"] == "online"
    });
    assert!(common::ends::exchanges(&mut held, b"after"));
    assert_eq!(exposed.events("lost"), 0, "{}", exposed.out());
}

#[test]
fn a_fleet_outlives_any_one_node_of_its_etcd_and_waits_for_two() {
    let Some(mut fleet) = Fleet::on_three_nodes() else { return };
    let (owner, user) = (fleet.machine(0), fleet.machine(1));
    let exposed = expose(&owner, "db", service(echo));
    let (_reached, port) = reach(&user, "db");
    let mut held = dial(port);
    assert!(common::ends::exchanges(&mut held, b"before"));
    let key = fleet.admin_key.clone();
    let makes = |hub: &Hub| hub.ask("POST /v1/keys", &key, "").status == 201;
    let all_make = |fleet: &Fleet| eventually("changes work", PATIENCE, || fleet.hubs.iter().all(makes));
    // The node that the agent's hub asks first is silent; then the one that leads is dead.
    fleet.etcd[0].running.signal(Signal::SIGSTOP);
    println!("changes work {:?} after a node has fallen silent", all_make(&fleet));
    fleet.etcd[0].running.signal(Signal::SIGCONT);
    let leader = || fleet.etcd.iter().position(Etcd::leads);
    eventually("one leads", PATIENCE, || leader().is_some());
    let (leader, other) = leader().map(|leader| (leader, (leader + 1) % 3)).unwrap();
    fleet.etcd[leader].kill();
    println!("changes work {:?} after kill -9 of the node that led", all_make(&fleet));
    assert!(common::ends::exchanges(&mut held, b"with two") && echoes(port, b"with two"));
    // One of three decides nothing.
    fleet.etcd[other].kill();
    let is_away = |hub: &Hub| hub.ask("GET /health", "", "").json()["store"] == "away";
    eventually("all hubs miss it", PATIENCE, || fleet.hubs.iter().all(is_away));
    assert!(fleet.hubs.iter().all(|hub| hub.ask("POST /v1/keys", &key, "").status == 503));
    // Longer than the lease.
    thread::sleep(Duration::from_secs(8));
    assert!(common::ends::exchanges(&mut held, b"with one") && echoes(port, b"with one"));
    for node in [leader, other] {
        fleet.etcd[node].restart_with_auth();
    }
    println!("changes work {:?} after they were started again", all_make(&fleet));
    eventually("the service is online for all", PATIENCE, || {
        let online = |hub: &Hub| hub.ask("GET /v1/services", &key, "").json()[0]["status"] == "online";
        fleet.hubs.iter().all(online)
    });
    assert!(common::ends::exchanges(&mut held, b"after") && echoes(port, b"after"));
    assert_eq!(exposed.events("lost"), 0, "{}", exposed.out());
}

#[test]
fn a_hub_that_alone_lost_etcd_lets_its_agents_go_and_takes_part_again_later() {
    let Some(fleet) = Fleet::of(3) else { return };
    let (owner, user, local) = (fleet.machine(0), fleet.machine(1), fleet.machine(0));
    let exposed = expose(&owner, "db", service(echo));
    let ((_reached, port), (_beside, local_port)) = (reach(&user, "db"), reach(&local, "db"));
    assert!(echoes(port, b"before") && echoes(local_port, b"before"));
    let mut held = dial(local_port);
    assert!(common::ends::exchanges(&mut held, b"before"));
    fleet.paths[0].fall_silent();
    exposed.wait_event("lost");
    exposed.wait_event("back");
    // The others have it, the cut off one sends everybody there, and what ran through it runs on.
    let adrift = fleet.hubs[0].ask("GET /v1/services", &fleet.admin_key, "");
    assert_eq!((adrift.status, &adrift.json()["elsewhere"]), (503, &json!(true)));
    assert!(common::ends::exchanges(&mut held, b"while"));
    for port in [port, local_port] {
        eventually("it is reached elsewhere", PATIENCE, || echoes(port, b"elsewhere"));
    }
    let listed = fleet.etcd[0].ctl(&["get", "--prefix", "/connect/v1/hub/", "--keys-only"]).unwrap();
    assert!(!listed.contains(&fleet.hubs[0].url), "{listed}");
    fleet.paths[0].recover();
    fleet.paths[0].cut_silent();
    eventually("it is with its fleet again", PATIENCE, || {
        fleet.hubs[0].ask("GET /v1/services", &fleet.admin_key, "").status == 200
    });
    fleet.wait_for(3);
    let services = fleet.hubs[0].ask("GET /v1/services", &fleet.admin_key, "").json();
    assert_eq!(services[0]["status"], "online");
}

#[test]
fn through_a_rolling_restart_a_client_that_retries_once_never_sees_an_error_twice() {
    let Some(mut fleet) = Fleet::of(3) else { return };
    let (owner, user) = (fleet.machine(0), fleet.machine(1));
    let _exposed = expose(&owner, "db", service(echo));
    let (_reached, port) = reach(&user, "db");
    let (stop, tried, twice) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                tried.fetch_add(1, Ordering::Relaxed);
                if !echoes(port, b"once") && !echoes(port, b"twice") {
                    twice.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        // Not the fleet itself: it must outlive the client's last try.
        let (fleet, stop, tried) = (&mut fleet, &stop, &tried);
        scope.spawn(move || {
            for number in 0..3 {
                fleet.hubs[number].running.signal(Signal::SIGTERM);
                assert!(fleet.hubs[number].running.wait().success());
                fleet.hubs[number].restart();
                fleet.wait_for(3);
                let so_far = tried.load(Ordering::Relaxed);
                eventually("the client goes on", PATIENCE, || tried.load(Ordering::Relaxed) > so_far + 20);
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
    assert!(tried.load(Ordering::Relaxed) > 60);
    assert_eq!(twice.load(Ordering::Relaxed), 0);
}

#[test]
fn a_hub_moves_into_etcd_and_back_and_its_clients_notice_nothing() {
    let Some(etcd) = Etcd::start() else { return };
    let hub = Hub::start();
    let machine = hub.machine("member");
    let store = etcd.store();
    let busy = hub.home.run(&["hub", "migrate", "--from", "file", "--to", &store]);
    assert!(busy.code == Some(1) && busy.err.contains("Stop it first"), "{busy:#?}");
    let (home, address, url) = (hub.home, hub.address.clone(), hub.url.clone());
    drop(hub.running);
    let moved = home.run(&["hub", "migrate", "--from", "file", "--to", &store, "--json"]).ok().json();
    assert_eq!(moved["records"], 3);
    let again = home.run(&["hub", "migrate", "--from", "file", "--to", &store]);
    assert!(again.code == Some(1) && again.err.contains("--replace"), "{again:#?}");
    home.run(&["hub", "migrate", "--from", "file", "--to", &store, "--replace"]).ok();
    let start = |store: &str, folder: &str| {
        let data = home.file(folder).display().to_string();
        let args = ["hub", "--json", "--listen", &address, "--tunnel-ports", "off", "--store", store];
        let running = home.start(&[&args[..], &["--data", &data]].concat());
        running.wait_event("listening");
        running
    };
    let fleet = start(&store, "hub");
    machine.run(&["whoami"]).ok();
    let made = home.run(&["hub", "key", "create", "--json"]).ok().json();
    let running = home.run(&["hub", "migrate", "--from", &store, "--to", "file=/nowhere"]);
    assert!(running.code == Some(1) && running.err.contains(&url), "{running:#?}");
    fleet.signal(Signal::SIGTERM);
    let mut fleet = fleet;
    fleet.wait();
    // Without a hub the commands beside it mean the store that it ran on.
    let listed = home.run(&["hub", "key", "list", "--json"]).ok().json();
    assert!(listed.as_array().unwrap().iter().any(|key| key["id"] == made["id"]), "{listed}");
    let back = format!("file={}", home.file("back").display());
    // The share codes move only with their key, which is in no store.
    fs::rename(home.file("hub/code.key"), home.file("kept.key")).unwrap();
    let keyless = home.run(&["hub", "migrate", "--from", &store, "--to", &back]).ok();
    assert!(keyless.err.contains("no share code will work"), "{keyless:#?}");
    let key = home.file("kept.key").display().to_string();
    let moved = home
        .run(&["hub", "migrate", "--from", &store, "--to", &back, "--code-key-file", &key, "--replace"])
        .ok();
    assert!(moved.out.contains(&format!("connect hub --data {}", home.file("back").display())), "{moved:#?}");
    let copied = fs::read_to_string(home.file("back/code.key")).unwrap();
    assert_eq!(copied, fs::read_to_string(home.file("kept.key")).unwrap());
    let _alone = start("file", "back");
    machine.run(&["whoami"]).ok();
    home.run(&["up", "--hub", &url, "--api-key", made["key"].as_str().unwrap()]).ok();
}

#[test]
fn etcd_with_tls_and_passwords_is_logged_in_to_and_what_is_wrong_is_named() {
    let Some(mut etcd) = Etcd::start_tls() else { return };
    for args in [
        &["user", "add", "root:r"][..],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "hub"],
        &["role", "grant-permission", "hub", "--prefix=true", "readwrite", "/connect/"],
        &["user", "add", "hub:secret"],
        &["user", "grant-role", "hub", "hub"],
        &["auth", "enable"],
    ] {
        etcd.ctl(args).unwrap();
    }
    let (home, store) = (Home::new(), etcd.store());
    let args = ["hub", "--json", "--listen", "127.0.0.1:0", "--tunnel-ports", "off", "--store", &store];
    let with = |password: &str, more: &[&str]| {
        let mut command = home.hub(&[&args[..], more].concat());
        command.env("CONNECT_ETCD_PASSWORD", password);
        command
    };
    let ca = ["--etcd-ca", etcd.ca()];
    let known = [&ca[..], &["--etcd-user", "hub"]].concat();
    for (password, more, named) in [
        ("", &["--etcd-user", "hub"][..], "CONNECT_ETCD_PASSWORD"),
        ("secret", &["--etcd-user", "hub"], "its certificate is not from the expected CA"),
        ("", &ca, "--etcd-user"),
        ("wrong", &known, "does not accept this user"),
    ] {
        let said = common::Said::of(with(password, more));
        assert!(said.code != Some(0) && said.err.contains(named), "{named}: {said:#?}");
    }
    let command = with("secret", &known);
    let hub = Hub::start_by(home, command, &[]);
    assert!(hub.ca().contains("BEGIN CERTIFICATE"));
    // An etcd that restarts has forgotten all tokens; the hub logs in again.
    etcd.restart_with_auth();
    eventually("changes work again", PATIENCE, || hub.ask("POST /v1/keys", &hub.admin_key, "").status == 201);
}

#[test]
fn two_hubs_by_one_name_are_noticed() {
    let Some(etcd) = Etcd::start() else { return };
    let hub = etcd.hub();
    let port = hub.address.rsplit(':').next().unwrap().to_owned();
    let (listen, store) = (format!("127.0.0.2:{port}"), etcd.store());
    let options = ["--listen", &listen, "--name", "127.0.0.1", "--tunnel-ports", "off", "--store", &store];
    let code_key = hub.home.file("hub/code.key").display().to_string();
    let args = [&["hub"][..], &options, &["--code-key-file", &code_key]].concat();
    let said = Home::new().run(&args);
    assert!(said.code == Some(1) && said.err.contains("Another hub of this fleet is called"), "{said:#?}");
}

#[test]
fn a_hub_without_the_code_key_of_its_fleet_does_not_start_and_says_what_it_needs() {
    let Some(etcd) = Etcd::start() else { return };
    let hub = etcd.hub();
    let (other, store) = (Home::new(), etcd.store());
    let args = ["hub", "--json", "--listen", "127.0.0.1:0", "--tunnel-ports", "off", "--store", &store];
    let without = other.run(&args);
    assert!(without.code == Some(1) && without.err.contains("does not have the code key"), "{without:#?}");
    assert!(without.err.contains("--code-key-file FILE"), "{without:#?}");
    fs::write(other.file("other.key"), "a".repeat(26)).unwrap();
    let key = other.file("other.key").display().to_string();
    let wrong = other.run(&[&args[..], &["--code-key-file", &key]].concat());
    assert!(wrong.code == Some(1) && wrong.err.contains("does not have the code key"), "{wrong:#?}");
    // A copy in the data folder is found without an option, also by the commands next to a stopped hub.
    fs::create_dir_all(other.file("hub")).unwrap();
    fs::copy(hub.home.file("hub/code.key"), other.file("hub/code.key")).unwrap();
    other.start(&args).wait_event("listening");
    let secret = fs::read_to_string(other.file("hub/code.key")).unwrap();
    let all = etcd.ctl(&["get", "--prefix", "/connect/"]).unwrap();
    assert!(!all.contains(secret.trim()), "{all}");
}
