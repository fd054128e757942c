//! Tunnel ports: a service on a loopback port of the hub's machine, for the user who runs the hub.

mod common;

use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::process::Command;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::Home;
use common::Hub;
use common::PATIENCE;
use common::Running;
use common::dial;
use common::echo;
use common::echoes;
use common::ends::Ending;
use common::ends::is_refused;
use common::ends::read_out;
use common::eventually;
use common::expose;
use common::noise;
use common::reach;
use common::service;
use serde_json::Value;

/// A hub with so many tunnel ports, which were free a moment ago. Another test may take one meanwhile; then
/// the hub passes over it, so there are some more than are used.
fn hub_with_ports(count: u16) -> (Hub, std::ops::RangeInclusive<u16>) {
    hub_with_ports_and(&[], count)
}

fn hub_with_ports_and(options: &[&str], count: u16) -> (Hub, std::ops::RangeInclusive<u16>) {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Below the ports that systems give out by themselves.
    let first = loop {
        let turn = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let start = u16::try_from(20_000 + (std::process::id() * 160 + turn * 20) % 10_000).unwrap();
        let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if (start..start + count).all(is_free) {
            break start;
        }
    };
    let range = format!("{first}-{}", first + count - 1);
    (Hub::start_with(&[&["--tunnel-ports", &range], options].concat()), first..=first + count - 1)
}

fn listed(home: &Home) -> Value {
    home.run(&["services", "--json"]).ok().json()
}

fn tunnel_port(home: &Home, name: &str) -> Option<u16> {
    let services = listed(home);
    let service = services.as_array().unwrap().iter().find(|service| service["name"] == name)?;
    service["tunnelPort"].as_u64().map(|port| u16::try_from(port).unwrap())
}

#[test]
fn a_port_is_allocated_listed_used_released_and_the_same_after_a_return() {
    let (hub, range) = hub_with_ports(4);
    let owner = hub.machine("member");
    let target = service(echo);
    let mut exposed = expose(&owner, "service", target);
    let port = tunnel_port(&owner, "service").unwrap();
    assert!(range.contains(&port), "{port}");
    assert_eq!(exposed.wait_event("exposed")["tunnelPort"], port);
    for index in 0..10 {
        assert!(echoes(port, &noise(index, 50_000)));
    }
    // Another service gets another port.
    let _other = expose(&owner, "other", target);
    let other = tunnel_port(&owner, "other").unwrap();
    assert!(other != port && range.contains(&other));
    // The agent dies: its port is closed, and kept for it.
    exposed.kill();
    let is_closed = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err();
    eventually("the port of a dead agent is closed", PATIENCE, is_closed);
    assert_eq!(tunnel_port(&owner, "service"), None);
    let _third = expose(&owner, "third", target);
    assert_ne!(tunnel_port(&owner, "third"), Some(port));
    let mut exposed = expose(&owner, "service", target);
    assert_eq!(tunnel_port(&owner, "service"), Some(port));
    assert!(echoes(port, b"back"));
    // The service is withdrawn: its port is free for others.
    assert_eq!(exposed.interrupt().0.code(), Some(0));
    eventually("the port of a service that went is closed", PATIENCE, is_closed);
    assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok());
}

#[test]
fn a_hub_that_listens_on_one_address_alone_has_tunnel_ports_too() {
    let (hub, _) = hub_with_ports_and(&["--listen", "127.0.0.2:0"], 4);
    let owner = hub.machine("member");
    let _exposed = expose(&owner, "service", service(echo));
    assert!(echoes(tunnel_port(&owner, "service").unwrap(), &noise(1, 50_000)));
}

#[test]
fn when_no_port_is_left_the_service_is_there_without_one() {
    let (hub, _) = hub_with_ports(1);
    let owner = hub.machine("member");
    let (mut first, target) = (expose(&owner, "first", service(echo)), service(echo));
    let port = tunnel_port(&owner, "first").unwrap();
    let second = expose(&owner, "second", target);
    assert_eq!(tunnel_port(&owner, "second"), None);
    let (_reached, local) = reach(&owner, "second");
    assert!(echoes(local, b"by a session"));
    first.interrupt();
    drop(second);
    eventually("the port is given to the next", PATIENCE, || {
        let _again: Running = expose(&owner, "second", target);
        tunnel_port(&owner, "second") == Some(port)
    });
}

#[test]
fn the_port_stays_open_while_its_agent_reconnects() {
    let (mut hub, _) = hub_with_ports(4);
    let owner = hub.machine("member");
    let exposed = expose(&owner, "service", service(echo));
    let port = tunnel_port(&owner, "service").unwrap();
    hub.running.kill();
    exposed.wait_event("lost");
    hub.restart();
    exposed.wait_event("back");
    eventually("the port is back", Duration::from_secs(5), || tunnel_port(&owner, "service") == Some(port));
    assert!(echoes(port, b"the same port"));
}

#[test]
fn after_a_restart_of_the_hub_a_port_leads_to_no_other_service() {
    let (mut hub, _) = hub_with_ports(4);
    let owner = hub.machine("member");
    let mut first = expose(&owner, "first", service(echo));
    let second = expose(&owner, "second", service(echo));
    let port = tunnel_port(&owner, "second").unwrap();
    assert_ne!(tunnel_port(&owner, "first"), Some(port));
    hub.running.kill();
    first.kill();
    second.wait_event("lost");
    hub.restart();
    second.wait_event("back");
    // The first one's port is free, but it is not the second one's.
    eventually("the port is back", Duration::from_secs(5), || tunnel_port(&owner, "second").is_some());
    assert_eq!(tunnel_port(&owner, "second"), Some(port));
}

#[test]
fn a_hub_that_moves_to_another_folder_takes_its_ports_and_its_audit_log_along() {
    let (mut hub, _) = hub_with_ports(4);
    let owner = hub.machine("member");
    let mut first = expose(&owner, "first", service(echo));
    let second = expose(&owner, "second", service(echo));
    let port = tunnel_port(&owner, "second").unwrap();
    hub.running.interrupt();
    first.kill();
    second.wait_event("lost");
    let moved = format!("file={}", hub.home.file("moved").display());
    hub.home.run(&["hub", "migrate", "--from", "file", "--to", &moved]).ok();
    std::fs::rename(hub.home.file("hub"), hub.home.file("old")).unwrap();
    std::fs::rename(hub.home.file("moved"), hub.home.file("hub")).unwrap();
    hub.restart();
    second.wait_event("back");
    eventually("the port is back", Duration::from_secs(5), || tunnel_port(&owner, "second").is_some());
    assert_eq!(tunnel_port(&owner, "second"), Some(port));
    assert!(!hub.audit().contains("audit.broken"), "{}", hub.audit());
    hub.home.run(&["hub", "audit", "verify"]).ok();
}

#[test]
fn it_listens_on_loopback_only() {
    let (hub, _) = hub_with_ports(4);
    let owner = hub.machine("member");
    let _exposed = expose(&owner, "service", service(echo));
    let port = tunnel_port(&owner, "service").unwrap();
    // Loopback is a whole network; only its first address is meant.
    assert!(TcpStream::connect((Ipv4Addr::new(127, 0, 0, 2), port)).is_err());
    match own_address() {
        Some(address) => assert!(TcpStream::connect((address, port)).is_err(), "{address}"),
        None => eprintln!("SKIPPED in part: this machine has no address but loopback"),
    }
}

/// This machine's address towards others; no packet is sent.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    socket
        .local_addr()
        .ok()
        .map(|address| address.ip())
        .filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

#[test]
fn another_user_is_refused() {
    let (hub, _) = hub_with_ports(4);
    let owner = hub.machine("member");
    let _exposed = expose(&owner, "service", service(echo));
    let port = tunnel_port(&owner, "service").unwrap();
    assert!(echoes(port, b"the same user"));
    if !nix::unistd::getuid().is_root() {
        return eprintln!("SKIPPED: only root can try this as another user; run the tests as root");
    }
    let script =
        "exec 3<>/dev/tcp/127.0.0.1/$0 || exit 9; echo hello >&3; read -t 5 -r -u 3 answer; echo -n $answer";
    let mut command = Command::new("bash");
    command.args(["-c", script, &port.to_string()]);
    std::os::unix::process::CommandExt::uid(&mut command, 65_534);
    let Ok(said) = command.output() else {
        return eprintln!("SKIPPED: there is no bash to try this as another user");
    };
    assert_ne!(said.status.code(), Some(9), "the port did not take the connection: {said:?}");
    assert!(said.stdout.is_empty(), "another user was served: {said:?}");
    assert!(echoes(port, b"the same user, still"));
}

#[test]
fn a_connection_through_it_ends_with_its_agent() {
    let (hub, _) = hub_with_ports(4);
    let owner = hub.machine("member");
    let mut target = common::ends::Target::serving(echo);
    let mut exposed = expose(&owner, "service", target.port);
    let port = tunnel_port(&owner, "service").unwrap();
    let mut client = dial(port);
    std::io::Write::write_all(&mut client, b"x").unwrap();
    std::io::Read::read_exact(&mut client, &mut [0]).unwrap();
    target.close();
    assert!(is_refused(port, b"hello?"), "a refused target is a reset here too");
    exposed.kill();
    assert_eq!(read_out(&client), (Vec::new(), Ending::Reset));
}

#[test]
fn off_means_none() {
    let hub = Hub::start();
    let owner = hub.machine("member");
    let exposed = expose(&owner, "service", service(echo));
    assert_eq!(exposed.wait_event("exposed")["tunnelPort"], Value::Null);
    assert_eq!(tunnel_port(&owner, "service"), None);
}
