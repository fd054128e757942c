//! A hub that means ill. Its clients believe its certificate and nothing else: whatever it answers, nothing
//! crashes, nothing hangs past its deadline, nothing is written elsewhere than in the state folder, nothing
//! is dialled that the user did not name, and no control byte reaches a terminal.

mod common;

use std::fs;
use std::io;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use common::Home;
use common::Hub;
use common::PATIENCE;
use common::Running;
use common::eventually;
use common::expose;
use common::fake_hub::Asked;
use common::fake_hub::Certificates;
use common::fake_hub::FakeHub;
use common::fake_hub::Stream;
use common::fake_hub::friendly;
use common::fake_hub::json;
use common::https::FINGERPRINT;
use common::raw::Stranger;

/// All that a terminal could take for an order, in JSON's own spelling.
const NASTY: &str = r"a\u001b[31m\u0007\u0008\r\n[ok] forged\u007f\u009b2J\u202e\u061c\u00ad\u180e\u206f\udb40\udc41\u0000../../../../tmp/x";

fn service(name: &str, more: &str) -> String {
    format!(
        r#"{{"id":"svc_1","name":"{name}","targetPort":5432,"tunnelPort":null,"status":"online","protocol":"tcp","agentId":"{NASTY}","agentLabel":"{NASTY}","createdAt":"2026-01-01T00:00:00Z"{more}}}"#
    )
}

/// What the hub says to every call: whole answers that end at once.
fn quick_answers() -> Vec<String> {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let within = format!(
        r#"{{"status":"ok","id":"key_x","label":"x","role":null,"workspace":"w","x":{}{}}}"#,
        "[".repeat(120),
        "]".repeat(120)
    );
    let many = |count: usize| format!("[{}]", vec![service("db", ""); count].join(","));
    let bodies = [
        format!(r#"{{"error":"{NASTY}","hint":"{NASTY}"}}"#),
        format!(
            r#"{{"id":"{NASTY}","label":"{NASTY}","role":"member","workspace":"{NASTY}","status":"{NASTY}","version":"{NASTY}","uptimeSeconds":1}}"#
        ),
        format!(r#"{{"id":"key_x","label":"x","role":"{NASTY}","workspace":"x"}}"#),
        format!("[{}]", service("db", "")),
        format!("[{}]", service(NASTY, "")),
        format!("[{}]", service("../../etc/passwd", "")),
        many(1000),
        many(100_000),
        format!("[{}]", service("db", r#","targetPort":70000"#)),
        r#"[{"id":1,"name":[],"targetPort":"x"}]"#.into(),
        r#"{"label":1,"role":{},"workspace":[]}"#.into(),
        "null".into(),
        "true".into(),
        "\"x\"".into(),
        String::new(),
        deep,
        within,
        "\u{1b}]0;title\u{7}<html>\u{9b}31m".into(),
        "{".into(),
        "9".repeat(100_000),
    ];
    let mut answers = Vec::new();
    for status in [200, 400, 401, 429, 503] {
        for body in &bodies {
            if status == 200 || body.len() < 2000 {
                answers.push(format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
            }
        }
    }
    answers.extend(
        [
            "",
            "garbage\r\n\r\n",
            "HTTP/1.1 200 \u{1b}[31mX\r\n\r\n",
            "HTTP/1.1 999 X\r\n\r\n",
            "HTTP/1.1 302 X\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 307 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nx",
            "HTTP/1.1 200 X\r\nContent-Length: 99\r\n\r\nhalf",
            "HTTP/1.1 200 X\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 X\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            "HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
            "HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
            "HTTP/1.1 204 X\r\n\r\n",
            "HTTP/2.0 200 X\r\n\r\n",
        ]
        .map(str::to_owned),
    );
    answers.push(format!("HTTP/1.1 200 X\r\nA: {}\r\n\r\n", "a".repeat(1_000_000)));
    answers.push(format!("HTTP/1.1 200 X\r\n{}\r\n", "A: b\r\n".repeat(10_000)));
    answers.push("HTTP/1.1 100 Continue\r\n\r\n".repeat(1000));
    answers
}

const COMMANDS: [&[&str]; 6] = [
    &["whoami"],
    &["services"],
    &["services", "--json"],
    &["reach", "db", "--check"],
    &["expose", "db", "5432"],
    &["up"],
];

/// A machine that is logged in at this hub, in a folder of its own within another one.
fn machine(fake: &FakeHub) -> (Home, Home) {
    let outer = Home::new();
    let state = outer.file("state");
    fs::create_dir_all(&state).unwrap();
    let config =
        format!(r#"{{"hubUrl":"{}","apiKey":"{}","agentId":"agent_x","label":"x"}}"#, fake.url, fake.key);
    fs::write(state.join("config.json"), config).unwrap();
    (Home::at(state), outer)
}

/// Runs to its end, or to Ctrl-C once it has complained; returns stdout and stderr as the bytes they are.
fn run(home: &Home, args: &[&str]) -> Vec<u8> {
    let mut command: Command = home.connect(args);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let said = Arc::new(Mutex::new((Vec::new(), 0)));
    let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let readers = [read_all(out, false, &said), read_all(err, true, &said)];
    let began = Instant::now();
    let mut interrupted = None;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        let complained = said.lock().unwrap().1 > 0;
        if complained && interrupted.is_none() && args[0] == "expose" {
            interrupted = Some(Instant::now());
            let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        }
        if began.elapsed() > Duration::from_secs(20) {
            let _ = child.kill();
            panic!("{args:?} hangs: {}", String::from_utf8_lossy(&said.lock().unwrap().0));
        }
        thread::park_timeout(Duration::from_millis(5));
    };
    for reader in readers {
        reader.join().unwrap();
    }
    let said = said.lock().unwrap().0.clone();
    let text = String::from_utf8_lossy(&said);
    assert!(status.signal().is_none() && status.code() != Some(101), "{args:?} died: {status:?} {text}");
    assert!(!text.contains("panicked") && !text.contains("a bug of connect"), "{args:?}: {text}");
    said
}

fn read_all(
    mut from: impl Read + Send + 'static,
    is_err: bool,
    said: &Arc<Mutex<(Vec<u8>, usize)>>,
) -> thread::JoinHandle<()> {
    let said = Arc::clone(said);
    thread::spawn(move || {
        let mut room = [0; 16384];
        while let Ok(count @ 1..) = from.read(&mut room) {
            let mut said = said.lock().unwrap();
            said.0.extend_from_slice(&room[..count]);
            said.1 += if is_err { count } else { 0 };
        }
    })
}

/// No control byte but the line's end, neither as a byte nor as a character, and nothing that reorders or hides text.
fn is_clean(said: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(said) else { return false };
    let hidden = "\u{202e}\u{61c}\u{ad}\u{180e}\u{206f}\u{e0041}";
    !text.contains(|c: char| (c.is_control() && c != '\n') || hidden.contains(c))
        && !text.contains("\n[ok] forged")
}

fn stayed_at_home(state: &Path, outer: &Home) -> bool {
    const OURS: [&str; 11] = [
        "config.json",
        "identity.pem",
        ".lock",
        "run",
        "known_agents.json",
        "active-routes.json",
        "ports.json",
        "agent.log",
        "services.json",
        "served.log",
        "hub-heads.json",
    ];
    let inside = fs::read_dir(state)
        .unwrap()
        .flatten()
        .all(|entry| OURS.contains(&entry.file_name().to_str().unwrap()));
    inside && fs::read_dir(outer.path()).unwrap().count() == 1
}

fn all_commands_bear(
    answer: impl Fn(&Asked, &mut Stream) -> io::Result<()> + Send + Sync + 'static,
    what: &str,
) {
    let fake = FakeHub::start(answer);
    thread::scope(|scope| {
        for args in COMMANDS {
            let fake = &fake;
            scope.spawn(move || {
                let (home, outer) = machine(fake);
                let said = run(&home, args);
                assert!(is_clean(&said), "{args:?} after {what:.200}: {:?}", String::from_utf8_lossy(&said));
                assert!(stayed_at_home(home.path(), &outer), "{args:?} after {what:.200}");
            });
        }
    });
}

#[test]
fn no_answer_crashes_a_command_or_puts_a_control_byte_on_the_terminal() {
    let answers = quick_answers();
    let next = Mutex::new(answers.into_iter());
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some(text) = { next.lock().unwrap().next() } {
                    let answer = text.clone();
                    all_commands_bear(move |_, stream| stream.write_all(answer.as_bytes()), &text);
                }
            });
        }
    });
}

#[test]
fn a_hub_that_never_finishes_is_left_at_the_deadline() {
    type Tease = fn(&mut Stream) -> io::Result<()>;
    let teases: [(&str, Tease); 5] = [
        ("silence", |stream| stream.read(&mut [0]).map(|_| ())),
        ("a head without end", |stream| {
            stream.write_all(b"HTTP/1.1 200 X\r\nA: ")?;
            drip(stream, b"a")
        }),
        ("a body that drips", |stream| {
            stream.write_all(b"HTTP/1.1 200 X\r\nContent-Length: 1000000\r\n\r\n")?;
            drip(stream, b"[")
        }),
        ("a body without end", |stream| {
            stream.write_all(b"HTTP/1.1 200 X\r\n\r\n[")?;
            loop {
                stream.write_all(&[b' '; 16384])?;
            }
        }),
        ("continue for ever", |stream| drip(stream, b"HTTP/1.1 100 Continue\r\n\r\n")),
    ];
    thread::scope(|scope| {
        for (what, tease) in teases {
            scope.spawn(move || all_commands_bear(move |_, stream| tease(stream), what));
        }
    });
}

fn drip(stream: &mut Stream, bytes: &[u8]) -> io::Result<()> {
    stream.sock.set_read_timeout(Some(Duration::from_millis(100)))?;
    loop {
        stream.write_all(bytes)?;
        match stream.read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return Ok(()),
        }
    }
}

/// Talks the control protocol to an agent of the real program; what it says comes back line by line.
fn control(stream: &mut Stream, lines: &[String], heard: &Mutex<Vec<String>>) -> io::Result<()> {
    stream.write_all(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: connect-control/1\r\n\r\n")?;
    for line in lines {
        stream.write_all(format!("{line}\n").as_bytes())?;
    }
    let (mut line, mut byte) = (Vec::new(), [0]);
    while matches!(stream.read(&mut byte)?, 1..) {
        line.push(byte[0]);
        if byte[0] == b'\n' {
            heard.lock().unwrap().push(String::from_utf8_lossy(&std::mem::take(&mut line)).into_owned());
        }
    }
    Ok(())
}

type Lines = Arc<Mutex<Vec<String>>>;

fn agent_of(lines: Vec<String>) -> (FakeHub, Running, Lines, (Home, Home)) {
    let heard = Lines::default();
    let own = Arc::clone(&heard);
    let fake = FakeHub::start(move |asked, stream| match asked.call.as_str() {
        "GET /v1/agent" => control(stream, &lines, &own),
        _ => friendly(asked, stream),
    });
    let homes = machine(&fake);
    let running = homes.0.start(&["expose", "db", "5432"]);
    (fake, running, heard, homes)
}

const WELCOME: &str = r#"{"type":"welcome","version":"1"}"#;
const EXPOSED: &str = r#"{"type":"exposed","name":"db","service":"svc_1","tunnelPort":null}"#;

#[test]
fn a_service_that_is_not_exposed_is_declined_and_a_warning_says_so() {
    let open = format!(
        r#"{{"type":"open","session":"ses_9","service":"{NASTY}","principal":"who_1","peer":"{FINGERPRINT}","agent":"{FINGERPRINT}","ticket":"t","relay":"http://127.0.0.1:1"}}"#
    );
    let (fake, running, heard, _homes) = agent_of(vec![WELCOME.into(), EXPOSED.into(), open]);
    running.wait_err(|line| {
        line.contains("[!] refused: the hub asked for") && line.contains("not exposed here")
    });
    let declined =
        || heard.lock().unwrap().iter().any(|line| line.contains("decline") && line.contains("ses_9"));
    eventually("it is declined", PATIENCE, declined);
    assert!(is_clean(running.out().as_bytes()) && is_clean(running.err().as_bytes()), "{}", running.err());
    assert!(!fake.asked().iter().any(|asked| asked.call.contains("relay")));
}

#[test]
fn a_hub_cannot_make_an_agent_dial_or_say_what_it_likes_elsewhere() {
    let victim = TcpListener::bind("127.0.0.1:0").unwrap();
    victim.set_nonblocking(true).unwrap();
    let open = |ticket: &str, relay: &str| {
        format!(
            r#"{{"type":"open","session":"s","service":"svc_1","principal":"who_1","peer":"{FINGERPRINT}","agent":"{FINGERPRINT}","ticket":"{ticket}","relay":"{relay}"}}"#
        )
    };
    let elsewhere = format!("http://{}", victim.local_addr().unwrap());
    let lines = [
        open("plain", &elsewhere),
        open("encrypted", &elsewhere.replace("http:", "https:")),
        open(r"x\r\nSET a b\r\n", &elsewhere),
        open(r"x\r\nInjected: yes", "http://h:1"),
        open("odd", "file:///etc/passwd"),
        open("odd", NASTY),
    ];
    let (fake, running, _, _homes) =
        agent_of([&[WELCOME.to_owned(), EXPOSED.to_owned()][..], &lines].concat());
    // It comes to the hub itself, by the address that the user gave.
    eventually("it comes to the hub", PATIENCE, || {
        let asked = fake.asked();
        let tickets =
            |one: &Asked| one.head.contains("x-ticket: plain") || one.head.contains("x-ticket: encrypted");
        asked.iter().filter(|one| tickets(one)).count() == 2
    });
    assert!(
        fake.asked().iter().all(|asked| !asked.head.contains("injected") && !asked.head.contains("set a b"))
    );
    assert!(victim.accept().is_err(), "it dialled where the hub pointed");
    assert!(is_clean(running.err().as_bytes()), "{}", running.err());
}

#[test]
fn an_audit_log_that_became_shorter_is_warned_of_by_the_agents() {
    let head = |count: u64, digit: &str, at: &str| {
        let hash = digit.repeat(64);
        format!(
            r#"{{"type":"audit","hub":"hub_1","count":{count},"hash":"{hash}","at":"2026-01-01T00:{at}:00Z"}}"#
        )
    };
    let lines = [WELCOME.to_owned(), EXPOSED.to_owned(), head(5, "a", "00"), head(3, "b", "05")];
    let (_fake, running, _, _homes) = agent_of(lines.to_vec());
    running.wait_err(|line| line.contains("is not the one that it was"));
}

#[test]
fn no_message_on_the_control_channel_ends_the_agent() {
    let deep = format!(r#"{{"type":"welcome","version":"1","x":{}{}}}"#, "[".repeat(7000), "]".repeat(7000));
    let shallow = format!(r#"{{"type":"welcome","version":"1","x":{}{}}}"#, "[".repeat(125), "]".repeat(125));
    let refused = format!(r#"{{"type":"refused","name":"other","reason":"{NASTY}","hint":"{NASTY}"}}"#);
    let first = |line: &str| vec![line.to_owned()];
    let after = |line: &str| vec![WELCOME.to_owned(), EXPOSED.to_owned(), line.to_owned()];
    let ids: Vec<String> = (0..20_000).map(|n| EXPOSED.replace("svc_1", &format!("svc_{n}"))).collect();
    let opens: Vec<String> = (0..300)
        .map(|n| format!(r#"{{"type":"open","session":"s{n}","service":"svc_1","principal":"who_1","peer":"{FINGERPRINT}","agent":"{FINGERPRINT}","ticket":"t","relay":"http://h:1"}}"#))
        .collect();
    let cases: Vec<Vec<String>> = vec![
        first(""),
        first("{}"),
        first("null"),
        first("[]"),
        first(r#"{"type":"fly"}"#),
        first(r#"{"type":1}"#),
        first(EXPOSED),
        first(&deep),
        vec![shallow.clone(), EXPOSED.to_owned()],
        first(&"x".repeat(1_000_000)),
        first("\u{1b}[31m\u{9b}"),
        after(&deep),
        after(&shallow),
        after(WELCOME),
        after("\u{0}"),
        after(&refused),
        after(&"\n".repeat(10_000)),
        after(r#"{"type":"exposed","name":"../x","service":"s","tunnelPort":null}"#),
        after(r#"{"type":"exposed","name":"db","service":"s","tunnelPort":99999}"#),
        after(r#"{"type":"open","session":1}"#),
        [after(WELCOME), ids].concat(),
        [after(WELCOME), opens].concat(),
    ];
    let next = Mutex::new(cases.into_iter());
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while let Some(lines) = { next.lock().unwrap().next() } {
                    let what = lines.last().unwrap().chars().take(60).collect::<String>();
                    let (fake, mut running, _, (home, outer)) = agent_of(lines);
                    let comes = || fake.asked().iter().filter(|asked| asked.call == "GET /v1/agent").count();
                    eventually(&format!("it comes to the hub: {what}"), PATIENCE, || comes() >= 1);
                    // It is still there, or has come again after a channel that made no sense, or says why not.
                    eventually(&format!("it goes on or ends: {what}"), PATIENCE, || {
                        running.out().contains("is exposed") || comes() >= 2 || !running.is_running()
                    });
                    let status = if running.is_running() {
                        let (status, took) = running.interrupt();
                        assert!(took < Duration::from_secs(5), "{what}: {took:?}");
                        status
                    } else {
                        running.wait()
                    };
                    let said = running.finish();
                    let refused = status.code() == Some(1) && said.err.contains("[x]");
                    // Cut off before it was exposed, or after.
                    assert!(
                        refused || matches!(status.code(), Some(0 | 130)),
                        "{what}: {status:?} {said:#?}"
                    );
                    assert!(
                        is_clean(said.out.as_bytes()) && is_clean(said.err.as_bytes()),
                        "{what}: {said:#?}"
                    );
                    assert!(
                        !said.err.contains("panicked") && stayed_at_home(home.path(), &outer),
                        "{what}: {said:#?}"
                    );
                }
            });
        }
    });
}

#[test]
fn a_login_by_code_bears_what_the_hub_shows_and_asks() {
    let bodies = [
        format!(r#"{{"code":"{NASTY}","secret":"{NASTY}","page":"{NASTY}","intervalSeconds":0,"expiresInSeconds":1}}"#),
        r#"{"code":"../../../x","secret":"s","page":"javascript:x","intervalSeconds":18446744073709551615,"expiresInSeconds":1}"#.to_owned(),
        r#"{"code":"A B?#","secret":"s\r\nX: y","page":"x","intervalSeconds":1,"expiresInSeconds":2}"#.to_owned(),
    ];
    thread::scope(|scope| {
        for body in bodies {
            scope.spawn(move || {
                let shown = body.clone();
                let fake = FakeHub::start(move |asked, stream| match asked.call.as_str() {
                    "POST /v1/device" => json(stream, 201, &body),
                    "GET /health" => friendly(asked, stream),
                    _ => json(stream, 404, &format!(r#"{{"error":"{NASTY}"}}"#)),
                });
                let (home, _outer) = machine(&fake);
                fs::remove_file(home.file("config.json")).unwrap();
                fs::write(home.file("ca.pem"), &fake.certificates.ca).unwrap();
                let ca = home.file("ca.pem").display().to_string();
                let mut running = home.start(&["up", "--hub", &fake.url, "--ca", &ca]);
                running.wait_out(|line| line.contains("Code:"));
                running.signal(nix::sys::signal::Signal::SIGINT);
                running.wait();
                let said = running.finish();
                assert!(is_clean(said.out.as_bytes()) && is_clean(said.err.as_bytes()), "{shown}: {said:#?}");
            });
        }
    });
}

#[test]
fn a_session_that_the_hub_grants_oddly_leads_nowhere() {
    let granted = |relay: &str, ticket: &str| {
        format!(
            r#"{{"session":"{NASTY}","ticket":"{ticket}","relay":"{relay}","service":"svc_1","name":"db","targetPort":5432,"protocol":"tcp","agentId":"{NASTY}","agentLabel":"{NASTY}","agentFingerprint":"{FINGERPRINT}"}}"#
        )
    };
    let cases = [
        granted("file:///etc/passwd", "t"),
        granted(NASTY, "t"),
        granted("http://h:1", NASTY),
        granted("https://h:1", "t"),
        granted("http://h:1", "t"),
        "{}".into(),
        "[]".into(),
    ];
    thread::scope(|scope| {
        for case in cases {
            scope.spawn(move || {
                let shown = case.clone();
                let fake = FakeHub::start(move |asked, stream| match asked.call.as_str() {
                    "GET /v1/services" => json(stream, 200, &format!("[{}]", service("db", ""))),
                    "POST /v1/sessions" => json(stream, 200, &case),
                    "GET /v1/relay" => stream.write_all(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: connect-relay/1\r\n\r\n\x16\x03\x01\x00\x02no"),
                    _ => friendly(asked, stream),
                });
                let (home, outer) = machine(&fake);
                let said = run(&home, &["reach", "db", "--check"]);
                let text = String::from_utf8_lossy(&said).into_owned();
                assert!(is_clean(&said) && text.contains("[x]") && !text.contains("can be reached"), "{shown}: {text}");
                assert!(stayed_at_home(home.path(), &outer), "{shown}");
            });
        }
    });
}

#[test]
fn a_share_of_more_services_than_there_can_be_is_refused_whole() {
    let services: Vec<String> = (0..300)
        .map(|number| {
            format!(r#"{{"id":"svc_{number}","name":"s{number}","targetPort":5432,"protocol":"tcp","status":"online"}}"#)
        })
        .collect();
    let preview = format!(
        r#"{{"name":"x","expiresAt":"2099-01-01T00:00:00Z","expiresInSeconds":9,"agentId":"agent_x","agentLabel":"x","agentFingerprint":"{FINGERPRINT}","services":[{}],"token":"t"}}"#,
        services.join(",")
    );
    let fake = FakeHub::start(move |asked, stream| match asked.call.as_str() {
        "POST /v1/shares/join" => json(stream, 200, &preview),
        _ => friendly(asked, stream),
    });
    let (home, _outer) = machine(&fake);
    let said = home.run(&["join", "abc123"]);
    assert_eq!(said.code, Some(1), "{said:#?}");
    assert!(said.err.contains("[x] The hub names 300 services in this share"), "{said:#?}");
    assert!(!fake.asked().iter().any(|asked| asked.call == "POST /v1/sessions"), "it asked for sessions");
}

/// The hub's CA as it keeps it.
fn stored_ca(hub: &Hub) -> serde_json::Value {
    serde_json::from_slice(&fs::read(hub.home.file("hub/certs/ca.json")).unwrap()).unwrap()
}

#[test]
fn a_new_root_that_the_known_one_has_not_signed_is_refused_and_not_saved() {
    let hub = Hub::start();
    let path = common::fault::Path::to(&hub.address);
    let (owner, user) = (hub.machine_by(&path.url(), "member"), hub.machine_by(&path.url(), "member"));
    let exposed = expose(&owner, "db", 5432);
    let before = [&owner, &user].map(|home| fs::read(home.file("config.json")).unwrap());
    let root = hub.ca();
    // What is public of a rotation: another hub's is as good as its own.
    let other = Hub::start();
    other.home.run(&["hub", "ca", "rotate"]).ok();
    let signed = stored_ca(&other)["replaced"]["crossSigned"].as_str().unwrap().to_owned();
    let own = Certificates::make();
    let forged = [
        own.clone(),
        Certificates { between: root.clone(), ..own.clone() },
        Certificates { between: format!("{signed}{root}"), ..own.clone() },
        // Signed, but by a key of its own that goes by the name of the root.
        Certificates::after(&root, &own.key),
        Certificates { ca: root.clone(), between: own.ca.clone(), ..own },
        Certificates::put_together(&root, stored_ca(&hub)["key"].as_str().unwrap()),
    ];
    for certificates in forged {
        let fake = FakeHub::with(certificates, friendly);
        path.lead_to(fake.url.strip_prefix("https://").unwrap());
        path.cut_everything();
        for args in
            [&["services"][..], &["whoami"], &["reach", "db", "--check"], &["up"], &["up", "--rotate"]]
        {
            let said = user.run(args);
            assert!(
                said.code == Some(1) && said.err.contains("did not prove that it is your hub"),
                "{said:?}"
            );
        }
        eventually("the agent sees it", PATIENCE, || exposed.events("lost") > 0);
        assert!(fake.asked().is_empty(), "{:?}", fake.asked());
    }
    path.lead_to(&hub.address);
    exposed.wait_event("back");
    user.run(&["services"]).ok();
    assert_eq!([&owner, &user].map(|home| fs::read(home.file("config.json")).unwrap()), before);
}

#[test]
fn a_root_that_was_stolen_leads_nobody_who_has_followed_to_another_one() {
    let hub = Hub::start();
    let path = common::fault::Path::to(&hub.address);
    let (owner, user) = (hub.machine("member"), hub.machine_by(&path.url(), "member"));
    let _exposed = expose(&owner, "db", common::service(common::echo));
    let stolen = stored_ca(&hub);
    // It has the old pin in memory, while another command follows.
    let (reached, port) = common::reach(&user, "db");
    hub.home.run(&["hub", "ca", "rotate"]).ok();
    let before = fs::read(user.file("config.json")).unwrap();
    user.run(&["services"]).ok();
    let followed = fs::read(user.file("config.json")).unwrap();
    assert_ne!(before, followed);
    let text = |name: &str| stolen[name].as_str().unwrap().to_owned();
    let thief = FakeHub::with(Certificates::after(&text("certificate"), &text("key")), friendly);
    path.lead_to(thief.url.strip_prefix("https://").unwrap());
    path.cut_everything();
    assert!(user.run(&["services"]).err.contains("did not prove that it is your hub"));
    assert!(!common::echoes(port, b"who is there?"), "{}", reached.err());
    assert!(thief.asked().is_empty(), "{:?}", thief.asked());
    assert_eq!(fs::read(user.file("config.json")).unwrap(), followed);
    path.lead_to(&hub.address);
    eventually("it goes on at its hub", PATIENCE, || common::echoes(port, b"back"));
    // It is a root like the hub's own for those who have not: so a root that may be stolen ends at once.
    fs::write(user.file("config.json"), before).unwrap();
    path.lead_to(thief.url.strip_prefix("https://").unwrap());
    user.run(&["services"]);
    assert!(!thief.asked().is_empty());
}

#[test]
fn a_project_that_names_another_hub_does_not_get_the_key_of_this_machine() {
    let fake = FakeHub::start(friendly);
    let home = Home::new();
    // A key without a pin, as of a hub with a public certificate; the other one has such a certificate as well.
    let config = serde_json::json!({ "hubUrl": "https://hub.example", "apiKey": "pc_secret", "agentId": "agent_x",
        "label": "x", "ca": fake.certificates.ca });
    fs::write(home.file("config.json"), config.to_string()).unwrap();
    fs::write(home.file("pconnect.yml"), format!("hub: {}\nservices:\n  - name: db\n", fake.url)).unwrap();
    let dev = |args: &[&str]| {
        let mut command = home.connect(&[&["dev"], args].concat());
        command.current_dir(home.path());
        common::Said::of(command)
    };
    let said = dev(&[]);
    assert!(fake.asked().is_empty(), "it was shown: {:?}", fake.asked());
    assert_eq!(said.code, Some(1));
    assert!(
        said.err.contains(&format!("[x] This project names the hub {}, which is not known", fake.url)),
        "{said:#?}"
    );
    assert!(said.err.contains(&format!("connect dev --hub {}", fake.url)), "{said:#?}");
    // Who means it says so.
    dev(&["--hub", &fake.url, "--wait", "1ms", "--", "true"]);
    assert!(fake.asked().iter().any(|asked| asked.head.contains("x-api-key: pc_secret")));
}

#[test]
fn a_host_with_a_certificate_of_the_ca_file_is_not_of_the_fleet() {
    for is_pinned in [false, true] {
        let certificates = Certificates::make();
        let other = FakeHub::with(certificates.clone(), friendly);
        let named = other.url.clone();
        let fake = FakeHub::with(certificates, move |asked, stream| match asked.call.as_str() {
            "GET /v1/services" => json(stream, 200, &format!("[{}]", service("db", ""))),
            "POST /v1/sessions" => json(stream, 421, &format!(r#"{{"error":"elsewhere","hub":"{named}"}}"#)),
            "GET /v1/whoami" => {
                let hubs = format!(r#""hubs":["{named}"]"#);
                json(
                    stream,
                    200,
                    &format!(r#"{{"id":"key_x","label":"x","role":"member","workspace":"default",{hubs}}}"#),
                )
            }
            _ => friendly(asked, stream),
        });
        let home = Home::new();
        fs::write(home.file("ca.pem"), &fake.certificates.ca).unwrap();
        let ca = home.file("ca.pem").display().to_string();
        home.run(&["up", "--hub", &fake.url, "--api-key", &fake.key]).ok();
        if !is_pinned {
            // What was learnt by the pin does not count for the file either.
            fs::write(
                home.file("gone.json"),
                fs::read_to_string(home.file("config.json"))
                    .unwrap()
                    .replace(&fake.url, "https://127.0.0.1:1"),
            )
            .unwrap();
            let mut learnt =
                home.connect(&["services", "--config", &home.file("gone.json").display().to_string()]);
            learnt.env("PRIVATECONNECT_CA", &ca);
            assert!(
                common::Said::of(learnt).code == Some(1) && other.asked().is_empty(),
                "{:?}",
                other.asked()
            );
            let unpinned = format!("pc_{}", "a".repeat(26));
            home.run(&["up", "--hub", &fake.url, "--api-key", &unpinned, "--ca", &ca]).ok();
        }
        home.run(&["reach", "db", "--check"]);
        let hubs = fs::read_to_string(home.file("config.json")).unwrap().contains(&other.url);
        assert_eq!((hubs, other.asked().is_empty()), (is_pinned, !is_pinned), "{:?}", other.asked());
    }
}

#[test]
fn a_hub_that_announces_more_joiners_than_there_can_be_is_declined_and_strangers_stay_out() {
    let open = |number: usize| {
        format!(
            r#"{{"type":"open","session":"ses_{number}","service":"svc_1","principal":"who_1","peer":"{FINGERPRINT}","agent":"{FINGERPRINT}"}}"#
        )
    };
    let heard = Lines::default();
    let own = Arc::clone(&heard);
    let lines: Vec<String> = (0..5000).map(open).collect();
    let lines = [&[WELCOME.to_owned(), EXPOSED.to_owned()][..], &lines].concat();
    let fake = FakeHub::start(move |asked, stream| match asked.call.as_str() {
        "GET /v1/agent" => control(stream, &lines, &own),
        _ => friendly(asked, stream),
    });
    let homes = machine(&fake);
    let running = homes.0.start(&["expose", "db", "5432", "--direct=127.0.0.1:0"]);
    let declined = || heard.lock().unwrap().iter().filter(|line| line.contains("decline")).count();
    eventually("those that are too many are declined", PATIENCE, || declined() == 5000 - 4096);
    let runs = homes.0.run(&["status", "--json"]).ok().json();
    let at = runs[0]["direct"].as_str().unwrap();
    // Whom the hub names is none of its choice: the joiner has to have the key of that certificate.
    let mut known = Vec::new();
    for number in 0..3 {
        let granted = serde_json::json!({ "agentFingerprint": FINGERPRINT, "name": "db", "session": format!("ses_{number}") });
        let mut joiner = Stranger::new().as_joiner(std::net::TcpStream::connect(at).unwrap(), &granted);
        let _ = joiner.write_all(b"o\0\0\0");
        let _ = joiner.read_to_end(&mut known);
    }
    assert!(known.is_empty());
    drop(running);
}
