//! `connect daemon`: what is saved is exposed, and comes back; systemd starts it and is told when it is ready.

mod common;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;

use common::Home;
use common::Hub;
use common::PATIENCE;
use common::Running;
use common::Said;
use common::echo;
use common::echoes;
use common::eventually;
use common::reach;
use common::service;
use common::team::is_root;

/// A machine whose daemon ends with the test.
struct Machine {
    home: Home,
    hub: Hub,
}

impl Machine {
    fn new() -> Self {
        let hub = Hub::start();
        Self { home: hub.machine("member"), hub }
    }

    fn keep(&self, name: &str, port: u16) -> Said {
        self.home.run(&["expose", name, &port.to_string(), "--keep"]).ok()
    }

    /// What the hub has online.
    fn online(&self) -> Vec<String> {
        let all = self.home.run(&["services", "--json"]).ok().json();
        let online = all.as_array().unwrap().iter().filter(|service| service["status"] == "online");
        online.map(|service| service["name"].as_str().unwrap().to_owned()).collect()
    }

    fn status(&self) -> Value {
        self.home.run(&["daemon", "status", "--json"]).ok().json()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.home.run(&["stop", "--all"]);
    }
}

#[test]
fn what_is_kept_comes_at_once_stays_through_a_restart_and_goes_when_it_is_stopped() {
    let machine = Machine::new();
    let port = service(echo);
    let said = machine.keep("db", port);
    assert!(
        said.out.starts_with(&format!("[ok] db → localhost:{port} is exposed, and the daemon keeps it so")),
        "{said:#?}"
    );
    assert!(said.out.contains("  Undo it: connect stop db"), "{said:#?}");
    machine.keep("web", port);
    assert_eq!(machine.online(), ["db", "web"]);
    let user = machine.hub.machine("member");
    let (_reached, at) = reach(&user, "db");
    assert!(echoes(at, b"kept"));

    // A crash is seen, and what was saved comes back with the next start.
    let pid = machine.status()["daemon"]["pid"].as_i64().unwrap();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    eventually("the crash is seen", PATIENCE, || machine.status()["daemon"]["state"] == "crashed");
    let said = machine.home.run(&["daemon", "status"]).ok().out;
    assert!(said.starts_with("[x] daemon crashed ") && said.contains("db → localhost"), "{said}");
    let doctor = machine.home.run(&["doctor"]);
    assert_eq!(doctor.code, Some(1));
    assert!(
        doctor.out.contains("2 saved, but no daemon runs") && doctor.out.contains("connect daemon start")
    );
    let said = machine.home.run(&["daemon", "restart"]).ok().out;
    assert!(said.contains("[ok] db exposed from ") && said.contains("[ok] web exposed from "), "{said}");
    assert_eq!((machine.online().len(), machine.status()["running"].clone()), (2, Value::Bool(true)));
    assert!(machine.home.run(&["daemon", "start"]).ok().out.starts_with("[ok] The daemon already runs"));

    let said = machine.home.run(&["stop", "db"]).ok().out;
    assert_eq!(said, "[ok] db is no longer kept exposed by the daemon");
    eventually("it is withdrawn", PATIENCE, || machine.online() == ["web"]);
    let log = machine.home.run(&["daemon", "logs"]).ok().out;
    assert!(log.contains("[ok] db is not exposed any more"), "{log}");
    assert_eq!(machine.home.run(&["daemon", "stop"]).ok().out, "[ok] Daemon stopped.");
    assert_eq!(machine.home.run(&["daemon", "stop"]).ok().out, "[ok] No daemon is running.");
    assert!(machine.online().is_empty());
}

#[test]
fn a_hub_that_is_away_and_a_name_that_is_taken_are_waited_for() {
    let mut machine = Machine::new();
    let port = service(echo);
    let mut other = common::expose(&machine.home, "db", port);
    let said = machine.keep("db", port);
    assert!(
        said.err.contains("[!] db is saved, and exposed as soon as that can be: db is already exposed"),
        "{said:#?}"
    );
    machine.keep("web", port);
    machine.hub.running.kill();
    eventually("the daemon has noticed", PATIENCE, || machine.status()["daemon"]["open"][1]["up"] == false);
    other.kill();
    machine.hub.restart();
    eventually("all are there", PATIENCE * 2, || machine.online() == ["db", "web"]);
    let log = machine.home.run(&["daemon", "logs"]).ok().out;
    for line in ["; trying again until it is back", "[ok] The hub is back", "[ok] db exposed from localhost:"]
    {
        assert!(log.contains(line), "{line}: {log}");
    }
}

#[test]
fn its_log_has_whatever_this_machine_exposes() {
    let mut machine = Machine::new();
    let port = service(echo);
    let logs = || machine.home.run(&["daemon", "logs"]).ok().out;
    let mut front = common::expose(&machine.home, "front", port);
    machine.home.run(&["expose", "behind", &port.to_string(), "-d"]).ok();
    machine.home.run(&["share", &format!("shared={port}"), "-d"]).ok();
    for (name, command) in [("front", "expose"), ("behind", "expose"), ("shared", "share")] {
        let line = format!(" INFO  {name} exposed from localhost:{port} (connect {command}, PID ");
        assert!(logs().contains(&line), "{line}: {}", logs());
    }
    machine.hub.running.kill();
    eventually("the loss is logged", PATIENCE, || logs().matches(" WARN  The hub is lost: ").count() == 3);
    machine.hub.restart();
    eventually("the return is logged", PATIENCE * 2, || {
        logs().matches(" INFO  The hub is back ").count() == 3
    });
    front.interrupt();
    machine.home.run(&["stop", "behind"]).ok();
    for name in ["front", "behind"] {
        assert!(logs().contains(&format!("{name} is not exposed any more")), "{}", logs());
    }
    let mode = fs::metadata(machine.home.file("agent.log")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_daemon_needs_a_login_and_keep_needs_no_d() {
    let home = Home::new();
    for args in
        [&["daemon", "start"][..], &["daemon", "start", "--foreground"], &["expose", "db", "1", "--keep"]]
    {
        let said = home.run(args);
        assert_eq!(said.err, "[x] Agent not configured\n  Run connect up first to authenticate.", "{args:?}");
    }
    assert_eq!(home.run(&["expose", "db", "1", "--keep", "-d"]).code, Some(2));
    assert!(home.run(&["daemon", "logs"]).err.contains("or start the daemon: connect daemon start"));
}

#[test]
fn the_service_manager_is_told_when_it_is_ready_and_when_it_ends() {
    let machine = Machine::new();
    machine.keep("db", service(echo));
    machine.home.run(&["daemon", "stop"]).ok();
    let socket = UnixDatagram::bind(machine.home.file("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let heard = || {
        let mut room = [0; 64];
        let count = socket.recv(&mut room).unwrap();
        String::from_utf8_lossy(&room[..count]).into_owned()
    };
    let mut command = machine.home.connect(&["daemon", "start", "--foreground"]);
    command.env("NOTIFY_SOCKET", machine.home.file("notify"));
    let mut running = Running::start(command);
    assert_eq!(heard(), "READY=1");
    assert_eq!(machine.online(), ["db"]);
    running.signal(Signal::SIGTERM);
    assert_eq!(heard(), "STOPPING=1");
    assert_eq!(running.wait().code(), Some(0));
}

/// The unit as `--dry-run` shows it, in a file of its own.
fn unit(home: &Home, options: &[&str]) -> String {
    let said = home.run(&[&["daemon", "install", "--dry-run", "--json"], options].concat()).ok().json();
    assert_eq!(said["done"], false);
    let file = home.file("connect-daemon.service");
    fs::write(&file, said["units"][0]["text"].as_str().unwrap()).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn the_units_are_such_as_systemd_takes_without_a_word() {
    if !common::is_here("systemd-analyze", "systemd") {
        return;
    }
    let home = Home::new();
    for (scope, options) in [("--user", &[][..]), ("--system", &["--system"])] {
        let file = unit(&home, options);
        let verify = || {
            let mut command = Command::new("systemd-analyze");
            command.args([scope, "--man=no", "verify", &file]).env("XDG_RUNTIME_DIR", home.path());
            Said::of(command)
        };
        let said = verify();
        assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (Some(0), "", ""), "{scope}");
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains("Type=notify") && text.contains(&home.path().display().to_string()), "{text}");
        // It would say so, if there were something to say.
        fs::write(&file, text.replace("LockPersonality", "LokPersonality")).unwrap();
        assert!(verify().err.contains("LokPersonality"));
    }
    assert!(!home.file(".config/systemd").exists());
}

#[test]
fn where_there_is_no_systemd_it_says_what_to_do() {
    if fs::exists("/run/systemd/system").unwrap() {
        return;
    }
    let said = Home::new().run(&["daemon", "install"]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.err.starts_with("[x] This machine has no systemd\n  Start it now: connect daemon start."),
        "{said:#?}"
    );
    assert!(said.err.contains("@reboot "), "{said:#?}");
}

/// A real systemd, as a user's manager in a mount namespace of its own.
const MANAGER: &str = r"
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system || exit 77
/lib/systemd/systemd --user --log-target=null & manager=$!
trap 'kill $manager; wait $manager' EXIT
for _ in $(seq 100); do systemctl --user is-system-running 2>/dev/null | grep -qE 'running|degraded' && break; sleep 0.1; done
systemctl --user is-system-running 2>/dev/null | grep -qE 'running|degraded' || exit 77
";

const DAEMON_UNDER_SYSTEMD: &str = r#"
"$0" daemon install || exit 1
echo "state: $(systemctl --user is-active connect-daemon) $(systemctl --user is-enabled connect-daemon)"
pid=$(systemctl --user show -p MainPID --value connect-daemon)
grep -E '^(NoNewPrivs|Seccomp):' /proc/$pid/status
"$0" services
echo "threads that carry bytes as they ask: $(chrt -a -p $pid | grep -c SCHED_BATCH | sed 's/^[1-9].*/yes/')"
units="${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user"
"$0" hub install --dry-run --listen 127.0.0.1:0 --data "$HOME/other-hub" | sed -n 's/^    //p' |
    grep -E '^(\[Service|Type|Exec|NoNew|Lock|Memory|Restrict|SystemCall|UMask)' >"$units/connect-hub.service"
systemctl --user daemon-reload && systemctl --user start connect-hub
echo "hub: $(systemctl --user is-active connect-hub) $("$0" hub status --data "$HOME/other-hub" | head -1)"
"$0" hub key create --data "$HOME/other-hub" --label ann >/dev/null && echo "the hub writes"
"$0" hub drain --data "$HOME/other-hub" | tail -1
echo "drained: $(systemctl --user show -p Result --value connect-hub)"
rm "$units/connect-hub.service"
echo "password in the unit: $(systemctl --user cat connect-daemon | grep -c 'heim@'), in the daemon: $(tr '\0' '\n' < /proc/$pid/environ | grep -c 'ann:ge"heim')"
stat -c 'its file: %a' "$PRIVATECONNECT_HOME/daemon.env"
kill -9 $pid
for _ in $(seq 200); do new=$(systemctl --user show -p MainPID --value connect-daemon); [ "$new" != 0 ] && [ "$new" != $pid ] && systemctl --user is-active --quiet connect-daemon && break; sleep 0.1; done
echo "after a crash: $(systemctl --user is-active connect-daemon)"
"$0" daemon restart
echo "after a restart: $(systemctl --user is-active connect-daemon)"
"$0" daemon uninstall
echo "at last: $(systemctl --user is-active connect-daemon)"
"#;

/// Clients come to the proxy without a pause while it restarts.
const PROXY_UNDER_SYSTEMD: &str = r#"
"$0" proxy install --port "$PROXY_PORT" || exit 1
while [ ! -e "$HOME/over" ]; do
    (exec 3<>"/dev/tcp/127.0.0.1/$PROXY_PORT") 2>/dev/null || echo refused
    sleep 0.01
done >"$HOME/refused" & clients=$!
systemctl --user restart connect-proxy && systemctl --user restart connect-proxy
touch "$HOME/over"; wait $clients
echo "restarted: $(systemctl --user is-active connect-proxy), refused: $(wc -l <"$HOME/refused")"
"$0" proxy stop
echo "stopped: $(systemctl --user is-active connect-proxy connect-proxy.socket | tr '\n' ' ')"
"$0" proxy uninstall
ls "${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user" | sed 's/^/left: /'
"#;

/// `None`, said loudly, where systemd cannot run.
fn under_systemd(script: &str, ours: &Command, more: &[(&str, &str)]) -> Option<Said> {
    if !is_root() || !fs::exists("/lib/systemd/systemd").unwrap() {
        eprintln!("\n*** SKIPPED: this wants root and systemd ***\n");
        return None;
    }
    let runtime = Home::new();
    let mut command = Command::new("unshare");
    command.args(["-m", "bash", "-c", &format!("{MANAGER}{script}")]).arg(ours.get_program());
    common::team::copy_environment(ours, &mut command);
    command.env("XDG_RUNTIME_DIR", runtime.path()).envs(more.iter().copied());
    let said = Said::of(command);
    if said.code == Some(77) {
        eprintln!("\n*** SKIPPED: systemd does not run here as a user's manager ***\n");
        return None;
    }
    Some(said)
}

#[test]
fn a_proxy_that_systemd_restarts_refuses_nobody_and_stop_ends_its_socket_too() {
    let home = Home::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let said = under_systemd(PROXY_UNDER_SYSTEMD, &home.connect(&[]), &[("PROXY_PORT", &port)]);
    let Some(said) = said else { return };
    for line in
        ["[ok] Installed; the proxy runs,", "restarted: active, refused: 0", "stopped: inactive inactive"]
    {
        assert!(said.out.lines().any(|said| said.starts_with(line)), "{line}: {said:#?}");
    }
    assert!(!said.out.contains("left: connect-proxy"), "{said:#?}");
}

#[test]
fn systemd_installs_starts_restarts_and_removes_it() {
    let machine = Machine::new();
    machine.keep("db", service(echo));
    let proxies = [("HTTPS_PROXY", "http://ann:ge\"heim@127.0.0.1:9"), ("NO_PROXY", "127.0.0.1")];
    let said = under_systemd(DAEMON_UNDER_SYSTEMD, &machine.home.connect(&[]), &proxies);
    let Some(said) = said else { return };
    for line in [
        "[ok] Installed; the daemon runs, and comes back after every reboot",
        "state: active enabled",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "db ",
        "threads that carry bytes as they ask: yes",
        "hub: active ● Hub: running on ",
        "the hub writes",
        "[ok] The hub has ended",
        "drained: success",
        "password in the unit: 0, in the daemon: 1",
        "its file: 600",
        "after a crash: active",
        "after a restart: active",
        "[ok] Uninstalled",
        "at last: inactive",
    ] {
        assert!(said.out.lines().any(|said| said.starts_with(line)), "{line}: {said:#?}");
    }
    assert!(!machine.home.file(".config/systemd/user/connect-daemon.service").exists());
    assert!(!machine.home.file("daemon.env").exists());
}
