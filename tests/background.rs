//! `-d`, `status` and `stop`: what runs in the background is started, found and ended like the rest.

mod common;

use std::fs;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;

use common::Home;
use common::Hub;
use common::PATIENCE;
use common::Running;
use common::Said;
use common::echoes;
use common::eventually;
use common::team::Ports;
use common::team::Team;
use common::team::routes;

/// Starts it with `-d`, and returns what it said with the number of the one in the background.
fn detached(command: Command) -> (Said, u32) {
    let said = Said::of(command).ok();
    let last: Value = serde_json::from_str(said.out.lines().last().unwrap()).unwrap();
    assert_eq!(last["event"], "background", "{said:#?}");
    let pid = u32::try_from(last["pid"].as_u64().unwrap()).unwrap();
    (said, pid)
}

fn kinds(home: &Home) -> Vec<String> {
    let all = home.run(&["status", "--json"]).ok().json();
    let living = all.as_array().unwrap().iter().filter(|run| run["state"] == "running");
    let kinds = living.map(|run| run["kind"].as_str().unwrap().to_owned());
    let mut kinds: Vec<String> = kinds.collect();
    kinds.sort();
    kinds
}

/// Dead, or a zombie that nobody has buried yet: its parent is gone.
fn is_gone(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_none_or(|rest| rest.trim_start().is_empty() || rest.trim_start().starts_with('Z'))
}

/// Ends what a failing test would leave behind.
struct StopAll<'h>(&'h Home);

impl Drop for StopAll<'_> {
    fn drop(&mut self) {
        let _ = self.0.run(&["stop", "--all"]);
    }
}

#[test]
fn every_command_that_stays_can_stay_in_the_background() {
    let (team, ports) = (Team::new(), Ports::claim());
    let (owner, user) = (&team.owner, &team.user);
    let _stops = (StopAll(owner), StopAll(user));
    (0..2).for_each(|offset| ports.echo(offset));
    let target = |name: &str, offset: u16| ports.target(name, offset);
    let (db, web) = (target("db", 0), target("web", 1));
    let db_alone = db.split_once('=').unwrap().1;
    fs::write(user.file("pconnect.yml"), format!("services:\n  - name: db\n    port: {}\n", ports.at(30)))
        .unwrap();
    let project = user.path().file_name().unwrap().to_str().unwrap().to_owned();
    let mut pids = Vec::new();
    for (home, args, kind) in [
        (owner, &["expose", "db", db_alone][..], "expose"),
        (owner, &["share", &web, "--service", "db", "--code", "abc123", "--name", "staging"], "share"),
        (user, &["reach", "db", &ports.at(10).to_string()], "reach"),
        (user, &["join", "abc123", "--port", &format!("db={}", ports.at(20))], "join"),
        (user, &["dev"], "dev"),
    ] {
        let mut command = home.connect(&[args, &["-d", "--json"]].concat());
        command.current_dir(user.path());
        let (said, pid) = detached(command);
        assert!(!is_gone(pid) && said.err.is_empty(), "{said:#?}");
        assert!(kinds(home).contains(&kind.to_owned()), "{kind}: {:?}", kinds(home));
        pids.push((home, kind, pid));
    }
    for offset in [10, 20, 30, 1] {
        assert!(echoes(ports.at(offset), b"through the background"), "{offset}");
    }
    assert_eq!(kinds(user), ["dev", "join", "reach"]);
    assert_eq!(kinds(owner), ["expose", "share"]);

    // By name, by code whatever its case, by project; what was not named stays.
    for (name, kind, left) in [("db", "reach", 2), (" ABC123 ", "join", 1), (project.as_str(), "dev", 0)] {
        let said = user.run(&["stop", name]).ok();
        assert!(said.out.starts_with(&format!("[ok] Stopped {kind} ")), "{said:#?}");
        assert_eq!(kinds(user).len(), left);
        let (_, _, pid) = pids.iter().find(|(_, known, _)| *known == kind).unwrap();
        eventually("it is gone", PATIENCE, || is_gone(*pid));
    }
    assert!(routes(user).is_empty() && !echoes(ports.at(20), b"x"));
    let said = owner.run(&["stop", "--all"]).ok();
    assert_eq!(said.out.lines().count(), 2, "{said:#?}");
    assert!(kinds(owner).is_empty());
    // The share ended with the one who shared.
    assert!(user.run(&["join", "abc123"]).err.contains("[x] Share not found or expired"));
}

#[test]
fn what_it_says_in_the_background_is_what_it_says_in_front() {
    let (team, ports) = (Team::new(), Ports::claim());
    let _stop = StopAll(&team.user);
    ports.echo(0);
    let _shared = team.share(&[&ports.target("db", 0), "--code", "abc123"]);
    let said = team.user.run(&["join", "abc123", "-d"]).ok();
    let log = said.out.lines().last().unwrap().trim().strip_prefix("Log: ").unwrap().to_owned();
    let mut front = team.user.start(&["join", "abc123"]);
    front.wait_out(|line| line.contains("Ctrl+C"));
    front.interrupt();
    let background = said.out.split("  Runs in the background.").next().unwrap();
    let in_front = front.out().replace(&format!("localhost:{} (was {})", ports.at(1), ports.at(0)), "PORT");
    let in_front = in_front.replace(&format!("localhost:{}", ports.at(1)), "PORT");
    let in_front = in_front.split("  Press Ctrl+C").next().unwrap().to_owned();
    assert_eq!(background.replace(&format!("localhost:{}", ports.at(0)), "PORT"), in_front);
    assert!(said.out.contains("  Runs in the background. Stop it: connect stop abc123\n"), "{said:#?}");

    let status = team.user.run(&["status"]).ok().out;
    let login = format!("Logged in at {}, as member, role member\n\n● join abc123 (PID ", team.hub.url);
    assert!(status.starts_with(&login) && status.contains("in the background)"), "{status}");
    assert!(status.contains(&format!("    [ok] db → localhost:{}", ports.at(0))), "{status}");
    assert!(status.contains(&format!("    Log: {log}")), "{status}");

    // What happens later is in its log, which is the owner's alone.
    team.owner.run(&["stop", "--all"]).ok();
    eventually("the log says why it ended", PATIENCE, || {
        fs::read_to_string(&log).unwrap().contains("[x] The share was revoked or has expired")
    });
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&log).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    eventually("it does not run any more", PATIENCE, || kinds(&team.user).is_empty());
    let status = team.user.run(&["status"]).ok().out;
    assert!(
        status.contains("failed (PID ") && status.contains("[x] The share was revoked or has expired"),
        "{status}"
    );
    let all = team.user.run(&["status", "--json"]).ok().json();
    assert_eq!((&all[0]["state"], all[0]["names"][0].as_str()), (&Value::from("failed"), Some("abc123")));
}

#[test]
fn a_failure_in_the_background_comes_back_with_its_words_and_its_code() {
    let (team, ports) = (Team::new(), Ports::claim());
    let _shared = team.share(&[&ports.target("db", 0), "--code", "abc123"]);
    fs::write(team.user.file("pconnect.yml"), "services: [\n").unwrap();
    let long_wait = ["join", "abc123", "-d", "--wait", "1s", "--", "touch", "started"];
    for (args, words, code) in [
        (&["join", "zzzzzz", "-d"][..], "[x] Share not found or expired", 1),
        (&["join", "abc123", "-d"], "[x] No tunnels could be established.", 1),
        (&["join", "-d", "abc123", "--port", "nothing=1"], "[x] There is no nothing in this share", 2),
        (&["reach", "nothing", "-d"], "[x] There is no service nothing", 1),
        (&["dev", "-d"], "[x] pconnect.yml: ", 1),
        (&["share", "db2=127.0.0.2:1", "--code", "abc123", "-d"], "[x] This code is taken", 1),
        (&["expose", "db", "1", "-d", "--config", "/no/such/file"], "[x] Cannot read /no/such/file: ", 1),
        (&long_wait, "[x] The command was not started: db cannot be reached", 1),
    ] {
        let mut command = team.user.connect(args);
        command.current_dir(team.user.path());
        let said = Said::of(command);
        assert!(said.err.contains(words), "{args:?}: {said:#?}");
        assert_eq!(said.code, Some(code), "{args:?}: {said:#?}");
        assert!(kinds(&team.user).is_empty(), "{args:?}");
    }
    assert!(!team.user.file("started").exists());
}

#[test]
fn ctrl_c_before_it_is_ready_ends_it() {
    let (team, ports) = (Team::new(), Ports::claim());
    let _shared = team.share(&[&ports.target("db", 0), "--code", "abc123"]);
    let mut starting = team.user.start(&["join", "abc123", "-d", "--wait", "60s"]);
    eventually("the one in the background is there", PATIENCE, || kinds(&team.user) == ["join"]);
    let (status, took) = starting.interrupt();
    assert_eq!(status.code(), Some(130), "{}", starting.err());
    assert!(took < Duration::from_secs(2), "{took:?}");
    eventually("it is gone", PATIENCE, || kinds(&team.user).is_empty());
}

#[test]
fn what_was_killed_is_not_believed_alive() {
    let (team, ports) = (Team::new(), Ports::claim());
    let _stop = StopAll(&team.user);
    ports.echo(0);
    let _shared = team.share(&[&ports.target("db", 0), "--code", "abc123"]);
    let (_, pid) = detached(team.user.connect(&["join", "abc123", "-d", "--json"]));
    assert_eq!((kinds(&team.user), routes(&team.user)), (vec!["join".to_owned()], vec!["db".to_owned()]));
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    eventually("it is not listed", PATIENCE, || kinds(&team.user).is_empty());
    let status = team.user.run(&["status"]).ok().out;
    assert!(status.contains(&format!("\n[x] join abc123 crashed (PID {pid}, started ")), "{status}");
    assert!(
        status.contains("    See more: tail -n 50 ") && status.contains("    Clear it: connect stop abc123")
    );
    assert_eq!(team.user.run(&["stop", "abc123"]).ok().out, "[ok] Cleared join abc123");
    let said = team.user.run(&["stop", "abc123"]);
    assert_eq!(said.err, "[x] Nothing called abc123 is running\n  See what runs: connect status");
    assert_eq!(said.code, Some(1));
    // What it exposed is still at the hub.
    let (_, pid) =
        detached(team.owner.connect(&["expose", "gone", &ports.at(0).to_string(), "-d", "--json"]));
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    eventually("it is not listed", PATIENCE, || !kinds(&team.owner).contains(&"expose".to_owned()));
    let is_offline = || team.owner.run(&["services"]).ok().out.contains("offline");
    eventually("the hub lists it as offline", PATIENCE, is_offline);
    let cleared = team.owner.run(&["stop", "gone"]).ok().out;
    assert_eq!(
        cleared,
        "[ok] Cleared expose gone\n  The hub still lists it; if it is gone for good: connect services remove gone"
    );
    // Another process that has its number meanwhile is left alone, whatever the folder says.
    let mut other = Command::new("sleep").arg("60").spawn().unwrap();
    let entry = format!(
        r#"{{"pid":{},"kind":"join","names":["abc123"],"startedAt":"2026-01-01T00:00:00Z"}}"#,
        other.id()
    );
    fs::write(team.user.file(&format!("run/{}.json", other.id())), entry).unwrap();
    fs::write(team.user.file(&format!("run/{}.lock", other.id())), "").unwrap();
    assert_eq!(team.user.run(&["stop", "abc123"]).code, Some(1));
    assert_eq!(team.user.run(&["stop", "--all"]).ok().out, "Nothing was running");
    assert!(other.try_wait().unwrap().is_none());
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn two_homes_do_not_see_each_other() {
    let (team, ports) = (Team::new(), Ports::claim());
    let _stops = (StopAll(&team.owner), StopAll(&team.user));
    ports.echo(0);
    let target = ports.target("db", 0);
    let (_, pid) =
        detached(team.owner.connect(&["expose", "db", target.split_once('=').unwrap().1, "-d", "--json"]));
    assert!(kinds(&team.user).is_empty());
    assert_eq!(team.user.run(&["stop", "db"]).code, Some(1));
    assert_eq!(team.user.run(&["stop", "--all"]).ok().out, "Nothing was running");
    assert_eq!(kinds(&team.owner), ["expose"]);
    assert!(!is_gone(pid));
}

#[test]
fn stop_says_what_is_missing_and_suggests() {
    let (team, ports) = (Team::new(), Ports::claim());
    ports.echo(0);
    let target = ports.target("staging-db", 0);
    let target = target.split_once('=').unwrap().1;
    let mut front = team.owner.start(&["expose", "staging-db", target]);
    front.wait_out(|line| line.contains("Ctrl+C"));
    for (args, words, code) in [
        (&["stop"][..], "Write: connect stop NAME|CODE", 2),
        (&["stop", "x", "--all"], "--all stops everything already", 2),
        (&["stop", "staging-bd"], "Did you mean: connect stop staging-db", 1),
    ] {
        let said = team.owner.run(args);
        assert!(said.err.contains(words), "{said:#?}");
        assert_eq!(said.code, Some(code));
    }
    // What runs in a terminal is stopped too, and ends as after Ctrl-C.
    let began = Instant::now();
    assert_eq!(team.owner.run(&["stop", "staging-db"]).ok().out, "[ok] Stopped expose staging-db");
    assert_eq!(front.wait().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[test]
fn the_background_outlives_the_terminal_that_started_it() {
    let (team, ports) = (Team::new(), Ports::claim());
    let _stop = StopAll(&team.user);
    ports.echo(0);
    let _shared = team.share(&[&ports.target("db", 0), "--code", "abc123"]);
    if !common::is_here("script", "util-linux") {
        return;
    }
    let on_terminal = common::team::on_terminal(&team.user.connect(&["join", "abc123", "-d"]));
    let said = Running::start(on_terminal).finish();
    assert_eq!(said.code, Some(0), "{said:#?}");
    assert_eq!(kinds(&team.user), ["join"]);
    assert!(echoes(ports.at(0), b"its terminal is gone"));
}

#[test]
fn the_figures_of_both_ends_reach_status() {
    let tunnelled = common::Tunnelled::to(common::service(common::echo));
    assert!(echoes(tunnelled.port, &common::noise(3, 50_000)));
    for home in [&tunnelled.owner, &tunnelled.user] {
        eventually("status has the bytes and the sessions", PATIENCE, || {
            let open = home.run(&["status", "--json"]).ok().json()[0]["open"][0].clone();
            open["bytes"] == 100_000 && open["sessions"] == 1 && open["up"] == true
        });
    }
    let said = tunnelled.user.run(&["status"]).ok().out;
    assert!(said.contains("  1 session, 100 kB"), "{said}");
    // Away is not up, and says why.
    let mut exposed = tunnelled.exposed;
    exposed.interrupt();
    eventually("the trouble is in status", PATIENCE, || {
        let open = tunnelled.user.run(&["status", "--json"]).ok().json()[0]["open"][0].clone();
        open["up"] == false && open["trouble"].is_string()
    });
}

#[test]
fn a_hub_is_listed_and_is_stopped_only_by_its_name() {
    let mut hub = Hub::start();
    let status = hub.home.run(&["status"]).ok().out;
    let listed =
        format!("Not logged in. Log in: connect up\n\n● hub {} (PID {}, ", hub.url, hub.running.pid());
    assert!(status.starts_with(&listed), "{status}");
    assert_eq!(hub.home.run(&["stop", "--all"]).ok().out, "Nothing was running");
    assert!(hub.running.is_running());
    hub.home.run(&["stop", "hub"]).ok();
    assert_eq!(hub.running.wait().code(), Some(0));
    assert!(hub.home.run(&["status"]).ok().out.contains("\n\nNothing is running."));
}

#[test]
fn expose_in_the_background_does_not_wait_for_an_absent_hub_for_ever() {
    let mut team = Team::new();
    team.hub.running.kill();
    let began = Instant::now();
    let said = team.owner.run(&["expose", "db", "5432", "-d"]);
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    assert_eq!(said.code, Some(1), "{said:#?}");
    assert!(said.err.contains("[x] The hub does not answer, so nothing is exposed\n"), "{said:#?}");
    assert!(kinds(&team.owner).is_empty());
}
