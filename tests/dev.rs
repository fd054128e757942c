//! `connect dev`: what a project's file asks for is brought here, and a saved change is taken up.

mod common;

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;

use common::Home;
use common::Hub;
use common::PATIENCE;
use common::Running;
use common::Said;
use common::dial;
use common::echoes;
use common::eventually;
use common::team::Ports;
use common::team::Team;
use common::team::routes;

/// Services at `ports`, exposed by the owner for as long as the share runs.
fn offered(names: &[&str]) -> (Team, Ports, Vec<Running>) {
    let (team, ports) = (Team::new(), Ports::claim());
    let target = |(at, name): (usize, &&str)| {
        let offset = u16::try_from(at).unwrap();
        ports.echo(offset);
        ports.target(name, offset)
    };
    let exposed = names.iter().enumerate().map(target).map(|target| team.expose(&target)).collect();
    (team, ports, exposed)
}

fn dev(home: &Home, folder: &Path, args: &[&str]) -> Command {
    let mut command = home.connect(&[&["dev"], args].concat());
    command.current_dir(folder);
    command
}

fn write(home: &Home, file: &str, text: &str) {
    fs::write(home.file(file), text).unwrap();
}

/// Starts it, and waits until it says what it has connected: `name port …`.
fn connected(command: Command) -> (Running, String) {
    let running = Running::start(command);
    let said = running.wait_event("connected");
    let one = |service: &Value| {
        let port = service["localPort"].as_u64().map_or("-".to_owned(), |port| port.to_string());
        format!("{} {port}", service["name"].as_str().unwrap())
    };
    let list = said["services"].as_array().unwrap().iter().map(one).collect::<Vec<_>>().join(", ");
    (running, list)
}

#[test]
fn it_says_the_documented_words() {
    let (team, ports, _exposed) = offered(&["staging-db", "staging-redis", "staging-api"]);
    let [db, redis, api] = [0, 1, 2].map(|offset| ports.at(offset));
    let text = format!(
        "services:\n  - name: staging-db\n    port: {db}\n  - name: staging-redis\n    port: {redis}\n  - name: staging-api\n    port: {api}\n"
    );
    write(&team.user, "pconnect.yml", &text);
    let mut running = Running::start(dev(&team.user, team.user.path(), &[]));
    running.wait_out(|line| line.contains("Ctrl+C"));
    assert_eq!(routes(&team.user), ["staging-api", "staging-db", "staging-redis"]);
    let (status, took) = running.interrupt();
    let expected = format!(
        "🚀 Private Connect Dev Mode

  Config: pconnect.yml
  Hub:    {}

  Connecting to services...

  [ok] 3 service(s) connected:

    staging-db localhost:{db}
    staging-redis localhost:{redis}
    staging-api localhost:{api}

  Press Ctrl+C to disconnect all services",
        team.hub.url
    );
    assert_eq!((running.out(), running.err().as_str(), status.code()), (expected, "", Some(0)));
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(routes(&team.user).is_empty());
}

#[test]
fn every_spelling_of_the_file_is_read_from_here_upwards() {
    let (team, ports, _exposed) = offered(&["db", "web"]);
    let (at, two) = (ports.at(20), ports.at(21));
    for (file, text) in [
        (
            "pconnect.yml",
            format!("services:\n  - name: db\n    port: {at}\n  - name: web\n    protocol: http\n"),
        ),
        ("pconnect.yaml", format!("services: [{{name: db, localPort: {at}}}, {{name: web}}]\n")),
        ("pconnect.json", format!(r#"{{"services":[{{"name":"db","local_port":{at}}},{{"name":"web"}}]}}"#)),
    ] {
        write(&team.user, file, &text);
        let below = team.user.file("a/b");
        fs::create_dir_all(&below).unwrap();
        let (running, list) = connected(dev(&team.user, &below, &["--json"]));
        assert_eq!(list, format!("db {at}, web {}", ports.at(1)), "{file}");
        assert!(echoes(at, b"hello"));
        drop(running);
        fs::rename(team.user.file(file), team.user.file("other.conf")).unwrap();
        let (_running, list) = connected(dev(&team.user, &below, &["--json", "--file", "../../other.conf"]));
        assert_eq!(list, format!("db {at}, web {}", ports.at(1)), "{file}");
    }
    // What the file says comes before what was so yesterday.
    write(&team.user, "pconnect.yml", &format!("services:\n  - name: db\n    port: {two}\n"));
    let (_running, list) = connected(dev(&team.user, team.user.path(), &["--json"]));
    assert_eq!(list, format!("db {two}"));
    fs::remove_file(team.user.file("pconnect.yml")).unwrap();
    let said = Said::of(dev(&team.user, team.user.path(), &[]));
    assert_eq!(said.err, "[x] There is no pconnect.yml here or above\n  Write one: connect dev --init");
    assert_eq!(said.code, Some(1));
}

#[test]
fn a_faulty_file_is_refused_with_its_line_and_the_reason() {
    let (team, _ports, _exposed) = offered(&["db"]);
    for (text, reason) in [
        ("services:\n  - name: db\n    prot: 1\n", "unknown field `prot`"),
        ("services:\n  - name: db\n    port: 70000\n", "line 3"),
        ("services:\n  - name: DB one\n", "may only have a-z, 0-9 and - at line 2"),
        ("services:\n  - name: db\n  - name: db\n", "the service db stands there twice, at line 3"),
        ("expose:\n  web: nonsense\n", "`nonsense` is neither a port nor HOST:PORT"),
        ("services: [\n", "line"),
        ("services:\n  - name: db\n    port: web\n", "expected a port from 1 to 65535 at line 3"),
        ("services:\n  - db\n", "expected `name: NAME` at line 2"),
        ("services:\n\t- name: db\n", "indent with blanks, not with tabs"),
        ("hub: nonsense://x\nservices: []\n", "hub: "),
        ("", "the file is empty"),
    ] {
        write(&team.user, "pconnect.yml", text);
        let said = Said::of(dev(&team.user, team.user.path(), &[]));
        assert!(
            said.err.starts_with("[x] pconnect.yml: ") && said.err.contains(reason),
            "{text:?} {said:#?}"
        );
        assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "{text:?}");
    }
}

#[test]
fn a_file_without_an_end_is_refused_before_it_fills_the_memory() {
    let team = Team::new();
    let command = dev(&team.user, team.user.path(), &["--file", "/dev/zero"]);
    let said = Said::of(common::under("ulimit -v 4000000", &command));
    assert!(said.err.contains("/dev/zero: the file is larger than 256 KiB"), "{said:#?}");
    assert_eq!(said.code, Some(1));
}

#[test]
fn a_file_that_is_not_there_is_refused_with_the_way_to_write_one() {
    let team = Team::new();
    let said = Said::of(dev(&team.user, team.user.path(), &["--file", "nothing.yml"]));
    assert!(said.err.starts_with("[x] Cannot read nothing.yml: "), "{said:#?}");
    assert!(said.err.contains("write the file: connect dev --init"), "{said:#?}");
}

#[test]
fn a_misspelt_service_is_said_before_it_is_waited_for() {
    let (team, _ports, _exposed) = offered(&["staging-db"]);
    write(&team.user, "pconnect.yml", "services:\n  - name: stagign-db\n");
    let said = Said::of(dev(&team.user, team.user.path(), &["--wait", "1s", "--", "true"]));
    let hint = "There is no service stagign-db yet. Did you mean: staging-db";
    assert!(said.err.contains(hint), "{said:#?}");
    assert_eq!(said.code, Some(1));
}

#[test]
fn a_saved_change_is_taken_up_and_the_others_are_not_touched() {
    let (team, ports, _exposed) = offered(&["db", "web", "redis"]);
    let line = |name: &str, offset: u16| format!("  - name: {name}\n    port: {}\n", ports.at(offset));
    write(&team.user, "pconnect.yml", &format!("services:\n{}{}", line("db", 20), line("web", 21)));
    let (running, _) = connected(dev(&team.user, team.user.path(), &["--json"]));
    let mut open = dial(ports.at(20));
    let mut still_open = || {
        open.write_all(b"x").unwrap();
        open.read_exact(&mut [0]).unwrap();
    };
    still_open();

    // One more.
    let saved = Instant::now();
    write(
        &team.user,
        "pconnect.yml",
        &format!("services:\n{}{}{}", line("db", 20), line("web", 21), line("redis", 22)),
    );
    running.wait_event("added");
    assert!(saved.elapsed() < Duration::from_millis(1500), "{:?}", saved.elapsed());
    assert!(echoes(ports.at(22), b"new"));
    still_open();

    // A faulty one changes nothing, and is said once.
    write(&team.user, "pconnect.yml", "services:\n  - name: db\n    prot: 1\n");
    running.wait_err(|line| line.contains("at line 3") && line.ends_with("the services stay as they are"));
    assert!(echoes(ports.at(21), b"old"));
    still_open();

    // One less, and one that moves; replaced by rename, as editors do.
    write(&team.user, "draft", &format!("services:\n{}{}", line("db", 20), line("redis", 23)));
    fs::rename(team.user.file("draft"), team.user.file("pconnect.yml")).unwrap();
    eventually("the change is taken up", PATIENCE, || routes(&team.user) == ["db", "redis"]);
    eventually("redis moves", PATIENCE, || echoes(ports.at(23), b"moved"));
    assert!(!echoes(ports.at(21), b"left") && !echoes(ports.at(22), b"left"));
    still_open();

    // A folder that is saved without the file for a moment loses nothing.
    fs::remove_file(team.user.file("pconnect.yml")).unwrap();
    write(&team.user, "pconnect.yml", &format!("services:\n{}{}", line("db", 20), line("web", 21)));
    eventually("web is back", PATIENCE, || echoes(ports.at(21), b"back"));
    still_open();
    assert_eq!(running.err().lines().count(), 1, "{}", running.err());
}

#[test]
fn what_the_file_exposes_can_be_used_by_others_while_it_runs() {
    let (team, ports, _exposed) = offered(&["db"]);
    ports.echo(10);
    let target = |offset: u16| format!("127.0.0.2:{}", ports.at(offset));
    write(
        &team.user,
        "pconnect.yml",
        &format!("expose:\n  my-api: {}\nservices:\n  - name: db\n", target(10)),
    );
    let (running, list) = connected(dev(&team.user, team.user.path(), &["--json", "--yes"]));
    assert_eq!((list, running.events("exposed")), (format!("db {}", ports.at(0)), 1));
    let (_reached, port) = common::reach(&team.owner, "my-api");
    assert!(echoes(port, b"offered"));
    // `status` shows both directions, with the traffic of each.
    eventually("status has what the project exposes", PATIENCE, || {
        let open = team.user.run(&["status", "--json"]).ok().json()[0]["open"].clone();
        let names: Vec<_> = open.as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
        names == ["db", "my-api"]
            && (&open[0]["exposed"], &open[1]["exposed"]) == (&Value::from(false), &Value::from(true))
            && open[1]["up"] == true
            && open[1]["bytes"] == 14
    });
    let status = team.user.run(&["status"]).ok().out;
    assert!(status.contains(&format!("[ok] my-api → {} (exposed)", target(10))), "{status}");

    // Another one beside it; a name that another process has is said, and ends nothing.
    let _taken = team.user.start(&["expose", "taken", "1"]);
    eventually("it is taken", PATIENCE, || team.user.run(&["services"]).out.contains("taken"));
    write(
        &team.user,
        "pconnect.yml",
        &format!("expose:\n  my-api: {}\n  taken: 2\nservices:\n  - name: db\n", target(10)),
    );
    let confirm = || _ = Said::of(dev(&team.user, team.user.path(), &["--confirm", "--yes"])).ok();
    confirm();
    running.wait_err(|line| line.contains("taken is already exposed"));
    write(
        &team.user,
        "pconnect.yml",
        &format!("expose:\n  other: {}\nservices:\n  - name: db\n", target(10)),
    );
    confirm();
    eventually("the new one is there and the old one gone", PATIENCE, || {
        let services = team.owner.run(&["services", "--json"]).ok().json();
        let online = |name: &str| {
            services.as_array().unwrap().iter().any(|one| one["name"] == name && one["status"] == "online")
        };
        online("other") && !online("my-api")
    });
    assert!(echoes(ports.at(0), b"untouched"));
}

#[test]
fn the_hub_of_the_file_is_used_unless_another_is_asked_for() {
    let (team, ports, _exposed) = offered(&["db"]);
    let other = Hub::start();
    // A key for both, so that only the address decides.
    let home = other.machine("member");
    let (url, key) = (&team.hub.url, team.hub.key("member"));
    write(&home, "pconnect.yml", &format!("hub: {url}\nservices:\n  - name: db\n"));
    let with_key = |args: &[&str]| {
        let mut command = dev(&home, home.path(), args);
        command.env("PRIVATECONNECT_TOKEN", &key);
        command
    };
    let (_running, list) = connected(with_key(&["--json"]));
    assert_eq!(list, format!("db {}", ports.at(0)));
    let said = Said::of(with_key(&["--hub", &other.url]));
    assert!(said.err.contains(&format!("{} did not prove", other.url)), "{said:#?}");
}

/// A listener in the place of somebody's hub, and whether anything came to it.
fn strangers_hub() -> (String, impl Fn() -> bool) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    (url, move || listener.accept().is_ok())
}

#[test]
fn a_hub_that_only_the_file_names_gets_no_key() {
    let (url, was_called) = strangers_hub();
    let home = Home::new();
    write(&home, "pconnect.yml", &format!("hub: {url}\nservices:\n  - name: db\n"));
    // As in CI: a key without a pin in the environment, and no login.
    let mut command = dev(&home, home.path(), &[]);
    command.env("PRIVATECONNECT_TOKEN", "pc_abcdefghijklmnopqrstuvwxyz");
    let said = Said::of(command);
    assert!(!was_called(), "{said:#?}");
    assert_eq!(said.code, Some(1), "{said:#?}");
    assert!(said.err.contains(&format!("connect dev --hub {url}")), "{said:#?}");
}

#[test]
fn what_a_file_exposes_is_confirmed_once_and_other_machines_each_time() {
    let (team, ports, _exposed) = offered(&["db"]);
    let here = |args: &[&str]| dev(&team.user, team.user.path(), args);
    let starts = |args: &[&str]| connected(here(&[args, &["--json"]].concat()));
    let is_refused = |hint: &str| {
        let said = Said::of(here(&["--", "true"]));
        assert!(said.err.contains("which nobody has confirmed") && said.err.ends_with(hint), "{said:#?}");
        assert_eq!(said.code, Some(1));
    };
    let local = format!("expose:\n  my-api: 127.0.0.2:{}\nservices:\n  - name: db\n", ports.at(10));
    write(&team.user, "pconnect.yml", &local);
    is_refused("connect dev --yes");
    drop(starts(&["--yes"]));
    let store = fs::metadata(team.user.file("confirmed.json")).unwrap();
    assert_eq!(store.permissions().mode() & 0o777, 0o600);
    drop(starts(&[]));
    // Another list, and the same list in another place, are others.
    write(&team.user, "pconnect.yml", &local.replace("my-api", "other"));
    is_refused("connect dev --yes");
    write(&team.user, "copy.yml", &local);
    let said = Said::of(here(&["--file", "copy.yml"]));
    assert!(said.err.ends_with("connect dev --file copy.yml --yes"), "{said:#?}");
    // What is not on this machine is asked for each time, in the background too.
    write(&team.user, "pconnect.yml", "expose:\n  metadata: 169.254.169.254:80\nservices: []\n");
    is_refused("connect dev --yes");
    for _ in 0..2 {
        drop(starts(&["--yes"]));
        is_refused("connect dev --yes");
    }
    Said::of(here(&["--yes", "-d"])).ok();
    team.user.run(&["stop", "--all"]).ok();
    is_refused("connect dev --yes");
}

#[test]
fn a_change_of_what_is_exposed_waits_for_its_confirmation() {
    let (team, ports, _exposed) = offered(&["db"]);
    ports.echo(10);
    let line = |name: &str, offset: u16| format!("  {name}: 127.0.0.2:{}\n", ports.at(offset));
    let file = |lines: &str| write(&team.user, "pconnect.yml", &format!("expose:\n{lines}"));
    file(&(line("one", 10) + &line("two", 10)));
    let (running, _) = connected(dev(&team.user, team.user.path(), &["--json", "--yes"]));
    let online = || {
        let services = team.owner.run(&["services", "--json"]).ok().json();
        let all = services.as_array().unwrap().iter();
        let own = all.filter(|one| one["status"] == "online" && one["name"] != "db");
        own.map(|one| one["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(online(), "one two");
    // What is new waits, and what is gone goes.
    file(&(line("two", 10) + "  docker: 2375\n"));
    let said = running.wait_err(|line| line.contains("docker → localhost:2375"));
    assert!(said.ends_with("is not exposed until you confirm it: connect dev --confirm"), "{said}");
    eventually("what left the list is gone", PATIENCE, || online() == "two");
    // The same name at another target is new, too.
    file(&(line("two", 11) + "  docker: 2375\n"));
    eventually("the other target waits", PATIENCE, || online().is_empty());
    let said = Said::of(dev(&team.user, team.user.path(), &["--confirm"]));
    assert!(said.code == Some(1) && said.err.ends_with("connect dev --confirm --yes"), "{said:#?}");
    Said::of(dev(&team.user, team.user.path(), &["--confirm", "--yes"])).ok();
    eventually("the confirmed list is exposed", PATIENCE, || online() == "docker two");
}

#[test]
fn a_terminal_is_asked_before_anything_is_exposed() {
    if !common::is_here("script", "bsdutils") {
        return;
    }
    let (team, ports, _exposed) = offered(&["db"]);
    let target = format!("127.0.0.2:{}", ports.at(10));
    write(&team.user, "pconnect.yml", &format!("expose:\n  my-api: {target}\n  lan: 192.0.2.1:80\n"));
    for (answer, shown) in [("n", "Nothing was exposed"), ("y", "my-api exposed from")] {
        let typed = dev(&team.user, team.user.path(), &["--", "true"]);
        let line = format!("{} dev -- true", typed.get_program().to_string_lossy());
        let mut command = typed;
        let mut script = Command::new("sh");
        script.arg("-c").arg(format!("echo {answer} | script -q -e -c '{line}' /dev/null"));
        script.current_dir(team.user.path());
        script
            .envs(command.env_remove("NO_COLOR").get_envs().filter_map(|(name, value)| Some((name, value?))));
        let said = Said::of(script);
        assert!(said.out.contains(&format!("my-api → {target}")), "{said:#?}");
        assert!(said.out.contains("lan → 192.0.2.1:80 (another machine)"), "{said:#?}");
        assert!(said.out.contains("[y/N]") && said.out.contains(shown), "{said:#?}");
    }
}

#[test]
fn init_writes_a_file_that_dev_reads_and_overwrites_nothing() {
    let (team, ports, _exposed) = offered(&["db", "web"]);
    let folder = team.user.file("project");
    fs::create_dir(&folder).unwrap();
    let said = Said::of(dev(&team.user, &folder, &["--init"])).ok();
    assert_eq!(said.out, "[ok] Wrote pconnect.yml\n  Choose what you need in it, then: connect dev");
    let text = fs::read_to_string(folder.join("pconnect.yml")).unwrap();
    assert!(text.starts_with("# ") && text.contains(&format!("# hub: {}", team.hub.url)), "{text}");
    assert!(text.contains("# expose:"), "{text}");
    let (running, list) = connected(dev(&team.user, &folder, &["--json"]));
    assert_eq!(list, format!("db {}, web {}", ports.at(0), ports.at(1)));
    drop(running);
    let again = Said::of(dev(&team.user, &folder, &["--init"]));
    assert_eq!(again.code, Some(1));
    assert!(again.err.starts_with("[x] pconnect.yml already exists"), "{again:#?}");
    assert_eq!(fs::read_to_string(folder.join("pconnect.yml")).unwrap(), text);

    // Without a hub it writes what there is to say, and says what is missing.
    let alone = Home::new();
    let said = Said::of(dev(&alone, alone.path(), &["--init"])).ok();
    assert!(said.err.contains("[!] No services are in it: Agent not configured"), "{said:#?}");
    let said = Said::of(dev(&alone, alone.path(), &[]));
    assert!(said.err.contains("[x] Agent not configured"), "{said:#?}");
}

#[test]
fn a_file_that_another_user_has_put_above_is_not_taken() {
    let home = Home::new();
    let below = home.file("mine");
    fs::create_dir(&below).unwrap();
    write(&home, "pconnect.yml", "expose:\n  ssh: 22\n");
    if !nix::unistd::getuid().is_root() {
        return eprintln!("SKIPPED: only root can give a file to another user; run the tests as root");
    }
    let file = home.file("pconnect.yml");
    std::os::unix::fs::chown(&file, Some(65_534), None).unwrap();
    let said = Said::of(dev(&home, &below, &[]));
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains(&format!("[x] {} belongs to another user", file.display())), "{said:#?}");
    assert!(said.err.contains(&format!("connect dev --file {}", file.display())), "{said:#?}");
    // Asked for, or in a folder of the same user's, as in a container that has somebody's checkout, it is meant.
    std::os::unix::fs::chown(&below, Some(65_534), None).unwrap();
    for said in [Said::of(dev(&home, &below, &["--yes"])), Said::of(dev(&home, home.path(), &[]))] {
        assert!(said.err.contains("Agent not configured"), "{said:#?}");
    }
}
