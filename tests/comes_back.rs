//! Hub, agent and network go and come back; tunnels stand all the while.

mod common;

use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;

use common::Home;
use common::Hub;
use common::PATIENCE;
use common::Tunnelled;
use common::dial;
use common::echo;
use common::echoes;
use common::ends::Ending;
use common::ends::exchanges;
use common::ends::read_out;
use common::eventually;
use common::expose;
use common::fault::Kind;
use common::fault::Path;
use common::noise;
use common::reach;
use common::service;

/// Three seconds, and what a machine that runs many tests at once takes on top.
const SOON: Duration = Duration::from_millis(4500);

/// A connection made now works before long. Its own tries are its user's: each is a new connection.
fn works_soon(port: u16, since: Instant) {
    eventually("a new connection works", SOON, || echoes(port, b"back?"));
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
}

fn service_id(home: &Home) -> String {
    let listed = home.run(&["services", "--json"]).ok().json();
    listed[0]["id"].as_str().unwrap().to_owned()
}

#[test]
fn after_a_hub_was_killed_and_restarted() {
    let mut tunnel = Tunnelled::to(service(echo));
    let id = service_id(&tunnel.user);
    tunnel.hub.running.kill();
    tunnel.exposed.wait_event("lost");
    tunnel.reached.wait_event("down");
    // It listens all the while: a connection is taken, and waits a moment before it is given up.
    let waiting = dial(tunnel.port);
    tunnel.hub.restart();
    works_soon(tunnel.port, Instant::now());
    drop(waiting);
    tunnel.exposed.wait_event("back");
    assert_eq!(tunnel.exposed.events("lost"), 1, "{}", tunnel.exposed.out());
    eventually("reach says that it is back", PATIENCE, || tunnel.reached.events("back") == 1);
    assert_eq!(tunnel.reached.events("down"), 1, "{}", tunnel.reached.out());
    assert_eq!(service_id(&tunnel.user), id);
}

#[test]
fn a_connection_that_comes_while_the_hub_restarts_waits_for_it() {
    let mut tunnel = Tunnelled::to(service(echo));
    tunnel.hub.running.kill();
    tunnel.reached.wait_event("down");
    let port = tunnel.port;
    let waiting = thread::spawn(move || echoes(port, b"patience"));
    tunnel.hub.restart();
    assert!(waiting.join().unwrap());
}

#[test]
fn after_an_agent_was_killed_and_restarted() {
    let target = service(echo);
    let mut tunnel = Tunnelled::to(target);
    let id = service_id(&tunnel.user);
    for round in 1..3 {
        tunnel.exposed.kill();
        eventually("reach notices", PATIENCE, || {
            let _ = echoes(tunnel.port, b"?");
            tunnel.reached.events("down") == round
        });
        tunnel.exposed = expose(&tunnel.owner, "service", target);
        works_soon(tunnel.port, Instant::now());
        eventually("reach says that it is back", PATIENCE, || tunnel.reached.events("back") == round);
        assert_eq!(tunnel.reached.events("down"), round, "{}", tunnel.reached.out());
    }
    assert_eq!(service_id(&tunnel.user), id);
}

#[test]
fn after_both_were_gone_for_a_while() {
    let target = service(echo);
    let mut tunnel = Tunnelled::to(target);
    let id = service_id(&tunnel.user);
    tunnel.hub.running.kill();
    tunnel.exposed.kill();
    tunnel.reached.wait_event("down");
    // Long enough for the longest pause between two tries.
    let until = Instant::now() + Duration::from_secs(6);
    while Instant::now() < until {
        assert!(!echoes(tunnel.port, b"?"));
    }
    tunnel.hub.restart();
    tunnel.exposed = expose(&tunnel.owner, "service", target);
    works_soon(tunnel.port, Instant::now());
    eventually("reach says that it is back", PATIENCE, || tunnel.reached.events("back") == 1);
    assert_eq!(tunnel.reached.events("down"), 1, "{}", tunnel.reached.out());
    assert_eq!(service_id(&tunnel.user), id);
}

#[test]
fn an_agent_may_start_before_its_hub() {
    let mut hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    hub.running.kill();
    let exposed = owner.start(&["expose", "--json", "service", &service(echo).to_string()]);
    exposed.wait_event("lost");
    hub.restart();
    let began = Instant::now();
    exposed.wait_event("exposed");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    let (_reached, port) = reach(&user, "service");
    assert!(echoes(port, b"hello"));
}

#[test]
fn after_the_joiners_connections_died_a_moment_ago() {
    let hub = Hub::start();
    let path = Path::to(&hub.address);
    let (owner, user) = (hub.machine("member"), hub.machine_by(&path.url(), "member"));
    let _exposed = expose(&owner, "service", service(echo));
    let (_reached, port) = reach(&user, "service");
    assert!(echoes(port, b"warm"));
    // The path changes under it: the old connections are dead, new ones work at once.
    path.fall_silent();
    path.recover();
    works_soon_with_new_tries(port);
}

#[test]
fn one_connection_is_enough_to_find_that_the_path_has_changed() {
    let hub = Hub::start();
    let path = Path::to(&hub.address);
    let (owner, user) = (hub.machine("member"), hub.machine_by(&path.url(), "member"));
    let _exposed = expose(&owner, "service", service(echo));
    let (_reached, port) = reach(&user, "service");
    stand(port, 12);
    path.fall_silent();
    // So long that nothing counts as just heard.
    thread::sleep(Duration::from_millis(2200));
    path.recover();
    let began = Instant::now();
    assert!(echoes(port, b"hello"));
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

/// So many connections that are open at once.
fn hold(port: u16, count: usize) -> Vec<TcpStream> {
    let opened = (0..count).map(|_| {
        let mut client = dial(port);
        client.write_all(b"w").unwrap();
        client.read_exact(&mut [0]).unwrap();
        client
    });
    opened.collect()
}

/// So many sessions stand.
fn stand(port: u16, count: usize) {
    for client in hold(port, count) {
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(read_out(&client), (Vec::new(), Ending::Eof));
    }
}

/// As for a person who opens another connection when one does not answer.
fn works_soon_with_new_tries(port: u16) {
    let began = Instant::now();
    loop {
        let mut client = dial(port);
        client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        if client.write_all(b"?").is_ok() && client.read_exact(&mut [0]).is_ok() {
            break;
        }
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    }
}

#[test]
fn after_all_connections_died_without_a_word() {
    let hub = Hub::start();
    let path = Path::to(&hub.address);
    let (owner, user) = (hub.machine_by(&path.url(), "member"), hub.machine_by(&path.url(), "member"));
    let exposed = expose(&owner, "service", service(echo));
    let (reached, port) = reach(&user, "service");
    let id = service_id(&user);
    path.fall_silent();
    // Each notices by the silence of the other.
    let began = Instant::now();
    reached.wait_event("down");
    exposed.wait_event("lost");
    assert!(began.elapsed() < Duration::from_secs(29), "{:?}", began.elapsed());
    path.recover();
    let began = Instant::now();
    exposed.wait_event("back");
    works_soon(port, began);
    eventually("reach says that it is back", PATIENCE, || reached.events("back") == 1);
    assert_eq!((exposed.events("lost"), reached.events("down")), (1, 1));
    assert_eq!(service_id(&user), id);
}

#[test]
fn a_session_whose_agent_does_not_come_holds_up_no_other() {
    let hub = Hub::start();
    let (up, down) = (Path::to(&hub.address), Path::to(&hub.address));
    let (owner, user) = (hub.machine_by(&up.url(), "member"), hub.machine_by(&down.url(), "member"));
    let _exposed = expose(&owner, "service", service(echo));
    let (_reached, port) = reach(&user, "service");
    let _busy = hold(port, 3);
    // The hub announces one more session to an agent that never hears of it.
    up.fall_silent();
    let standing = down.count(Kind::Relay);
    let waiting = thread::spawn(move || echoes(port, b"patience"));
    eventually("it waits at the relay", PATIENCE, || down.count(Kind::Relay) > standing);
    up.recover();
    up.cut_silent();
    works_soon(port, Instant::now());
    assert!(waiting.join().unwrap());
    let began = Instant::now();
    stand(port, 8);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[test]
fn an_agent_that_cannot_come_to_a_session_says_so() {
    let tunnel = Tunnelled::to(service(echo));
    let _busy = hold(tunnel.port, 3);
    let before = tunnel.exposed.limit_descriptors(3);
    let began = Instant::now();
    assert!(!echoes(tunnel.port, b"?"));
    // The joiner tries for three seconds; an agent that said nothing would be waited for for ten.
    assert!(began.elapsed() < 2 * SOON, "{:?}", began.elapsed());
    tunnel.exposed.limit_descriptors(before);
    works_soon(tunnel.port, Instant::now());
}

#[test]
fn a_late_end_of_an_old_channel_does_not_unregister_its_successor() {
    let hub = Hub::start();
    let path = Path::to(&hub.address);
    let (owner, user) = (hub.machine_by(&path.url(), "member"), hub.machine("member"));
    let target = service(echo);
    let mut first = expose(&owner, "service", target);
    let id = service_id(&user);
    // The agent dies and its host with it: nobody tells the hub.
    path.fall_silent();
    first.kill();
    path.recover();
    let _second = expose(&owner, "service", target);
    let (_reached, port) = reach(&user, "service");
    // Now the hub hears that the old channel is gone.
    path.cut_silent();
    eventually("the old channel is gone", PATIENCE, || hub.audit().contains("agent.down"));
    for _ in 0..5 {
        assert!(echoes(port, b"still there"));
        let listed = user.run(&["services", "--json"]).ok().json();
        assert_eq!((&listed[0]["status"], &listed[0]["id"]), (&"online".into(), &id.clone().into()));
    }
}

#[test]
fn two_processes_of_one_agent_do_not_displace_each_other() {
    let mut hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let (mut one, mut two) = (expose(&owner, "one", service(echo)), expose(&owner, "two", service(echo)));
    let ((_a, first), (_b, second)) = (reach(&user, "one"), reach(&user, "two"));
    assert!(echoes(first, b"1") && echoes(second, b"2"));
    hub.running.kill();
    one.wait_event("lost");
    two.wait_event("lost");
    hub.restart();
    one.wait_event("back");
    two.wait_event("back");
    let began = Instant::now();
    works_soon(first, began);
    works_soon(second, began);
    assert_eq!((one.events("lost"), two.events("lost")), (1, 1));
    // When one ends, the other stays.
    let downs = || hub.audit().matches("agent.down").count();
    let before = downs();
    assert_eq!(one.interrupt().0.code(), Some(0));
    eventually("the hub has seen it end", PATIENCE, || downs() > before);
    let listed = user.run(&["services", "--json"]).ok().json();
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["name"]), (1, &"two".into()));
    assert_eq!(listed[0]["status"], "online");
    assert!(echoes(second, b"2"));
    assert!(two.is_running());
}

#[test]
fn running_connections_outlive_the_control_channel() {
    let hub = Hub::start();
    let path = Path::to(&hub.address);
    let (owner, user) = (hub.machine_by(&path.url(), "member"), hub.machine_by(&path.url(), "member"));
    let exposed = expose(&owner, "service", service(echo));
    let (_reached, port) = reach(&user, "service");
    let mut client = dial(port);
    let mut round = |seed| {
        let (sent, mut back) = (noise(seed, 100_000), vec![0; 100_000]);
        client.write_all(&sent).unwrap();
        client.read_exact(&mut back).unwrap();
        assert!(back == sent);
    };
    round(1);
    path.cut(Kind::Api);
    exposed.wait_event("lost");
    round(2);
    exposed.wait_event("back");
    round(3);
    assert!(echoes(port, b"new ones too"));
}

#[test]
fn a_process_that_was_stopped_goes_on() {
    let tunnel = Tunnelled::to(service(echo));
    for program in [&tunnel.exposed, &tunnel.reached, &tunnel.hub.running] {
        program.signal(Signal::SIGSTOP);
        thread::sleep(Duration::from_millis(300));
        program.signal(Signal::SIGCONT);
        works_soon(tunnel.port, Instant::now());
    }
    assert_eq!((tunnel.exposed.events("lost"), tunnel.reached.events("down")), (0, 0));
}

#[test]
fn a_key_that_is_revoked_ends_what_it_exposes_with_the_reason() {
    let hub = Hub::start();
    let (key, id) = hub.new_key(&["--role", "member"]);
    let owner = Home::new();
    owner.run(&["up", "--hub", &hub.url, "--api-key", &key]).ok();
    let mut exposed = expose(&owner, "db", service(echo));
    hub.home.run(&["hub", "key", "revoke", &id]).ok();
    assert_eq!(exposed.wait().code(), Some(1));
    exposed.wait_err(|line| line.contains("This API key is not valid here"));
}

#[test]
fn a_key_is_rotated_on_all_its_machines_while_they_work() {
    let hub = Hub::start();
    let (old, id) = hub.new_key(&["--role", "member"]);
    let machine = |label: &str| {
        let home = Home::new();
        home.run(&["up", "--hub", &hub.url, "--api-key", &old, "--label", label]).ok();
        home
    };
    let (first, second, user) = (machine("first"), machine("second"), machine("user"));
    let both = [expose(&first, "db", service(echo)), expose(&first, "web", service(echo))];
    let (_reached, port) = reach(&user, "db");
    let mut held = dial(port);
    assert!(exchanges(&mut held, b"before"));

    let next = hub.home.run(&["hub", "key", "rotate", &id, "--json"]).ok().json();
    assert_eq!(next["id"], id.as_str());
    let next = next["key"].as_str().unwrap().to_owned();
    assert_ne!(next, old);
    for exposed in &both {
        exposed.wait_event("keyRotated");
    }
    let saved = |home: &Home| std::fs::read_to_string(home.file("config.json")).unwrap();
    assert!(saved(&first).contains(&next) && !saved(&first).contains(&old));
    let mode = std::fs::metadata(first.file("config.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let waits_for = || {
        let keys = hub.home.run(&["hub", "key", "list", "--json"]).ok().json();
        let key = keys.as_array().unwrap().iter().find(|key| key["id"] == id.as_str()).unwrap().clone();
        key["rotation"]["waitsFor"].clone()
    };
    let mut waiting: Vec<String> = serde_json::from_value(waits_for()).unwrap();
    waiting.sort();
    assert_eq!(waiting, ["second", "user"]);
    let again = hub.home.run(&["hub", "key", "rotate", &id]);
    assert!(again.code == Some(1) && again.err.contains("is being rotated"), "{again:?}");
    let status = |key: &str| hub.ask("GET /v1/whoami", key, "").status;
    assert_eq!((status(&old), status(&next)), (200, 200));
    // The store reveals nothing of the next secret.
    let secret = next.split('.').next().unwrap();
    let journal = std::fs::read_to_string(hub.home.file("hub/journal")).unwrap();
    assert!(journal.contains("sealed") && !journal.contains(secret) && !hub.audit().contains(secret));

    // A machine that was off, and one that only reaches.
    let late = expose(&second, "late", service(echo));
    late.wait_event("keyRotated");
    let rotated = user.run(&["up", "--rotate"]).ok().out;
    assert!(rotated.contains("new secret is saved"), "{rotated}");
    eventually("the old secret ends", PATIENCE, || status(&old) == 401);
    assert_eq!((status(&next), waits_for()), (200, serde_json::Value::Null));
    assert!(hub.audit().contains(r#""event":"key.rotated""#) && hub.audit().contains(r#""reason":"proved""#));
    assert!(exchanges(&mut held, b"all the while"));
    // The same process opens further sessions.
    let mut more = [dial(port), dial(port), dial(port)];
    assert!(more.iter_mut().all(|connection| exchanges(connection, b"with the new secret")));
    assert!(user.run(&["up", "--rotate"]).ok().out.contains("no newer secret"));
}

fn fingerprint(home: &Home) -> String {
    home.run(&["whoami", "--json"]).ok().json()["fingerprint"].as_str().unwrap().to_owned()
}

#[test]
fn an_agent_stays_the_same_over_logins_and_keys() {
    let hub = Hub::start();
    let (first, second) = (hub.new_key(&[]).0, hub.new_key(&[]).0);
    let (owner, user, thief) = (Home::new(), hub.machine("member"), Home::new());
    let up =
        |home: &Home, key: &str| home.run(&["up", "--hub", &hub.url, "--api-key", key, "--json"]).ok().json();
    let id = up(&owner, &first)["agentId"].clone();
    let own = fingerprint(&owner);
    let mut exposed = expose(&owner, "db", service(echo));
    user.run(&["reach", "db", "--check"]).ok();
    exposed.interrupt();
    // Somebody with another key of the workspace who knows all that is public of the agent.
    let order = format!(r#"{{"id":{id},"label":"x","fingerprint":"{own}"}}"#);
    let refused = hub.ask("POST /v1/agents/register", &second, &order);
    assert_eq!((refused.status, refused.text("code").as_str()), (403, "agent-of-another-key"));
    // Nor is it anybody with its own key and another identity.
    let order = order.replace(&own, &"1".repeat(64));
    let refused = hub.ask("POST /v1/agents/register", &first, &order);
    assert_eq!((refused.status, refused.text("code").as_str()), (409, "agent-identity"));
    up(&thief, &second);
    let text = std::fs::read_to_string(thief.file("config.json")).unwrap();
    let own_id = serde_json::from_str::<serde_json::Value>(&text).unwrap()["agentId"].clone();
    std::fs::write(thief.file("config.json"), text.replace(own_id.as_str().unwrap(), id.as_str().unwrap()))
        .unwrap();
    assert_ne!(up(&thief, &second)["agentId"], id, "an agent was taken over without its identity");
    // The agent itself, after a logout, with another key while the first one lives.
    owner.run(&["logout"]).ok();
    assert_eq!((up(&owner, &second)["agentId"].clone(), fingerprint(&owner)), (id.clone(), own));
    assert!(hub.audit().contains(r#""event":"agent.taken-over""#));
    let _exposed = expose(&owner, "db", service(echo));
    user.run(&["reach", "db", "--check"]).ok();
    // In another workspace, and without its identity, the machine is another agent.
    let strange = hub.new_key(&["--workspace", "strange"]).0;
    let elsewhere = up(&owner, &strange)["agentId"].clone();
    assert_ne!(elsewhere, id);
    std::fs::remove_file(owner.file("identity.pem")).unwrap();
    assert_ne!(up(&owner, &strange)["agentId"], elsewhere);
}

#[test]
fn an_identity_is_replaced_by_one_that_it_signs_while_its_services_are_used() {
    let hub = Hub::start();
    let (owner, user, late) = (hub.machine("member"), hub.machine("member"), hub.machine("member"));
    let exposed = [expose(&owner, "db", service(echo)), expose(&owner, "web", service(echo))];
    let shared = owner.start(&["share", "--json", "--link", "--service", "db"]);
    let link = shared.wait_event("shared")["link"].as_str().unwrap().to_owned();
    for home in [&user, &late] {
        home.run(&["reach", "db", "--check"]).ok();
    }
    let (reached, port) = reach(&user, "db");
    let mut held = dial(port);
    assert!(exchanges(&mut held, b"before"));
    let before = fingerprint(&owner);
    let said = owner.run(&["identity", "rotate", "--json"]).ok().json();
    let after = fingerprint(&owner);
    assert!(said["replaced"] == before.as_str() && said["fingerprint"] == after.as_str() && before != after);
    for one in &exposed {
        one.wait_event("identityRotated");
    }
    // Further sessions are accepted, and that the agent has changed is said once.
    let mut more = [dial(port), dial(port), dial(port)];
    assert!(more.iter_mut().all(|connection| exchanges(connection, b"by the new one")));
    assert!(exchanges(&mut held, b"all the while"));
    reached.wait_err(|line| line.contains("The agent of db has a new identity"));
    assert_eq!(reached.err().matches("has a new identity").count(), 1);
    let known = std::fs::read_to_string(user.file("known_agents.json")).unwrap();
    assert!(known.contains(&after) && !known.contains(&before), "{known}");
    // Twice more, while one machine does not look; and by a link, which names the first one.
    for _ in 0..2 {
        owner.run(&["identity", "rotate"]).ok();
        let count = hub.audit().matches("agent.identity").count();
        eventually("the hub knows", PATIENCE, || hub.audit().matches("agent.identity").count() > count);
    }
    let said = late.run(&["reach", "db", "--check"]).ok();
    assert!(said.err.contains("The agent of db has a new identity"), "{said:?}");
    assert!(!late.run(&["reach", "db", "--check"]).ok().err.contains("new identity"));
    let joined = Home::new().start(&["join", "--json", &link]);
    let port = joined.wait_event("joined")["services"][0]["localPort"].as_u64().unwrap();
    assert!(echoes(u16::try_from(port).unwrap(), b"by a link that names the first identity"));
    // An identity that the old one has not signed is another agent, also in the place of this one.
    std::fs::remove_file(owner.file("identity.pem")).unwrap();
    owner.run(&["up"]).ok();
    drop(exposed);
    drop(shared);
    let _usurper = owner.start(&["expose", "db", &service(echo).to_string(), "--take-over"]);
    eventually("the unsigned one is refused", PATIENCE, || {
        late.run(&["reach", "db", "--check"]).err.contains("is not the one it was")
    });
}

/// The pin in the key of this machine.
fn saved_pin(home: &Home) -> String {
    let config = std::fs::read_to_string(home.file("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["apiKey"].as_str().unwrap().rsplit('.').next().unwrap().to_owned()
}

fn believes(hub: &Hub, roots: &str) -> bool {
    use common::https::{LOOPBACK, dial_from, request, tls_over};
    let mut stream = tls_over(dial_from(LOOPBACK, &hub.address).unwrap(), "127.0.0.1", roots);
    stream.write_all(request("GET /health", &hub.address, &[], "").as_bytes()).is_ok()
        && common::https::Answer::read(&mut stream).status == 200
}

const NEW_ROOT: &str = "The hub has a new root";
const NOT_THE_HUB: &str = "did not prove that it is your hub";

#[test]
fn the_hubs_root_is_replaced_and_clients_learn_the_new_one() {
    let hub = Hub::start();
    let [owner, user, late, off] = ["member"; 4].map(|role| hub.machine(role));
    let exposed = expose(&owner, "db", service(echo));
    user.run(&["reach", "db", "--check"]).ok();
    let (reached, port) = reach(&user, "db");
    let mut held = dial(port);
    assert!(exchanges(&mut held, b"before"));
    let (old, old_file) = (saved_pin(&owner), hub.ca());
    let [early, folder] = ["early.backup", "early"].map(|name| hub.home.file(name).display().to_string());
    hub.home.run(&["hub", "backup", &early]).ok();
    let shown = hub.home.run(&["hub", "ca", "rotate", "--overlap", "1h", "--json"]).ok().json();
    let new = shown["pin"].as_str().unwrap().to_owned();
    assert!(new != old && shown["replaced"]["pin"] == old.as_str(), "{shown}");
    let again = hub.home.run(&["hub", "ca", "rotate"]);
    assert!(again.code == Some(1) && again.err.contains("is still valid"), "{again:?}");
    let both = hub.home.run(&["hub", "ca"]).ok();
    assert!(both.out.matches("BEGIN CERTIFICATE").count() == 2 && both.err.contains(&old), "{both:?}");
    assert_eq!(late.run(&["whoami", "--ca"]).ok().out.trim(), both.out.trim());
    assert!(believes(&hub, &old_file) && believes(&hub, &hub.ca()));
    // An agent that is connected learns it at once, others when they call or log in. Each machine says so once.
    eventually("the agent has saved the new pin", PATIENCE, || saved_pin(&owner) == new);
    exposed.wait_err(|line| line.contains(NEW_ROOT));
    let mut more = [dial(port), dial(port), dial(port)];
    assert!(more.iter_mut().all(|connection| exchanges(connection, b"by the new root")));
    let said = user.run(&["services"]).ok();
    assert_eq!(format!("{}{}", reached.err(), said.err).matches(NEW_ROOT).count(), 1, "{}", reached.err());
    assert!(!late.run(&["up"]).ok().err.contains(NEW_ROOT), "whoami has said it");
    assert!(saved_pin(&user) == new && saved_pin(&late) == new && saved_pin(&off) == old);
    assert!(exchanges(&mut held, b"all the while"));
    assert_eq!(exposed.events("lost"), 0);
    // What is known of the agents goes on counting.
    let known = std::fs::read_to_string(user.file("known_agents.json")).unwrap();
    assert!(known.contains(&format!("{old}/default/db")) && known.contains(&fingerprint(&owner)), "{known}");
    assert!(known.matches("default/db").count() == 1, "{known}");
    // A backup has the roots of its time.
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o700)).unwrap();
    std::fs::copy(hub.home.file("hub/audit.log"), hub.home.file("early/audit.log")).unwrap();
    let said = hub.home.run(&["hub", "restore", &early, "--data", &folder]).ok();
    assert!(said.err.contains("root was replaced after this backup"), "{said:?}");
    let [file, folder] = ["a.backup", "restored"].map(|name| hub.home.file(name).display().to_string());
    hub.home.run(&["hub", "backup", &file]).ok();
    hub.home.run(&["hub", "restore", &file, "--data", &folder]).ok();
    assert_eq!(hub.home.run(&["hub", "ca", "--json", "--data", &folder]).ok().json(), shown);
}

/// What `connect services` says with this key in a variable.
fn services_by(machine: &Home, key: &str) -> common::Said {
    let mut command = machine.connect(&["services"]);
    command.env("PRIVATECONNECT_TOKEN", key);
    common::Said::of(command)
}

#[test]
fn what_was_made_before_a_rotation_counts_until_the_overlap_ends() {
    let mut hub = Hub::start();
    let [owner, user, sharer, off] = ["member"; 4].map(|role| hub.machine(role));
    let key = common::raw::key_of(&user);
    let exposed = expose(&owner, "db", service(echo));
    let link_of = |home: &Home, what: &[&str]| {
        let shared = home.start(&[&["share", "--json", "--link"], what].concat());
        let link = shared.wait_event("shared")["link"].as_str().unwrap().to_owned();
        (shared, link)
    };
    let (_shared, old_link) = link_of(&owner, &["--service", "db"]);
    let old_file = hub.ca();
    hub.home.run(&["hub", "ca", "rotate"]).ok();
    let new = hub.home.run(&["hub", "ca", "--json"]).ok().json()["pin"].as_str().unwrap().to_owned();
    // What cannot be changed from here is named.
    let said = services_by(&user, &key).ok();
    assert!(said.err.contains("The key in CONNECT_TOKEN has the pin of the old one"), "{said:?}");
    let joined = Home::new().start(&["join", "--json", &old_link]);
    joined.wait_event("joined");
    assert!(joined.err().contains("This link has the pin of the old one"), "{}", joined.err());
    let fresh = Home::new();
    let said = fresh.run(&["up", "--hub", &hub.url, "--api-key", &key]).ok();
    assert!(said.err.contains(NEW_ROOT) && saved_pin(&fresh) == new, "{said:?}");
    // New links and keys have the new pin, also from a machine that has not looked since.
    let (_newly_shared, new_link) = link_of(&sharer, &[&service(echo).to_string()]);
    assert!(new_link.contains(&new) && hub.key("member").ends_with(&new), "{new_link}");
    // After the overlap.
    let stored = hub.home.file("hub/certs/ca.json");
    let mut ca: serde_json::Value = serde_json::from_slice(&std::fs::read(&stored).unwrap()).unwrap();
    ca["replaced"]["until"] = "2020-01-01T00:00:00Z".into();
    std::fs::write(&stored, ca.to_string()).unwrap();
    hub.restart();
    exposed.wait_event("back");
    fresh.run(&["reach", "db", "--check"]).ok();
    assert!(!believes(&hub, &old_file) && believes(&hub, &hub.ca()));
    for said in [off.run(&["services"]), services_by(&user, &key), off.run(&["join", &old_link])] {
        assert!(said.code == Some(1) && said.err.contains(NOT_THE_HUB), "{said:?}");
        assert!(said.err.contains("(hub ca rotate), ask for a new key or link"), "{said:?}");
    }
    off.run(&["up", "--api-key", &hub.key("member")]).ok();
    assert_eq!(saved_pin(&off), new);
}

#[test]
fn the_old_root_ends_with_the_overlap() {
    let hub = Hub::start();
    for overlap in ["1s", "0s"] {
        let old = hub.ca();
        hub.home.run(&["hub", "ca", "rotate", "--overlap", overlap]).ok();
        eventually("the old root is gone", PATIENCE, || !believes(&hub, &old));
        assert!(believes(&hub, &hub.ca()));
    }
    eventually("it is audited", PATIENCE, || hub.audit().matches(r#""event":"ca.rotated""#).count() == 2);
    // Of some at the same time one is first: clients may follow the first root already.
    let mut statuses = rotate_at_once(&hub, "");
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409, 409, 409, 409, 409, 409, 409]);
    // What may be stolen ends also then.
    let old = hub.ca();
    hub.home.run(&["hub", "ca", "rotate", "--overlap", "0s"]).ok();
    assert!(!believes(&hub, &old) && hub.ca().matches("BEGIN").count() == 1);
}

/// What the hub answers to rotations of its root at the same time.
fn rotate_at_once<const COUNT: usize>(hub: &Hub, order: &str) -> [u16; COUNT] {
    let note = std::fs::read(hub.home.file("hub/hub.json")).unwrap();
    let note: serde_json::Value = serde_json::from_slice(&note).unwrap();
    let fields = [("x-api-key", note["token"].as_str().unwrap()), ("Content-Type", "application/json")];
    let request = common::https::request("POST /v1/ca/rotate", &hub.address, &fields, order);
    let (last, most) = request.as_bytes().split_last().unwrap();
    let mut all = [(); COUNT].map(|()| {
        let mut stream = hub.tls();
        stream.write_all(most).unwrap();
        stream
    });
    all.iter_mut().for_each(|stream| stream.write_all(&[*last]).unwrap());
    all.map(|mut stream| common::https::Answer::read(&mut stream).status)
}

#[test]
fn the_last_of_some_rotations_at_the_same_time_is_in_every_file() {
    let hub = Hub::start();
    let [file, folder] = ["hub.backup", "restored"].map(|name| hub.home.file(name).display().to_string());
    let backup = hub.home.start(&["hub", "backup", &file]);
    for _ in 0..40 {
        assert_eq!(rotate_at_once(&hub, r#"{"overlapSeconds":0}"#), [200; 3]);
        assert!(believes(&hub, &hub.ca()), "the file has another root than the hub");
    }
    assert_eq!(hub.home.run(&["hub", "ca"]).ok().out.trim(), hub.ca().trim());
    // A backup meanwhile has one of the roots, whole.
    assert_eq!(backup.finish().code, Some(0));
    hub.home.run(&["hub", "restore", &file, "--data", &folder]).ok();
    hub.home.run(&["hub", "ca", "--data", &folder]).ok();
}

#[test]
fn a_process_that_runs_takes_the_pin_that_another_has_saved() {
    let mut hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let exposed = expose(&owner, "db", service(echo));
    let (_reached, port) = reach(&user, "db");
    assert!(echoes(port, b"before"));
    // No overlap: nobody may follow, as if the key was stolen.
    hub.home.run(&["hub", "ca", "rotate", "--overlap", "0s"]).ok();
    for home in [&owner, &user] {
        assert!(home.run(&["services"]).err.contains(NOT_THE_HUB));
        home.run(&["up", "--api-key", &hub.key("member")]).ok();
    }
    assert_eq!(exposed.events("lost"), 0, "{}", exposed.out());
    hub.restart();
    exposed.wait_event("back");
    eventually("both go on", PATIENCE, || echoes(port, b"by the new pin"));
}

#[test]
fn a_hub_that_is_killed_while_its_root_is_replaced_has_one_that_its_clients_believe() {
    for is_stored in [false, true, true] {
        let mut hub = Hub::start();
        let user = hub.machine("member");
        let stored = || std::fs::read(hub.home.file("hub/certs/ca.json")).unwrap();
        let (before, began) = (stored(), Instant::now());
        let rotating = hub.home.start(&["hub", "ca", "rotate"]);
        while is_stored && stored() == before {
            assert!(began.elapsed() < PATIENCE);
            thread::yield_now();
        }
        hub.running.kill();
        rotating.finish();
        hub.restart();
        user.run(&["services"]).ok();
        let shown = hub.home.run(&["hub", "ca", "--json"]).ok().json();
        assert_eq!(shown["pin"], saved_pin(&user).as_str(), "{shown}");
        assert_eq!(shown["certificate"], hub.ca().as_str());
    }
}

#[test]
fn the_old_secret_ends_with_the_overlap() {
    let hub = Hub::start();
    let status = |key: &str| hub.ask("GET /v1/whoami", key, "").status;
    for overlap in ["0s", "1s"] {
        let (old, id) = hub.new_key(&["--role", "join"]);
        let made = hub.home.run(&["hub", "key", "rotate", &id, "--overlap", overlap, "--json"]).ok().json();
        assert_eq!(status(made["key"].as_str().unwrap()), 200);
        if overlap == "0s" {
            assert_eq!(status(&old), 401);
        }
        eventually("the old secret ends", PATIENCE, || status(&old) == 401);
    }
    eventually("it is audited", PATIENCE, || hub.audit().contains(r#""reason":"overlap""#));
}

#[test]
fn another_hub_in_the_place_of_ours_is_not_told_as_one_that_is_away() {
    let mut hub = Hub::start();
    let owner = hub.machine("member");
    let exposed = expose(&owner, "db", service(echo));
    hub.running.kill();
    let (data, aside) = (hub.home.file("hub"), hub.home.file("aside"));
    std::fs::rename(&data, &aside).unwrap();
    hub.restart();
    exposed.wait_err(|line| line.contains("did not prove that it is your hub"));
    let status = || owner.run(&["status"]).ok().out;
    eventually("status says so too", PATIENCE, || status().contains("did not prove that it is your hub"));
    hub.running.kill();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&aside, &data).unwrap();
    hub.restart();
    exposed.wait_event("back");
    eventually("status says that it is well", PATIENCE, || status().contains("[ok] db"));
}

#[test]
fn reaching_ends_when_its_time_is_up_whoever_is_silent() {
    let tunnel = Tunnelled::to(service(echo));
    let user = tunnel.hub.machine("member");
    let silent =
        [(&tunnel.exposed, "The machine that offers it does not answer"), (&tunnel.hub.running, "in time")];
    for (program, reason) in silent {
        program.signal(Signal::SIGSTOP);
        let began = Instant::now();
        let said = user.run(&["reach", "service", "--check", "--timeout", "1s"]);
        let took = began.elapsed();
        program.signal(Signal::SIGCONT);
        assert_eq!(said.code, Some(1), "{said:#?}");
        assert!(said.err.contains(reason), "{said:#?}");
        assert!(took > Duration::from_millis(900) && took < Duration::from_secs(5), "{took:?}");
    }
}

#[test]
fn the_time_of_reaching_counts_once_over_all_hubs() {
    let tunnel = Tunnelled::to(service(echo));
    let user = tunnel.hub.machine("member");
    // The system accepts for them, and then they say nothing.
    let silent = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let urls = silent.each_ref().map(|hub| format!("https://{}", hub.local_addr().unwrap()));
    let check =
        |time: &str, hubs: &str| user.run(&["reach", "service", "--check", "--timeout", time, "--hub", hubs]);
    let began = Instant::now();
    let said = check("2s", &urls.join(","));
    assert!(said.code == Some(1) && said.err.contains("in time"), "{said:#?}");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    // A silent one leaves time for the others.
    check("8s", &format!("{},{}", urls[0], tunnel.hub.url)).ok();
}

#[test]
fn who_waits_for_services_waits_for_their_hub() {
    let mut hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let target = format!("db={}", service(echo));
    let sharing = owner.start(&["share", "--json", &target, "--code", "abc123"]);
    sharing.wait_event("shared");
    hub.running.kill();
    let said = user.run(&["join", "abc123", "--", "true"]);
    assert!(said.code == Some(1) && said.err.contains("Cannot reach the hub"), "{said:#?}");
    let mut waiting = user.start(&["join", "abc123", "--wait", "1m", "--", "true"]);
    // It has been seen to look, and to go on.
    sharing.wait_event("lost");
    assert!(waiting.is_running());
    hub.restart();
    assert_eq!(waiting.finish().code, Some(0));
}
