//! The hub's side of sessions and shares, by raw HTTP and hand-made relay ends: tickets, guesses, joins, and
//! what is cut when a key or a share dies.

mod common;

use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use common::Hub;
use common::PATIENCE;
use common::eventually;
use common::https::Answer;
use common::https::FINGERPRINT;
use common::https::LOOPBACK;
use common::https::RawAgent;
use serde_json::Value;
use serde_json::json;

fn make_share(hub: &Hub, key: &str, more: &Value) -> Answer {
    let mut body = json!({ "name": "s", "agent": "agent_a", "services": ["db"], "expiresInSeconds": 600 });
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    hub.ask("POST /v1/shares", key, &body.to_string())
}

fn ask_session(hub: &Hub, key: &str, service: &str, share: &Value) -> Answer {
    let body = json!({ "service": service, "fingerprint": FINGERPRINT, "share": share }).to_string();
    hub.ask("POST /v1/sessions", key, &body)
}

/// Both ends of a session that runs.
fn meet(hub: &Hub, agent: &mut RawAgent, ticket: &str) -> [TcpStream; 2] {
    let mut ends = [hub.relay(ticket), hub.relay(&agent.ticket())];
    for end in &mut ends {
        assert_eq!(Answer::read_head(end).status, 101);
    }
    assert!(passes(&mut ends));
    ends
}

fn passes(ends: &mut [TcpStream; 2]) -> bool {
    let [a, b] = ends;
    let mut byte = [0];
    a.write_all(b"1").is_ok()
        && b.read_exact(&mut byte).is_ok()
        && b.write_all(b"2").is_ok()
        && a.read_exact(&mut byte).is_ok()
}

/// How long after `began` both ends were cut.
fn cut_after(mut ends: [TcpStream; 2], began: Instant) -> Duration {
    for end in &mut ends {
        assert!(matches!(end.read(&mut [0]), Ok(0) | Err(_)));
    }
    began.elapsed()
}

fn refused(mut stream: TcpStream) -> u16 {
    Answer::read(&mut stream).status
}

#[test]
fn a_ticket_works_once_and_for_its_own_session() {
    let hub = Hub::start();
    let key = hub.key("member");
    let mut agent = RawAgent::up(&hub, &key, "agent_a");
    agent.expose("db");
    let (first, second) = (hub.ticket(&key, "db"), hub.ticket(&key, "db"));
    let (agents_first, agents_second) = (agent.ticket(), agent.ticket());
    // Ends of different sessions come before their partners; each still meets its own.
    let mut ends = [&first, &agents_second, &agents_first, &second].map(|ticket| hub.relay(ticket));
    assert!(ends.iter_mut().all(|end| Answer::read_head(end).status == 101));
    let [a, d, b, c] = ends;
    for (pair, byte) in [([a, b], b"x"), ([c, d], b"y")] {
        let [mut from, mut to] = pair;
        let mut got = [0];
        from.write_all(byte).unwrap();
        to.read_exact(&mut got).unwrap();
        assert_eq!(&got, byte);
    }
    for ticket in [first.as_str(), &agents_second, "", "x", &"a".repeat(26)] {
        assert_eq!(refused(hub.relay(ticket)), 403, "{ticket}");
    }
    // Two that show the same ticket are not each other's partner.
    let (twice, partner) = (hub.ticket(&key, "db"), agent.ticket());
    let ends = [hub.relay(&twice), hub.relay(&twice)];
    let is_answered = |end: &TcpStream| {
        end.set_nonblocking(true).unwrap();
        let is_answered = end.peek(&mut [0]).is_ok();
        end.set_nonblocking(false).unwrap();
        is_answered
    };
    eventually("one of them is answered", PATIENCE, || ends.iter().any(is_answered));
    let _partner = hub.relay(&partner);
    let mut statuses = ends.map(|mut end| Answer::read_head(&mut end).status);
    statuses.sort_unstable();
    assert_eq!(statuses, [101, 403]);
}

#[test]
fn a_ticket_is_good_for_fifteen_seconds() {
    let hub = Hub::start();
    let key = hub.key("member");
    let mut agent = RawAgent::up(&hub, &key, "agent_a");
    agent.expose("db");
    let began = Instant::now();
    let tickets: Vec<String> = (0..100).map(|_| hub.ticket(&key, "db")).collect();
    let mut next = tickets.iter();
    eventually("the ticket is refused", Duration::from_secs(20), || {
        let mut end = hub.relay(next.next().unwrap());
        end.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        Answer::read_head(&mut end).status == 403
    });
    assert!(began.elapsed() > Duration::from_secs(14), "{:?}", began.elapsed());
}

#[test]
fn a_decline_of_the_agent_reaches_the_joiner_and_only_its_own_sessions() {
    let hub = Hub::start();
    let (key, other) = (hub.key("member"), hub.key("member"));
    let mut agent = RawAgent::up(&hub, &key, "agent_a");
    let mut stranger = RawAgent::up(&hub, &other, "agent_b");
    agent.expose("db");
    let granted = ask_session(&hub, &key, "db", &Value::Null);
    let mut joiner = hub.relay(&granted.text("ticket"));
    let decline = json!({ "type": "decline", "session": granted.text("session"), "reason": "no\u{1b}[31m" });
    stranger.send(&decline);
    stranger.expose("web");
    joiner.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert_eq!(Answer::read_head(&mut joiner).status, 0, "a stranger's word ended it");
    joiner.set_read_timeout(Some(PATIENCE)).unwrap();
    agent.send(&decline);
    let told = Answer::read(&mut joiner);
    assert_eq!((told.status, told.body.as_str()), (503, ""), "the reason went in the clear");
    let state = |granted: &Answer, key: &str| {
        hub.ask(&format!("GET /v1/sessions/{}", granted.text("session")), key, "").body
    };
    assert!(state(&granted, &key).starts_with(r#"{"declined":"no"#));
    assert_eq!(state(&granted, &other), r#"{"declined":null}"#, "another key was told");
    // A joiner who comes to the relay only now is sent away, too.
    let granted = ask_session(&hub, &key, "db", &Value::Null);
    agent.send(&json!({ "type": "decline", "session": granted.text("session"), "reason": "away" }));
    // The hub has heard it when it answers what comes behind it.
    let _tickets = [agent.ticket(), agent.ticket()];
    agent.expose("later");
    let joiner = hub.relay(&granted.text("ticket"));
    assert_eq!(refused(joiner), 403);
    assert_eq!(state(&granted, &key), r#"{"declined":"away"}"#);
}

#[test]
fn sessions_of_an_agent_that_has_left_are_not_waited_for() {
    let hub = Hub::start();
    let key = hub.key("member");
    let mut agent = RawAgent::up(&hub, &key, "agent_a");
    let mut other = RawAgent::up(&hub, &key, "agent_b");
    agent.expose("db");
    other.expose("web");
    let (granted, later) = (ask_session(&hub, &key, "db", &Value::Null), hub.ticket(&key, "db"));
    let others = hub.ticket(&key, "web");
    let waiting = hub.relay(&granted.text("ticket"));
    drop(agent);
    assert!(matches!(refused(waiting), 403 | 503));
    let state = hub.ask(&format!("GET /v1/sessions/{}", granted.text("session")), &key, "");
    assert_eq!(state.text("declined"), "it has left");
    assert_eq!(refused(hub.relay(&later)), 403);
    assert!(passes(&mut meet(&hub, &mut other, &others)));
}

#[test]
fn unknown_expired_and_revoked_codes_get_one_404_and_the_eleventh_guess_a_429() {
    let hub = Hub::start();
    let (owner, join, other) = (hub.key("member"), hub.key("join"), hub.key("join"));
    let mut agent = RawAgent::up(&hub, &owner, "agent_a");
    agent.expose("db");
    let expiring =
        make_share(&hub, &owner, &json!({ "expiresInSeconds": 1, "code": "expired1" })).text("code");
    let revoked = make_share(&hub, &owner, &json!({ "code": "revoked1" })).text("code");
    assert_eq!(hub.share("revoke", &owner, &revoked).status, 204);
    let standing = make_share(&hub, &owner, &json!({})).text("code");
    let linked = make_share(&hub, &owner, &json!({ "link": true }));
    let joined = hub.share("join", &other, &standing).text("token");
    let membership = json!({ "code": standing, "token": joined });
    let elsewhere = Ipv4Addr::new(127, 0, 0, 2);
    eventually("the share expires", PATIENCE, || {
        let key = hub.key("join");
        hub.from(elsewhere).share("preview", &key, &expiring).status == 404
    });
    let codes = ["unknown1", &expiring, &revoked, "x", "%20", "a-b"];
    let answers = codes.map(|code| hub.share("preview", &join, code));
    assert!(answers.iter().all(|answer| *answer == answers[0] && answer.status == 404), "{answers:#?}");
    for guess in 0..4 {
        assert_eq!(hub.share("join", &join, &format!("guess{guess}x")).status, 404);
    }
    // Now even the right code is not told from a wrong one for this key, wherever it is used. At this address the guesses
    // of others are refused, but neither a right code nor a link is.
    let elsewhere = Ipv4Addr::new(127, 0, 0, 3);
    let link = format!("pl_{}", linked.text("secret"));
    for (source, key, code, status) in [
        (elsewhere, &join, "unknown2", 429),
        (elsewhere, &join, &standing, 429),
        (LOOPBACK, &other, "unknown3", 429),
        (LOOPBACK, &other, &standing, 200),
        (LOOPBACK, &link, &linked.text("code"), 200),
    ] {
        let answer = hub.from(source).share("join", key, code);
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.field("retry-after").is_some(), status == 429);
    }
    // Whoever has joined is not kept from what is theirs by a neighbour's guesses.
    assert_eq!(ask_session(&hub, &other, "db", &membership).status, 200);
    eventually("the guesses are audited", PATIENCE, || hub.audit().contains("share-not-found"));
    let audit = hub.audit();
    let (out, err) = (hub.running.out(), hub.running.err());
    for code in codes.iter().chain([&standing.as_str(), &"guess1x"]).filter(|code| code.len() > 4) {
        assert!(![&audit, &out, &err].iter().any(|text| text.contains(code)), "{code} is written somewhere");
    }
    let stored = std::fs::read_to_string(hub.home.file("hub/journal")).unwrap();
    assert!(!stored.contains(&standing) && !stored.contains(&owner[..29]), "a secret is stored in clear");
}

/// The attack of somebody who reads the journal, a backup or etcd: hash every code, compare.
#[test]
fn a_code_cannot_be_tried_against_the_journal_without_the_key_in_another_file() {
    let hub = Hub::start();
    let owner = hub.key("member");
    let mut agent = RawAgent::up(&hub, &owner, "agent_a");
    agent.expose("db");
    assert_eq!(make_share(&hub, &owner, &json!({ "code": "pr1234" })).status, 201);
    let made = make_share(&hub, &owner, &json!({})).text("code");
    assert!(made.len() >= 10, "{made}");
    let journal = std::fs::read_to_string(hub.home.file("hub/journal")).unwrap();
    let guess = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"pr1234");
    let guess: String = guess.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(!journal.contains(&guess), "the code's bare hash is in the journal");
    let key = std::fs::read_to_string(hub.home.file("hub/code.key")).unwrap();
    assert!(!journal.contains(key.trim()));
    let mode = std::fs::metadata(hub.home.file("hub/code.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn two_workspaces_may_have_the_same_code_and_each_opens_its_own_share() {
    let hub = Hub::start();
    let stranger = hub.new_key(&["--workspace", "strange"]).0;
    for (key, agent) in [(hub.key("member"), "agent_a"), (stranger, "agent_b")] {
        let mut raw = RawAgent::up(&hub, &key, agent);
        raw.expose("db");
        let made = make_share(&hub, &key, &json!({ "agent": agent, "code": "common1" }));
        assert_eq!(made.status, 201, "{made:?}");
        assert_eq!(hub.share("join", &key, "common1").text("agentId"), agent);
    }
}

#[test]
fn choosing_codes_is_no_way_to_guess_them() {
    let hub = Hub::start();
    let owner = hub.key("member");
    let mut agent = RawAgent::up(&hub, &owner, "agent_a");
    agent.expose("db");
    assert_eq!(make_share(&hub, &owner, &json!({ "code": "taken1" })).status, 201);
    for odd in [
        json!({ "maxJoins": 0 }),
        json!({ "maxSessions": 0 }),
        json!({ "expiresInSeconds": 0 }),
        json!({ "code": "abc" }),
        json!({ "services": [] }),
    ] {
        assert_eq!(make_share(&hub, &owner, &odd).status, 400, "{odd}");
    }
    // Whoever has guessed too often is not even told that a code is free or a body is odd.
    let tries: Vec<u16> =
        (0..12).map(|_| make_share(&hub, &owner, &json!({ "code": "TAKEN1" })).status).collect();
    assert_eq!((tries[0], tries[9], tries[10], tries[11]), (409, 409, 429, 429));
    assert_eq!(make_share(&hub, &owner, &json!({ "code": "free12" })).status, 429);
}

#[test]
fn a_share_opens_its_services_to_those_who_joined_and_nothing_else() {
    let hub = Hub::start();
    let (owner, join) = (hub.key("member"), hub.key("join"));
    let mut agent = RawAgent::up(&hub, &owner, "agent_a");
    let (db, web) = (agent.expose("db"), agent.expose("web"));
    let share = make_share(&hub, &owner, &json!({ "link": true }));
    let (code, link) = (share.text("code"), format!("pl_{}", share.text("secret")));
    for token in ["", "1.", "1.x", "0.x", "99.aaaaaaaaaaaaaaaaaaaaaaaaaa"] {
        assert_eq!(
            ask_session(&hub, &join, "db", &json!({ "code": code, "token": token })).status,
            403,
            "{token}"
        );
    }
    assert_eq!(ask_session(&hub, &join, "db", &Value::Null).status, 403);
    let token = hub.share("join", &join, &code).text("token");
    let membership = json!({ "code": format!(" {} ", code.to_uppercase()), "token": token });
    for (service, status) in [("db", 200), (&db, 200), ("web", 404), (&web, 404), ("none", 404)] {
        assert_eq!(ask_session(&hub, &join, service, &membership).status, status, "{service}");
    }
    // A link needs no key, and opens its own share only.
    let other = make_share(&hub, &owner, &json!({})).text("code");
    for (verb, code, status) in
        [("preview", &code, 200), ("join", &code, 200), ("preview", &other, 404), ("revoke", &code, 403)]
    {
        assert_eq!(hub.share(verb, &link, code).status, status, "{verb}");
    }
    for call in ["GET /v1/services", "GET /v1/shares", "POST /v1/keys"] {
        assert_eq!(hub.ask(call, &link, "").status, 403, "{call}");
    }
    let listed = hub.ask("GET /v1/shares", &owner, "").json();
    let listed = listed.as_array().unwrap().iter().find(|one| one["joinCount"] == 2).unwrap().clone();
    assert_eq!((&listed["joins"][0]["who"], &listed["joins"][1]["who"]), (&"join".into(), &"link".into()));
    assert!(!listed.to_string().contains(&code));
}

#[test]
fn concurrent_joiners_never_exceed_the_number_that_may_join() {
    let hub = Hub::start();
    let owner = hub.key("member");
    let mut agent = RawAgent::up(&hub, &owner, "agent_a");
    agent.expose("db");
    let code = make_share(&hub, &owner, &json!({ "maxJoins": 5 })).text("code");
    let (joined, full) = (AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| match hub.share("join", &owner, &code).status {
                200 => joined.fetch_add(1, Ordering::Relaxed),
                409 => full.fetch_add(1, Ordering::Relaxed),
                other => panic!("{other}"),
            });
        }
    });
    assert_eq!((joined.into_inner(), full.into_inner()), (5, 15));
    assert_eq!(hub.ask("GET /v1/shares", &owner, "").json()[0]["joinCount"], 5);
}

#[test]
fn a_key_or_share_that_dies_takes_its_sessions_along_within_a_second() {
    let hub = Hub::start();
    let owner = hub.key("member");
    let mut agent = RawAgent::up(&hub, &owner, "agent_a");
    agent.expose("db");
    let revoke =
        |id: &str| assert_eq!(hub.ask(&format!("DELETE /v1/keys/{id}"), &hub.admin_key, "").status, 204);

    let (member, id) = hub.new_key(&[]);
    let ends = meet(&hub, &mut agent, &hub.ticket(&member, "db"));
    let mut untouched = meet(&hub, &mut agent, &hub.ticket(&owner, "db"));
    let granted_before = hub.ticket(&member, "db");
    let agents_ticket = agent.ticket();
    let began = Instant::now();
    revoke(&id);
    assert!(cut_after(ends, began) < Duration::from_secs(1));
    let mut late = [hub.relay(&granted_before), hub.relay(&agents_ticket)];
    assert!(
        late.iter_mut().all(|end| Answer::read(end).status != 101),
        "a session begins after its key's end"
    );

    let join = hub.key("join");
    let mut by_share = |more: Value| {
        let code = make_share(&hub, &owner, &more).text("code");
        let token = hub.share("join", &join, &code).text("token");
        let granted = ask_session(&hub, &join, "db", &json!({ "code": code, "token": token })).text("ticket");
        (code, meet(&hub, &mut agent, &granted))
    };
    let (code, ends) = by_share(json!({}));
    let began = Instant::now();
    assert_eq!(hub.share("revoke", &owner, &code).status, 204);
    assert!(cut_after(ends, began) < Duration::from_secs(1));

    let began = Instant::now();
    let (_, ends) = by_share(json!({ "expiresInSeconds": 2 }));
    let lived = cut_after(ends, began);
    assert!((Duration::from_secs(1)..Duration::from_millis(3200)).contains(&lived), "{lived:?}");
    assert!(passes(&mut untouched));

    let (expiring, _) = hub.new_key(&["--expires", "2s"]);
    let began = Instant::now();
    let ends = meet(&hub, &mut agent, &hub.ticket(&expiring, "db"));
    assert!(cut_after(ends, began) < Duration::from_millis(3200));
}

#[test]
fn an_agent_whose_key_is_revoked_is_gone_with_its_sessions_and_its_shares() {
    let hub = Hub::start();
    let (stolen, id) = hub.new_key(&[]);
    let member = hub.key("member");
    let mut agent = RawAgent::up(&hub, &stolen, "agent_a");
    agent.expose("db");
    let share = make_share(&hub, &stolen, &json!({ "link": true }));
    let (code, link) = (share.text("code"), format!("pl_{}", share.text("secret")));
    assert_eq!(hub.share("preview", &link, &code).status, 200);
    let ends = meet(&hub, &mut agent, &hub.ticket(&member, "db"));
    let began = Instant::now();
    hub.home.run(&["hub", "key", "revoke", &id]).ok();
    assert_eq!(agent.next(), None, "the control channel stays");
    assert!(cut_after(ends, began) < Duration::from_millis(1500), "the command itself takes its time too");
    assert_eq!(hub.share("preview", &link, &code).status, 401);
    assert_eq!(hub.share("preview", &member, &code).status, 404);
    // Its name is free.
    let mut agent = RawAgent::up(&hub, &member, "agent_b");
    agent.expose("db");
    assert_eq!(hub.ask("GET /v1/services", &member, "").json()[0]["status"], "online");
}

#[test]
fn a_name_belongs_to_one_agent_at_a_time() {
    let hub = Hub::start();
    let (one, two) = (hub.key("member"), hub.key("member"));
    let mut first = RawAgent::up(&hub, &one, "agent_a");
    let mut second = RawAgent::up(&hub, &two, "agent_b");
    first.expose("db");
    second.send(&json!({ "type": "expose", "name": "db", "port": 1, "protocol": "tcp" }));
    let told = second.next().unwrap();
    assert_eq!(
        (&told["type"], &told["reason"]),
        (&"refused".into(), &"db is already exposed by agent_a".into())
    );
    // Not even while its owner is away, until somebody who may do so gives it up.
    drop(first);
    eventually("the owner is away", PATIENCE, || {
        second.send(&json!({ "type": "expose", "name": "db", "port": 1, "protocol": "tcp" }));
        second.next().unwrap()["reason"] == "db is offline, but its name belongs to agent_a"
    });
    let refused = hub.ask("DELETE /v1/services/db", &two, "");
    assert_eq!((refused.status, refused.text("code")), (403, "service-of-another-key".into()));
    RawAgent::up(&hub, &one, "agent_a").expose("db");
    eventually("it is removed", PATIENCE, || hub.ask("DELETE /v1/services/db", &one, "").status == 204);
    second.expose("db");
    // Whoever may take it takes it from one that is online, too, and that one is told.
    let taken = hub.ask("DELETE /v1/services/db", &hub.admin_key, r#"{"evenOnline":true}"#);
    assert_eq!(taken.status, 204, "{taken:?}");
    assert_eq!(second.next().unwrap()["reason"], "db was taken over by first admin");
    RawAgent::up(&hub, &one, "agent_a").expose("db");
}

#[test]
fn garbage_on_a_control_channel_ends_that_channel_only() {
    let hub = Hub::start();
    let key = hub.key("member");
    let mut standing = RawAgent::up(&hub, &key, "agent_standing");
    let deep = format!(
        r#"{{"type":"hello","agent":"x","version":"x","more":{}{}}}"#,
        "[".repeat(7000),
        "]".repeat(7000)
    );
    let shallow = format!(
        r#"{{"type":"hello","agent":"x","version":"x","more":{}{}}}"#,
        "[".repeat(120),
        "]".repeat(120)
    );
    for line in [
        "{",
        "[]",
        "null",
        "\u{0}",
        r#"{"type":"fly"}"#,
        r#"{"type":"expose","name":"A","port":1,"protocol":"tcp"}"#,
        &deep,
        &shallow,
        &"x".repeat(100_000),
    ] {
        let (mut agent, _) = RawAgent::connect(&hub, &key);
        agent.send_raw(line);
        assert_eq!(agent.next(), None, "{line:.40}");
        let mut agent = RawAgent::up(&hub, &key, "agent_a");
        agent.send_raw(line);
        // A newer agent may know messages that this hub does not.
        if line != shallow && line != r#"{"type":"fly"}"# {
            assert_eq!(agent.next(), None, "{line:.40}");
        }
    }
    standing.expose("db");
    assert_eq!(hub.ask("GET /v1/services", &key, "").json()[0]["status"], "online");
    assert!(!hub.running.err().contains("a bug of connect"), "{}", hub.running.err());
}
