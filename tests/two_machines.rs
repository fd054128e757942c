//! Two machines with a cable between them, each a network namespace of its own: what loopback hides.

mod common;

use std::io::Write;
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::Home;
use common::Hub;
use common::Running;
use common::echo;
use common::eventually;
use common::expose;
use common::is_here;
use common::service;

const NEAR: &str = "10.213.7.1";
/// More than the kernels on the way buffer.
const LARGE: usize = 256 * 1024 * 1024;
/// Longer than the silence after which a machine is taken for gone, and the kernel's next look at a closed window.
const PAUSE: Duration = Duration::from_mins(1);
/// A dead path is noticed within this, while something is on its way.
const NOTICED: Duration = Duration::from_secs(70);
/// Tells the inner test where the far machine is.
const FAR: &str = "CONNECT_TEST_FAR";

/// Both are gone when this is dropped.
struct Machines {
    names: [String; 2],
}

impl Machines {
    fn new() -> Self {
        let names = ["near", "far"].map(|side| format!("connect-{}-{side}", std::process::id()));
        let [near, far] = &names;
        names.iter().for_each(|name| ip(&["netns", "add", name]));
        ip(&["-n", near, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", far]);
        for (name, address) in [(near, "10.213.7.1/24"), (far, "10.213.7.2/24")] {
            ip(&["-n", name, "address", "add", address, "dev", "cable"]);
            ip(&["-n", name, "link", "set", "cable", "up"]);
            ip(&["-n", name, "link", "set", "lo", "up"]);
        }
        Self { names }
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn ip(args: &[&str]) {
    let said = Command::new("ip").args(args).output().unwrap();
    assert!(said.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&said.stderr));
}

/// The same command on the far machine.
fn far(command: &Command) -> Command {
    let mut wrapped = Command::new("ip");
    wrapped.args(["netns", "exec", &std::env::var(FAR).unwrap()]);
    wrapped.arg(command.get_program()).args(command.get_args());
    common::team::copy_environment(command, &mut wrapped);
    wrapped
}

fn far_bash(script: &str) -> Running {
    let mut command = Command::new("bash");
    command.args(["-c", script]);
    Running::start(far(&command))
}

fn far_reach(user: &Home, name: &str) -> (Running, u64) {
    let reached = Running::start(far(&user.connect(&["reach", "--json", name])));
    let port = reached.wait_event("up")["localPort"].as_u64().unwrap();
    (reached, port)
}

#[test]
fn a_reader_may_pause_and_a_pulled_cable_is_noticed() {
    if !nix::unistd::geteuid().is_root() || !is_here("ip", "iproute2") {
        return eprintln!("SKIPPED: network namespaces want root");
    }
    let machines = Machines::new();
    let [near, far] = &machines.names;
    let mut inner = Command::new("ip");
    inner.args(["netns", "exec", near]).arg(std::env::current_exe().unwrap());
    inner.args(["--ignored", "--exact", "between_two_machines", "--nocapture"]).env(FAR, far);
    assert!(inner.status().unwrap().success());
}

#[test]
#[ignore = "run by the other test, on a machine that it made"]
fn between_two_machines() {
    let home = Home::new();
    let hub_command = home.hub(&["hub", "--json", "--listen", &format!("{NEAR}:0"), "--tunnel-ports", "off"]);
    let hub = Hub::start_by(home, hub_command, &[]);
    let (owner, user) = (hub.machine("member"), Home::new());
    let key = hub.key("member");
    let up = far(&user.connect(&["up", "--hub", &hub.url, "--api-key", &key, "--label", "far"]));
    common::Said::of(up).ok();
    let _source = expose(&owner, "source", service(|mut stream| drop(stream.write_all(&vec![7; LARGE]))));
    let _echo = expose(&owner, "echo", service(echo));
    let ((_sourcing, source), (echoing, echo)) = (far_reach(&user, "source"), far_reach(&user, "echo"));

    let paused = far_bash(&format!(
        "exec 3<>/dev/tcp/127.0.0.1/{source}; head -c 1000 <&3 >/dev/null; echo paused; sleep {}; cat <&3 | wc -c",
        PAUSE.as_secs()
    ));
    paused.wait_out(|line| line == "paused");
    thread::sleep(PAUSE);
    assert_eq!(paused.finish().out, format!("paused\n{}", LARGE - 1000));

    let go = user.file("go");
    let cut = far_bash(&format!(
        "exec 3<>/dev/tcp/127.0.0.1/{echo}; echo one >&3; read -u 3 line; echo \"got $line\"
         until [ -e {} ]; do sleep 0.1; done; echo two >&3; cat <&3; echo ended",
        go.display()
    ));
    cut.wait_out(|line| line == "got one");
    ip(&["link", "set", "cable", "down"]);
    std::fs::write(&go, "").unwrap();
    eventually("the connection ends", NOTICED, || cut.out().ends_with("ended"));
    eventually("reach says that the service is away", NOTICED, || echoing.events("down") == 1);
}
