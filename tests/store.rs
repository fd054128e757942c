//! What the hub and its clients write: it survives kill -9, a full disk, torn and damaged files, symlinks in
//! their place, and many writers at once; and nobody else can read it.

mod common;

use std::fs;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use common::Disk;
use common::Home;
use common::Hub;
use common::PATIENCE;
use common::Running;
use common::Said;
use common::etcd::Etcd;
use common::eventually;
use common::expose;
use common::https::FINGERPRINT;
use common::https::RawAgent;
use common::https::request;
use common::noise;
use common::under;
use nix::sys::signal::Signal;
use serde_json::Value;
use serde_json::json;

/// The same for a hub on its own disk and for one on a real etcd.
fn on_each_store(test: impl Fn(Hub)) {
    test(Hub::start());
    if let Some(etcd) = Etcd::start() {
        test(etcd.hub());
    }
}

fn ids(hub: &Hub) -> Vec<String> {
    let keys = hub.ask("GET /v1/keys", &hub.admin_key, "").json();
    keys.as_array().unwrap().iter().map(|key| key["id"].as_str().unwrap().to_owned()).collect()
}

/// Makes a key; `None` when the hub died before it answered.
fn make_key(hub: &Hub) -> Option<String> {
    use common::https;
    let stream = https::dial_from(https::LOOPBACK, &hub.address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let mut stream = https::tls_over(stream, "127.0.0.1", &hub.ca());
    let request = request("POST /v1/keys", "h", &[("x-api-key", hub.admin_key.as_str())], "");
    stream.write_all(request.as_bytes()).ok()?;
    let answer = https::Answer::read(&mut stream);
    (answer.status == 201).then(|| answer.text("id"))
}

#[test]
fn every_acknowledged_write_is_there_after_kill_9_at_any_moment() {
    on_each_store(kill_9_at_any_moment);
}

fn kill_9_at_any_moment(mut hub: Hub) {
    let acknowledged = Mutex::new(Vec::new());
    let moments = noise(7, 16);
    for (round, moment) in moments.iter().take(8).enumerate() {
        // Three writers at once; the hub dies somewhere among their writes.
        let pid = i32::try_from(hub.running.pid()).unwrap();
        let kill_at = acknowledged.lock().unwrap().len() + 26 + usize::from(*moment) % 20;
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while let Some(id) = make_key(&hub) {
                        let mut all = acknowledged.lock().unwrap();
                        all.push(id);
                        if all.len() == kill_at {
                            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
                        }
                    }
                });
            }
        });
        hub.restart();
        let there = ids(&hub);
        let lost: Vec<_> =
            acknowledged.lock().unwrap().iter().filter(|id| !there.contains(id)).cloned().collect();
        assert!(lost.is_empty(), "round {round} lost {lost:?}");
        let acknowledged = acknowledged.lock().unwrap().len();
        assert!(there.len() <= acknowledged + 1 + 3 * (round + 1), "{} of {acknowledged}", there.len());
    }
    assert!(acknowledged.lock().unwrap().len() >= 200);
    hub.home.run(&["hub", "audit", "verify"]).ok();
}

#[test]
fn all_that_a_hub_knows_is_the_same_after_a_restart() {
    on_each_store(the_same_after_a_restart);
}

fn the_same_after_a_restart(mut hub: Hub) {
    let (owner, (gone, id)) = (hub.key("member"), hub.new_key(&["--role", "member"]));
    let mut agent = RawAgent::up(&hub, &owner, "agent_a");
    let service = agent.expose("db");
    let share = |seconds: u64, code: &str| {
        let body = json!({ "name": "s", "agent": "agent_a", "services": ["db"], "expiresInSeconds": seconds,
            "maxJoins": 3, "code": code });
        hub.ask("POST /v1/shares", &owner, &body.to_string())
    };
    assert_eq!((share(600, "lasting").status, share(1, "passing").status), (201, 201));
    assert_eq!(share(600, "lasting").status, 409);
    for _ in 0..2 {
        assert_eq!(hub.share("join", &owner, "lasting").status, 200);
    }
    assert_eq!(hub.ask(&format!("DELETE /v1/keys/{id}"), &hub.admin_key, "").status, 204);
    // A code that is free again may be had at once, and its end leaves the new owner's alone.
    eventually("the share has expired", PATIENCE, || {
        hub.ask("GET /v1/shares", &owner, "").json().as_array().unwrap().len() == 1
    });
    assert_eq!(share(600, "passing").status, 201);
    drop(agent);
    hub.running.kill();
    hub.restart();
    assert_eq!(hub.ask("GET /v1/whoami", &gone, "").status, 401);
    let shares = hub.ask("GET /v1/shares", &owner, "").json();
    let counts = shares.as_array().unwrap().iter().map(|share| share["joinCount"].as_u64().unwrap());
    assert_eq!(counts.collect::<std::collections::BTreeSet<_>>(), [0, 2].into(), "{shares}");
    let listed = hub.ask("GET /v1/services", &owner, "").json();
    assert_eq!((&listed[0]["id"], &listed[0]["status"]), (&json!(service), &json!("offline")), "{listed}");
    let mut agent = RawAgent::up(&hub, &owner, "agent_a");
    assert_eq!(agent.expose("db"), service);
    assert_eq!(hub.share("join", &owner, "lasting").status, 200);
    assert_eq!(hub.share("join", &owner, "lasting").status, 409);
    assert_eq!(hub.share("preview", &owner, "passing").status, 200);
}

#[test]
fn a_torn_last_line_is_dropped_and_said_and_damage_before_it_is_refused() {
    let mut hub = Hub::start();
    for _ in 0..5 {
        make_key(&hub).unwrap();
    }
    let before = ids(&hub);
    hub.running.kill();
    let journal = hub.home.file("hub/journal");
    let whole = fs::read(&journal).unwrap();
    let line = whole.split_inclusive(|byte| *byte == b'\n').next_back().unwrap();
    fs::write(&journal, [&whole[..], &line[..line.len() / 2]].concat()).unwrap();
    hub.restart();
    hub.running.wait_err(|line| line.contains("[!]") && line.contains("torn by a crash"));
    assert_eq!(ids(&hub), before);
    make_key(&hub).unwrap();
    hub.running.kill();
    let whole = fs::read(&journal).unwrap();
    for (at, what) in
        [(whole.len() / 2, "a changed byte"), (0, "the first byte"), (whole.len() - 3, "the last line")]
    {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&journal, &damaged).unwrap();
        let said = hub.home.run(&["hub", "--listen", "127.0.0.1:0"]);
        assert_eq!(said.code, Some(1), "{what}: {said:#?}");
        assert!(said.err.contains("journal is damaged at line") && said.err.contains("backup"), "{said:#?}");
        assert_eq!(fs::read(&journal).unwrap(), damaged, "a damaged journal is left as it is");
        let listed = hub.home.run(&["hub", "key", "list"]);
        assert!(listed.code == Some(1) && listed.err.contains("damaged"), "{listed:#?}");
    }
    fs::write(&journal, &whole).unwrap();
    fs::write(hub.home.file("hub/registry.json"), "{\"version\":1,").unwrap();
    let said = hub.home.run(&["hub", "--listen", "127.0.0.1:0"]);
    assert!(said.code == Some(1) && said.err.contains("registry.json is damaged"), "{said:#?}");
    fs::write(hub.home.file("hub/registry.json"), r#"{"version":9,"n":0,"records":[]}"#).unwrap();
    let said = hub.home.run(&["hub", "--listen", "127.0.0.1:0"]);
    assert!(said.code == Some(1) && said.err.contains("another version"), "{said:#?}");
    fs::remove_file(hub.home.file("hub/registry.json")).unwrap();
    // What a crash in the middle of a snapshot leaves goes away.
    fs::write(hub.home.file("hub/.registry.json.abcd1234"), "half").unwrap();
    hub.restart();
    assert!(!hub.home.file("hub/.registry.json.abcd1234").exists());
}

#[test]
fn the_journal_is_folded_into_a_snapshot_and_nothing_is_lost_on_the_way() {
    let mut hub = Hub::start();
    let owner = hub.key("member");
    let mut agent = RawAgent::up(&hub, &owner, "agent_a");
    agent.expose("db");
    let label = "l".repeat(60);
    // A join rewrites its share, which grows with each: a few hundred make more than the journal may hold.
    let body = json!({ "name": label, "agent": "agent_a", "services": ["db"], "expiresInSeconds": 600 });
    let code = hub.ask("POST /v1/shares", &owner, &body.to_string()).text("code");
    let snapshot = hub.home.file("hub/registry.json");
    let mut joins = 0;
    eventually("a snapshot is written", PATIENCE, || {
        // One key may join a few hundred times only.
        let joiner = hub.key("join");
        thread::scope(|scope| {
            let join = || {
                for _ in 0..25 {
                    assert_eq!(hub.share("join", &joiner, &code).status, 200);
                }
            };
            (0..4).for_each(|_| drop(scope.spawn(join)));
        });
        joins += 100;
        snapshot.exists()
    });
    hub.running.kill();
    assert!(fs::metadata(hub.home.file("hub/journal")).unwrap().len() < 1024 * 1024);
    hub.restart();
    assert_eq!(hub.ask("GET /v1/shares", &owner, "").json()[0]["joinCount"], joins);
    assert_eq!(mode(&snapshot), 0o600);
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

fn everything_below(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.flat_map(|entry| [vec![entry.path()], everything_below(&entry.path())].concat()).collect()
}

#[test]
fn files_are_0600_and_folders_0700_whatever_the_umask() {
    for umask in ["umask 0", "umask 022", "umask 077"] {
        let outer = Home::new();
        let open = |args: &[&str]| {
            let mut command = outer.connect(args);
            command.env("PRIVATECONNECT_HOME", outer.file("state"));
            under(umask, &command)
        };
        let hub =
            Running::start(open(&["hub", "--json", "--listen", "127.0.0.1:0", "--tunnel-ports", "off"]));
        let said = hub.wait_event("listening");
        let url = said["url"].as_str().unwrap();
        let key = Said::of(open(&["hub", "key", "create", "-q"])).ok().out;
        Said::of(open(&["up", "--hub", url, "--api-key", key.trim()])).ok();
        let exposed = Running::start(open(&["expose", "--json", "web", "1"]));
        exposed.wait_event("exposed");
        Said::of(open(&["hub", "key", "create"])).ok();
        let mut all = everything_below(&outer.file("state"));
        all.push(outer.file("state"));
        assert!(all.len() > 12, "{all:?}");
        for path in all {
            let wanted = if path.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(mode(&path), wanted, "{umask}: {} has {:o}", path.display(), mode(&path));
        }
    }
}

#[test]
fn a_link_in_the_place_of_a_state_file_is_refused_and_its_target_untouched() {
    let mut hub = Hub::start();
    let machine = hub.machine("member");
    hub.running.kill();
    let refused = |home: &Home, file: &str, args: &[&str]| {
        let (path, victim) = (home.file(file), home.file("victim"));
        fs::write(&victim, "untouched").unwrap();
        let kept = fs::read(&path).ok();
        let _ = fs::remove_file(&path);
        symlink(&victim, &path).unwrap();
        let said = home.run(args);
        assert!(said.code == Some(1) && said.err.contains("symbolic link"), "{file}: {said:#?}");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched", "{file}");
        assert_eq!(fs::metadata(&victim).unwrap().permissions().mode() & 0o777, 0o644, "{file}");
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink(), "{file}");
        fs::remove_file(&path).unwrap();
        if let Some(kept) = kept {
            fs::write(&path, kept).unwrap();
        }
    };
    for file in
        ["journal", "registry.json", "audit.log", "hub.lock", "hub.json", "certs/ca.json", "certs/ca.crt"]
    {
        refused(
            &hub.home,
            &format!("hub/{file}"),
            &["hub", "--listen", "127.0.0.1:0", "--tunnel-ports", "off"],
        );
    }
    hub.restart();
    for file in ["config.json", "identity.pem", ".lock"] {
        refused(&machine, file, &["up", "--hub", &hub.url, "--api-key", &hub.admin_key]);
    }
    // A pipe there is not waited for either.
    let config = machine.file("config.json");
    fs::remove_file(&config).unwrap();
    nix::unistd::mkfifo(&config, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let said = machine.run(&["whoami"]);
    assert!(said.code == Some(1) && said.err.contains("not a plain file"), "{said:#?}");
}

#[test]
fn a_second_hub_on_one_data_folder_is_refused_and_commands_beside_it_work() {
    on_each_store(commands_beside);
}

fn commands_beside(hub: Hub) {
    let said = hub.home.run(&["hub", "--listen", "127.0.0.1:0"]);
    assert!(said.code == Some(1) && said.err.contains("Another hub runs on this data folder"), "{said:#?}");
    assert!(said.err.contains("--data DIR"));
    // The one that runs is not disturbed, nor its note removed.
    assert_eq!(hub.home.run(&["hub", "status", "--json"]).ok().json()["running"], true);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| hub.home.run(&["hub", "key", "create"]).ok());
        }
    });
    assert_eq!(ids(&hub).len(), 9);
    let mut hub = hub;
    hub.running.kill();
    // Without a hub they take turns; a note that a killed hub left behind misleads nobody.
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| hub.home.run(&["hub", "key", "create"]).ok());
        }
    });
    hub.restart();
    assert_eq!(ids(&hub).len(), 17);
    hub.home.run(&["hub", "audit", "verify"]).ok();
}

#[test]
fn a_full_disk_refuses_changes_with_a_reason_loses_nothing_and_recovers() {
    let home = Home::new();
    let Some(disk) = Disk::mount(&home.file("hub")) else { return };
    let command = home.hub(&["hub", "--json", "--listen", "127.0.0.1:0", "--tunnel-ports", "off"]);
    let mut hub = Hub::start_by(home, command, &["--tunnel-ports", "off"]);
    let kept = make_key(&hub).unwrap();
    disk.fill();
    let (mut made, mut refused) = (vec![kept], 0);
    eventually("the disk is full", PATIENCE, || {
        let answer = hub.ask("POST /v1/keys", &hub.admin_key, "");
        match answer.status {
            201 => made.push(answer.text("id")),
            503 => {
                assert!(
                    answer.text("error").contains("cannot write")
                        && answer.text("hint").contains("nothing was changed")
                );
                refused += 1;
            }
            other => panic!("{other}"),
        }
        // Refused logins go on filling the audit log.
        hub.ask("GET /v1/whoami", "pc_wrong", "");
        refused > 10
    });
    // Reading works, and what was refused is not there.
    assert_eq!(ids(&hub).len(), made.len() + 1);
    assert_eq!(hub.ask("GET /health", "", "").status, 200);
    disk.free();
    made.push(make_key(&hub).expect("it recovers"));
    let verified = |hub: &Hub| hub.home.run(&["hub", "audit", "verify"]).code == Some(0);
    eventually("the audit log has caught up", PATIENCE, || {
        hub.audit().contains(made.last().unwrap()) && verified(&hub)
    });
    hub.running.kill();
    hub.restart();
    let there = ids(&hub);
    assert!(made.iter().all(|id| there.contains(id)) && there.len() == made.len() + 1);
    assert!(verified(&hub));
}

#[test]
fn a_changed_byte_of_the_audit_log_is_found_wherever_it_is() {
    let mut hub = Hub::start();
    for key in ["pc_a", "pc_b"] {
        hub.ask("GET /v1/whoami", key, "");
    }
    make_key(&hub).unwrap();
    hub.running.signal(Signal::SIGTERM);
    assert!(hub.running.wait().success());
    let log = hub.home.file("hub/audit.log");
    let whole = fs::read(&log).unwrap();
    let said = hub.home.run(&["hub", "audit", "verify", "--json"]).ok().json();
    assert!(said["lines"].as_u64().unwrap() >= 4);
    // The unit tests try every byte; here, the command tells which line, and exits 1.
    for at in (0..whole.len()).step_by(whole.len() / 12).chain([whole.len() - 30]) {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(&log, &changed).unwrap();
        let said = hub.home.run(&["hub", "audit", "verify"]);
        let line = whole[..at].split(|byte| *byte == b'\n').count();
        assert_eq!(said.code, Some(1), "byte {at}: {said:#?}");
        let named = [line, line + 1].map(|line| format!("at line {line}: "));
        assert!(named.iter().any(|words| said.err.contains(words)), "byte {at} in {line}: {said:#?}");
    }
    let text = String::from_utf8(whole.clone()).unwrap();
    let (first, rest) = text.split_once('\n').unwrap();
    let without = format!("{first}\n{}", rest.split_once('\n').unwrap().1);
    let long = format!("{}{}", "x".repeat(200_000), text);
    for tampered in [without, long] {
        fs::write(&log, tampered).unwrap();
        assert_eq!(hub.home.run(&["hub", "audit", "verify"]).code, Some(1));
    }
    // A torn last line is what a crash leaves, and no tampering.
    fs::write(&log, [&whole[..], &whole[..20]].concat()).unwrap();
    hub.home.run(&["hub", "audit", "verify"]).ok();
    hub.restart();
    make_key(&hub).unwrap();
    eventually("the chain goes on", PATIENCE, || {
        hub.home.run(&["hub", "audit", "verify", "--json"]).ok().json()["lines"].as_u64()
            > said["lines"].as_u64()
    });
}

#[test]
fn a_log_that_was_shortened_emptied_or_deleted_is_refused() {
    let mut hub = Hub::start();
    let machine = hub.machine("member");
    let exposed = expose(&machine, "db", common::service(common::echo));
    let before = Home::new();
    let folder = hub.home.file("hub");
    let copied = |from: &Path, to: &Path| {
        let _ = fs::remove_dir_all(to);
        let mut copy = std::process::Command::new("cp");
        assert!(copy.args(["-a"]).args([from, to]).status().unwrap().success());
    };
    hub.running.interrupt();
    copied(&folder, &before.file("hub"));
    hub.restart();
    eventually("the agent is back", PATIENCE, || hub.audit().matches("agent.up").count() > 1);
    let verify = |more: &[&str]| hub.home.run(&[&["hub", "audit", "verify", "--json"], more].concat());
    let heads = machine.file("hub-heads.json");
    let witness = ["--witness", heads.to_str().unwrap()];
    eventually("the agent has heard of the new lines", PATIENCE, || {
        let lines = verify(&[]).ok().json()["lines"].as_u64();
        let heads: Value = serde_json::from_slice(&fs::read(&heads).unwrap()).unwrap();
        let mut hubs =
            heads.as_object().unwrap().values().flat_map(|heads| heads.as_object().unwrap().values());
        hubs.any(|head| head["count"].as_u64() == lines)
    });
    hub.running.interrupt();
    let log = folder.join("audit.log");
    let whole = fs::read_to_string(&log).unwrap();
    let hash = verify(&witness).ok().json()["hash"].as_str().unwrap().to_owned();
    verify(&["--expect", &hash]).ok();
    assert_eq!(verify(&["--expect", &"0".repeat(64)]).code, Some(1));
    let lines: Vec<&str> = whole.lines().collect();
    for left in [0, 1, lines.len() - 1] {
        fs::write(&log, lines[..left].iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        let said = verify(&[]);
        assert!(said.code == Some(1) && said.err.contains("was shortened"), "{left}: {said:#?}");
    }
    fs::remove_file(&log).unwrap();
    assert!(verify(&[]).err.contains("was shortened"));
    // Who replaces the store as well is found out by what an agent has kept.
    let now = Home::new();
    fs::write(&log, &whole).unwrap();
    copied(&folder, &now.file("hub"));
    copied(&before.file("hub"), &folder);
    verify(&[]).ok();
    let said = verify(&witness);
    assert!(said.code == Some(1) && said.err.contains("hub-heads.json has seen"), "{said:#?}");
    // A hub whose log is gone says so. The gap stays, unless the rest is shown to be somewhere else.
    copied(&now.file("hub"), &folder);
    fs::remove_file(&log).unwrap();
    hub.restart();
    eventually("the break is audited", PATIENCE, || hub.audit().contains("audit.broken"));
    let verify = |more: &[&str]| hub.home.run(&[&["hub", "audit", "verify", "--json"], more].concat());
    let said = verify(&[]);
    assert!(said.code == Some(1) && said.err.contains(&format!("Lines 1 to {}", lines.len())), "{said:#?}");
    verify(&["--expect", &hash]).ok();
    drop(exposed);
}

#[test]
fn hub_and_agent_log_each_session_and_the_two_logs_agree() {
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let mut exposed = expose(&owner, "db", common::service(common::echo));
    let mut nothing = expose(&owner, "nothing", 1);
    let (mut reached, port) = common::reach(&user, "db");
    for size in [1, 3_000_000] {
        assert!(common::echoes(port, &noise(7, size)));
    }
    // One session is cut while it carries a connection, and one carries none at all.
    let mut held = common::dial(port);
    assert!(common::ends::exchanges(&mut held, b"held"));
    exposed.interrupt();
    user.run(&["reach", "nothing", "--check"]);
    reached.interrupt();
    nothing.interrupt();
    let closed = |audit: &str| audit.matches("session.closed").count();
    eventually("all sessions have ended", PATIENCE, || {
        let audit = hub.audit();
        closed(&audit) >= 2 && closed(&audit) == audit.matches("session.opened").count()
    });
    let served = owner.file("served.log");
    eventually("the agent has recorded them", PATIENCE, || {
        closed(&fs::read_to_string(&served).unwrap()) == closed(&hub.audit())
    });
    let lines: Vec<Value> = fs::read_to_string(&served)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let large = |line: &&Value| line["event"] == "connection.closed" && line["toAgent"] == 3_000_000;
    let large = lines.iter().find(large).unwrap_or_else(|| panic!("{lines:#?}"));
    assert!(large["toJoiner"] == 3_000_000 && large["outcome"] == "ok" && large["service"] == "db");
    let verify =
        |file: &Path| hub.home.run(&["hub", "audit", "verify", "--json", "--with", file.to_str().unwrap()]);
    assert!(
        lines.iter().any(|line| line["outcome"] == "refused" && line["service"] == "nothing"),
        "{lines:#?}"
    );
    assert!(lines.iter().any(|line| line["outcome"] == "cut"), "{lines:#?}");
    let said = verify(&served).ok();
    assert_eq!(said.json()["compared"].as_u64(), u64::try_from(closed(&hub.audit())).ok(), "{said:#?}");
    // The last session is taken from the agent's record.
    let text = fs::read_to_string(&served).unwrap();
    let last = text.rfind("session.opened").and_then(|at| text[..at].rfind('\n')).unwrap();
    let shorter = hub.home.file("served.log");
    fs::write(&shorter, &text[..=last]).unwrap();
    let said = verify(&shorter);
    assert!(said.code == Some(1) && said.out.contains("only the hub knows it"), "{said:#?}");
}

/// A log as somebody writes it who can rewrite all of it: its chain is right. Returns its head.
fn write_sealed(log: &Path, lines: &[Value]) -> (usize, String) {
    let hash =
        |line: &str| hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, line.as_bytes()).as_ref());
    let (mut text, mut prev) = (String::new(), "0".repeat(64));
    for (index, line) in lines.iter().enumerate() {
        let mut line = line.clone();
        line.as_object_mut().unwrap().remove("sum");
        (line["seq"], line["prev"]) = (json!(index + 1), json!(prev));
        let line = line.to_string();
        let line = format!("{},\"sum\":\"{}\"}}", &line[..line.len() - 1], &hash(&line)[..16]);
        prev = hash(&line);
        text.push_str(&(line + "\n"));
    }
    fs::write(log, text).unwrap();
    (lines.len(), prev)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A hub that rewrites its log tells its store the same.
fn rewrite(hub: &Hub, lines: &[Value]) {
    let (count, hash) = write_sealed(&hub.home.file("hub/audit.log"), lines);
    let path = hub.home.file("hub/journal");
    let journal = fs::read_to_string(&path).unwrap();
    let last: Value = serde_json::from_str(&journal.lines().last().unwrap()[9..]).unwrap();
    let audit = json!({ "hub": lines[0]["hub"], "count": count, "hash": hash, "at": lines[0]["at"] });
    let entry = json!({ "n": last["n"].as_u64().unwrap() + 1, "changes": [{ "put": { "audit": audit } }] });
    let entry = entry.to_string();
    let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, entry.as_bytes());
    fs::write(&path, format!("{journal}{} {entry}\n", &hex(sum.as_ref())[..8])).unwrap();
}

fn log_lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Moves everything about a session to another hour, as if the sessions had been hours apart.
fn spread(lines: &mut [Value], sessions: &[String]) {
    for line in lines {
        if let Some(hour) = sessions.iter().position(|id| line["session"] == id.as_str()) {
            line["at"] = json!(format!("2026-01-01T{hour:02}:00:00.000Z"));
        }
    }
}

/// A hub that has ended, with what others have kept: an agent's file of heads and one hash, both older than the last of four
/// sessions, and the agent's own record.
struct EndedHub {
    hub: Hub,
    owner: Home,
    hash: String,
}

impl EndedHub {
    fn after_four_sessions() -> Self {
        let mut hub = Hub::start();
        let (owner, user) = (hub.machine("member"), hub.machine("member"));
        let mut exposed = expose(&owner, "db", common::service(common::echo));
        let mut hash = String::new();
        for round in 1..=4 {
            let (mut reached, port) = common::reach(&user, "db");
            assert!(common::echoes(port, &noise(7, 1000 * round)));
            reached.interrupt();
            eventually("the session has ended", PATIENCE, || {
                let count = |event| hub.audit().matches(event).count();
                count("session.closed") >= round && count("session.closed") == count("session.opened")
            });
            if round == 3 {
                let heads = owner.file("hub-heads.json");
                eventually("the agent has heard of all lines", PATIENCE, || {
                    let said = hub.home.run(&["hub", "audit", "verify", "--json"]).ok().json();
                    said["hash"].as_str().unwrap().clone_into(&mut hash);
                    fs::read_to_string(&heads).unwrap().contains(&hash)
                });
                fs::copy(&heads, owner.file("witness")).unwrap();
            }
        }
        hub.running.interrupt();
        exposed.interrupt();
        Self { hub, owner, hash }
    }

    /// Verifies a log with nothing else, with the heads, with the hash and with the agent's record. `words` are those of the
    /// second and the last verdict.
    fn check(&self, what: &str, lines: &[Value], codes: [i32; 4], words: [&str; 2]) {
        rewrite(&self.hub, lines);
        let [witness, with] = ["witness", "served.log"].map(|name| self.owner.file(name));
        let [witness, with] = [&witness, &with].map(|path| path.to_str().unwrap());
        let options =
            [vec![], vec!["--witness", witness], vec!["--expect", &self.hash], vec!["--with", with]];
        let said =
            options.map(|more| self.hub.home.run(&[vec!["hub", "audit", "verify", "--json"], more].concat()));
        let found = said.each_ref().map(|said| said.code.unwrap());
        assert_eq!(found, codes, "{what}: {said:#?}");
        assert!(said[1].err.contains(words[0]) && said[3].out.contains(words[1]), "{what}: {said:#?}");
    }
}

#[test]
fn a_hub_that_rewrites_its_log_and_its_store_is_found_out_by_what_others_have_kept() {
    let ended = EndedHub::after_four_sessions();
    let honest = log_lines(&ended.hub.home.file("hub/audit.log"));
    rewrite(&ended.hub, &honest);
    let again = log_lines(&ended.hub.home.file("hub/audit.log"));
    assert_eq!(again, honest, "the chain is not made as the hub makes it");
    let is_of = |line: &Value, id: &str| line["session"] == id;
    let opened = honest.iter().filter(|line| line["event"] == "session.opened");
    let sessions: Vec<String> = opened.map(|line| line["session"].as_str().unwrap().to_owned()).collect();
    let second = sessions[1].as_str();
    ended.check("nothing", &honest, [0; 4], ["", ""]);
    let dropped: Vec<Value> = honest.iter().filter(|line| !is_of(line, second)).cloned().collect();
    ended.check("dropped", &dropped, [0, 1, 1, 1], ["was rewritten", "only the agent knows it"]);
    let cut = honest.iter().position(|line| is_of(line, second)).unwrap();
    ended.check("truncated", &honest[..cut], [0, 1, 1, 1], ["was shortened", "only the agent knows it"]);
    let mut changed = honest.clone();
    let closed = changed.iter_mut().find(|line| is_of(line, second) && line["event"] == "session.closed");
    closed.unwrap()["toJoiner"] = json!(90_000_000);
    ended.check("changed", &changed, [0, 1, 1, 1], ["was rewritten", "bytes at the hub"]);
    // What nobody has seen yet can be forged for all but the agent's own record.
    let mut invented = honest.clone();
    let forged = honest.iter().filter(|line| is_of(line, second)).cloned().map(|mut line| {
        line["session"] = json!("ses_forged");
        line
    });
    invented.extend(forged);
    ended.check("invented", &invented, [0, 0, 0, 1], ["", "only the hub knows it"]);
    let hidden: Vec<Value> =
        honest.iter().filter(|line| !is_of(line, sessions.last().unwrap())).cloned().collect();
    ended.check("hidden", &hidden, [0, 0, 0, 1], ["", "only the agent knows it"]);
    // Sessions in another order differ if they were more than a minute apart.
    let mut swapped = honest.clone();
    let places: Vec<usize> =
        (0..honest.len()).filter(|at| sessions.iter().any(|id| is_of(&honest[*at], id))).collect();
    let reversed: Vec<Value> = places.iter().rev().map(|at| honest[*at].clone()).collect();
    for (at, line) in places.into_iter().zip(reversed) {
        swapped[at] = line;
    }
    ended.check("reordered", &swapped, [0, 1, 1, 0], ["was rewritten", ""]);
    let served = ended.owner.file("served.log");
    let mut record = log_lines(&served);
    spread(&mut record, &sessions);
    write_sealed(&served, &record);
    let mut apart = honest.clone();
    spread(&mut apart, &sessions);
    ended.check("hours apart", &apart, [0, 1, 1, 0], ["was rewritten", ""]);
    spread(&mut swapped, &sessions.iter().rev().cloned().collect::<Vec<_>>());
    ended.check("reordered", &swapped, [0, 1, 1, 1], ["was rewritten", "in another order"]);
}

#[test]
fn an_agent_whose_record_cannot_be_written_serves_on_and_counts_what_is_missing() {
    const CONNECTIONS: usize = 8800;
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let mut exposed = expose(&owner, "db", common::service(common::echo));
    let (_reached, port) = common::reach(&user, "db");
    assert!(common::echoes(port, b"before"));
    // A process of the machine that hangs is like a disk that does: the writer waits for the record's lock.
    let lock = fs::File::options().append(true).create(true).open(owner.file("served.lock")).unwrap();
    lock.lock().unwrap();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..CONNECTIONS / 8 {
                    assert!(common::echoes(port, b"x"), "it waits for its record");
                }
            });
        }
    });
    lock.unlock().unwrap();
    let recorded = || {
        // The last line may be half written.
        let text = fs::read_to_string(owner.file("served.log")).unwrap();
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let missing = lines.iter().filter(|line| line["event"] == "audit.missing");
        let missing: u64 = missing.map(|line| line["count"].as_u64().unwrap()).sum();
        let closed = lines.iter().filter(|line| line["event"] == "connection.closed").count();
        (closed, usize::try_from(missing).unwrap())
    };
    // Sessions have lines, too, and theirs may be missing.
    let is_whole = || {
        let (closed, missing) = recorded();
        (CONNECTIONS + 1..CONNECTIONS + 32).contains(&(closed + missing))
    };
    eventually("all are recorded or counted", PATIENCE, is_whole);
    assert!((1..CONNECTIONS - 8000).contains(&recorded().1), "{:?}", recorded());
    assert!(exposed.err().contains("lines of the log are lost"), "{}", exposed.err());
    // Its end is not kept waiting for long, either.
    lock.lock().unwrap();
    assert!(common::echoes(port, b"last"));
    let began = std::time::Instant::now();
    exposed.interrupt();
    assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
}

#[test]
fn a_collector_gets_every_line_again_after_it_was_away_and_nothing_waits_for_it() {
    use std::io::BufRead;
    use std::net::TcpListener;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    // The collector is away when the hub starts.
    drop(listener);
    let hub = Hub::start_with(&["--tunnel-ports", "off", "--audit-to", &format!("tcp://{at}")]);
    let key = make_key(&hub).unwrap();
    let listener = TcpListener::bind(at).unwrap();
    let record = |stream: &mut std::io::BufReader<std::net::TcpStream>| -> Value {
        let mut length = Vec::new();
        stream.read_until(b' ', &mut length).unwrap();
        let length: usize = String::from_utf8(length).unwrap().trim().parse().unwrap();
        let mut record = vec![0; length];
        stream.read_exact(&mut record).unwrap();
        let record = String::from_utf8(record).unwrap();
        let (head, line) = record.split_at(record.find('{').unwrap());
        let head: Vec<&str> = head.split(' ').collect();
        assert!(head[0] == "<109>1" && head[3] == "connect" && head[5] == "audit", "{head:?}");
        serde_json::from_str(line).unwrap()
    };
    let accepted = || {
        let stream = listener.accept().unwrap().0;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        std::io::BufReader::new(stream)
    };
    let mut stream = accepted();
    let mut last = 0;
    loop {
        let line = record(&mut stream);
        last += 1;
        assert_eq!(line["seq"].as_u64(), Some(last));
        if line["key"] == key.as_str() {
            break;
        }
    }
    drop(stream);
    let key = make_key(&hub).unwrap();
    let mut stream = accepted();
    loop {
        let line = record(&mut stream);
        last += 1;
        assert_eq!(line["seq"].as_u64(), Some(last), "{line}");
        if line["key"] == key.as_str() {
            break;
        }
    }
    for bad in ["tcp://host", "syslog:dev/log", "udp://h:1", "unix:"] {
        assert_eq!(
            hub.home.run(&["hub", "--listen", "127.0.0.1:0", "--audit-to", bad]).code,
            Some(2),
            "{bad}"
        );
    }
    // Local collectors: a stream, and datagrams as syslog takes them.
    let socket = hub.home.file("collector");
    let datagrams = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    datagrams.set_read_timeout(Some(PATIENCE)).unwrap();
    let _hub =
        Hub::start_with(&["--tunnel-ports", "off", "--audit-to", &format!("syslog:{}", socket.display())]);
    let mut buffer = [0; 4096];
    let length = datagrams.recv(&mut buffer).unwrap();
    assert!(buffer.starts_with(b"<109>1 ") && buffer[length - 1] == b'}');
    fs::remove_file(&socket).unwrap();
    let streams = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let _hub =
        Hub::start_with(&["--tunnel-ports", "off", "--audit-to", &format!("unix:{}", socket.display())]);
    let mut buffer = [0; 8];
    streams.accept().unwrap().0.read_exact(&mut buffer).unwrap();
    assert!(buffer.windows(2).any(|two| two == b" <"), "{buffer:?}");
}

#[test]
fn a_collector_that_hangs_delays_no_session_and_what_it_misses_is_counted() {
    // A collector that reads nothing, and whose queue takes few lines.
    let home = Home::new();
    let socket = home.file("collector");
    let datagrams = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    let mut hub =
        Hub::start_with(&["--tunnel-ports", "off", "--audit-to", &format!("syslog:{}", socket.display())]);
    let key = hub.key("member");
    let mut agent = RawAgent::up(&hub, &key, "agent_a");
    agent.expose("db");
    let ask = json!({ "service": "db", "fingerprint": FINGERPRINT, "direct": true }).to_string();
    let one = |connection| {
        request("POST /v1/sessions", "hub", &[("x-api-key", &key), ("Connection", connection)], &ask)
    };
    let hundred = one("keep-alive").repeat(99) + &one("close");
    // Two lines for each session: more than the collector's queue and ours can hold.
    for _ in 0..46 {
        let began = std::time::Instant::now();
        let (mut stream, mut answers) = (hub.tls(), String::new());
        stream.write_all(hundred.as_bytes()).unwrap();
        let _ = stream.read_to_string(&mut answers);
        assert_eq!(answers.matches("HTTP/1.1 200").count(), 100, "{answers}");
        for _ in 0..100 {
            let session = agent.next().unwrap()["session"].clone();
            for is_over in [false, true] {
                agent.send(&json!({ "type": "direct", "session": session, "isOver": is_over,
                    "durationMs": 1, "toAgent": 1, "toJoiner": 1 }));
            }
        }
        // A hub that waited for the collector would take half a second for each line.
        assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    }
    eventually("all are audited", PATIENCE, || hub.audit().matches("session.closed").count() == 4600);
    let (status, lasted) = hub.running.interrupt();
    assert!(status.success() && lasted < PATIENCE / 3, "{lasted:?}");
    let audit = hub.audit();
    let lines: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let unsent = lines.iter().filter(|line| line["event"] == "audit.unsent");
    let unsent: usize = unsent.map(|line| usize::try_from(line["count"].as_u64().unwrap()).unwrap()).sum();
    datagrams.set_nonblocking(true).unwrap();
    let received = std::iter::from_fn(|| datagrams.recv(&mut [0; 4096]).ok()).count();
    let left = "the audit log's collector has not got the last ";
    let err = hub.running.err();
    let left: usize = err.split(left).nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    // The lines after the last report of a loss may be lost, too.
    let known = received + left + unsent;
    assert!(unsent > 0 && left <= 8193, "{received} {left} {unsent}");
    assert!(
        (lines.len() - 3..=lines.len()).contains(&known),
        "{} lines: {received} {left} {unsent}",
        lines.len()
    );
    hub.home.run(&["hub", "audit", "verify"]).ok();
}

#[test]
fn the_audit_log_is_rotated_and_a_hub_whose_log_is_moved_away_says_so() {
    let hub = Hub::start();
    let run = |args: &[&str]| hub.home.run(&[&["hub", "audit"], args].concat());
    let key = make_key(&hub).unwrap();
    let closed = run(&["rotate", "--json"]).ok().json();
    let (segment, hash) = (closed["segment"].as_str().unwrap(), closed["hash"].as_str().unwrap());
    make_key(&hub).unwrap();
    run(&["rotate"]).ok();
    eventually("the rotation is audited", PATIENCE, || hub.audit().contains("audit.rotated"));
    let lines = run(&["verify", "--json"]).ok().json()["lines"].as_u64().unwrap();
    assert!(lines > closed["lines"].as_u64().unwrap() + 2);
    let shown = run(&["show", "--since", "1h"]).ok();
    assert!(shown.out.contains(&key) && shown.out.contains("hub.started"), "{shown:#?}");
    assert!(!run(&["show", "--actor", "hub"]).ok().out.contains("key.made"));
    let shown = run(&["show", "--actor", "first admin", "--json"]).ok().out;
    for line in shown.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        assert!(line["label"] == "first admin" && line["address"] == "127.0.0.1", "{line}");
    }
    // A segment that is kept elsewhere is named by its hash.
    let elsewhere = hub.home.file("segment");
    fs::rename(segment, &elsewhere).unwrap();
    assert!(run(&["verify"]).err.contains("are missing"));
    run(&["verify", "--expect", hash]).ok();
    fs::rename(&elsewhere, segment).unwrap();
    let log = hub.home.file("hub/audit.log");
    for change in ["moved or deleted", "moved or deleted", "changed"] {
        match change {
            "changed" => fs::write(&log, "").unwrap(),
            _ if elsewhere.exists() => fs::remove_file(&log).unwrap(),
            _ => fs::rename(&log, &elsewhere).unwrap(),
        }
        let reason = format!("the log was {change} while the hub ran");
        eventually("the hub notices", PATIENCE, || hub.audit().contains(&reason));
        assert!(run(&["verify"]).err.contains("are missing"));
    }
}

#[test]
fn many_processes_on_one_state_folder_lose_nothing_of_each_other() {
    let hub = Hub::start();
    let home = hub.machine("member");
    let exposed: Vec<Running> =
        (0..6).map(|n| expose(&home, &format!("s{n}"), common::service(common::echo))).collect();
    let reached: Vec<Running> = thread::scope(|scope| {
        let start = |n: usize| {
            let home = &home;
            move || {
                let running = home.start(&["reach", "--json", &format!("s{n}")]);
                running.wait_event("up");
                running
            }
        };
        let started: Vec<_> = (0..6).map(|n| scope.spawn(start(n))).collect();
        for n in 0..4 {
            let (home, hub) = (&home, &hub);
            scope.spawn(move || {
                home.run(&["up", "--hub", &hub.url, "--api-key", &hub.admin_key, "--label", &format!("l{n}")])
            });
        }
        started.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let names = |file: &str| {
        let text = fs::read_to_string(home.file(file)).unwrap();
        (0..6).filter(|n| text.contains(&format!("s{n}\""))).count()
    };
    assert_eq!((names("active-routes.json"), names("known_agents.json"), names("ports.json")), (6, 6, 6));
    let routes: Vec<Value> =
        serde_json::from_str(&fs::read_to_string(home.file("active-routes.json")).unwrap()).unwrap();
    assert_eq!(routes.len(), 6);
    let config: Value = serde_json::from_str(&fs::read_to_string(home.file("config.json")).unwrap()).unwrap();
    assert_eq!(config["hubUrl"], hub.url.as_str());
    drop(reached);
    drop(exposed);
    // The killed ones left their routes behind; the next writer drops them, and no draft stays.
    let hub_side = expose(&home, "s9", common::service(common::echo));
    let (next, _) = common::reach(&home, "s9");
    let routes: Vec<Value> =
        serde_json::from_str(&fs::read_to_string(home.file("active-routes.json")).unwrap()).unwrap();
    assert_eq!(routes.len(), 1, "{routes:?}");
    drop((hub_side, next));
}
