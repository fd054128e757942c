//! Two and three machines with cables between them, each a network namespace of its own: what loopback hides.

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
/// Tells the inner test where the far machine is, and where the agent is.
const FAR: &str = "CONNECT_TEST_FAR";
const AGENT: &str = "CONNECT_TEST_AGENT";
/// The hub as its agent and its joiner see it, and the agent as the joiner does.
const HUB_TO_AGENT: &str = "10.213.8.1";
const HUB_TO_JOINER: &str = "10.213.9.1";
const AGENT_TO_JOINER: &str = "10.213.10.1";

/// All are gone when this is dropped.
struct Machines<const N: usize> {
    names: [String; N],
}

impl<const N: usize> Machines<N> {
    fn new(sides: [&str; N]) -> Self {
        let names = sides.map(|side| format!("connect-{}-{side}", std::process::id()));
        for name in &names {
            ip(&["netns", "add", name]);
            ip(&["-n", name, "link", "set", "lo", "up"]);
        }
        Self { names }
    }

    /// Two machines get the first two addresses of a network.
    fn connect(&self, one: usize, other: usize, cable: &str, network: &str) {
        let [one, other] = [one, other].map(|at| self.names[at].as_str());
        ip(&["-n", one, "link", "add", cable, "type", "veth", "peer", "name", cable, "netns", other]);
        for (name, last) in [(one, 1), (other, 2)] {
            ip(&["-n", name, "address", "add", &format!("{network}.{last}/24"), "dev", cable]);
            ip(&["-n", name, "link", "set", cable, "up"]);
        }
    }

    /// Runs an ignored test of this file on the first machine. It learns the names of the others.
    fn run(&self, test: &str, variables: &[(&str, usize)]) {
        let mut inner = Command::new("ip");
        inner.args(["netns", "exec", &self.names[0]]).arg(std::env::current_exe().unwrap());
        inner.args(["--ignored", "--exact", test, "--nocapture"]);
        inner.envs(variables.iter().map(|(variable, at)| (*variable, &self.names[*at])));
        assert!(inner.status().unwrap().success());
    }
}

impl<const N: usize> Drop for Machines<N> {
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
    on(FAR, command)
}

fn on(machine: &str, command: &Command) -> Command {
    let mut wrapped = Command::new("ip");
    wrapped.args(["netns", "exec", &std::env::var(machine).unwrap()]);
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
    let machines = Machines::new(["near", "far"]);
    machines.connect(0, 1, "cable", "10.213.7");
    machines.run("between_two_machines", &[(FAR, 1)]);
}

#[test]
fn the_direct_path_is_used_where_there_is_one_and_the_relay_where_there_is_none() {
    if !nix::unistd::geteuid().is_root() || !is_here("ip", "iproute2") {
        return eprintln!("SKIPPED: network namespaces want root");
    }
    let machines = Machines::new(["hub", "agent", "joiner"]);
    machines.connect(0, 1, "agent", "10.213.8");
    machines.connect(0, 2, "joiner", "10.213.9");
    machines.connect(1, 2, "cable", "10.213.10");
    machines.run("between_three_machines", &[(AGENT, 1), (FAR, 2)]);
}

/// Which path a new tunnel of the joiner takes, and the tunnel.
fn direct_or_relay(user: &Home) -> (bool, Running, u64) {
    let reached = Running::start(far(&user.connect(&["reach", "--json", "echo"])));
    let up = reached.wait_event("up");
    let path = up["path"].as_str().unwrap();
    assert!(path == "relay" || path.starts_with(&format!("direct, {AGENT_TO_JOINER}:")), "{path}");
    (path != "relay", reached, up["localPort"].as_u64().unwrap())
}

/// Sends a line through the tunnel, and one more after `go` is there; says what came back.
fn talk(port: u64, go: &str) -> Running {
    far_bash(&format!(
        "exec 3<>/dev/tcp/127.0.0.1/{port}; echo one >&3; read -u 3 line; echo \"got $line\"
         until [ -e {go} ]; do sleep 0.1; done; echo two >&3; cat <&3; echo ended"
    ))
}

#[test]
#[ignore = "run by the other test, on a machine that it made"]
fn between_three_machines() {
    let home = Home::new();
    let names = ["--name", HUB_TO_AGENT, "--name", HUB_TO_JOINER, "--tunnel-ports", "off"];
    let hub_command = home.hub(&[&["hub", "--json", "--listen", "0.0.0.0:0"], &names[..]].concat());
    let hub = Hub::start_by(home, hub_command, &[]);
    let port = hub.address.rsplit(':').next().unwrap();
    let (owner, user) = (Home::new(), Home::new());
    for (machine, home, at) in [(AGENT, &owner, HUB_TO_AGENT), (FAR, &user, HUB_TO_JOINER)] {
        let (url, key) = (format!("https://{at}:{port}"), hub.key("member"));
        let up = home.connect(&["up", "--hub", &url, "--api-key", &key, "--label", machine]);
        common::Said::of(on(machine, &up)).ok();
    }
    let listener = std::net::TcpListener::bind((HUB_TO_AGENT, 0)).unwrap();
    let target = listener.local_addr().unwrap().to_string();
    thread::spawn(move || listener.incoming().flatten().for_each(|one| _ = thread::spawn(|| echo(one))));
    let expose = ["expose", "--json", &target, "--name", "echo", "--protocol", "tcp", "--direct"];
    let exposed = Running::start(on(AGENT, &owner.connect(&expose)));
    exposed.wait_event("exposed");
    let agent = std::env::var(AGENT).unwrap();
    let cable = |state: &str| ip(&["-n", &agent, "link", "set", "cable", state]);

    // No way to the agent, and one on which nothing comes back.
    cable("down");
    assert!(!direct_or_relay(&user).0);
    cable("up");
    let one_way = |verb: &str| ip(&["-n", &agent, "route", verb, "blackhole", "10.213.10.2/32"]);
    one_way("add");
    assert!(!direct_or_relay(&user).0);
    one_way("del");

    let (is_direct, reached, local) = direct_or_relay(&user);
    assert!(is_direct);
    let (never, go) = (user.file("never"), user.file("go"));
    let broken = talk(local, &go.display().to_string());
    broken.wait_out(|line| line == "got one");
    cable("down");
    thread::sleep(Duration::from_secs(3));
    let began = std::time::Instant::now();
    let next = talk(local, &never.display().to_string());
    next.wait_out(|line| line == "got one");
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    std::fs::write(&go, "").unwrap();
    eventually("the connection on the dead path ends", NOTICED, || broken.out().ends_with("ended"));
    assert_eq!(broken.out(), "got one\nended");
    cable("up");
    let path = || user.run(&["status", "--json"]).ok().json()[0]["open"][0]["path"].to_string();
    eventually("the direct path is used again", Duration::from_secs(90), || path().contains("direct"));
    assert_eq!(reached.events("down"), 0);
    assert_eq!(next.out(), "got one");
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
