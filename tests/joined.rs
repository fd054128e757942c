//! `connect join` while it runs: its ports, its routes, what comes and goes, and the end of the share.

mod common;

use std::fs;
use std::net::TcpListener;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use serde_json::Value;
use serde_json::json;

use common::PATIENCE;
use common::Running;
use common::echoes;
use common::eventually;
use common::team::Ports;
use common::team::Team;
use common::team::echoes_at;
use common::team::port_of;
use common::team::routes;

const REVOKED: &str =
    "[x] The share was revoked or has expired\n  Ask its owner for a new code: connect share";

#[test]
fn a_service_that_comes_later_is_announced_and_its_tunnel_works() {
    let (team, ports) = (Team::new(), Ports::claim());
    ports.echo(0);
    let _shared = team.share(&[&ports.target("db", 0), &ports.target("late", 1), "--code", "abc123"]);
    let joined = team.user.start(&["join", "abc123"]);
    joined.wait_out(|line| line.contains("Ctrl+C"));
    assert_eq!(routes(&team.user), ["db"]);
    ports.echo(1);
    let came = format!("[ok] late → localhost:{} is there now", ports.at(1));
    joined.wait_out(|line| line == came);
    assert!(echoes(ports.at(1), b"here"));
    eventually("its route is listed", PATIENCE, || routes(&team.user) == ["db", "late"]);
}

#[test]
fn localhost_means_the_tunnel_over_both_families() {
    let (team, ports) = (Team::new(), Ports::claim());
    ports.echo(0);
    let _shared = team.share(&[&ports.target("db", 0), "--code", "abc123"]);
    let (mut joined, services) = team.join(&["abc123"]);
    for host in ["127.0.0.1", "::1", "localhost"] {
        assert!(echoes_at(host, port_of(&services, "db"), b"hello"), "{host}");
    }
    joined.interrupt();
    // A port that is taken over one of them only is not free: `localhost` would mean two things.
    let _other = TcpListener::bind(("::1", ports.at(0))).unwrap();
    let (_joined, services) = team.join(&["abc123"]);
    assert_eq!(port_of(&services, "db"), ports.at(1));
}

/// The process that holds the ports of this test, as messages name it.
fn this_process() -> String {
    let name = fs::read_to_string("/proc/self/comm").unwrap();
    format!("({}, PID {})", name.trim_end(), std::process::id())
}

#[test]
fn the_original_port_comes_first_and_an_alternative_is_the_same_tomorrow_while_it_is_needed() {
    let (team, ports) = (Team::new(), Ports::claim());
    ports.echo(0);
    let shared = team.share(&[&ports.target("db", 0), "--code", "abc123"]);
    let _exposed = team.expose(&ports.target("db", 0));
    let once = |args: &[&str]| {
        let (mut joined, services) = team.join(args);
        assert_eq!(joined.interrupt().0.code(), Some(0));
        port_of(&services, "db")
    };
    let remembered = || fs::read_to_string(team.user.file("ports.json")).unwrap_or_default();
    let (held, next) = (ports.hold(0), ports.hold(1));
    assert_eq!(once(&["abc123"]), ports.at(2));
    drop(next);
    assert_eq!(once(&["abc123"]), ports.at(2), "the alternative of last time");
    assert!(remembered().contains(&format!("/db\": {}", ports.at(2))), "{}", remembered());
    let reached = team.user.start(&["reach", "db", "--json"]);
    assert_eq!(
        reached.wait_event("up")["localPort"],
        ports.at(1),
        "another share's alternative is not the hub's"
    );
    drop(reached);
    drop(held);
    assert_eq!(once(&["abc123"]), ports.at(0));
    assert!(!remembered().contains('#'), "it is forgotten: {}", remembered());
    let _held = ports.hold(0);
    assert_eq!(once(&["abc123"]), ports.at(1));
    drop(shared);
}

#[test]
fn a_typed_port_is_had_or_the_command_fails_and_is_not_remembered() {
    let (team, ports) = (Team::new(), Ports::claim());
    ports.echo(0);
    let _shared = team.share(&[&ports.target("db", 0), "--code", "abc123"]);
    let _exposed = team.expose(&ports.target("db", 0));
    let chosen = format!("db={}", ports.at(50));
    let (mut joined, services) = team.join(&["abc123", "--port", &chosen]);
    joined.interrupt();
    assert_eq!(port_of(&services, "db"), ports.at(50));
    assert!(!team.user.file("ports.json").exists());
    let _held = [ports.hold(0), ports.hold(50)];
    fs::write(team.user.file("pconnect.yml"), format!("services: [{{name: db, port: {}}}]", ports.at(50)))
        .unwrap();
    let (project, free) = (team.user.file("pconnect.yml").display().to_string(), ports.at(50).to_string());
    for (args, port) in [
        (&["join", "abc123", "--port", &chosen][..], 50),
        (&["join", "abc123", "--port", &chosen, "--", "touch", "started"], 50),
        (&["reach", "db", "--port", &free], 50),
        (&["reach", "db", "--strict-ports"], 0),
        (&["reach", "db", &free, "--strict-ports"], 50),
        (&["dev", "--file", &project, "--strict-ports"], 50),
    ] {
        let began = Instant::now();
        let said = team.user.run(args);
        let words = format!("[x] Port {} in use {}\n  Stop what holds it", ports.at(port), this_process());
        assert!(said.err.contains(&words), "{args:?} {said:#?}");
        assert!(said.code == Some(1) && began.elapsed() < Duration::from_secs(20), "{args:?} {said:#?}");
    }
    assert!(routes(&team.user).is_empty());
}

#[test]
fn reach_with_a_port_moves_aloud_and_a_second_one_in_the_background_says_where_it_is() {
    let (team, ports) = (Team::new(), Ports::claim());
    ports.echo(0);
    let _shared = team.share(&[&ports.target("web", 0), "--code", "abc123"]);
    let _exposed = team.expose(&ports.target("web", 0));
    let held = ports.hold(0);
    let port = ports.at(0).to_string();
    let reached = team.user.start(&["reach", "web", &port]);
    let in_use = format!("[!] Port {port} is in use on this machine {}", this_process());
    reached.wait_err(|line| line == in_use);
    let moved = format!("[ok] web → localhost:{} (auto-selected)", ports.at(1));
    reached.wait_out(|line| line == moved);
    drop((reached, held));

    let reach = |args: &[&str]| team.user.run(&[&["reach", "web", "-d"], args].concat()).ok().out;
    assert!(reach(&[]).contains(&format!("[ok] web → localhost:{port}\n")));
    let again = format!("[ok] web is already at localhost:{port} (PID ");
    assert!(reach(&[]).starts_with(&again) && reach(&[&port]).starts_with(&again));
    assert_eq!(routes(&team.user), ["web"]);
    // Another port is another wish.
    let other = ports.at(30).to_string();
    assert!(reach(&[&other]).contains(&format!("[ok] web → localhost:{other}\n")));
    team.user.run(&["stop", "--all"]).ok();
}

#[test]
fn with_same_user_the_ports_refuse_the_other_users_of_the_machine() {
    if !common::team::is_root() {
        return eprintln!("SKIPPED: only root can connect as somebody else; run the tests as root");
    }
    let (team, ports) = (Team::new(), Ports::claim());
    ports.echo(0);
    let _shared = team.share(&[&ports.target("db", 0), "--code", "abc123"]);
    let _exposed = team.expose(&ports.target("db", 0));
    fs::write(team.user.file("pconnect.yml"), "services: [{name: db}]").unwrap();
    let project = team.user.file("pconnect.yml").display().to_string();
    // As somebody else: whether an echo comes back.
    let is_served = |port: u16| {
        let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port} && echo hello >&3 && read -t 20 line <&3");
        let mut bash = std::process::Command::new("bash");
        bash.args(["-c", &format!("{script} && test \"$line\" = hello")]);
        common::team::as_nobody_known(&bash).output().unwrap().status.success()
    };
    for (args, by_variable) in [
        (&["join", "abc123", "--same-user"][..], "0"),
        (&["reach", "db", "--same-user"], "0"),
        (&["dev", "--file", &project, "--same-user"], "0"),
        (&["join", "abc123"], "1"),
        (&["reach", "db"], "0"),
    ] {
        let mut command = team.user.connect(args);
        command.env("CONNECT_SAME_USER", by_variable);
        let mut running = Running::start(command);
        running.wait_out(|line| line.contains("Ctrl+C"));
        let is_open = args.len() == 2 && by_variable == "0";
        assert_eq!(is_served(ports.at(0)), is_open, "{args:?}");
        assert!(echoes(ports.at(0), b"our own"), "{args:?}");
        running.interrupt();
    }
}

#[test]
fn who_shares_hears_who_joins() {
    let (team, ports) = (Team::new(), Ports::claim());
    ports.echo(0);
    let shared = team.share(&[&ports.target("db", 0), "--code", "abc123"]);
    let _joined = team.join(&["abc123"]);
    assert_eq!(shared.running.wait_event("join")["who"], "member");
    let _again = team.join(&["abc123"]);
    eventually("the next one is told, and once", PATIENCE, || shared.running.events("join") == 2);
}

#[test]
fn a_revoked_share_ends_its_joiners_within_about_a_second() {
    let (team, ports) = (Team::new(), Ports::claim());
    (0..3).for_each(|offset| ports.echo(offset));
    let shared = team.share(&[&ports.target("db", 0), &ports.target("web", 1), &ports.target("x", 2)]);
    let (joined, services) = team.join(&[&shared.code]);
    let plain = team.user.start(&["join", &shared.verified]);
    plain.wait_out(|line| line.contains("Ctrl+C"));
    let mut open = common::dial(port_of(&services, "db"));
    let command = team.user.start(&["join", &shared.code, "--", "sh", "-c", "echo began; exec sleep 60"]);
    command.wait_out(|line| line == "began");
    team.owner.run(&["share", "revoke", &shared.id]).ok();
    let revoked = Instant::now();
    let ends = [plain.finish(), command.finish()];
    let took = revoked.elapsed();
    for said in ends {
        assert_eq!((said.code, said.err.as_str().ends_with(REVOKED)), (Some(1), true), "{said:#?}");
    }
    assert!(took < Duration::from_millis(2500), "{took:?}");
    assert_eq!(joined.finish().code, Some(1));
    assert!(matches!(std::io::Read::read(&mut open, &mut [0; 1]), Ok(0) | Err(_)));
    assert!(routes(&team.user).is_empty());
}

#[test]
fn an_expired_share_ends_its_joiners() {
    let (team, ports) = (Team::new(), Ports::claim());
    ports.echo(0);
    let mut shared = team.share(&[&ports.target("db", 0), "--expires", "3s"]);
    let joined = team.user.start(&["join", &shared.code]);
    joined.wait_out(|line| line.contains("Ctrl+C"));
    let began = Instant::now();
    let said = joined.finish();
    assert!(said.out.contains("  Expires in 2 seconds\n") || said.out.contains("  Expires in 3 seconds\n"));
    assert_eq!((said.code, said.err.as_str()), (Some(1), REVOKED));
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert_eq!(shared.running.wait().code(), Some(0), "the sharing has nothing left to share");
}

#[test]
fn ending_the_sharing_ends_the_joining() {
    let (team, ports) = (Team::new(), Ports::claim());
    ports.echo(0);
    let mut shared = team.share(&[&ports.target("db", 0)]);
    let (joined, _) = team.join(&[&shared.code]);
    assert_eq!(shared.running.interrupt().0.code(), Some(0));
    let said = joined.finish();
    assert_eq!(said.code, Some(1), "{said:#?}");
    assert!(team.user.run(&["join", &shared.code]).err.contains("[x] Share not found or expired"));
}

#[test]
fn a_share_that_is_revoked_from_elsewhere_ends_its_sharing() {
    let (team, ports) = (Team::new(), Ports::claim());
    (0..3).for_each(|offset| ports.echo(offset));
    let mut kept = team.share(&[&ports.target("kept", 0)]);
    let told = team.share(&[&ports.target("told", 1)]);
    let plain = team.owner.start(&["share", &ports.target("plain", 2), "--code", "plain1"]);
    plain.wait_out(|line| line.contains("Press Ctrl+C"));
    // By its owner in another shell, and by an admin on another machine.
    team.owner.run(&["share", "revoke", "plain1"]).ok();
    let admin = team.hub.machine("admin");
    admin.run(&["share", "revoke", &told.id]).ok();
    let said = plain.finish();
    let words =
        "[x] The share was revoked from elsewhere\n  Nothing is shared any more; make another: connect share";
    assert_eq!((said.code, said.err.as_str()), (Some(1), words), "{said:#?}");
    assert!(!said.out.contains("Share closed"), "{said:#?}");
    let said = told.running.finish();
    let events: Vec<Value> = said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = ["revoked", "closed"].map(|event| json!({ "event": event, "code": told.code }));
    assert!(events.ends_with(&last), "{said:#?}");
    assert_eq!(said.code, Some(1), "{said:#?}");
    // The other one does not notice, and no refused guess is held against the owner.
    let (_joined, services) = team.join(&[&kept.code]);
    assert!(echoes(port_of(&services, "kept"), b"still"));
    assert!(kept.running.is_running());
    let listed = team.owner.run(&["services"]).ok().out;
    assert!(listed.contains("kept") && !["told", "plain"].iter().any(|name| listed.contains(name)));
    assert!(!team.hub.audit().contains("share.refused"), "{}", team.hub.audit());
}

#[test]
fn the_loss_of_the_hub_is_one_line_for_all_services() {
    let (mut team, ports) = (Team::new(), Ports::claim());
    (0..3).for_each(|offset| ports.echo(offset));
    let targets = [ports.target("a", 0), ports.target("b", 1), ports.target("c", 2)];
    let shared = team.share(&targets.each_ref().map(String::as_str));
    let joined = team.user.start(&["join", &shared.code]);
    joined.wait_out(|line| line.contains("Ctrl+C"));
    team.hub.running.kill();
    eventually("all are away", PATIENCE, || {
        let status = team.user.run(&["status", "--json"]).ok().json();
        let open = status[0]["open"].as_array().unwrap();
        open.len() == 3 && open.iter().all(|service| service["up"] == false)
    });
    assert_eq!(joined.err().matches(" is away: Cannot reach the hub").count(), 1, "{}", joined.err());
}

#[test]
fn a_hub_and_an_agent_that_go_and_come_are_told_in_one_line_each() {
    let (mut team, ports) = (Team::new(), Ports::claim());
    ports.echo(0);
    let target = ports.target("db", 0);
    let target = target.split_once('=').unwrap().1.to_owned();
    let expose = |team: &Team| {
        let exposed = team.owner.start(&["expose", "--json", "db", &target]);
        exposed.wait_event("exposed");
        exposed
    };
    let mut exposed = expose(&team);
    team.owner.run(&["share", "--service", "db", "--code", "abc123"]).ok();
    let joined = team.user.start(&["join", "abc123"]);
    joined.wait_out(|line| line.contains("Ctrl+C"));
    let told = |away: usize, back: usize| {
        eventually("it is told", PATIENCE, || {
            let said =
                (joined.err().matches("db is away: ").count(), joined.out().matches("is back").count());
            assert!(said.0 <= away && said.1 <= back, "{}\n{}", joined.err(), joined.out());
            said == (away, back)
        });
    };

    team.hub.running.kill();
    told(1, 0);
    assert!(joined.err().contains("[!] db is away: Cannot reach the hub"), "{}", joined.err());
    assert_eq!(routes(&team.user), ["db"]);
    team.hub.restart();
    told(1, 1);
    assert!(echoes(ports.at(0), b"the hub is back"));

    exposed.kill();
    told(2, 1);
    assert!(joined.err().contains("[!] db is away: db is offline"), "{}", joined.err());
    let _exposed = expose(&team);
    told(2, 2);
    assert!(echoes(ports.at(0), b"the agent is back"));
    assert_eq!(joined.err().lines().count(), 2, "{}", joined.err());
}

#[test]
fn routes_are_gone_after_every_way_out() {
    let (team, ports) = (Team::new(), Ports::claim());
    (0..2).for_each(|offset| ports.echo(offset));
    let shared = team.share(&[&ports.target("db", 0), &ports.target("web", 1), "--code", "abc123"]);
    let _exposed = team.expose(&ports.target("db", 0));
    let join = || -> Running {
        let (joined, _) = team.join(&["abc123"]);
        eventually("the routes are listed", PATIENCE, || routes(&team.user) == ["db", "web"]);
        joined
    };
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let joined = join();
        joined.signal(signal);
        assert_eq!(joined.finish().code, Some(0), "{signal}");
        assert!(routes(&team.user).is_empty(), "{signal}");
    }
    let command = team.user.run(&["join", "abc123", "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!((command.code, routes(&team.user).len()), (Some(137), 0), "{command:#?}");

    join().kill();
    assert_eq!(routes(&team.user).len(), 2, "nobody was there to remove them");
    assert!(team.user.run(&["status", "--json"]).ok().json().as_array().unwrap().is_empty());
    let (mut reached, _) = common::reach(&team.user, "db");
    eventually("the next one drops them", PATIENCE, || routes(&team.user) == ["db"]);
    reached.interrupt();
    let joined = join();
    team.owner.run(&["share", "revoke", &shared.code]).ok();
    joined.finish();
    assert!(routes(&team.user).is_empty());
}

#[test]
fn agent_and_joiner_on_one_machine_do_not_lead_into_themselves() {
    let (team, ports) = (Team::new(), Ports::claim());
    // Nothing stands at the target yet, so its port is free for whoever comes first.
    let target = format!("web={}", ports.at(0));
    let _shared = team.share(&[&target, "--code", "abc123"]);
    let said = team.user.run(&["join", "abc123"]);
    assert!(said.out.contains("[!] web → failed: Nothing is listening at localhost:"), "{said:#?}");
    assert!(routes(&team.user).is_empty());
}
