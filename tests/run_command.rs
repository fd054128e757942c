//! `-- CMD`: a command beside its tunnels, as if it had been started without us.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;

use common::PATIENCE;
use common::Running;
use common::Said;
use common::eventually;
use common::team::Ports;
use common::team::Team;
use common::team::on_terminal;
use common::team::routes;
use common::team::uncoloured;
use common::team::with_input;

/// A share with two services, `db` and `staging-api`, at the ports that the joiner will have.
fn two() -> (Team, Ports, common::team::Shared) {
    let (team, ports) = (Team::new(), Ports::claim());
    (0..2).for_each(|offset| ports.echo(offset));
    let shared = team.share_and_expose(&[ports.target("db", 0), ports.target("staging-api", 1)]);
    (team, ports, shared)
}

/// The same two for `connect dev`, which is then run in this folder.
fn write_project(team: &Team, more: &str) {
    let text = format!("services:\n  - name: db\n  - name: staging-api\n{more}");
    fs::write(team.user.file("pconnect.yml"), text).unwrap();
}

/// `join abc123` and `dev`, each with this command.
fn both(team: &Team, script: &str) -> [std::process::Command; 2] {
    write_project(team, "");
    let join = team.user.connect(&["join", "abc123", "--wait", "20s", "--", "sh", "-c", script]);
    let mut dev = team.user.connect(&["dev", "--wait", "20s", "--", "sh", "-c", script]);
    dev.current_dir(team.user.path());
    [join, dev]
}

#[test]
fn the_command_has_its_environment_its_stdin_and_its_stdout_to_itself() {
    let (team, ports, _shared) = two();
    let script = "cat; env | grep -E '^(DB|STAGING_API)_' | sort; echo mine >&2; exit 7";
    let (db, api) = (ports.at(0), ports.at(1));
    let expected = format!(
        "input\nDB_ADDR=127.0.0.1:{db}\nDB_HOST=127.0.0.1\nDB_PORT={db}\n\
         STAGING_API_ADDR=127.0.0.1:{api}\nSTAGING_API_HOST=127.0.0.1\nSTAGING_API_PORT={api}"
    );
    for command in both(&team, script) {
        let said = with_input(command, b"input\n");
        assert_eq!((said.code, said.out.as_str()), (Some(7), expected.as_str()), "{said:#?}");
        assert!(said.err.contains("[ok]") && said.err.contains("staging-api"), "{said:#?}");
        assert!(said.err.lines().any(|line| line == "mine") && !said.err.contains("Ctrl+C"), "{said:#?}");
    }
    assert!(routes(&team.user).is_empty());
}

#[test]
fn no_variable_of_ours_reaches_the_command() {
    let (team, _ports, _shared) = two();
    let key = team.hub.key("member");
    for command in both(&team, "env; echo services of mine: $CONNECT_BOOTSTRAP") {
        let mut command = command;
        let own = ["HUB_URL", "TOKEN", "HOME", "CA", "JOIN", "ETCD_PASSWORD"];
        for name in own.iter().flat_map(|name| [format!("CONNECT_{name}"), format!("PRIVATECONNECT_{name}")])
        {
            match name.rsplit('_').next().unwrap() {
                "URL" => command.env(name, &team.hub.url),
                "TOKEN" => command.env(name, &key),
                "JOIN" | "PASSWORD" => command.env(name, "secret1"),
                _ => &mut command,
            };
        }
        command.env("CONNECT_BOOTSTRAP", "kept");
        let said = Said::of(command).ok();
        assert!(said.out.contains("services of mine: kept"), "{said:#?}");
        for line in said.out.lines().filter(|line| line.contains("CONNECT_")) {
            assert!(
                line.starts_with("CONNECT_BOOTSTRAP=") || line.starts_with("CONNECT_NO_PROXY="),
                "{line}"
            );
        }
        assert!(!said.out.contains(&key) && !said.out.contains("secret1"), "{said:#?}");
    }
}

#[test]
fn the_command_waits_for_every_service() {
    let (team, ports) = (Team::new(), Ports::claim());
    ports.echo(0);
    let _shared = team.share_and_expose(&[ports.target("db", 0), ports.target("staging-api", 1)]);
    let commands = both(&team, "echo began; exit 3").map(Running::start);
    // Both have looked at least once, and found one of the two.
    eventually("they have their first tunnels", PATIENCE, || team.hub.sessions() > 1);
    assert!(commands.iter().all(|command| !command.out().contains("began")));
    ports.echo(1);
    for command in commands {
        let said = command.finish();
        assert_eq!((said.code, said.out.as_str()), (Some(3), "began"), "{said:#?}");
    }
}

#[test]
fn a_service_that_does_not_come_in_time_is_named_and_nothing_is_started() {
    let (team, ports) = (Team::new(), Ports::claim());
    ports.echo(0);
    let _shared = team.share_and_expose(&[ports.target("db", 0), ports.target("staging-api", 1)]);
    write_project(&team, "");
    for words in [&["join", "abc123"][..], &["dev"]] {
        let mut command = team.user.connect(&[words, &["--wait", "1s", "--", "touch", "started"]].concat());
        command.current_dir(team.user.path());
        let began = Instant::now();
        let said = Said::of(command);
        assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "{said:#?}");
        assert!(said.err.contains("[x] The command was not started: staging-api cannot be reached\n  "));
        assert!(said.err.contains("    [!] staging-api → failed: Nothing is listening at 127.0.0.2:"));
        assert!(began.elapsed() > Duration::from_millis(900), "{:?}", began.elapsed());
        assert!(!team.user.file("started").exists());
    }
}

#[test]
fn signals_reach_the_command_and_its_answer_is_ours() {
    let (team, _ports, _shared) = two();
    for (signal, name, code) in [
        (Signal::SIGINT, "INT", 11),
        (Signal::SIGTERM, "TERM", 12),
        (Signal::SIGHUP, "HUP", 13),
        (Signal::SIGUSR1, "USR1", 14),
        (Signal::SIGQUIT, "QUIT", 15),
    ] {
        let script = format!("trap 'exit {code}' {name}; echo began; while :; do sleep 0.05; done");
        for command in both(&team, &script) {
            let command = Running::start(command);
            command.wait_out(|line| line == "began");
            command.signal(signal);
            let said = command.finish();
            assert_eq!(said.code, Some(code), "{name}: {said:#?}");
            assert!(routes(&team.user).is_empty(), "{name}");
        }
    }
}

#[test]
fn a_command_that_is_killed_counts_128_and_the_signal() {
    let (team, ports, _shared) = two();
    for (script, code) in [("kill -9 $$", 137), ("exec sleep 100", 143)] {
        for command in both(&team, &format!("echo began $$; {script}")) {
            let command = Running::start(command);
            command.wait_out(|line| line.starts_with("began"));
            if code == 143 {
                // A program without a handler, that is not deaf to what it is sent.
                command.signal(Signal::SIGTERM);
            }
            let said = command.finish();
            assert_eq!(said.code, Some(code), "{said:#?}");
            assert!(routes(&team.user).is_empty() && !common::echoes(ports.at(0), b"x"));
        }
    }
}

#[test]
fn ctrl_c_on_a_terminal_reaches_the_command_once() {
    let (team, _ports, _shared) = two();
    if !common::is_here("script", "util-linux") {
        return;
    }
    let script = "trap 'echo one; n=$((n+1))' INT; echo began; \
                  while [ \"${n:-0}\" = 0 ]; do sleep 0.05; done; sleep 0.3; exit $((20 + n))";
    let [join, _] = both(&team, script);
    let mut command = on_terminal(&join);
    // Keys are typed by way of script's stdin: Ctrl-C once the command says that it listens.
    let typed = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.2; grep -q began out && break; done; printf '\\003'; sleep 1";
    let mut shell = std::process::Command::new("sh");
    let inner = command.get_args().map(|word| word.to_str().unwrap().to_owned()).collect::<Vec<_>>();
    shell.args(["-c", &format!("{{ {typed}; }} | script \"$@\" > out; echo code $?"), "sh"]).args(&inner);
    common::team::copy_environment(&command, &mut shell);
    shell.current_dir(team.user.path());
    command = shell;
    let said = Said::of(command);
    let shown = uncoloured(&fs::read_to_string(team.user.file("out")).unwrap());
    assert!(said.out.contains("code 21"), "{said:#?}\n{shown}");
    assert_eq!(shown.matches("one").count(), 1, "{shown}");
}

#[test]
fn a_command_that_cannot_be_started_says_so_and_leaves_nothing() {
    let (team, _ports, _shared) = two();
    let plain = team.user.file("plain").display().to_string();
    fs::write(&plain, "#!/bin/sh\n").unwrap();
    let said = team.user.run(&["join", "abc123", "-d", "--env-file", "env", "--", "no-such-program-here"]);
    assert!(
        said.err.starts_with("[x] Cannot run no-such-program-here: ") && said.out.is_empty(),
        "{said:#?}"
    );
    assert_eq!(said.code, Some(127));
    for (program, code) in [("no-such-program-here", 127), (&plain, 126)] {
        let said = team.user.run(&["join", "abc123", "--", program]);
        assert!(said.err.contains(&format!("[x] Cannot run {program}: ")), "{said:#?}");
        assert_eq!(said.code, Some(code));
        assert!(routes(&team.user).is_empty());
    }
}

#[test]
fn a_command_that_does_not_listen_is_killed_when_the_share_ends() {
    let (team, _ports, shared) = two();
    let script = "trap '' TERM; echo began $$; while :; do sleep 0.1; done";
    let [join, _] = both(&team, script);
    let command = Running::start(join);
    let pid = command.wait_out(|line| line.starts_with("began")).replace("began ", "");
    team.owner.run(&["share", "revoke", &shared.id]).ok();
    let said = command.finish();
    assert_eq!(said.code, Some(1));
    assert!(said.err.ends_with("connect share"), "{said:#?}");
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn the_environment_is_written_to_a_file_for_later_steps() {
    let (team, ports, _shared) = two();
    let (db, api) = (ports.at(0), ports.at(1));
    let expected = format!(
        "DB_HOST=127.0.0.1\nDB_PORT={db}\nDB_ADDR=127.0.0.1:{db}\n\
         STAGING_API_HOST=127.0.0.1\nSTAGING_API_PORT={api}\nSTAGING_API_ADDR=127.0.0.1:{api}\n"
    );
    let whole = team.user.file("below/env").display().to_string();
    for file in [".env.connect", &whole] {
        let mut command = team.user.connect(&["join", "abc123", "--env-file", file, "--", "cat", file]);
        command.current_dir(team.user.path());
        let said = Said::of(command);
        assert_eq!((said.code, said.out.as_str()), (Some(0), expected.trim_end()), "{said:#?}");
        let path = team.user.path().join(file);
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let said = team.user.run(&["join", "abc123", "--env-file", "/proc/no/env", "--", "true"]);
    assert_eq!(said.code, Some(1), "{said:#?}");
}

#[test]
fn lines_are_added_to_an_environment_file_that_somebody_else_made() {
    let (team, ports, _shared) = two();
    let path = team.user.file("github_env");
    let file = path.display().to_string();
    let line = format!("DB_ADDR=127.0.0.1:{}\n", ports.at(0));
    for (before, mode) in [("", 0o644), ("FOO=bar\n", 0o644), ("FOO=bar", 0o620)] {
        fs::write(&path, before).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        if common::team::is_root() {
            std::os::unix::fs::chown(&path, Some(1234), Some(1234)).unwrap();
        }
        team.user.run(&["join", "abc123", "--env-file", &file, "--", "true"]).ok();
        let (text, found) = (fs::read_to_string(&path).unwrap(), fs::metadata(&path).unwrap());
        assert!(text.starts_with(before) && text.contains(&format!("\n{line}")), "{text:?}");
        assert_eq!(text.lines().count(), 6 + usize::from(!before.is_empty()), "{text:?}");
        assert_eq!(found.permissions().mode() & 0o777, mode);
        assert!(!common::team::is_root() || (found.uid(), found.gid()) == (1234, 1234));
    }
}

#[test]
fn while_it_waits_it_says_for_what() {
    let (mut team, ports) = (Team::new(), Ports::claim());
    let _shared = team.share_and_expose(&[ports.target("db", 0)]);
    write_project(&team, "");
    let mut commands = both(&team, "true").map(Running::start);
    for command in &commands {
        let line = command.wait_err(|line| line.starts_with("  Waiting for "));
        assert!(line.contains("db (Nothing is listening at 127.0.0.2:"), "{line}");
    }
    for command in &mut commands {
        command.interrupt();
    }
    team.hub.running.kill();
    let mut waits = team.user.start(&["join", "abc123", "--wait", "1m"]);
    let line = waits.wait_out(|line| line.starts_with("  Waiting for "));
    assert!(
        line.starts_with(&format!("  Waiting for the hub (Cannot reach the hub {}", team.hub.url)),
        "{line}"
    );
    waits.interrupt();
}

#[test]
fn a_connect_started_by_the_command_is_not_taken_for_the_one_in_the_background() {
    let (team, _ports, _shared) = two();
    let script = "export PRIVATECONNECT_HOME=\"$PLACE\"; \"$CONNECT\" reach db -d && \
                  \"$CONNECT\" status --json > new; mv new status.json";
    let mut command = team.user.connect(&["join", "-d", "abc123", "--", "sh", "-c", script]);
    command.env("CONNECT", env!("CARGO_BIN_EXE_connect")).env("PLACE", team.user.path());
    command.current_dir(team.user.path());
    assert_eq!(Said::of(command).code, Some(0));
    eventually("it has run", PATIENCE, || team.user.file("status.json").exists());
    let status = fs::read_to_string(team.user.file("status.json")).unwrap();
    assert!(status.contains("\"join\"") && status.contains("\"reach\""), "{status}");
    team.user.run(&["stop", "--all"]).ok();
}
