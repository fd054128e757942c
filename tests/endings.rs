//! Signals end everything in under a second, and leave nothing behind.

mod common;

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::sys::socket;
use nix::sys::socket::Backlog;
use nix::sys::socket::SockaddrIn;
use serde_json::Value;

use common::Home;
use common::Hub;
use common::PATIENCE;
use common::Running;
use common::Said;
use common::Tunnelled;
use common::dial;
use common::echo;
use common::ends::Ending;
use common::ends::read_out;
use common::eventually;
use common::expose;
use common::fault::Path;
use common::reach;
use common::service;

const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
/// A second, and what a machine that runs many tests at once takes on top.
const SOON: Duration = Duration::from_millis(1500);

fn ends_soon(program: &mut Running, signal: Signal, what: &str) {
    let began = Instant::now();
    program.signal(signal);
    let status = program.wait();
    let took = began.elapsed();
    assert_eq!(status.code(), Some(0), "{what} on {signal}: {}", program.err());
    assert!(took < SOON, "{what} on {signal} took {took:?}");
}

fn routes(home: &Home) -> Vec<Value> {
    let text = fs::read_to_string(home.file("active-routes.json")).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// Connections in every state: idle, stuck because the target does not read, stuck because the client does not.
fn busy(port: u16) -> Vec<TcpStream> {
    let (idle, stuck, lazy) = (dial(port), dial(port), dial(port));
    (&idle).write_all(b"E").unwrap();
    (&idle).read_exact(&mut [0]).unwrap();
    (&stuck).write_all(b"S").unwrap();
    stuck.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    while (&stuck).write_all(&[0; 16 * 1024]).is_ok() {}
    (&lazy).write_all(b"L").unwrap();
    (&lazy).read_exact(&mut [0; 1000]).unwrap();
    vec![idle, stuck, lazy]
}

/// Echoes, never reads, or never stops writing, as its first byte says.
fn moody(mut stream: TcpStream) {
    let mut mood = [0];
    match stream.read(&mut mood) {
        Ok(1) if mood[0] == b'E' => {
            let _ = stream.write_all(&mood);
            echo(stream);
        }
        Ok(1) if mood[0] == b'S' => {
            let (hold, forever) = mpsc::channel::<()>();
            let _ = forever.recv_timeout(PATIENCE);
            drop((hold, stream));
        }
        Ok(1) => while stream.write_all(&[7; 16 * 1024]).is_ok() {},
        _ => {}
    }
}

#[test]
fn each_signal_ends_reach_with_its_connections_and_its_route() {
    for signal in SIGNALS {
        let mut tunnel = Tunnelled::to(service(moody));
        assert_eq!(routes(&tunnel.user).len(), 1);
        let clients = busy(tunnel.port);
        ends_soon(&mut tunnel.reached, signal, "reach");
        assert!(routes(&tunnel.user).is_empty());
        for client in clients {
            assert_eq!(read_out(&client).1, Ending::Reset, "a connection that was cut looks whole");
        }
    }
}

#[test]
fn signals_that_come_together_are_one() {
    let mut tunnel = Tunnelled::to(service(echo));
    for _ in 0..50 {
        tunnel.reached.signal(Signal::SIGTERM);
        std::thread::yield_now();
    }
    assert_eq!(tunnel.reached.wait().code(), Some(0));
    assert!(routes(&tunnel.user).is_empty());
}

#[test]
fn each_signal_ends_expose_with_its_connections() {
    for signal in SIGNALS {
        let mut tunnel = Tunnelled::to(service(moody));
        let clients = busy(tunnel.port);
        ends_soon(&mut tunnel.exposed, signal, "expose");
        let listed = tunnel.user.run(&["services", "--json"]).ok().json();
        assert_eq!(listed.as_array().unwrap().len(), 0, "{listed}");
        for client in clients {
            assert_eq!(read_out(&client).1, Ending::Reset, "a connection that was cut looks whole");
        }
    }
}

#[test]
fn an_upload_that_is_cut_does_not_look_whole_to_the_target() {
    for ends_reach in [true, false] {
        let (tell, told) = mpsc::channel();
        let mut tunnel = Tunnelled::to(service(move |mut stream| {
            // A connection that only looks whether we answer ends here.
            if stream.read_exact(&mut [0; 14]).is_ok() {
                let _ = tell.send(Ending::Hung);
                let _ = tell.send(read_out(&stream).1);
            }
        }));
        let mut client = dial(tunnel.port);
        client.write_all(b"the first half").unwrap();
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Ending::Hung, "it waits for more");
        let ending = if ends_reach { &mut tunnel.reached } else { &mut tunnel.exposed };
        ends_soon(ending, Signal::SIGINT, "the tunnel");
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Ending::Reset, "reach: {ends_reach}");
    }
}

#[test]
fn each_signal_ends_a_hub_with_all_that_it_carries() {
    for signal in SIGNALS {
        let mut tunnel = Tunnelled::to(service(moody));
        let clients = busy(tunnel.port);
        ends_soon(&mut tunnel.hub.running, signal, "hub");
        for client in clients {
            assert_eq!(read_out(&client).1, Ending::Reset, "a connection that was cut looks whole");
        }
    }
}

#[test]
fn a_hub_that_is_gone_holds_nobody_up() {
    let mut tunnel = Tunnelled::to(service(moody));
    tunnel.hub.running.kill();
    tunnel.exposed.wait_event("lost");
    tunnel.reached.wait_event("down");
    let _waiting = dial(tunnel.port);
    ends_soon(&mut tunnel.reached, Signal::SIGINT, "reach");
    ends_soon(&mut tunnel.exposed, Signal::SIGTERM, "expose");
    assert!(routes(&tunnel.user).is_empty());
}

#[test]
fn a_hub_that_is_silent_holds_nobody_up() {
    let hub = Hub::start();
    let path = Path::to(&hub.address);
    let (owner, user) = (hub.machine_by(&path.url(), "member"), hub.machine_by(&path.url(), "member"));
    let mut exposed = expose(&owner, "service", service(moody));
    let (mut reached, port) = reach(&user, "service");
    let _clients = busy(port);
    path.fall_silent();
    let _waiting: Vec<TcpStream> = (0..3).map(|_| dial(port)).collect();
    ends_soon(&mut reached, Signal::SIGINT, "reach");
    ends_soon(&mut exposed, Signal::SIGINT, "expose");
    assert!(routes(&user).is_empty());
    // And while it asks for the first time.
    let mut asking = user.start(&["reach", "service"]);
    asking.wait_out(|line| line.contains("Reaching"));
    let began = Instant::now();
    asking.signal(Signal::SIGINT);
    assert_eq!(asking.wait().code(), Some(130), "{}", asking.err());
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

/// A port on which a connection is never finished: its queue is full, as for a host that drops what it gets.
struct BlackHole {
    port: u16,
    _held: (std::os::fd::OwnedFd, Vec<TcpStream>),
}

impl BlackHole {
    fn new() -> Self {
        let kind = (socket::AddressFamily::Inet, socket::SockType::Stream);
        let listener = socket::socket(kind.0, kind.1, socket::SockFlag::SOCK_CLOEXEC, None).unwrap();
        socket::bind(std::os::fd::AsRawFd::as_raw_fd(&listener), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
        socket::listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let bound: SockaddrIn = socket::getsockname(std::os::fd::AsRawFd::as_raw_fd(&listener)).unwrap();
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], bound.port()));
        let wait = Duration::from_millis(200);
        let held = std::iter::from_fn(|| TcpStream::connect_timeout(&address, wait).ok()).take(16).collect();
        Self { port: bound.port(), _held: (listener, held) }
    }
}

#[test]
fn a_target_that_drops_everything_holds_nobody_up() {
    let hole = BlackHole::new();
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let mut exposed = owner.start(&["expose", "--json", "hole", &hole.port.to_string()]);
    let online = || {
        let listed = user.run(&["services", "--json"]).ok().json();
        listed[0]["status"] == "online"
    };
    eventually("the service is online", PATIENCE, online);
    let mut reaching = user.start(&["reach", "hole", "-v"]);
    eventually("the session stands", PATIENCE, || hub.sessions() > 0);
    ends_soon(&mut exposed, Signal::SIGINT, "expose");
    let _ = reaching.interrupt();
}

#[test]
fn a_hub_whose_host_drops_everything_holds_nobody_up() {
    let hole = BlackHole::new();
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let url = format!("https://127.0.0.1:{}", hole.port);
    for (home, args) in [
        (&owner, ["expose", "--hub", &url, "service", "80"].as_slice()),
        (&user, &["reach", "--hub", &url, "service"]),
    ] {
        let mut program = home.start(args);
        eventually("it dials", PATIENCE, || is_dialling(program.pid()));
        let began = Instant::now();
        program.signal(Signal::SIGINT);
        let code = program.wait().code();
        assert!(began.elapsed() < SOON, "{args:?} took {:?}", began.elapsed());
        assert_eq!(code, Some(if args[0] == "reach" { 130 } else { 0 }), "{args:?}: {}", program.err());
    }
}

/// Whether this process has a connection that is being made: state 02 in the kernel's table.
fn is_dialling(pid: u32) -> bool {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let inodes: Vec<String> = links
        .filter_map(|link| fs::read_link(link.path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(3) == Some(&"02") && inodes.iter().any(|inode| fields.get(9) == Some(&inode.as_str()))
    })
}

#[test]
fn a_killed_reach_loses_its_route_at_the_next_change() {
    let mut tunnel = Tunnelled::to(service(echo));
    let _other = expose(&tunnel.owner, "other", service(echo));
    tunnel.reached.kill();
    assert_eq!(routes(&tunnel.user).len(), 1, "nobody has written since");
    let (mut other, _) = reach(&tunnel.user, "other");
    let now = routes(&tunnel.user);
    assert_eq!((now.len(), &now[0]["serviceName"]), (1, &"other".into()), "{now:?}");
    assert_eq!(now[0]["pid"], other.pid());
    ends_soon(&mut other, Signal::SIGINT, "reach");
    assert!(routes(&tunnel.user).is_empty());
}

/// `connect reach service -- sh -c SCRIPT`.
fn with_command(tunnel: &Tunnelled, script: &str) -> std::process::Command {
    tunnel.user.connect(&["reach", "service", "--", "sh", "-c", script])
}

#[test]
fn a_command_has_the_tunnel_and_its_own_exit_code() {
    let tunnel = Tunnelled::to(service(echo));
    let script = "echo $SERVICE_HOST; echo $SERVICE_PORT; echo $SERVICE_ADDR; exit 7";
    let said = Said::of(with_command(&tunnel, script));
    assert_eq!(said.code, Some(7), "{said:#?}");
    let lines: Vec<&str> = said.out.lines().collect();
    let [host, port, address] = lines[..] else { panic!("stdout is the command's: {said:#?}") };
    assert_eq!((host, address), ("127.0.0.1", format!("127.0.0.1:{port}").as_str()));
    assert!(said.err.contains("[ok] service"), "{said:#?}");
    assert_eq!(routes(&tunnel.user).len(), 1, "its route is gone, the other one's stays");
    let killed = Said::of(with_command(&tunnel, "kill -KILL $$"));
    assert_eq!(killed.code, Some(128 + 9), "{killed:#?}");
    let missing = tunnel.user.run(&["reach", "service", "--", "no-such-command"]);
    assert_eq!(missing.code, Some(127), "{missing:#?}");
    assert!(missing.err.contains("no-such-command"), "{missing:#?}");
}

#[test]
fn signals_reach_the_command_and_its_answer_is_the_exit_code() {
    let tunnel = Tunnelled::to(service(echo));
    for (signal, name) in [(Signal::SIGTERM, "TERM"), (Signal::SIGINT, "INT"), (Signal::SIGHUP, "HUP")] {
        let script = format!("trap 'echo caught; exit 42' {name}; echo ready; while :; do sleep 0.05; done");
        let mut program = Running::start(with_command(&tunnel, &script));
        program.wait_out(|line| line == "ready");
        program.signal(signal);
        program.wait_out(|line| line == "caught");
        let status = program.wait();
        assert_eq!((status.code(), status.signal()), (Some(42), None), "{signal}: {}", program.err());
    }
    let mut program = Running::start(with_command(&tunnel, "echo ready; exec sleep 30"));
    program.wait_out(|line| line == "ready");
    program.signal(Signal::SIGTERM);
    assert_eq!(program.wait().code(), Some(128 + 15));
}
