//! A link alone suffices, from wherever it is read; what does not match it is refused, and nobody logs it.

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;

use common::Home;
use common::Hub;
use common::Running;
use common::Said;
use common::eventually;
use common::fake_hub;
use common::fake_hub::FakeHub;
use common::team::Ports;
use common::team::Team;
use common::team::as_nobody_known;
use common::team::files_below;
use common::team::is_root;
use common::team::with_input;

/// A team whose share has a link.
fn linked() -> (Team, Ports, common::team::Shared) {
    let (team, ports) = (Team::new(), Ports::claim());
    ports.echo(0);
    let shared = team.share(&[&ports.target("db", 0), "--link"]);
    (team, ports, shared)
}

/// A job that sends a word through the tunnel and prints what came back.
fn job(home: &Home, link: &str) -> Command {
    let mut command = home.connect(&["join", "-", "--", "sh", "-c", "echo \"db is at $DB_ADDR\"; exit 5"]);
    command.env("CONNECT_JOIN", link);
    command
}

fn assert_joined(said: &Said) {
    assert_eq!((said.code, said.out.starts_with("db is at 127.0.0.1:")), (Some(5), true), "{said:#?}");
}

#[test]
fn a_link_needs_no_account_and_no_state_folder() {
    let (_team, _ports, shared) = linked();
    let fresh = Home::new();
    assert_joined(&Said::of(job(&fresh, &shared.link)));
    for home in ["/proc/no/such/folder", "/dev/null"] {
        let mut missing = job(&fresh, &shared.link);
        missing.env("PRIVATECONNECT_HOME", home).env("HOME", home);
        assert_joined(&Said::of(missing));
    }
}

#[test]
fn a_link_needs_no_root_no_known_user_and_no_writable_home() {
    let (_team, _ports, shared) = linked();
    let place = Home::new();
    let folder = place.file("home");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o555)).unwrap();
    // Beside the tests' own folder, which other users may not enter.
    let binary = place.file("connect");
    fs::copy(env!("CARGO_BIN_EXE_connect"), &binary).unwrap();
    let mut command = Command::new(&binary);
    command.args(["join", "-", "--", "sh", "-c", "echo \"db is at $DB_ADDR\"; exit 5"]);
    common::team::copy_environment(&job(&place, ""), &mut command);
    command.env("CONNECT_JOIN", &shared.link).env("HOME", &folder).env_remove("PRIVATECONNECT_HOME");
    assert_joined(&Said::of(as_nobody_known(&command)));
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    // A user without a line in /etc/passwd and without HOME, as containers have them.
    command.env_remove("HOME");
    assert_joined(&Said::of(as_nobody_known(&command)));
    if is_root() {
        // A home that is somebody else's.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(folder.join("config.json"), "{}").unwrap();
        command.env("PRIVATECONNECT_HOME", &folder);
        assert_joined(&Said::of(as_nobody_known(&command)));
    } else {
        eprintln!("\n*** SKIPPED: another user's home; it takes root to become somebody else ***\n");
    }
}

#[test]
fn a_key_and_a_code_need_no_writable_home_and_the_background_says_at_once_that_it_does() {
    let (team, ports, shared) = linked();
    let _exposed = team.expose(&ports.target("db", 0));
    let home = Home::new();
    let with_key = |args: &[&str]| {
        let mut command = home.connect(args);
        command.env("CONNECT_TOKEN", team.hub.key("member")).env("CONNECT_HUB_URL", &team.hub.url);
        command.env("PRIVATECONNECT_HOME", "/proc/no/such/folder");
        Said::of(command)
    };
    let script = &["--", "sh", "-c", "echo \"db is at $DB_ADDR\"; exit 5"][..];
    assert_joined(&with_key(&[&["join", &shared.code], script].concat()));
    assert_joined(&with_key(&[&["reach", "db"], script].concat()));
    let file = home.file("env").display().to_string();
    for args in [&["join", &shared.code, "-d", "--env-file", &file][..], &["join", &shared.link, "-d"]] {
        let said = with_key(args);
        assert!(said.err.starts_with("[x] Cannot make the folder /proc/no/such/folder/logs"), "{said:#?}");
        assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "{said:#?}");
        assert!(!home.file("env").exists());
    }
}

#[test]
fn a_join_in_the_background_works_without_proc() {
    let (_team, _ports, shared) = linked();
    if !is_root() {
        return eprintln!("SKIPPED: only root can mount over /proc; run the tests as root");
    }
    let home = Home::new();
    let join = home.connect(&["join", &shared.link, "-d"]);
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", "mount -t tmpfs none /proc && exec \"$0\" \"$@\""]);
    command.arg(join.get_program()).args(join.get_args());
    common::team::copy_environment(&join, &mut command);
    let said = Said::of(command).ok();
    assert!(said.out.contains("Runs in the background"), "{said:#?}");
    assert_eq!(common::team::routes(&home), ["db"]);
    home.run(&["stop", "--all"]).ok();
}

#[test]
fn an_empty_secret_and_forgotten_dashes_are_pointed_out() {
    let home = Home::new();
    for args in [&["join"][..], &["join", "-", "--", "true"], &["join", "-d"]] {
        let mut command = home.connect(args);
        command.env("CONNECT_JOIN", " ");
        let said = Said::of(command);
        let words = "[x] CONNECT_JOIN is empty: the secret is not passed to this job";
        assert!(said.code == Some(1) && said.err.starts_with(words), "{said:#?}");
    }
    for (args, hint) in [
        (&["join", "-", "sh", "-c", "env"][..], "Put -- before a command to run. Usage: connect join"),
        (&["reach", "db", "psql", "-h", "localhost"], "Put -- before a command to run. Usage: connect reach"),
        (&["reach", "db", "psql"], "put -- before a command to run"),
        (&["dev", "npm", "start"], "Put -- before a command to run. Usage: connect dev"),
    ] {
        let said = home.run(args);
        assert!(said.code == Some(2) && said.err.contains(hint), "{said:#?}");
    }
}

#[test]
fn a_machine_that_only_joins_by_link_is_healthy() {
    let home = Home::new();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o700)).unwrap();
    for folder in [home.path().display().to_string(), "/proc/no/such/folder".to_owned()] {
        let mut command = home.connect(&["doctor"]);
        command.env("PRIVATECONNECT_HOME", folder);
        let said = Said::of(command).ok();
        assert!(said.out.contains("[ok] Everything works, with "), "{said:#?}");
        assert!(said.out.contains("Agent not configured; enough to join by link"), "{said:#?}");
    }
}

#[test]
fn only_a_share_that_is_unknown_is_not_found() {
    let (team, _ports, mut shared) = linked();
    let id = team.hub.home.run(&["hub", "key", "list", "--json"]).ok().json();
    let member = id.as_array().unwrap().iter().filter(|key| key["label"] == "member");
    for key in member {
        team.hub.home.run(&["hub", "key", "revoke", key["id"].as_str().unwrap()]).ok();
    }
    let said = team.user.run(&["join", &shared.code]);
    assert!(said.code == Some(1) && !said.err.contains("Share not found"), "{said:#?}");
    assert!(said.err.contains("key"), "{said:#?}");
    shared.running.kill();
}

#[test]
fn a_link_from_stdin_leaves_the_rest_of_it_to_the_command() {
    let (_team, _ports, shared) = linked();
    let input = format!("  {}\nfirst line\nsecond line\n", shared.link);
    let said =
        with_input(Home::new().connect(&["join", "-", "--", "sh", "-c", "cat; exit 5"]), input.as_bytes());
    assert_eq!((said.code, said.out.as_str()), (Some(5), "first line\nsecond line"), "{said:#?}");
    let said = with_input(Home::new().connect(&["join", "-", "--json"]), b"");
    assert_eq!(said.code, Some(1), "{said:#?}");
}

#[test]
fn a_line_from_stdin_is_not_waited_for_beyond_its_end() {
    let (team, _ports, shared) = linked();
    let mut command = team.user.connect(&["join", "-"]);
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut child = spawned.unwrap();
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "{}", shared.code).unwrap();
    eventually("it joins with stdin still open", common::PATIENCE, || {
        !common::team::routes(&team.user).is_empty()
    });
    team.user.run(&["stop", "--all"]).ok();
    child.wait().unwrap();
}

#[test]
fn what_came_by_stdin_or_the_environment_is_in_no_process_list() {
    let (_team, _ports, shared) = linked();
    let (code, secret) = parts(&shared.link);
    let read = |pid: u32, what: &str| fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap();
    let home = Home::new();
    let mut front = home.connect(&["join", "--json"]);
    front.env("CONNECT_JOIN", &shared.link);
    let (front, _) = common::team::joined(Running::start(front));
    let mut back = home.connect(&["join", "-", "-d", "--json"]);
    back.env("CONNECT_JOIN", &shared.link);
    let said = Said::of(back).ok();
    let by_stdin = with_input(home.connect(&["join", "-", "-d", "--json"]), shared.link.as_bytes()).ok();
    let pid_of = |said: &Said| {
        let last: serde_json::Value = serde_json::from_str(said.out.lines().last().unwrap()).unwrap();
        u32::try_from(last["pid"].as_u64().unwrap()).unwrap()
    };
    // Typed, it is in the process list while the command starts, and not for as long as the tunnel lives.
    let typed = home.run(&["join", &shared.link, "-d", "--json"]).ok();
    for pid in [front.pid(), pid_of(&said), pid_of(&by_stdin), pid_of(&typed)] {
        let line = read(pid, "cmdline");
        assert!(line.contains("join") && !line.contains(&secret) && !line.contains(&code), "{line}");
        let environment = read(pid, "environ");
        assert!(pid == front.pid() || !environment.contains(&secret), "{environment}");
    }
    home.run(&["stop", "--all"]).ok();
}

#[test]
fn a_key_or_a_chosen_code_stays_out_of_the_processes_in_the_background() {
    let (team, ports, shared) = linked();
    let (home, key) = (Home::new(), team.hub.key("member"));
    fs::create_dir(home.file("other")).unwrap();
    let other = Home::at(home.file("other"));
    other.run(&["up", "--hub", &team.hub.url, "--api-key", &key]).ok();
    let with_key = |home: &Home, args: &[&str]| {
        let mut command = home.connect(args);
        command.env("CONNECT_TOKEN", &key).env("CONNECT_HUB_URL", &team.hub.url);
        Said::of(command).ok()
    };
    let _exposed = team.expose(&ports.target("db", 0));
    with_key(&home, &["reach", "db", "-d"]);
    with_key(&home, &["join", &shared.code, "-d"]);
    with_key(&home, &["proxy", "start", "--port", &ports.at(40).to_string()]);
    with_key(&other, &["daemon", "start"]);
    with_key(&other, &["share", &ports.target("web", 0), "--code", "chosen7", "-d"]);
    let mut seen = Vec::new();
    for run in [&home, &other]
        .iter()
        .flat_map(|home| home.run(&["status", "--json"]).ok().json().as_array().unwrap().clone())
    {
        let read = |what: &str| fs::read_to_string(format!("/proc/{}/{what}", run["pid"])).unwrap();
        let all = format!("{} {}", read("cmdline"), read("environ"));
        assert!(
            !all.contains(&key) && !all.contains("chosen7") && !all.contains(&shared.code),
            "{run} {all}"
        );
        seen.push(run["kind"].as_str().unwrap().to_owned());
    }
    seen.sort();
    assert_eq!(seen, ["daemon", "join", "proxy", "reach", "share"]);
    for home in [&home, &other] {
        home.run(&["stop", "--all"]).ok();
    }
}

/// Code and secret of `…/join#CODE.SECRET.HUBPIN.AGENT`.
fn parts(link: &str) -> (String, String) {
    let mut parts = link.split_once('#').unwrap().1.split('.');
    (parts.next().unwrap().to_owned(), parts.next().unwrap().to_owned())
}

#[test]
fn another_hub_at_the_same_address_is_refused() {
    let (mut team, _ports, mut shared) = linked();
    shared.running.kill();
    team.hub.running.kill();
    let other = Hub::start_with(&["--tunnel-ports", "off", "--listen", &team.hub.address]);
    assert_eq!(other.address, team.hub.address);
    for said in [
        Said::of(job(&Home::new(), &shared.link)),
        team.user.run(&["join", &shared.verified]),
        team.user.run(&["join", &shared.code]),
    ] {
        assert!(said.err.contains("did not prove that it is your hub"), "{said:#?}");
        assert_eq!(said.code, Some(1));
    }
}

/// The fingerprint whose pin is `aaa…`, and another one.
const TRUE: &str = "0000000000000000000000000000000000000000000000000000000000000000";
const FALSE: &str = "00000000000000000000000000000001ffffffffffffffffffffffffffffffff";

/// A hub that names these agents: one to who joins, one to who asks for a session.
fn lying_hub(to_joiners: &'static str, in_sessions: &'static str) -> FakeHub {
    FakeHub::start(move |asked, stream| match asked.call.as_str() {
        "POST /v1/shares/join" => {
            let text = r#"{"name":"env","expiresAt":"2100-01-01T00:00:00Z","expiresInSeconds":60,"agentId":"agent_a",
                "agentLabel":"a","agentFingerprint":"AGENT","token":"1.x","services":[{"id":"svc_a","name":"db",
                "targetPort":15432,"protocol":"tcp","status":"online"}]}"#;
            fake_hub::json(stream, 200, &text.replace("AGENT", to_joiners))
        }
        "POST /v1/sessions" => {
            let text = r#"{"session":"s","ticket":"t","relay":"https://127.0.0.1:1","agentFingerprint":"AGENT",
                "agentLabel":"a","agentId":"agent_a","name":"db","service":"svc_a","targetPort":15432,"protocol":"tcp"}"#;
            fake_hub::json(stream, 200, &text.replace("AGENT", in_sessions))
        }
        _ => fake_hub::friendly(asked, stream),
    })
}

#[test]
fn a_hub_that_names_another_agent_is_refused() {
    let pin = "a".repeat(26);
    for (to_joiners, in_sessions) in [(FALSE, FALSE), (TRUE, FALSE)] {
        let hub = lying_hub(to_joiners, in_sessions);
        let user = Home::new();
        user.run(&["up", "--hub", &hub.url, "--api-key", &hub.key]).ok();
        let link = format!("{}/join#abc123.{}.{}.{pin}", hub.url, "s".repeat(26), hub.certificates.pin);
        let verified = format!("abc123-{pin}");
        for said in [Home::new().run(&["join", &link]), user.run(&["join", &verified])] {
            assert_eq!(said.code, Some(1), "{said:#?}");
            let all = format!("{}{}", said.out, said.err);
            assert!(all.contains("The agent is not the one that this code names"), "{said:#?}");
        }
        // Nobody was sent to the relay to meet it.
        assert!(hub.asked().iter().all(|asked| !asked.call.contains("/v1/relay")));
    }
}

#[test]
fn a_cut_or_bent_link_is_refused() {
    let (_team, _ports, shared) = linked();
    let link = &shared.link;
    let from = link.find('#').unwrap();
    let mut bent: Vec<String> =
        [1, 9, 20, 36, 40, 63, 66].map(|cut| link[..link.len() - cut].to_owned()).into();
    bent.push(link[..from].to_owned());
    let flip = |at: usize| {
        let other = if link.as_bytes()[at] == b'b' { "c" } else { "b" };
        format!("{}{other}{}", &link[..at], &link[at + 1..])
    };
    // In the code, in the secret, in the hub's pin, in the agent's.
    bent.extend([from + 2, from + 15, from + 40, link.len() - 3].map(flip));
    for text in bent {
        let said = Said::of(job(&Home::new(), &text));
        assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "{text}: {said:#?}");
        assert!(said.err.contains("[x] "), "{said:#?}");
        let (_, secret) = parts(link);
        assert!(!said.err.contains(&secret), "{said:#?}");
    }
}

#[test]
fn neither_a_code_nor_a_secret_is_logged_and_the_hub_keeps_hashes_only() {
    let team = Team::around(Hub::start_with(&["--tunnel-ports", "off", "-v"]));
    let ports = Ports::claim();
    ports.echo(0);
    let shared = team.share(&[&ports.target("db", 0), "--link", "--code", "sehrgeheim7"]);
    let (code, secret) = parts(&shared.link);
    assert_joined(&Said::of(job(&Home::new(), &shared.link)));
    let (mut joined, _) = team.join(&[&shared.code, "-v"]);
    joined.interrupt();
    assert_eq!(team.user.run(&["join", "zzzzzz"]).code, Some(1));
    assert_eq!(team.owner.run(&["share", "list"]).ok().out.matches("2 ").count(), 1);
    team.owner.run(&["share", "revoke", &shared.code]).ok();
    let mut held = vec![("the hub's stderr".to_owned(), team.hub.running.err().into_bytes())];
    held.push(("the joiner's stderr".to_owned(), joined.err().into_bytes()));
    held.push(("the sharer's stderr".to_owned(), shared.running.err().into_bytes()));
    eventually("it is audited", common::PATIENCE, || team.hub.audit().contains("share.revoked"));
    let audit = team.hub.audit();
    assert!(audit.contains("share.joined") && !team.hub.running.err().is_empty(), "{audit}");
    held.extend(files_below(Path::new(team.hub.home.path())));
    for (place, bytes) in held {
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains(&code) && !text.contains(&secret), "{place}");
    }
}
