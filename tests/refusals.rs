//! Who is refused what: every call of the hub's API by everyone who might make it, and the limits.

mod common;

use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Instant;

use common::Home;
use common::Hub;
use common::https::Answer;
use common::https::FINGERPRINT;
use common::https::RawAgent;
use common::https::request;
use serde_json::Value;
use serde_json::json;

/// Who asks, in the order of the table's columns.
const WHO: [&str; 15] = [
    "no key",
    "wrong key",
    "revoked key",
    "expired key",
    "join",
    "owner",
    "neighbour",
    "admin",
    "stranger",
    "strange admin",
    "expose",
    "metrics",
    "other names",
    "elsewhere",
    "enrolling",
];

/// Nobody without a good key, and what those with one get, from `join` on. A key that is used from elsewhere gets nothing.
const fn keyed(good: [u16; 10]) -> [u16; 15] {
    let [join, owner, neighbour, admin, stranger, strange_admin, expose, metrics, names, enrolling] = good;
    let [bad, elsewhere] = [401, 403];
    [
        bad,
        bad,
        bad,
        bad,
        join,
        owner,
        neighbour,
        admin,
        stranger,
        strange_admin,
        expose,
        metrics,
        names,
        elsewhere,
        enrolling,
    ]
}

/// The call, its body, and each column's status. `$agent` is the owner's agent, `$service` its service's id,
/// `$share` a share of it, `$full` one that has been joined as often as it may; `$new-…` is made anew for
/// each case. The owner, the neighbour (another member) and the admin are in one workspace, the strangers
/// in another.
#[rustfmt::skip]
const TABLE: [(&str, &str, [u16; 15]); 43] = [
    ("GET /health", "", [200; 15]),
    ("HEAD /health", "", [200; 15]),
    ("GET /ready", "", [200; 15]),
    ("GET /", "", [200; 15]),
    ("GET /device", "", [200; 15]),
    ("GET /join", "", [200; 15]),
    ("GET /v1/nothing", "", [404; 15]),
    ("GET /v1/keys/", "", [404; 15]),
    ("PUT /v1/keys", "", [405; 15]),
    ("POST /v1/device", r#"{"label":"x"}"#, [201; 15]),
    ("POST /v1/device/state", r#"{"code":"$new-device","secret":"x"}"#, [404; 15]),
    ("POST /device", "code=ABCD-EFGH&key=pc_guess", [404; 15]),
    ("GET /v1/relay", "", [426; 15]),
    ("GET /metrics", "", keyed([403, 403, 403, 200, 403, 403, 403, 200, 403, 403])),
    ("GET /v1/whoami", "", keyed([200, 200, 200, 200, 200, 200, 200, 200, 200, 200])),
    ("GET /v1/services", "", keyed([403, 200, 200, 200, 200, 200, 200, 403, 200, 403])),
    ("GET /v1/agents", "", keyed([403, 200, 200, 200, 200, 200, 200, 403, 200, 403])),
    ("DELETE /v1/services/db", "", keyed([403, 409, 403, 409, 404, 404, 404, 403, 404, 403])),
    ("DELETE /v1/agents/$agent", "", keyed([403, 403, 403, 409, 403, 404, 403, 403, 403, 403])),
    ("GET /v1/agent", "", keyed([403, 426, 426, 426, 426, 426, 426, 403, 426, 403])),
    ("POST /v1/agents/register", r#"{"id":"agent_$new","label":"x","fingerprint":"$fp"}"#, keyed([403, 200, 200, 200, 200, 200, 200, 403, 200, 403])),
    ("POST /v1/agents/register", r#"{"id":"$agent","label":"x","fingerprint":"$fp"}"#, keyed([403, 200, 403, 403, 403, 403, 403, 403, 403, 403])),
    ("POST /v1/agents/register", r#"{"id":"../../x","label":"x","fingerprint":"$fp"}"#, keyed([403, 400, 400, 400, 400, 400, 400, 403, 400, 403])),
    ("POST /v1/sessions", r#"{"service":"db","fingerprint":"$fp"}"#, keyed([403, 200, 200, 200, 404, 404, 403, 403, 404, 403])),
    ("POST /v1/sessions", r#"{"service":"$service","fingerprint":"$fp"}"#, keyed([403, 200, 200, 200, 404, 404, 403, 403, 404, 403])),
    ("POST /v1/sessions", r#"{"service":"none","fingerprint":"$fp"}"#, keyed([403, 404, 404, 404, 404, 404, 403, 403, 404, 403])),
    ("POST /v1/sessions", r#"{"service":"db","fingerprint":"$fp","share":{"code":"$share","token":"1.x"}}"#, keyed([403, 403, 403, 403, 404, 404, 403, 403, 404, 403])),
    ("POST /v1/shares", r#"{"name":"x","agent":"$agent","services":["db"],"expiresInSeconds":60}"#, keyed([403, 201, 403, 201, 403, 403, 403, 403, 403, 403])),
    ("POST /v1/shares", r#"{"name":"x","agent":"$agent","services":["other"],"expiresInSeconds":60}"#, keyed([403, 404, 403, 404, 403, 403, 403, 403, 403, 403])),
    ("GET /v1/shares", "", keyed([403, 200, 200, 200, 200, 200, 200, 403, 200, 403])),
    ("POST /v1/shares/preview", r#"{"code":"$share"}"#, keyed([200, 200, 200, 200, 404, 404, 403, 403, 404, 403])),
    ("POST /v1/shares/join", r#"{"code":"$share"}"#, keyed([200, 200, 200, 200, 404, 404, 403, 403, 404, 403])),
    ("POST /v1/shares/join", r#"{"code":"$full"}"#, keyed([409, 409, 409, 409, 404, 404, 403, 403, 404, 403])),
    ("POST /v1/shares/revoke", r#"{"code":"$new-share"}"#, keyed([403, 204, 404, 204, 404, 404, 404, 403, 404, 403])),
    ("POST /v1/device/preview", r#"{"code":"$new-device"}"#, keyed([403, 403, 403, 200, 403, 200, 403, 403, 403, 403])),
    ("POST /v1/device/approve", r#"{"code":"$new-device"}"#, keyed([403, 403, 403, 200, 403, 200, 403, 403, 403, 403])),
    ("POST /v1/device/approve", r#"{"code":"$new-device","workspace":"default"}"#, keyed([403, 403, 403, 200, 403, 403, 403, 403, 403, 403])),
    ("GET /v1/keys", "", keyed([403, 403, 403, 200, 403, 200, 403, 403, 403, 403])),
    ("POST /v1/keys", r#"{"role":"join"}"#, keyed([403, 403, 403, 201, 403, 201, 403, 403, 403, 403])),
    ("POST /v1/keys", r#"{"workspace":"default"}"#, keyed([403, 403, 403, 201, 403, 403, 403, 403, 403, 403])),
    ("POST /v1/enrol", r#"{"label":"x"}"#, keyed([403, 403, 403, 403, 403, 403, 403, 403, 403, 201])),
    ("POST /v1/drain", r#"{"timeoutSeconds":1}"#, keyed([403; 10])),
    ("DELETE /v1/keys/$new-key", "", keyed([403, 403, 403, 204, 403, 404, 403, 403, 403, 403])),
];

/// One address for a few cases each, so that the limits by address stay out of the way.
fn source(row: usize, column: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 1, u8::try_from(column).unwrap(), u8::try_from(row / 4 + 1).unwrap())
}

struct Stage {
    hub: Hub,
    /// Two of each kind that is refused: one key may fail twenty times a minute.
    keys: [[String; 2]; 15],
    agent: RawAgent,
    service: String,
    share: String,
    full: String,
}

impl Stage {
    fn set() -> Self {
        let hub = Hub::start();
        let twice = |key: &str| [key.to_owned(), key.to_owned()];
        let (revoked, expired) = ([(); 2], [(); 2]);
        let revoked = revoked.map(|()| hub.new_key(&[])).map(|(key, id)| {
            hub.home.run(&["hub", "key", "revoke", &id]).ok();
            key
        });
        let expired = expired.map(|()| hub.new_key(&["--expires", "1s"]).0);
        let owner = hub.key("member");
        let strange = |role| hub.new_key(&["--workspace", "strange", "--role", role]).0;
        let mut agent = RawAgent::up(&hub, &owner, "agent_owner");
        let service = agent.expose("db");
        let keys = [
            twice(""),
            ["pc_wrong1".into(), "nonsense".into()],
            revoked,
            expired,
            twice(&hub.key("join")),
            twice(&owner),
            twice(&hub.key("member")),
            twice(&hub.admin_key),
            twice(&strange("member")),
            twice(&strange("admin")),
            twice(&hub.key("expose")),
            twice(&hub.key("metrics")),
            twice(&hub.new_key(&["--only", "other-*"]).0),
            twice(&hub.new_key(&["--from", "127.0.0.0/16,10.0.0.0/8"]).0),
            twice(&hub.new_key(&["--uses", "100", "--role", "admin"]).0),
        ];
        let mut stage = Self { hub, keys, agent, service, share: String::new(), full: String::new() };
        (stage.share, stage.full) = (stage.new_share(None), stage.new_share(Some(1)));
        let joined = stage.hub.share("join", &owner, &stage.full);
        assert_eq!(joined.status, 200);
        common::eventually("the keys expire", common::PATIENCE, || {
            // The second one was made last. Each look at a dead key counts as a failure of its own.
            stage.hub.ask("GET /v1/whoami", &stage.keys[3][1], "").status == 401
        });
        stage
    }

    fn new_share(&self, max_joins: Option<u32>) -> String {
        let body = json!({ "name": "s", "agent": "agent_owner", "services": ["db"], "expiresInSeconds": 600, "maxJoins": max_joins });
        self.hub.ask("POST /v1/shares", &self.keys[5][0], &body.to_string()).text("code")
    }

    fn fill(&self, text: &str, source: Ipv4Addr) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mut text = text.replace("$fp", FINGERPRINT).replace("$service", &self.service);
        text =
            text.replace("$agent", "agent_owner").replace("$share", &self.share).replace("$full", &self.full);
        if text.contains("$new-share") {
            text = text.replace("$new-share", &self.new_share(None));
        }
        if text.contains("$new-key") {
            let made = self.hub.ask("POST /v1/keys", &self.hub.admin_key, "");
            text = text.replace("$new-key", &made.text("id"));
        }
        if text.contains("$new-device") {
            let asked = self.hub.from(source).ask("POST /v1/device", "", r#"{"label":"y"}"#);
            text = text.replace("$new-device", &asked.text("code"));
        }
        text.replace("$new", &format!("new{}", NEXT.fetch_add(1, Ordering::Relaxed)))
    }
}

#[test]
fn every_call_refuses_everyone_whom_it_should() {
    let stage = Stage::set();
    let (mut cases, mut wrong) = (0, Vec::new());
    for (row, (call, body, expected)) in TABLE.iter().enumerate() {
        for (column, expected) in expected.iter().enumerate() {
            let source = source(row, column);
            let (call, body) = (stage.fill(call, source), stage.fill(body, source));
            let key = &stage.keys[column][row % 2];
            let answer = stage.hub.from(source).ask(&call, key, &body);
            cases += 1;
            if answer.status != *expected {
                wrong.push(format!("{call} {body} by {}: {} and not {expected}", WHO[column], answer.status));
            }
            if answer.status >= 400 && !call.ends_with(" /device") {
                assert!(answer.text("error").len() > 5, "{call}: {answer:?}");
            }
        }
    }
    assert!(cases >= 300 && wrong.is_empty(), "{} of {cases}:\n{}", wrong.len(), wrong.join("\n"));
    drop(stage.agent);
}

#[test]
fn an_expose_key_shares_what_it_exposes_itself_and_knows_of_nothing_else() {
    let stage = Stage::set();
    let (hub, key) = (&stage.hub, hub_key(&stage, "expose"));
    let mut agent = RawAgent::up(hub, &key, "agent_server");
    agent.expose("own");
    for list in ["GET /v1/services", "GET /v1/agents"] {
        let listed = hub.ask(list, &key, "");
        assert_eq!(listed.json().as_array().unwrap().len(), 1, "{listed:?}");
        assert!(listed.body.contains("agent_server"), "{listed:?}");
    }
    assert_eq!(count(hub, "GET /v1/services?name=db", &key), 0);
    let share = |services: &str| {
        let body = json!({ "name": "s", "agent": "agent_server", "services": [services], "expiresInSeconds": 600, "link": true });
        hub.ask("POST /v1/shares", &key, &body.to_string())
    };
    let made = share("own");
    assert_eq!((made.status, share("db").text("code")), (201, "not-exposed".to_owned()));
    // Others join what it shares; it joins nothing itself, not even this.
    let code = made.text("code");
    assert_eq!(hub.share("join", &key, &code).text("code"), "role");
    assert_eq!(hub.share("join", &hub.key("join"), &code).status, 200);
    let ask = json!({ "service": "own", "fingerprint": FINGERPRINT }).to_string();
    assert_eq!(hub.ask("POST /v1/sessions", &key, &ask).text("code"), "role");
    assert_eq!(hub.ask("DELETE /v1/services/db", &key, "").text("code"), "no-such-service");
}

#[test]
fn a_key_limited_to_names_exposes_reaches_and_shares_no_others() {
    let hub = Hub::start();
    let (owner, (key, _)) = (hub.key("member"), hub.new_key(&["--only", "staging-*"]));
    let mut others = RawAgent::up(&hub, &owner, "agent_owner");
    let [db, _, _] = ["db", "staging-web", "secret"].map(|name| others.expose(name));
    let mut agent = RawAgent::up(&hub, &key, "agent_limited");
    agent.expose("staging-db");
    agent.send(&json!({ "type": "expose", "name": "prod-db", "port": 1, "protocol": "tcp" }));
    let refused = agent.next().unwrap().to_string();
    assert!(refused.contains("may not expose prod-db") && refused.contains("only staging-*"), "{refused}");
    let listed = hub.ask("GET /v1/services", &key, "");
    let names = |answer: &Answer| -> Vec<String> {
        let services = answer.json();
        let services =
            services.as_array().unwrap_or(services["services"].as_array().unwrap_or(&EMPTY)).clone();
        services.iter().map(|service| service["name"].as_str().unwrap().to_owned()).collect()
    };
    let mut seen = names(&listed);
    seen.sort();
    assert_eq!(seen, ["staging-db", "staging-web"]);
    assert!(hub.ask("GET /v1/agents", &key, "").body.contains("\"services\":1"), "of three");
    // What is outside has the answer of what does not exist.
    let session = |service: &str| {
        let ask = json!({ "service": service, "fingerprint": FINGERPRINT }).to_string();
        let answer = hub.ask("POST /v1/sessions", &key, &ask);
        (answer.status, answer.body)
    };
    assert_eq!(session("staging-web").0, 200);
    let unknown = session("nothing");
    assert_eq!((unknown.0, &session("secret"), &session(&db)), (404, &unknown, &unknown));
    let share = |key: &str, agent: &str, services: &[&str]| {
        let body = json!({ "name": "s", "agent": agent, "services": services, "expiresInSeconds": 600 });
        hub.ask("POST /v1/shares", key, &body.to_string())
    };
    assert_eq!(share(&key, "agent_limited", &["staging-db"]).status, 201);
    assert_eq!(share(&key, "agent_limited", &["prod-db"]).text("code"), "not-exposed");
    // By a code it gets what is within its limits, and a share of nothing else is unknown to it.
    let code = share(&owner, "agent_owner", &["db", "staging-web"]).text("code");
    let joined = hub.share("join", &key, &code);
    assert_eq!(names(&joined), ["staging-web"]);
    let by_share = |service: &str| {
        let share = json!({ "code": code, "token": joined.text("token") });
        let ask = json!({ "service": service, "fingerprint": FINGERPRINT, "share": share });
        hub.ask("POST /v1/sessions", &key, &ask.to_string()).status
    };
    assert_eq!((by_share("staging-web"), by_share("db"), by_share(&db)), (200, 404, 404));
    let hidden = share(&owner, "agent_owner", &["db"]).text("code");
    assert_eq!(hub.share("preview", &key, &hidden), hub.share("preview", &key, "k7m2p9qxw4"));
}

static EMPTY: Vec<Value> = Vec::new();

#[test]
fn a_key_is_used_only_from_where_it_may_be() {
    let hub = Hub::start();
    let (key, id) = hub.new_key(&["--from", "127.0.0.7", "--from", "127.0.3.0/24,::1"]);
    let whoami = |source| hub.from(source).ask("GET /v1/whoami", &key, "");
    for allowed in [Ipv4Addr::new(127, 0, 0, 7), Ipv4Addr::new(127, 0, 3, 200)] {
        assert_eq!(whoami(allowed).status, 200);
    }
    let refused = whoami(Ipv4Addr::new(127, 0, 0, 8));
    assert_eq!((refused.status, refused.text("code")), (403, "key-elsewhere".into()));
    assert!(refused.text("error").contains("127.0.0.8"), "{refused:?}");
    // The control channel, a session, and an address that no hub vouches for.
    assert_eq!(RawAgent::connect(&hub, &key).1.status, 403);
    let ask = json!({ "service": "db", "fingerprint": FINGERPRINT }).to_string();
    assert_eq!(hub.ask("POST /v1/sessions", &key, &ask).status, 403);
    let vouched = format!("{key};127.0.0.7;{}", "a".repeat(64));
    assert_eq!(hub.ask("GET /v1/whoami", &vouched, "").text("code"), "key-elsewhere");
    common::eventually("it is audited", common::PATIENCE, || {
        let audit = hub.audit();
        audit
            .lines()
            .any(|line| line.contains("key-elsewhere") && line.contains(&id) && line.contains("127.0.0.8"))
    });
}

#[test]
fn limits_that_limit_nothing_or_do_not_fit_make_no_key() {
    let hub = Hub::start();
    for body in [
        r#"{"only":[]}"#,
        r#"{"only":["A*"]}"#,
        r#"{"only":"db"}"#,
        r#"{"role":"admin","only":["db"]}"#,
        r#"{"role":"metrics","only":["db"]}"#,
        r#"{"from":[]}"#,
        r#"{"from":["10.0.0.0/33"]}"#,
        r#"{"uses":0}"#,
        r#"{"onyl":["db"]}"#,
    ] {
        assert_eq!(hub.ask("POST /v1/keys", &hub.admin_key, body).status, 400, "{body}");
    }
    let many = vec!["db"; 33];
    let many = json!({ "only": many }).to_string();
    assert_eq!(hub.ask("POST /v1/keys", &hub.admin_key, &many).text("code"), "bad-key-limits");
    for option in [["--only", ""], ["--only", "staging_*"], ["--from", "10.0.0/8"], ["--uses", "0"]] {
        let args = [&["hub", "key", "create"], &option[..]].concat();
        assert_eq!(hub.home.run(&args).code, Some(2), "{option:?}");
    }
}

#[test]
fn a_key_with_uses_enrols_as_many_machines_at_once_and_no_more() {
    let hub = Hub::start();
    let (enrolling, id) = hub.new_key(&["--role", "expose", "--only", "web", "--uses", "3"]);
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let one = || hub.ask("POST /v1/enrol", &enrolling, r#"{"label":"machine"}"#);
        let asked: Vec<_> = (0..6).map(|_| scope.spawn(one)).collect();
        asked.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let (made, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 201);
    assert_eq!((made.len(), refused[0].text("code")), (3, "key-used-up".into()));
    let own = made[0].text("key");
    let whoami = hub.ask("GET /v1/whoami", &own, "").json();
    assert_eq!((&whoami["role"], &whoami["only"][0]), (&json!("expose"), &json!("web")));
    assert_eq!((&whoami["enrolledBy"], &whoami["usesLeft"]), (&json!(id), &Value::Null));
    // The machines' keys outlive it, unless they are to go with it.
    hub.home.run(&["hub", "key", "revoke", &id]).ok();
    assert_eq!(hub.ask("GET /v1/whoami", &own, "").status, 200);
    let (enrolling, id) = hub.new_key(&["--uses", "3"]);
    let own = hub.ask("POST /v1/enrol", &enrolling, r#"{"label":"machine"}"#).text("key");
    let mut agent = RawAgent::up(&hub, &own, "agent_machine");
    agent.expose("db");
    hub.home.run(&["hub", "key", "revoke", &id, "--with-all-it-made"]).ok();
    assert_eq!(hub.ask("GET /v1/whoami", &own, "").status, 401);
    assert_eq!(agent.next(), None);
    assert_eq!(count(&hub, "GET /v1/services", &hub.admin_key), 0);
}

#[test]
fn a_share_has_no_more_sessions_at_once_than_its_owner_allows() {
    let hub = Hub::start();
    let owner = hub.key("member");
    let mut agent = RawAgent::up(&hub, &owner, "agent_owner");
    agent.expose("db");
    let body = json!({ "name": "s", "agent": "agent_owner", "services": ["db"], "expiresInSeconds": 600, "maxSessions": 1 });
    let code = hub.ask("POST /v1/shares", &owner, &body.to_string()).text("code");
    assert!(hub.ask("GET /v1/shares", &owner, "").body.contains("\"maxSessions\":1"));
    let token = hub.share("join", &owner, &code).text("token");
    let ask =
        json!({ "service": "db", "fingerprint": FINGERPRINT, "share": { "code": code, "token": token } });
    let ask = || hub.ask("POST /v1/sessions", &owner, &ask.to_string());
    let first = ask();
    let held = [hub.relay(&first.text("ticket")), hub.relay(&agent.ticket())];
    let refused = ask();
    assert_eq!((refused.status, refused.text("code")), (503, "too-many-sessions".into()));
    assert!(refused.text("error").contains("share"), "{refused:?}");
    drop(held);
    common::eventually("its place is free again", common::PATIENCE, || ask().status == 200);
}

fn hub_key(stage: &Stage, who: &str) -> String {
    stage.keys[WHO.iter().position(|known| *known == who).unwrap()][0].clone()
}

/// What the hub's records keep of a secret, and no answer may show.
const PRIVATE_FIELDS: [&str; 5] = ["hash", "codeHash", "linkHash", "joinSecret", "secretHash"];

/// The values of the private fields in the hub's journal.
fn private_values(hub: &Hub) -> Vec<String> {
    let journal = std::fs::read_to_string(hub.home.file("hub/journal")).unwrap();
    let values = PRIVATE_FIELDS.iter().map(|field| {
        let start = format!("\"{field}\":\"");
        let found: Vec<String> = journal
            .split(&start)
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap_or_default().to_owned())
            .collect();
        assert!(!found.is_empty(), "the journal has no {field}");
        found
    });
    values.flatten().collect()
}

#[test]
fn no_answer_shows_what_a_record_keeps_of_a_secret() {
    let stage = Stage::set();
    let link = json!({ "name": "s", "agent": "agent_owner", "services": ["db"], "expiresInSeconds": 600, "link": true });
    let mut answers = vec![stage.hub.ask("POST /v1/shares", &stage.keys[5][0], &link.to_string())];
    for (row, (call, body, _)) in TABLE.iter().enumerate() {
        for column in [5, 7] {
            let source = source(row, column);
            let (call, body) = (stage.fill(call, source), stage.fill(body, source));
            answers.push(stage.hub.from(source).ask(&call, &stage.keys[column][0], &body));
        }
    }
    let secrets = private_values(&stage.hub);
    for answer in &answers {
        let text = &answer.body;
        for field in PRIVATE_FIELDS {
            assert!(!text.contains(&format!("\"{field}\"")), "{field} in {text}");
        }
        assert!(!secrets.iter().any(|secret| text.contains(secret)), "a stored secret in {text}");
    }
}

#[test]
fn every_refusal_has_a_code_and_the_metrics_count_it() {
    let hub = Hub::start();
    let (key, join) = (hub.key("member"), hub.key("join"));
    let refusals = [
        ("GET /v1/services", "", "no-key"),
        ("GET /v1/services", "pc_wrong", "bad-key"),
        ("GET /v1/services", join.as_str(), "role"),
        ("GET /v1/nothing", "", "no-such-call"),
        ("PUT /v1/keys", "", "other-method"),
        ("GET /v1/agent", key.as_str(), "upgrade-missing"),
        ("POST /v1/shares/preview", key.as_str(), "share-not-found"),
        ("POST /v1/sessions", key.as_str(), "bad-body"),
        ("DELETE /v1/keys/key_none", hub.admin_key.as_str(), "no-such-key"),
    ];
    for (call, key, code) in refusals {
        let body = if code == "share-not-found" { r#"{"code":"wrong1"}"# } else { "" };
        assert_eq!(hub.ask(call, key, body).text("code"), code, "{call}");
    }
    let metrics = hub.ask("GET /metrics", &hub.admin_key, "").body;
    for (_, _, code) in refusals {
        assert!(metrics.contains(&format!("reason=\"{code}\"}} 1")), "{code}: {metrics}");
    }
}

#[test]
fn the_control_channel_is_for_those_who_may_expose_and_for_their_own_agent() {
    let hub = Hub::start();
    let (owner, neighbour) = (hub.key("member"), hub.key("member"));
    let _agent = RawAgent::up(&hub, &owner, "agent_owner");
    for (key, status) in
        [("", 401), ("pc_wrong", 401), (hub.key("join").as_str(), 403), (neighbour.as_str(), 101)]
    {
        assert_eq!(RawAgent::connect(&hub, key).1.status, status, "{key}");
    }
    let (mut thief, _) = RawAgent::connect(&hub, &neighbour);
    thief.send(&json!({ "type": "hello", "agent": "agent_owner", "version": "x" }));
    assert_eq!(thief.next(), None);
    common::eventually("it is audited", common::PATIENCE, || hub.audit().contains("agent.refused"));
}

#[test]
fn unknown_revoked_and_expired_keys_get_one_answer_and_after_twenty_a_429() {
    let mut hub = Hub::start();
    let (revoked, id) = hub.new_key(&[]);
    hub.home.run(&["hub", "key", "revoke", &id]).ok();
    let (expired, _) = hub.new_key(&["--expires", "1s"]);
    let other = Ipv4Addr::new(127, 0, 0, 9);
    common::eventually("the key expires", common::PATIENCE, || {
        hub.from(other).ask("GET /v1/whoami", &expired, "").status == 401
    });
    let answers =
        ["pc_unknown", &revoked, &expired, "x", "pl_unknown"].map(|key| hub.ask("GET /v1/whoami", key, ""));
    assert!(answers.iter().all(|answer| *answer == answers[0] && answer.status == 401), "{answers:#?}");
    let limited = (0..30)
        .map(|n| hub.ask("GET /v1/whoami", &format!("pc_{n}"), ""))
        .find(|answer| answer.status != 401);
    let limited = limited.unwrap();
    assert_eq!(limited.status, 429);
    let wait: u64 = limited.field("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{limited:?}");
    // Neither another address nor a good key from the same one pays for it.
    assert_eq!(hub.from(other).ask("GET /v1/whoami", "pc_new", "").status, 401);
    assert_eq!(hub.ask("GET /v1/whoami", &hub.admin_key, "").status, 200);
    hub.running.interrupt();
    let failures = counted(&hub, "key.refused", "");
    assert!((21..=45).contains(&failures.events) && failures.lines <= 10, "{failures:?}");
    assert!(!hub.audit().contains("pc_"));
}

/// Registers an agent and returns the status.
fn register(hub: &Hub, key: &str, id: &str) -> u16 {
    let body = json!({ "id": id, "label": id, "fingerprint": FINGERPRINT });
    hub.ask("POST /v1/agents/register", key, &body.to_string()).status
}

fn count(hub: &Hub, call: &str, key: &str) -> usize {
    hub.ask(call, key, "").json().as_array().unwrap().len()
}

#[test]
fn a_key_that_rotates_keeps_no_list_of_agents_that_are_gone() {
    let hub = Hub::start();
    let (key, id) = hub.new_key(&[]);
    // Its service keeps it from being removed for others, and the rotation from ending.
    let mut stays = RawAgent::up(&hub, &key, "agent_stays");
    stays.expose("db");
    let next = hub.ask(&format!("POST /v1/keys/{id}/rotate"), &hub.admin_key, "{}").text("key");
    assert!((0..150).all(|n| register(&hub, &next, &format!("agent_job{n}")) == 200));
    let journal = std::fs::read_to_string(hub.home.file("hub/journal")).unwrap();
    let record = journal.lines().rfind(|line| line.contains("\"proved\"")).unwrap();
    // A key has a hundred agents; the same change names the last one, and one that went for it.
    assert!((90..110).contains(&record.matches("agent_job").count()), "{record}");
}

#[test]
fn what_a_stolen_key_made_is_limited_and_goes_with_the_key() {
    let hub = Hub::start();
    let ((stolen, id), honest) = (hub.new_key(&[]), hub.key("member"));
    // Jobs on machines that exist once need no more room than a hundred of them.
    assert!((0..120).all(|n| register(&hub, &stolen, &format!("agent_job{n}")) == 200));
    assert_eq!(count(&hub, "GET /v1/agents", &honest), 100);
    let mut agents = ["agent_a", "agent_b"].map(|id| RawAgent::up(&hub, &stolen, id));
    for n in 0..1000 {
        agents[n % 2].expose(&format!("db{n}"));
    }
    let expose = json!({ "type": "expose", "name": "more", "port": 1, "protocol": "tcp" });
    for agent in &mut agents {
        agent.send(&expose);
        let told = agent.next().unwrap();
        assert_eq!(told["reason"], "Too many services were exposed with this key");
    }
    let mut own = RawAgent::up(&hub, &honest, "agent_honest");
    own.expose("more");
    // Nobody waits for a long list at once, and our own client reads it to its end.
    let page = hub.ask("GET /v1/services", &honest, "");
    assert!(page.body.len() < 70_000 && page.json().as_array().unwrap().len() > 100);
    let rest = format!("GET /v1/services?after={}&limit=99", page.field("x-next-after").unwrap());
    assert_eq!(count(&hub, &rest, &honest), 99);
    assert_eq!(hub.ask("GET /v1/services?limit=x", &honest, "").text("code"), "bad-page");
    let user = hub.machine("member");
    assert_eq!(user.run(&["services", "--json"]).ok().json().as_array().unwrap().len(), 1001);
    drop(agents);
    hub.home.run(&["hub", "key", "revoke", &id]).ok();
    common::eventually("all that it made is gone", common::PATIENCE, || {
        count(&hub, "GET /v1/services", &honest) == 1 && count(&hub, "GET /v1/agents", &honest) == 2
    });
    own.expose("db1");
}

#[test]
fn what_a_key_made_goes_in_the_moment_of_its_revocation_if_that_is_wanted() {
    let hub = Hub::start();
    let ((stolen, id), honest) = (hub.new_key(&[]), hub.key("member"));
    let mut agent = RawAgent::up(&hub, &stolen, "agent_a");
    agent.expose("db");
    let share = json!({ "name": "s", "agent": "agent_a", "services": ["db"], "expiresInSeconds": 600 });
    assert_eq!(hub.ask("POST /v1/shares", &stolen, &share.to_string()).status, 201);
    let said = hub.home.run(&["hub", "key", "revoke", &id, "--with-all-it-made"]).ok();
    assert!(said.out.contains("all that it made is removed"), "{said:?}");
    assert_eq!(count(&hub, "GET /v1/services", &honest) + count(&hub, "GET /v1/agents", &honest), 0);
}

#[test]
fn an_agent_or_service_that_is_gone_is_removed_on_the_hubs_machine_with_or_without_a_hub() {
    let mut hub = Hub::start();
    let key = hub.key("member");
    let mut gone = ["agent_one", "agent_two"].map(|id| RawAgent::up(&hub, &key, id));
    gone[0].expose("db");
    gone[1].expose("web");
    let remove = |hub: &Hub, what: &str, id: &str| hub.home.run(&["hub", what, "remove", id]);
    assert!(remove(&hub, "agent", "agent_one").err.contains("is connected, so it would be back"));
    assert!(remove(&hub, "service", "db").err.contains("db is online"));
    drop(gone);
    common::eventually("both are offline", common::PATIENCE, || {
        !hub.ask("GET /v1/services", &key, "").body.contains("online")
    });
    remove(&hub, "service", "db").ok();
    assert_eq!(count(&hub, "GET /v1/services", &key), 1);
    assert_eq!(hub.ask("DELETE /v1/services/none", &key, "").text("code"), "no-such-service");
    hub.running.kill();
    let listed = hub.home.run(&["hub", "agent", "list"]).ok();
    assert!(listed.out.contains("agent_two"), "{listed:?}");
    remove(&hub, "agent", "agent_two").ok();
    hub.restart();
    assert_eq!((count(&hub, "GET /v1/services", &key), count(&hub, "GET /v1/agents", &key)), (0, 1));
}

#[test]
fn strangers_who_ask_for_many_login_codes_keep_nobody_from_logging_in() {
    let hub = Hub::start();
    let ask = |source: Ipv4Addr| hub.from(source).ask("POST /v1/device", "", r#"{"label":"x"}"#);
    let honest = ask(Ipv4Addr::new(127, 0, 2, 1)).text("code");
    let flood: Vec<_> = (0..120).map(|n| ask(Ipv4Addr::new(127, 0, 3, 1 + n / 10)).status).collect();
    assert!(flood.iter().all(|status| *status == 201), "{flood:?}");
    // Both who asked before the flood and who asks after it can be approved.
    let later = ask(Ipv4Addr::new(127, 0, 2, 2)).text("code");
    for code in [&honest, &later] {
        let body = json!({ "code": code }).to_string();
        let seen = hub.ask("POST /v1/device/preview", &hub.admin_key, &body);
        assert!(seen.text("address").starts_with("127.0.2."), "{seen:?}");
        assert_eq!(hub.ask("POST /v1/device/approve", &hub.admin_key, &body).status, 200);
        // The first approval counts, also before another workspace's.
        let other = hub.new_key(&["--role", "admin", "--workspace", "w2"]).0;
        assert_eq!(hub.ask("POST /v1/device/approve", &other, &body).status, 404);
    }
    common::eventually("it is audited", common::PATIENCE, || hub.audit().contains("device.approved"));
    let journal = std::fs::read_to_string(hub.home.file("hub/journal")).unwrap();
    for text in [&hub.audit(), &journal] {
        assert!(!text.contains(&honest) && !text.contains(&later), "a login code is written in clear");
    }
}

#[test]
fn on_a_terminal_an_approval_is_asked_for_and_only_a_yes_approves() {
    if !common::is_here("script", "bsdutils") {
        return;
    }
    let hub = Hub::start();
    let asked = hub.ask("POST /v1/device", "", r#"{"label":"laptop"}"#);
    let state = json!({ "code": asked.text("code"), "secret": asked.text("secret") }).to_string();
    for (answer, code, status) in [("n", 1, "pending"), ("y", 0, "approved")] {
        let typed = hub.home.connect(&[]);
        let line = format!("{} hub approve {}", typed.get_program().to_string_lossy(), asked.text("code"));
        let mut script = std::process::Command::new("sh");
        script.arg("-c").arg(format!("echo {answer} | script -q -e -c '{line}' /dev/null"));
        common::team::copy_environment(&typed, &mut script);
        let said = common::Said::of(script);
        assert!(said.out.contains("calls itself laptop asked from 127.0.0.1"), "{said:#?}");
        assert_eq!(said.code, Some(code), "{said:#?}");
        assert_eq!(hub.ask("POST /v1/device/state", "", &state).text("status"), status);
    }
}

#[test]
fn a_caller_who_is_refused_in_a_loop_does_not_fill_the_audit_log() {
    let mut hub = Hub::start();
    let join = hub.key("join");
    assert!((0..60).all(|_| hub.ask("GET /v1/services", &join, "").status == 403));
    // One that asks for something else each time gets no more lines, and is counted.
    let ask = |n| json!({ "service": format!("db{n}"), "fingerprint": FINGERPRINT }).to_string();
    assert!((0..60).all(|n| hub.ask("POST /v1/sessions", &join, &ask(n)).status == 403));
    hub.running.interrupt();
    let [calls, sessions] = ["call.refused", "session.refused"].map(|event| counted(&hub, event, "role"));
    assert_eq!((calls.events, calls.lines), (60, 2));
    assert_eq!((sessions.events, sessions.lines), (19, 19));
    let all = counted(&hub, "session.refused", "");
    assert_eq!((all.events, all.lines), (60, 21));
}

/// What the audit log has of an event with this reason, or with any. The hub has ended.
#[derive(Debug)]
struct Counted {
    events: u64,
    lines: usize,
}

fn counted(hub: &Hub, event: &str, reason: &str) -> Counted {
    let audit = hub.audit();
    let lines = audit.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let is_meant = |line: &Value| line["event"] == event && (reason.is_empty() || line["reason"] == reason);
    let meant: Vec<Value> = lines.filter(is_meant).collect();
    let events = meant.iter().map(|line| line["count"].as_u64().unwrap_or(1)).sum();
    Counted { events, lines: meant.len() }
}

/// The audit log has the event once with these fields, and who caused it.
fn check_refused(lines: &[Value], event: &str, wanted: [(&str, &str); 4]) {
    let found = lines.iter().filter(|line| line["event"] == event);
    let has = |line: &&Value| wanted.iter().all(|(name, value)| name.is_empty() || line[name] == *value);
    let found: Vec<&Value> = found.filter(has).collect();
    assert_eq!(found.len(), 1, "{event} {wanted:?}: {lines:#?}");
    assert!(found[0]["actor"] != "" && found[0]["address"] == "127.0.0.1", "{}", found[0]);
}

#[test]
fn every_session_that_does_not_come_about_is_audited_with_its_reason() {
    let mut hub = Hub::start();
    let (owner, join, exposer) = (hub.key("member"), hub.key("join"), hub.key("expose"));
    let ((limited, _), (elsewhere, _)) =
        (hub.new_key(&["--only", "web"]), hub.new_key(&["--from", "127.0.0.7"]));
    let mut agent = RawAgent::up(&hub, &owner, "agent_a");
    agent.expose("db");
    let mut gone = RawAgent::up(&hub, &owner, "agent_gone");
    gone.expose("gone");
    let granted = |service: &str| {
        let ask = json!({ "service": service, "fingerprint": FINGERPRINT }).to_string();
        hub.ask("POST /v1/sessions", &owner, &ask)
    };
    assert_eq!(granted("gone").status, 200);
    drop(gone);
    let offline = || granted("gone").json()["code"] == "offline";
    common::eventually("it is offline", common::PATIENCE, offline);
    let nobody = json!({ "code": "nobody1", "token": "" });
    for (key, service, share, code) in [
        (&join, "db", Value::Null, "role"),
        (&exposer, "db", Value::Null, "role"),
        (&limited, "db", Value::Null, "no-such-service"),
        (&elsewhere, "db", Value::Null, "key-elsewhere"),
        (&join, "db", nobody, "share-not-found"),
    ] {
        let ask = json!({ "service": service, "fingerprint": FINGERPRINT, "share": share }).to_string();
        assert_eq!(hub.ask("POST /v1/sessions", key, &ask).text("code"), code);
    }
    // The agent declines one, and does not come to another. To a third one nobody comes.
    let declined = granted("db").text("session");
    agent.send(&json!({ "type": "decline", "session": declined, "reason": "full" }));
    agent.send(&json!({ "type": "decline", "session": declined, "reason": "again" }));
    let waiting = hub.relay(&granted("db").text("ticket"));
    let unused = granted("db");
    // What an agent may not expose, and other calls.
    let mut narrow = RawAgent::up(&hub, &limited, "agent_b");
    narrow.send(&json!({ "type": "expose", "name": "db", "port": 1, "protocol": "tcp" }));
    assert_eq!(narrow.next().unwrap()["type"], "refused");
    assert_eq!(hub.ask("POST /v1/keys", &owner, "{}").status, 403);
    assert_eq!(hub.share("join", &join, "nobody1").status, 404);
    // The hub ends when the last session that may still begin is too old.
    let drain = hub.home.start(&["hub", "drain"]);
    common::eventually("it drains", common::PATIENCE, || granted("none").text("code") == "draining");
    assert_eq!(hub.running.wait().code(), Some(0));
    drop((waiting, drain));
    let audit = hub.audit();
    let lines: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let refused = |event, wanted| check_refused(&lines, event, wanted);
    let none = ("", "");
    let session = |wanted| refused("session.refused", wanted);
    session([("reason", "role"), ("label", "join"), ("service", "db"), ("path", "relay")]);
    session([("reason", "role"), ("label", "expose"), ("action", "POST /v1/sessions"), none]);
    session([("reason", "no-such-service"), ("service", "db"), ("agent", ""), none]);
    session([("reason", "key-elsewhere"), ("action", "POST /v1/sessions"), none, none]);
    session([("reason", "share-not-found"), ("label", "join"), none, none]);
    session([("reason", "declined"), ("words", "full"), ("service", "db"), ("agent", "agent_a")]);
    session([("reason", "declined"), ("words", "it has left"), ("agent", "agent_gone"), none]);
    assert!(!audit.contains("again"), "it was declined already");
    refused("service.refused", [("reason", "name-outside"), ("agent", "agent_b"), ("service", "db"), none]);
    refused("call.refused", [("reason", "role"), ("action", "POST /v1/keys"), none, none]);
    refused("share.refused", [("reason", "share-not-found"), ("action", "POST /v1/shares/join"), none, none]);
    for (reason, service, least) in
        [("offline", "gone", 1), ("draining", "none", 1), ("partner-missing", "db", 2)]
    {
        let events = counted(&hub, "session.refused", reason);
        assert!(
            events.events >= least && audit.contains(&format!(r#""service":"{service}""#)),
            "{reason}: {events:?}"
        );
    }
    assert_eq!(counted(&hub, "session.refused", "partner-missing").events, 2, "{lines:#?}");
    assert!(unused.status == 200 && !audit.contains(&unused.text("ticket")));
    hub.home.run(&["hub", "audit", "verify"]).ok();
}

/// The answers to a call that one connection makes a hundred times.
fn hundred_times(hub: &Hub, call: &str, key: &str, body: &str) -> String {
    let one = |connection| request(call, "hub", &[("x-api-key", key), ("Connection", connection)], body);
    let (mut stream, mut answers) = (hub.tls(), String::new());
    stream.write_all((one("keep-alive").repeat(99) + &one("close")).as_bytes()).unwrap();
    let _ = stream.read_to_string(&mut answers);
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 100, "{answers}");
    answers
}

/// Repeats the call until there is a 429. Returns how many were answered before, and the last answers.
fn until_limited(hub: &Hub, call: &str, key: &str, body: &str) -> (usize, String) {
    let mut before = 0;
    for _ in 0..80 {
        let answers = hundred_times(hub, call, key, body);
        let limited = answers.matches("HTTP/1.1 429").count();
        before += 100 - limited;
        if limited > 0 {
            return (before, answers);
        }
    }
    panic!("{before} times {call} was not limited");
}

#[test]
fn a_flood_of_changes_by_one_key_is_limited_and_no_other_key_notices() {
    let hub = Hub::start();
    let (key, other) = (hub.key("member"), hub.key("member"));
    let mut agent = RawAgent::up(&hub, &key, "agent_a");
    let began = Instant::now();
    let (before, answers) = until_limited(&hub, "POST /v1/shares/revoke", &key, "{}");
    assert!((1190..2400).contains(&before), "{before}");
    assert!(answers.contains("too-many-changes") && answers.contains("1 seconds"), "{answers}");
    // What an agent exposes waits its turn and is not refused.
    for n in 0..60 {
        agent.expose(&format!("db{n}"));
    }
    let allowed = 1200 + 20 * (began.elapsed().as_secs() + 1);
    assert!(before as u64 + 60 <= allowed, "{before} and 60 changes, but {allowed} are allowed");
    assert!(
        (0..100).any(|_| RawAgent::connect(&hub, &key).1.status == 429),
        "control channels are no changes"
    );
    assert_eq!(hub.ask("POST /v1/shares/revoke", &other, "{}").status, 400);
    assert_eq!(hub.ask("GET /v1/whoami", &key, "").status, 200);
    common::eventually("there are new tokens", common::PATIENCE, || register(&hub, &key, "agent_b") == 200);
}

#[test]
fn a_flood_of_sessions_is_limited() {
    let hub = Hub::start();
    let (key, other) = (hub.key("member"), hub.key("member"));
    let (before, answers) = until_limited(&hub, "POST /v1/sessions", &key, "{}");
    assert!((5990..8000).contains(&before) && answers.contains("too-many-session-requests"), "{before}");
    assert_eq!(hub.ask("POST /v1/sessions", &other, "{}").status, 400);
    assert_eq!(hub.ask("GET /v1/whoami", &key, "").status, 200);
}

#[test]
fn a_flood_of_joins_is_limited_and_takes_few_lines_of_the_audit_log() {
    let mut hub = Hub::start();
    let (owner, key) = (hub.key("member"), hub.key("member"));
    let mut agent = RawAgent::up(&hub, &owner, "agent_a");
    agent.expose("db");
    let share = json!({ "name": "s", "agent": "agent_a", "services": ["db"], "expiresInSeconds": 600 });
    let code = hub.ask("POST /v1/shares", &owner, &share.to_string()).text("code");
    let body = json!({ "code": code }).to_string();
    let (joined, answers) = until_limited(&hub, "POST /v1/shares/join", &key, &body);
    assert!((300..1200).contains(&joined) && answers.contains("too-many-joins"), "{joined}: {answers}");
    // Neither another key nor another address pays for it.
    assert_eq!(hub.share("join", &owner, &code).status, 200);
    assert_eq!(hub.from(Ipv4Addr::new(127, 0, 0, 9)).share("join", &key, &code).status, 200);
    hub.running.interrupt();
    let audit = hub.audit();
    let lines: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let joins: Vec<&Value> = lines.iter().filter(|line| line["event"] == "share.joined").collect();
    let of =
        |line: &Value| 1_usize.max(line["count"].as_u64().map_or(1, |count| usize::try_from(count).unwrap()));
    assert_eq!(joins.iter().map(|line| of(line)).sum::<usize>(), joined + 2, "{joins:#?}");
    assert!(joins.len() <= 8, "{joins:#?}");
    hub.home.run(&["hub", "audit", "verify"]).ok();
}

#[test]
fn one_agent_has_sixteen_control_channels_at_most() {
    let hub = Hub::start();
    let key = hub.key("member");
    let held = [(); 16].map(|()| RawAgent::up(&hub, &key, "agent_a"));
    let greeted = || {
        let (mut more, _) = RawAgent::connect(&hub, &key);
        more.send(&json!({ "type": "hello", "agent": "agent_a" }));
        more.next().unwrap()["type"].clone()
    };
    assert_eq!(greeted(), "full");
    RawAgent::up(&hub, &key, "agent_b");
    drop(held);
    common::eventually("the places are free", common::PATIENCE, || greeted() == "welcome");
}

#[test]
fn one_key_has_256_control_channels_at_most() {
    let hub = Hub::start();
    let (key, other) = (hub.key("member"), hub.key("member"));
    let channel = |agent: &str| {
        let (mut channel, answer) = RawAgent::connect(&hub, &key);
        channel.send(&json!({ "type": "hello", "agent": agent }));
        (channel, answer.status)
    };
    let mut held = Vec::new();
    for n in 0..16 {
        let agent = format!("agent_{n}");
        held.push(RawAgent::up(&hub, &key, &agent));
        held.extend((0..15).map(|_| channel(&agent).0));
    }
    assert!(held.iter_mut().skip(1).step_by(16).all(|one| one.next().unwrap()["type"] == "welcome"));
    assert_eq!(register(&hub, &key, "agent_more"), 200);
    assert_eq!(channel("agent_more").1, 503);
    RawAgent::up(&hub, &other, "agent_other");
    held.pop();
    common::eventually("a place is free", common::PATIENCE, || channel("agent_more").1 == 101);
}

#[test]
fn shares_of_one_key_take_a_mebibyte_at_most() {
    let hub = Hub::start();
    let (key, other) = (hub.key("member"), hub.key("member"));
    let order = |agent: &str, names: &[String]| {
        json!({ "name": "s", "agent": agent, "services": names, "expiresInSeconds": 600 }).to_string()
    };
    let names: Vec<String> = (0..100).map(|n| format!("db{n}")).collect();
    let [mut agent, mut neighbour] =
        [(&key, "agent_a"), (&other, "agent_b")].map(|(key, id)| RawAgent::up(&hub, key, id));
    names.iter().for_each(|name| drop(agent.expose(name)));
    let most = order("agent_a", &names);
    let answers = ["POST /v1/shares"; 3].map(|call| hundred_times(&hub, call, &key, &most)).concat();
    // 512 bytes for each, one for its name, and 32 for each service.
    assert_eq!(answers.matches("HTTP/1.1 201").count(), 1024 * 1024 / (512 + 1 + 100 * 32));
    assert_eq!(answers.matches("\"too-many-shares\"").count(), 18);
    neighbour.expose("web");
    assert_eq!(hub.ask("POST /v1/shares", &other, &order("agent_b", &["web".into()])).status, 201);
    let code = answers.split("\"code\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    assert_eq!(hub.share("revoke", &key, code).status, 204);
    assert_eq!(hub.ask("POST /v1/shares", &key, &most).status, 201);
}

#[test]
fn a_flood_of_names_that_a_channel_does_not_hold_withdraws_nothing() {
    let hub = Hub::start();
    let key = hub.key("member");
    let mut other = RawAgent::up(&hub, &key, "agent_a");
    (0..10).for_each(|n| drop(other.expose(&format!("db{n}"))));
    let mut agent = RawAgent::up(&hub, &key, "agent_a");
    let withdraw = |agent: &mut RawAgent| {
        let one = |n| format!("{{\"type\":\"withdraw\",\"name\":\"db{n}\"}}\n");
        agent.send_raw(&(0..20).map(one).collect::<String>().repeat(100));
    };
    withdraw(&mut agent);
    drop(other);
    let offline = || hub.ask("GET /v1/services", &key, "").body.matches("\"offline\"").count();
    common::eventually("the other process is gone", common::PATIENCE, || offline() == 10);
    let journal = || std::fs::read_to_string(hub.home.file("hub/journal")).unwrap().matches("\"db").count();
    let before = journal();
    withdraw(&mut agent);
    // The hub has read all when it answers what follows.
    agent.expose("web");
    assert_eq!((offline(), journal()), (10, before));
}

#[test]
fn a_revoked_admin_key_and_odd_bodies_change_nothing() {
    let hub = Hub::start();
    let (admin, id) = hub.new_key(&["--role", "admin"]);
    hub.home.run(&["hub", "key", "revoke", &id]).ok();
    let before = count(&hub, "GET /v1/keys", &hub.admin_key);
    assert_eq!(hub.ask("POST /v1/keys", &admin, "").status, 401);
    let deep = format!(r#"{{"label":{}{}}}"#, "[".repeat(20_000), "]".repeat(20_000));
    for body in [
        "{",
        "[]",
        "null",
        "\"x\"",
        r#"{"role":"root"}"#,
        r#"{"role":1}"#,
        r#"{"unknown":1}"#,
        r#"{"workspace":"A B"}"#,
        r#"{"workspace":"../x"}"#,
        r#"{"expiresInSeconds":-1}"#,
        r#"{"expiresInSeconds":0}"#,
        r#"{"label":{"a":1}}"#,
        &deep,
    ] {
        let answer = hub.ask("POST /v1/keys", &hub.admin_key, body);
        assert_eq!(answer.status, 400, "{body:.60}: {answer:?}");
        assert!(answer.text("error").len() < 300);
    }
    assert_eq!(count(&hub, "GET /v1/keys", &hub.admin_key), before);
    let labelled = hub.ask(
        "POST /v1/keys",
        &hub.admin_key,
        "{\"label\":\"a\\u001b[31m\\u009b\\u202e\\u200b\\u061cb\\n\"}",
    );
    assert_eq!(labelled.text("label"), "a[31mb");
    let answer: Answer = hub.ask("GET /v1/keys", &hub.admin_key, "");
    assert!(answer.json().as_array().unwrap().iter().all(|key| key.get("hash").is_none()));
}

#[test]
fn a_label_holds_nothing_that_is_not_seen() {
    let hub = Hub::start();
    let label = "a\u{202e}n\u{61c}n\u{ad}\u{180e}\u{2066}\u{e0041}\u{feff}";
    let made =
        hub.home.run(&["hub", "key", "create", "--json", "--role", "member", "--label", label]).ok().json();
    let home = Home::new();
    home.run(&["up", "--hub", &hub.url, "--api-key", made["key"].as_str().unwrap(), "--label", label]).ok();
    assert_eq!(home.run(&["whoami", "--json"]).ok().json()["key"], "ann");
    let share = common::service(common::echo).to_string();
    let running = home.start(&["share", "--json", "--name", label, &share]);
    running.wait_event("shared");
    assert_eq!(home.run(&["share", "list", "--json"]).ok().json()[0]["name"], "ann");
    let services = home.run(&["services", "--json"]).ok().json();
    assert_eq!(services[0]["agentLabel"], "ann");
}
