//! `connect join`, word by word: what it prints in every situation, in a pipe and on a terminal.

mod common;

use std::io::Read;
use std::io::Write;
use std::process::Command;

use common::Home;
use common::Running;
use common::Said;
use common::team::Ports;
use common::team::Team;
use common::team::on_terminal;
use common::team::uncoloured;

/// Starts a join, waits until it stands, ends it, and returns what it said.
fn said_until_stopped(home: &Home, command: Command, last: &str) -> Said {
    let running = Running::start(command);
    running.wait_out(|line| line.contains(last));
    home.run(&["stop", "--all"]).ok();
    running.finish()
}

/// Three services at the very ports that the joiner will have.
fn three() -> (Team, Ports, common::team::Shared) {
    let (team, ports) = (Team::new(), Ports::claim());
    (0..3).for_each(|offset| ports.echo(offset));
    let targets = [ports.target("postgres", 0), ports.target("redis", 1), ports.target("api", 2)];
    let mut args = vec!["--name", "staging-env", "--expires", "22h", "--code", "abc123"];
    args.extend(targets.iter().map(String::as_str));
    let shared = team.share(&args);
    (team, ports, shared)
}

/// The same, joined in the second in which it was shared: what is left of the time is rounded down.
fn unhurried(said: &str) -> String {
    said.replace("21 hours 59 minutes", "22 hours")
}

fn joined_block(ports: &Ports) -> String {
    let [one, two, three] = [0, 1, 2].map(|offset| ports.at(offset));
    format!(
        "\
🔗 Joining environment share: abc123

[ok] Connected to shared environment!

  Name: staging-env
  Expires in 22 hours

  Establishing tunnels...

    [ok] postgres → localhost:{one}
    [ok] redis → localhost:{two}
    [ok] api → localhost:{three}

[ok] 3 tunnel(s) active

  Example connections:
    • postgres: localhost:{one}
    • redis: localhost:{two}
    • api: localhost:{three}

  Press Ctrl+C to disconnect all tunnels"
    )
}

#[test]
fn joining_says_the_documented_words_in_a_pipe_on_a_terminal_and_without_utf8() {
    let (team, ports, _shared) = three();
    let block = joined_block(&ports);
    let join = || team.user.connect(&["join", " ABC123 "]);

    let mut in_a_pipe = Running::start(join());
    in_a_pipe.wait_out(|line| line.contains("Ctrl+C"));
    let (status, took) = in_a_pipe.interrupt();
    assert_eq!((status.code(), unhurried(&in_a_pipe.out())), (Some(0), block.clone()));
    assert_eq!(in_a_pipe.err(), "");
    assert!(took.as_millis() < 1000, "{took:?}");

    if common::is_here("script", "util-linux") {
        let said = said_until_stopped(&team.user, on_terminal(&join()), "Ctrl+C");
        assert!(said.out.contains("\u{1b}[32m[ok]\u{1b}[0m postgres → "), "{said:#?}");
        assert_eq!((said.code, unhurried(&uncoloured(&said.out))), (Some(0), block.clone()));
    }

    let mut plain = join();
    plain.env("LANG", "C");
    let said = said_until_stopped(&team.user, plain, "Ctrl+C");
    let expected = block.replace("🔗 ", "").replace('→', "->").replace('•', "*");
    assert_eq!((said.code, unhurried(&said.out)), (Some(0), expected));
}

#[test]
fn what_expires_says_when_and_a_number_needs_its_unit() {
    let (team, ports) = (Team::new(), Ports::claim());
    let target = ports.target("db", 0);
    let shares = team.owner.start(&["share", &target, "--expires", "90m"]);
    shares.wait_out(|line| line == "  Expires in 1 hour 30 minutes");
    let made = team.hub.home.run(&["hub", "key", "create", "--expires", "36h"]).ok();
    assert!(
        made.out.contains("  It expires in 35 hours 59 minutes, at 20")
            || made.out.contains("in 36 hours, at 20")
    );
    let key = made.out.split_whitespace().find(|word| word.starts_with("pc_")).unwrap();
    let home = Home::new();
    let up = home.run(&["up", "--hub", &team.hub.url, "--api-key", key]).ok().out;
    assert!(up.contains("  The key expires in 3"), "{up}");
    let whoami = home.run(&["whoami", "--json"]).ok().json();
    assert!(whoami["expiresAt"].as_str().unwrap().starts_with("20"), "{whoami}");
    for said in [
        team.owner.run(&["share", &target, "--expires", "90"]),
        team.hub.home.run(&["hub", "key", "create", "--expires", "90"]),
    ] {
        assert_eq!(said.err, "[x] `90` has no unit\n  Write: --expires 90d, 90h or 90m");
        assert_eq!(said.code, Some(2));
    }
}

#[test]
fn a_busy_port_is_replaced_by_the_next_free_one() {
    let (team, ports, _shared) = three();
    let _held = [ports.hold(1), ports.hold(3)];
    let said = said_until_stopped(&team.user, team.user.connect(&["join", "abc123"]), "Ctrl+C");
    // redis has to leave its port for the api's, and the api in turn for the next that is free.
    let block = joined_block(&ports)
        .replace(
            &format!("[ok] api → localhost:{}\n", ports.at(2)),
            &format!("[ok] api → localhost:{} (was {})\n", ports.at(4), ports.at(2)),
        )
        .replace(
            &format!("[ok] redis → localhost:{}\n", ports.at(1)),
            &format!("[ok] redis → localhost:{} (was {})\n", ports.at(2), ports.at(1)),
        )
        .replace(
            &format!("• redis: localhost:{}", ports.at(1)),
            &format!("• redis: localhost:{}", ports.at(2)),
        )
        .replace(&format!("• api: localhost:{}", ports.at(2)), &format!("• api: localhost:{}", ports.at(4)));
    assert_eq!((said.code, unhurried(&said.out)), (Some(0), block));
}

#[test]
fn a_service_that_is_not_there_is_named_with_the_true_reason_and_the_rest_go_on() {
    let (team, ports) = (Team::new(), Ports::claim());
    ports.echo(0);
    ports.echo(3);
    let _held = ports.hold(0);
    let away = team.owner.start(&["expose", "--json", "away", &ports.at(2).to_string()]);
    away.wait_event("exposed");
    let (api, redis, web) = (ports.target("api", 0), ports.target("redis", 1), ports.target("web", 3));
    let _shared = team.share(&[&api, &redis, &web, "--service", "away", "--code", "abc123"]);
    drop(away);
    common::eventually("the hub sees that it is gone", common::PATIENCE, || {
        let services = team.user.run(&["services", "--json"]).ok().json();
        services.as_array().unwrap().iter().any(|one| one["name"] == "away" && one["status"] == "offline")
    });
    let said =
        said_until_stopped(&team.user, team.user.connect(&["join", "abc123", "--strict-ports"]), "Ctrl+C");
    let (_, tunnels) = said.out.split_once("Establishing tunnels...\n\n").unwrap();
    let expected = format!(
        "    [!] api → failed: Port {} in use ({}, PID {})
    [!] redis → failed: Nothing is listening at 127.0.0.2:{} on the agent's machine
    [ok] web → localhost:{web}
    [!] away → failed: away is offline

[ok] 1 tunnel(s) active

  [!] 3 service(s) could not connect (may be offline)

  Example connections:
    • web: localhost:{web}

  Press Ctrl+C to disconnect all tunnels",
        ports.at(0),
        std::fs::read_to_string("/proc/self/comm").unwrap().trim_end(),
        std::process::id(),
        ports.at(1),
        web = ports.at(3)
    );
    assert_eq!((said.code, tunnels), (Some(0), expected.as_str()));
}

#[test]
fn an_unknown_code_is_not_found_and_one_that_cannot_be_is_told_why() {
    let team = Team::new();
    for code in ["zzzzzz", "abc12", "abc 123", "abc123-nofingerprint"] {
        let said = team.user.run(&["join", code]);
        let words = "[x] Share not found or expired\n  Check the code and try again.";
        assert!(said.err.starts_with(words), "{code}: {said:#?}");
        assert_eq!(said.err.lines().count(), if code == "zzzzzz" { 2 } else { 3 }, "{said:#?}");
        assert_eq!(said.code, Some(1), "{code}");
    }
    assert_eq!(team.user.run(&["join"]).code, Some(2));
}

#[test]
fn a_share_without_a_living_service_is_the_end() {
    let (team, ports) = (Team::new(), Ports::claim());
    let _shared = team.share(&[&ports.target("redis", 0), "--code", "abc123"]);
    let said = team.user.run(&["join", "abc123"]);
    assert!(said.out.ends_with(&format!(
        "  Establishing tunnels...\n\n    [!] redis → failed: Nothing is listening at 127.0.0.2:{} on the agent's machine\n",
        ports.at(0)
    )), "{said:#?}");
    assert!(said.err.starts_with("[x] No tunnels could be established.\n  "), "{said:#?}");
    assert_eq!(said.code, Some(1));
}

#[test]
fn a_service_for_which_no_port_is_left_says_so_and_gets_one_when_there_is() {
    let (team, ports) = (Team::new(), Ports::claim());
    ports.echo(0);
    let _shared = team.share(&[&ports.target("postgres", 0), &other_service(), "--code", "abc123"]);
    let mut held: Vec<_> = (0..100).map(|offset| ports.hold(offset)).collect();
    let joined = team.user.start(&["join", "abc123"]);
    joined.wait_out(|line| line.contains("Ctrl+C"));
    let line =
        format!("    [!] postgres → failed: Port {} in use and no alternatives available", ports.at(0));
    assert!(joined.out().contains(&line), "{}", joined.out());
    drop(held.remove(40));
    let came = format!("[ok] postgres → localhost:{} (was {}) is there now", ports.at(40), ports.at(0));
    joined.wait_out(|line| line == came);
    assert!(common::echoes(ports.at(40), b"late"));
}

/// Any other service, so that a share is not empty.
fn other_service() -> String {
    format!("other=127.0.0.1:{}", common::service(common::echo))
}

#[test]
fn a_machine_that_never_logged_in_is_told_to() {
    let said = Home::new().run(&["join", "abc123"]);
    assert_eq!(said.err, "[x] Agent not configured\n  Run connect up first to authenticate.");
    assert_eq!((said.code, said.out.as_str()), (Some(1), "🔗 Joining environment share: abc123\n"));
}

#[test]
fn a_hub_that_does_not_answer_is_named_and_the_exit_code_is_1() {
    let mut team = Team::new();
    team.hub.running.kill();
    let said = team.user.run(&["join", "abc123"]);
    assert!(said.err.starts_with(&format!("[x] Cannot reach the hub {}", team.hub.url)), "{said:#?}");
    assert_eq!(said.code, Some(1));
}

#[test]
fn a_port_for_a_service_that_is_not_in_the_share_is_a_mistake_with_a_suggestion() {
    let (team, _ports, _shared) = three();
    let said = team.user.run(&["join", "abc123", "--port", "postgers=6000"]);
    assert_eq!(said.code, Some(2));
    assert_eq!(said.err, "[x] There is no postgers in this share\n  Did you mean: --port postgres=PORT");
    for bad in ["postgres", "postgres=0", "postgres=x", "=1"] {
        assert_eq!(team.user.run(&["join", "abc123", "--port", bad]).code, Some(2), "{bad}");
    }
}

/// The names that the owner's machine has at the hub, in order, as `name status`.
fn listed(team: &Team) -> Vec<String> {
    let services = team.owner.run(&["services", "--json"]).ok().json();
    let word = |one: &serde_json::Value, field: &str| one[field].as_str().unwrap().to_owned();
    services.as_array().unwrap().iter().map(|one| word(one, "name") + " " + &word(one, "status")).collect()
}

/// The hub answers for the taken name first, while it has yet to answer for the others.
#[test]
fn a_share_that_fails_leaves_nothing_at_the_hub() {
    let (team, ports) = (Team::new(), Ports::claim());
    // Everything was exposed, and the share itself is refused.
    let _other = team.share(&[&ports.target("z", 1), "--code", "taken1"]);
    for _ in 0..5 {
        let said = team.owner.run(&["share", &ports.target("b", 1), "--code", "taken1"]);
        assert!(said.err.contains("This code is taken"), "{said:#?}");
        common::eventually("it is withdrawn", common::PATIENCE, || listed(&team) == ["z online"]);
    }
}

/// A service that says one word to everybody.
fn saying(word: &'static str) -> String {
    format!("postgres={}", common::service(move |mut stream| _ = stream.write_all(word.as_bytes())))
}

fn heard(port: u16) -> String {
    let mut word = String::new();
    common::dial(port).read_to_string(&mut word).unwrap();
    word
}

#[test]
fn each_share_has_a_postgres_of_its_own_beside_the_workspaces() {
    let team = Team::new();
    let first = team.share(&[&saying("first"), "--name", "ann-env"]);
    let mut second =
        team.user.start(&["share", "--json", &saying("second"), "--name", "bob-env", "--code", "bob123"]);
    second.wait_event("shared");
    let services = || team.hub.ask("GET /v1/services", &team.hub.admin_key, "").json();
    let shares = |services: &serde_json::Value| -> Vec<String> {
        services.as_array().unwrap().iter().map(|one| one["share"]["name"].to_string()).collect()
    };
    let mut named = shares(&services());
    named.sort();
    assert_eq!(named, [r#""ann-env""#, r#""bob-env""#]);
    let table = team.user.run(&["services"]).ok().out;
    assert!(table.lines().next().unwrap().ends_with("AGENT   SHARE"), "{table}");
    assert!(table.contains("member  ann-env"), "{table}");
    let whoami = team.owner.run(&["whoami"]).ok().out;
    assert!(whoami.contains("Exposes:     postgres (share ann-env)\n"), "{whoami}");
    assert!(team.hub.audit().contains(r#""services":"postgres""#), "{}", team.hub.audit());
    // Only who has joined gets there, whatever name or ID a key asks for.
    let said = team.user.run(&["reach", "postgres"]);
    assert!(said.err.starts_with("[x] There is no service postgres\n"), "{said:#?}");
    for service in ["postgres".to_owned(), services()[0]["id"].as_str().unwrap().to_owned()] {
        let body = serde_json::json!({ "service": service, "fingerprint": "a".repeat(64) }).to_string();
        let refused = team.hub.ask("POST /v1/sessions", &team.hub.key("member"), &body);
        assert_eq!((refused.status, refused.text("code")), (404, "no-such-service".into()));
    }
    // The workspace's own is another one, and the one that `reach` means.
    let machine = team.hub.machine("member");
    let target = saying("workspace");
    let exposing = machine.start(&["expose", "--json", "postgres", target.trim_start_matches("postgres=")]);
    exposing.wait_event("exposed");
    let (_reached, port) = common::reach(&team.user, "postgres");
    assert_eq!(heard(port), "workspace");
    for (code, word) in [(first.code.as_str(), "first"), ("bob123", "second")] {
        let (joined, services) = team.join(&[code]);
        assert_eq!(heard(common::team::port_of(&services, "postgres")), word);
        let routes = std::fs::read_to_string(team.user.file("active-routes.json")).unwrap();
        let share = if word == "first" { "ann-env" } else { "bob-env" };
        assert!(routes.contains(&format!(r#""share": "{share}""#)), "{routes}");
        drop(joined);
    }
    // What was made for a share goes with it, although its process has yet to notice.
    team.owner.run(&["share", "revoke", &first.id]).ok();
    let mut named = shares(&services());
    named.sort();
    assert_eq!(named, [r#""bob-env""#, "null"]);
    assert_eq!(first.running.finish().code, Some(1));
    second.interrupt();
    common::eventually("the other's is gone", common::PATIENCE, || shares(&services()) == ["null"]);
}

#[test]
fn what_a_crashed_share_left_is_removed_as_the_refusals_say() {
    let team = Team::new();
    let mut shared = team.share(&[&saying("first"), "--name", "ann-env"]);
    shared.running.kill();
    common::eventually("it is offline", common::PATIENCE, || listed(&team) == ["postgres offline"]);
    for args in [&["services", "remove", "postgres"][..], &["stop", "postgres"]] {
        let said = team.owner.run(args);
        let hint = format!("connect share revoke {}", shared.id);
        assert!(said.code == Some(1) && said.err.ends_with(&hint), "{said:#?}");
        // It is not this one's to revoke.
        assert!(!team.user.run(args).err.contains("revoke"));
    }
    team.owner.run(&["share", "revoke", &shared.id]).ok();
    assert!(listed(&team).is_empty());
}

#[test]
fn a_damaged_list_of_routes_is_kept_aside() {
    let (team, ports) = (Team::new(), Ports::claim());
    ports.echo(0);
    let _shared = team.share(&[&ports.target("db", 0), "--code", "abc123"]);
    let by_hand = "[{\"serviceName\":\"mine\",\"localPort\":8080},]";
    std::fs::write(team.user.file("active-routes.json"), by_hand).unwrap();
    let _joined = team.join(&["abc123"]);
    assert_eq!(std::fs::read_to_string(team.user.file("active-routes.json.damaged")).unwrap(), by_hand);
}

#[test]
fn a_plain_share_takes_what_is_online_and_lists_what_it_leaves_out() {
    let (team, ports) = (Team::new(), Ports::claim());
    ports.echo(0);
    let at = |offset| format!("127.0.0.2:{}", ports.at(offset));
    let mut gone = common::expose(&team.owner, "gone", ports.at(1));
    gone.kill();
    common::eventually("it is offline", common::PATIENCE, || listed(&team) == ["gone offline"]);
    let said = team.owner.run(&["share"]);
    assert_eq!(
        said.err,
        "[x] There is nothing to share: this machine has no service online\n  \
         Share ports directly: connect share 5432 api=8080, or expose first: connect expose NAME PORT"
    );
    assert_eq!(said.code, Some(1));
    let up = team.owner.start(&["expose", "--json", "up", &at(0)]);
    up.wait_event("exposed");
    let said = team.owner.run(&["share", "--code", "abc123"]).ok();
    assert!(said.out.contains("The code needs a login at this hub (connect up); without one: "), "{said:#?}");
    assert!(said.out.contains("The verified code names this machine, too"), "{said:#?}");
    let list = format!(
        "  Services:\n    • up → port {}\n\n  Left out, offline now:\n    • gone → port {}\n",
        ports.at(0),
        ports.at(1)
    );
    assert!(said.out.contains(&list), "{said:#?}");
    let (_joined, services) = team.join(&["abc123"]);
    assert_eq!(services.as_object().unwrap().keys().collect::<Vec<_>>(), ["up"]);
    let left_out = &team.owner.run(&["share", "--json"]).ok().json()["leftOut"];
    assert_eq!(left_out[0]["name"], "gone");
}

#[test]
fn a_port_that_this_machine_exposes_already_is_shared_as_it_is() {
    let team = Team::new();
    let port = common::service(common::echo);
    let target = port.to_string();
    team.owner.run(&["expose", "db", &target, "--keep"]).ok();
    let said = team.owner.run(&["share", &target, "--code", "abc123"]).ok();
    assert!(said.out.contains(&format!("[ok] localhost:{port} is exposed already, as db\n")), "{said:#?}");
    assert!(said.out.contains(&format!("    • db → localhost:{port}\n")), "{said:#?}");
    team.owner.run(&["share", &format!("db={target}"), "--code", "abc124"]).ok();
    let (_joined, services) = team.join(&["abc123"]);
    assert!(common::echoes(common::team::port_of(&services, "db"), b"shared"));
    // Another name is a service of its own, and so is another target of that name.
    let named = team.share(&[&format!("api={target}"), &target, "--code", "abc125"]);
    assert_eq!(listed(&team), ["api online", "db online"]);
    drop(named);
    // Its name in another share is not this service's.
    let other = team.share(&["db=127.0.0.2:9", "--code", "abc126"]);
    common::eventually("both are listed", common::PATIENCE, || {
        listed(&team) == ["api offline", "db online", "db online"]
    });
    drop(other);
    let said = team.owner.run(&["share", "--service", "db", "db=127.0.0.2:9"]);
    assert_eq!(said.err, "[x] Two services are called db\n  Name one of them: OTHER=127.0.0.2:9");
    team.owner.run(&["stop", "--all"]).ok();
}

#[test]
fn a_share_is_revoked_by_the_name_in_the_list_if_only_one_has_it() {
    let (team, ports) = (Team::new(), Ports::claim());
    let target = ports.target("db", 0);
    let mut first = team.share(&[&target, "--name", "Ann's env"]);
    let listed = team.owner.run(&["share", "list"]).ok().out;
    assert!(listed.contains("Ann's env  20") && listed.contains("Z  0"), "{listed}");
    let on_screen = Said::of(on_terminal(&team.owner.connect(&["share", "list"]))).ok().out;
    assert!(uncoloured(&on_screen).contains("Ann's env  in 24 h"), "{on_screen}");
    let said = team.owner.run(&["share", "revoke", "Bob's env"]);
    assert_eq!(said.err, "[x] Share not found or expired\n  List them: connect share list");
    // A teammate's key is no help, and nor is a name that says nothing.
    assert_eq!(team.user.run(&["share", "revoke", "Ann's env"]).code, Some(1));
    assert_eq!(team.owner.run(&["share", "revoke", " "]).code, Some(2));
    assert!(first.running.is_running());
    team.owner.run(&["share", "revoke", "Ann's env"]).ok();
    assert_eq!(first.running.wait().code(), Some(1));

    let _second = team.share(&[&target, "--name", "env-1"]);
    let named = team.share(&[&ports.target("web", 0), "--name", "env-1"]);
    let said = team.owner.run(&["share", "revoke", "env-1"]);
    assert!(said.err.starts_with("[x] 2 shares have this name\n  "), "{said:#?}");
    team.owner.run(&["share", "revoke", &named.id]).ok();
    team.owner.run(&["share", "revoke", "env-1"]).ok();
    let shares = team.owner.run(&["share", "list", "--json"]).ok().json();
    assert_eq!(shares, serde_json::json!([]));
}

#[test]
fn tables_and_frames_fit_sixty_columns_without_utf8() {
    let team = Team::new();
    let name = "a-service-with-a-name-that-is-long";
    let _exposed = common::expose(&team.owner, name, common::service(common::echo));
    let own = format!("own={}", common::service(common::echo));
    let _shared = team.share(&["--name", "a share with a name that is rather long", "--service", name, &own]);
    for args in [&["services"][..], &["share", "list"], &["reach", name, "--check"]] {
        let mut command = team.owner.connect(args);
        command.env("COLUMNS", "60").env("LC_ALL", "C");
        let said = uncoloured(&Said::of(on_terminal(&command)).ok().out);
        for line in said.lines() {
            assert!(line.is_ascii() && line.len() <= 60, "{line}\n{said}");
        }
    }
}
