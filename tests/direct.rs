//! Sessions that go from joiner to agent without the relay: who gets one, who does not, and how they end.

mod common;

use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use rustls::ClientConnection;
use rustls::StreamOwned;
use serde_json::Value;
use serde_json::json;

use common::Home;
use common::Hub;
use common::PATIENCE;
use common::Running;
use common::dial;
use common::echo;
use common::echoes;
use common::ends::exchanges;
use common::eventually;
use common::expose;
use common::fault::Path;
use common::https::dial_from;
use common::noise;
use common::raw::Stranger;
use common::raw::key_of;
use common::reach;
use common::service;
use common::team::joined;
use common::team::port_of;

/// What an agent sends to those whom it does not expect: a fatal alert, access denied.
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];
/// An agent without its hub ends its direct sessions after this long, give or take an attempt to reconnect.
const LOST_HUB: Duration = Duration::from_mins(1);

/// Exposes an echo as `echo` with a listener for direct sessions.
fn expose_directly(home: &Home) -> Running {
    let port = service(echo).to_string();
    let running =
        home.start(&["expose", "--json", "echo", &port, "--protocol", "tcp", "--direct=127.0.0.1:0"]);
    running.wait_event("exposed");
    running
}

/// Where the only agent of this machine listens.
fn listener(home: &Home) -> String {
    let mut address = String::new();
    eventually("status names the listener", PATIENCE, || {
        let runs = home.run(&["status", "--json"]).ok().json();
        let named = runs.as_array().unwrap().iter().find_map(|run| run["direct"].as_str());
        named.unwrap_or_default().clone_into(&mut address);
        !address.is_empty()
    });
    address
}

fn path_of(running: &Running) -> String {
    running.wait_event("up")["path"].as_str().unwrap().to_owned()
}

/// The audit log's lines of this event.
fn audited(hub: &Hub, event: &str) -> Vec<Value> {
    let log = hub.audit();
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["event"] == event).collect()
}

/// A client that stays, on a connection that has echoed once.
fn connected(port: u16) -> TcpStream {
    let mut client = dial(port);
    assert!(exchanges(&mut client, b"here"));
    client
}

/// How long until the other end of this connection is gone.
fn ends_after(mut client: TcpStream, began: Instant) -> Duration {
    client.set_read_timeout(Some(LOST_HUB * 2)).unwrap();
    assert!(!matches!(client.read(&mut [0]), Ok(1..)));
    began.elapsed()
}

#[test]
fn a_tunnel_goes_to_the_agent_itself_and_everybody_says_so() {
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let _exposed = expose_directly(&owner);
    let at = listener(&owner);
    let (mut reached, port) = reach(&user, "echo");
    assert_eq!(path_of(&reached), format!("direct, {at}"));
    for seed in 0..20 {
        assert!(echoes(port, &noise(seed, 100_000)));
    }
    let shown = user.run(&["status"]).ok().out;
    assert!(shown.contains(&format!("by direct, {at}")), "{shown}");
    let shown = owner.run(&["status"]).ok().out;
    assert!(shown.contains(&format!("Listens on {at} for direct sessions")), "{shown}");
    let shown = owner.run(&["doctor"]).out;
    assert!(shown.contains(&format!("listening: expose echo on {at}")), "{shown}");
    assert!(reached.interrupt().0.success());
    eventually("the hub heard that they are over", PATIENCE, || {
        audited(&hub, "session.closed").len() == audited(&hub, "session.opened").len()
    });
    let (direct, relayed): (Vec<_>, Vec<_>) =
        audited(&hub, "session.closed").into_iter().partition(|line| line["path"] == "direct");
    let bytes = |line: &Value, way: &str| line[way].as_u64().unwrap();
    let sum = |way: &str| direct.iter().map(|line| bytes(line, way)).sum::<u64>();
    // What TLS and frames add is little.
    assert!(["toAgent", "toJoiner"].iter().all(|way| (2_000_000..2_300_000).contains(&sum(way))));
    // The first session has told the way, and carried the check.
    assert_eq!(relayed.len(), 1, "{relayed:?}");
    assert!(bytes(&relayed[0], "toAgent") < 20_000);
}

#[test]
fn nothing_listens_unasked_and_all_three_sides_can_say_no() {
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let _exposed = expose_directly(&owner);
    let reached = user.start(&["reach", "--json", "echo", "--no-direct"]);
    assert_eq!(path_of(&reached), "relay");
    let _web = expose(&user, "web", service(echo));
    let reached = owner.start(&["reach", "--json", "web"]);
    assert_eq!(path_of(&reached), "relay");
    let shown = user.run(&["doctor"]).out;
    assert!(shown.contains("nothing listens for them"), "{shown}");

    let hub = Hub::start_with(&["--tunnel-ports", "off", "--no-direct"]);
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let _exposed = expose_directly(&owner);
    let (reached, port) = reach(&user, "echo");
    assert_eq!(path_of(&reached), "relay");
    assert!(echoes(port, b"by the relay"));
    assert!(audited(&hub, "session.opened").iter().all(|line| line["path"] == "relay"));
}

#[test]
fn the_address_is_kept_with_what_the_daemon_keeps_and_a_wrong_one_is_refused() {
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let port = service(echo).to_string();
    owner.run(&["expose", "echo", &port, "--protocol", "tcp", "--keep", "--direct=127.0.0.1:0"]).ok();
    let reached = user.start(&["reach", "--json", "echo"]);
    assert_eq!(path_of(&reached), format!("direct, {}", listener(&owner)));
    owner.run(&["daemon", "stop"]).ok();
    for (wrong, said) in
        [("--direct=here", "is not an address"), ("--direct=192.0.2.1:1", "Cannot listen on")]
    {
        let refused = owner.run(&["expose", "web", &port, wrong]);
        assert!(refused.code != Some(0) && refused.err.contains(said), "{refused:?}");
    }
}

/// A direct session of `stranger`, as the hub grants it.
fn grant(hub: &Hub, key: &str, stranger: &Stranger) -> Value {
    let body = json!({ "service": "echo", "fingerprint": stranger.fingerprint(), "direct": true });
    let granted = hub.ask("POST /v1/sessions", key, &body.to_string()).json();
    assert!(granted["ticket"].is_null() && granted["session"].is_string(), "{granted}");
    granted
}

fn is_taken(stranger: &Stranger, at: &str, granted: &Value) -> bool {
    taken(stranger, at, granted).is_some()
}

/// The session, if the agent takes this joiner for the one that the hub announced: it opens a connection and is answered.
fn taken(stranger: &Stranger, at: &str, granted: &Value) -> Option<StreamOwned<ClientConnection, TcpStream>> {
    let socket = TcpStream::connect(at).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut joiner = stranger.as_joiner(socket, granted);
    let mut answer = [0; 4];
    joiner.write_all(b"o\0\0\0").and_then(|()| joiner.read_exact(&mut answer)).ok()?;
    (answer == *b"O\0\0\0").then_some(joiner)
}

#[test]
fn the_agent_takes_whom_the_hub_named_for_that_service_once_and_in_time() {
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let _exposed = expose_directly(&owner);
    let (at, key) = (listener(&owner), key_of(&user));
    let (named, other) = (Stranger::new(), Stranger::new());
    let granted = grant(&hub, &key, &named);
    let late = grant(&hub, &key, &named);
    let granted_at = Instant::now();
    // Who has seen the hello of another can repeat it, but has not the key to go on, and uses up nothing.
    assert!(!is_taken(&other, &at, &granted));
    let unknown =
        json!({ "agentFingerprint": granted["agentFingerprint"], "name": "echo", "session": "ses_x" });
    let web = json!({ "agentFingerprint": granted["agentFingerprint"], "name": "web", "session": granted["session"] });
    assert!(!is_taken(&named, &at, &unknown) && !is_taken(&named, &at, &web));
    // As long as it is open, the hub has nothing against it.
    let first = taken(&named, &at, &granted);
    assert!(first.is_some() && !is_taken(&named, &at, &granted), "a session was taken twice");
    thread::sleep(Duration::from_secs(15).saturating_sub(granted_at.elapsed()));
    assert!(!is_taken(&named, &at, &late), "fifteen seconds are over");
}

#[test]
fn a_stranger_at_the_listener_gets_an_alert_and_does_not_keep_others_out() {
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let _exposed = expose_directly(&owner);
    let at = listener(&owner);
    for said in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01\xff\xff", &noise(1, 9000), b"\x16\x03\x01\0\x01\x01"]
    {
        let mut stream = TcpStream::connect(&at).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(said);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer == ALERT, "{answer:?}");
    }
    let mut nameless = Stranger::new().as_joiner_of(TcpStream::connect(&at).unwrap(), Vec::new());
    let error = nameless.write_all(b"o\0\0\0").and_then(|()| nameless.read_exact(&mut [0])).unwrap_err();
    assert!(error.to_string().contains("AccessDenied"), "{error}");
    // Of one address eight may be silent for two seconds; more are closed at once, and leave room for other addresses.
    let crowd = Ipv4Addr::new(127, 0, 0, 9);
    let silent: Vec<TcpStream> = (0..100).map(|_| dial_from(crowd, &at).unwrap()).collect();
    let mut other = TcpStream::connect(&at).unwrap();
    other.set_read_timeout(Some(PATIENCE)).unwrap();
    other.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = other.read_to_end(&mut answer);
    assert_eq!(answer, ALERT);
    let open = || {
        let is_open = |mut stream: &TcpStream| {
            stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            matches!(stream.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
        };
        silent.iter().filter(|stream| is_open(stream)).count()
    };
    eventually("no more than eight stay", Duration::from_secs(5), || open() <= 8);
    eventually("none stays", Duration::from_secs(10), || open() == 0);
    let reached = user.start(&["reach", "--json", "echo"]);
    assert_eq!(path_of(&reached), format!("direct, {at}"));
}

#[test]
fn what_is_revoked_is_cut_within_a_second_on_both_paths() {
    let hub = Hub::start();
    let owner = hub.machine("member");
    let _exposed = expose_directly(&owner);
    for direct in [true, false] {
        let options: &[&str] = if direct { &[] } else { &["--no-direct"] };
        let user = Home::new();
        let (key, id) = hub.new_key(&["--role", "member"]);
        user.run(&["up", "--hub", &hub.url, "--api-key", &key, "--label", "user"]).ok();
        let reached = user.start(&[&["reach", "--json", "echo"], options].concat());
        assert_eq!(path_of(&reached) != "relay", direct);
        let port = u16::try_from(reached.wait_event("up")["localPort"].as_u64().unwrap()).unwrap();
        let client = connected(port);
        hub.home.run(&["hub", "key", "revoke", &id]).ok();
        let took = ends_after(client, Instant::now());
        assert!(took < Duration::from_secs(1), "direct: {direct}, {took:?}");
        assert!(!echoes(port, b"again"));
    }
    // By a share, and by its link, which needs no key.
    for direct in [true, false] {
        let options: &[&str] = if direct { &[] } else { &["--no-direct"] };
        let shared = owner.start(&["share", "--json", "--service", "echo", "--link", "--name", "s"]);
        let said = shared.wait_event("shared");
        let user = Home::new();
        let join = ["join", "--json", said["link"].as_str().unwrap()];
        let (_joining, services) = joined(user.start(&[&join, options].concat()));
        let client = connected(port_of(&services, "echo"));
        let direct_now = audited(&hub, "session.opened").iter().rev().any(|line| line["path"] == "direct");
        assert!(!direct || direct_now);
        owner.run(&["share", "revoke", said["id"].as_str().unwrap()]).ok();
        let took = ends_after(client, Instant::now());
        assert!(took < Duration::from_secs(1), "direct: {direct}, {took:?}");
    }
}

#[test]
fn an_agent_whose_key_is_revoked_ends_its_direct_sessions() {
    let hub = Hub::start();
    let (owner, user) = (Home::new(), hub.machine("member"));
    let (key, id) = hub.new_key(&["--role", "member"]);
    owner.run(&["up", "--hub", &hub.url, "--api-key", &key, "--label", "owner"]).ok();
    let _exposed = expose_directly(&owner);
    let (reached, port) = reach(&user, "echo");
    assert_ne!(path_of(&reached), "relay");
    let client = connected(port);
    hub.home.run(&["hub", "key", "revoke", &id]).ok();
    let took = ends_after(client, Instant::now());
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn an_agent_without_its_hub_goes_on_for_a_minute_and_longer_if_the_hub_is_back_in_time() {
    let hub = Hub::start();
    let path = Path::to(&hub.address);
    let (owner, user) = (hub.machine_by(&path.url(), "member"), hub.machine("member"));
    let exposed = expose_directly(&owner);
    let (reached, port) = reach(&user, "echo");
    assert_ne!(path_of(&reached), "relay");
    let mut client = connected(port);
    path.fall_silent();
    path.cut_silent();
    exposed.wait_event("lost");
    let lost = Instant::now();
    while lost.elapsed() < LOST_HUB / 2 {
        assert!(exchanges(&mut client, b"without the hub"));
        thread::sleep(Duration::from_secs(1));
    }
    path.recover();
    path.cut_silent();
    exposed.wait_event("back");
    while lost.elapsed() < LOST_HUB + Duration::from_secs(15) {
        assert!(exchanges(&mut client, b"with the hub"));
        thread::sleep(Duration::from_secs(1));
    }
    path.fall_silent();
    path.cut_silent();
    let took = ends_after(client, Instant::now());
    assert!(took + Duration::from_secs(5) > LOST_HUB, "{took:?}");
    assert!(took < LOST_HUB + Duration::from_secs(15), "{took:?}");
}

#[test]
fn a_hub_that_knows_nothing_of_a_session_has_it_ended() {
    let mut hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let exposed = expose_directly(&owner);
    let (_reached, port) = reach(&user, "echo");
    let client = connected(port);
    hub.restart();
    exposed.wait_event("back");
    assert!(ends_after(client, Instant::now()) < Duration::from_secs(5));
    eventually("the next connection works", PATIENCE, || echoes(port, b"again"));
}

#[test]
fn an_agent_that_starts_again_at_another_port_is_found_by_the_relay_and_then_directly() {
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let mut exposed = expose_directly(&owner);
    let (_reached, port) = reach(&user, "echo");
    let client = connected(port);
    exposed.kill();
    assert!(ends_after(client, Instant::now()) < Duration::from_secs(1));
    let _exposed = expose_directly(&owner);
    eventually("it works again", PATIENCE, || echoes(port, b"again"));
    let at = listener(&owner);
    eventually("it goes to the new port", PATIENCE, || {
        assert!(echoes(port, b"again"));
        user.run(&["status", "--json"]).ok().json()[0]["open"][0]["path"] == format!("direct, {at}")
    });
}

#[test]
fn an_address_gets_a_hello_and_no_more_before_its_owner_has_proved_to_be_the_agent() {
    let hub = Hub::start();
    let (owner, users) = (hub.machine("member"), [hub.machine("member"), hub.machine("member")]);
    let mut exposed = expose_directly(&owner);
    let at = listener(&owner);
    let tunnels = users.each_ref().map(|user| reach(user, "echo"));
    assert!(tunnels.iter().all(|(reached, _)| path_of(reached) == format!("direct, {at}")));
    exposed.kill();
    let impostor = TcpListener::bind(&at).unwrap();
    let _exposed = expose(&owner, "echo", service(echo));
    let pretending = thread::spawn(move || {
        // The first time it listens only, the second time it answers with another certificate.
        let (mut listened, mut stream) = (Vec::new(), impostor.accept().unwrap().0);
        let _ = stream.read_to_end(&mut listened);
        let mut answered = Stranger::new().as_agent(impostor.accept().unwrap().0);
        (listened, answered.read(&mut [0]).unwrap_err().to_string())
    });
    for (_, port) in &tunnels {
        assert!(echoes(*port, b"by the relay"));
    }
    let (listened, answered) = pretending.join().unwrap();
    // On a busy machine its time may be up before the other certificate is there.
    let length = usize::from(u16::from_be_bytes([listened[3], listened[4]]));
    assert_eq!((listened[0], listened[5], listened.len()), (22, 1, 5 + length));
    assert!(["alert", "end of file", "reset"].iter().any(|end| answered.contains(end)), "{answered}");
}

#[test]
fn what_a_direct_session_has_carried_is_in_the_audit_log_when_its_agent_ends() {
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let mut exposed = expose_directly(&owner);
    let (_reached, port) = reach(&user, "echo");
    let _client = connected(port);
    assert!(exposed.interrupt().0.success());
    let closed = || audited(&hub, "session.closed").into_iter().find(|line| line["path"] == "direct");
    eventually("it is audited", Duration::from_secs(5), || closed().is_some());
    let closed = closed().unwrap();
    assert!(["toAgent", "toJoiner"].iter().all(|way| closed[*way].as_u64() > Some(4)), "{closed}");
}

#[test]
fn who_may_not_have_a_session_gets_none_of_either_kind() {
    let hub = Hub::start();
    let owner = hub.machine("member");
    let _exposed = expose_directly(&owner);
    let key = |options: &[&str]| hub.new_key(options).0;
    let revoked = hub.new_key(&["--role", "member"]);
    hub.home.run(&["hub", "key", "revoke", &revoked.1]).ok();
    let callers = [
        (key(&["--role", "member"]), 200),
        (key(&["--role", "admin"]), 200),
        (key(&["--role", "join"]), 403),
        (key(&["--role", "expose"]), 403),
        (key(&["--role", "metrics"]), 403),
        (key(&["--role", "member", "--workspace", "other"]), 404),
        (revoked.0, 401),
        (String::new(), 401),
    ];
    let fingerprint = Stranger::new().fingerprint();
    for (key, status) in &callers {
        for direct in [false, true] {
            let ask = json!({ "service": "echo", "fingerprint": fingerprint, "direct": direct });
            let answer = hub.ask("POST /v1/sessions", key, &ask.to_string());
            assert_eq!(answer.status, *status, "{direct} {answer:?}");
            let shared = json!({ "service": "echo", "fingerprint": fingerprint, "direct": direct,
                "share": { "code": "nosuchcode", "token": "none" } });
            let answer = hub.ask("POST /v1/sessions", key, &shared.to_string());
            assert!(answer.status >= 400, "{direct} {answer:?}");
        }
    }
}

#[test]
fn a_key_that_expires_takes_its_direct_sessions_along() {
    const LIFE: Duration = Duration::from_secs(20);
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), Home::new());
    let _exposed = expose_directly(&owner);
    let made = Instant::now();
    let (key, _) = hub.new_key(&["--role", "member", "--expires", "20s"]);
    user.run(&["up", "--hub", &hub.url, "--api-key", &key, "--label", "user"]).ok();
    let (reached, port) = reach(&user, "echo");
    assert_ne!(path_of(&reached), "relay");
    let lived = ends_after(connected(port), made);
    assert!(lived + Duration::from_secs(2) > LIFE && lived < LIFE + Duration::from_secs(3), "{lived:?}");
}
