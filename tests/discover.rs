//! `connect discover` and what builds on it: real services told by what they say, `share --discovered`, and
//! `services --watch`.

mod common;

use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use common::Home;
use common::PATIENCE;
use common::Running;
use common::Said;
use common::echo;
use common::echoes;
use common::eventually;
use common::expose;
use common::is_here;
use common::reach;
use common::servers;
use common::servers::server;
use common::service;
use common::team::Team;
use common::team::is_root;
use common::team::on_terminal;
use common::team::port_of;
use serde_json::Value;

fn list(ports: impl IntoIterator<Item = u16>) -> String {
    ports.into_iter().map(|port| port.to_string()).collect::<Vec<_>>().join(",")
}

#[test]
fn real_services_are_told_by_what_they_say() {
    let home = Home::new();
    let mut running = Vec::new();
    let mut expected: Vec<(u16, &str, &str)> = Vec::new();
    let web = servers::nginx(&home);
    if let Some((_, port, secure)) = &web {
        expected.extend([(*port, "http", "Hello & welcome"), (*secure, "https", "Hello & welcome")]);
    }
    let etcd = "--data-dir HOME/etcd --listen-client-urls http://127.0.0.1:PORT --advertise-client-urls http://127.0.0.1:PORT \
                --listen-peer-urls http://127.0.0.1:PEER --initial-advertise-peer-urls http://127.0.0.1:PEER \
                --initial-cluster default=http://127.0.0.1:PEER";
    let locked = "--bind 127.0.0.1 --save --dir HOME --port PORT --requirepass secret";
    let memcached = if is_root() { "-u root -l 127.0.0.1 -p PORT -U 0" } else { "-l 127.0.0.1 -p PORT -U 0" };
    for (started, kind, label) in [
        (servers::postgres(&home), "postgres", ""),
        (servers::redis(&home), "redis", ""),
        (server(&home, ("redis-server", "redis-server"), locked), "redis", "needs a password"),
        (servers::mariadb(&home), "mysql", "MariaDB "),
        (servers::ssh(&home), "ssh", "OpenSSH_"),
        (server(&home, ("nats-server", "nats-server"), "-a 127.0.0.1 -p PORT"), "nats", "2."),
        (server(&home, ("mosquitto", "mosquitto"), "-p PORT"), "mqtt", ""),
        (server(&home, ("memcached", "memcached"), memcached), "memcached", ""),
        (server(&home, ("etcd", "etcd-server"), etcd), "etcd", "3."),
    ] {
        let Some((server, port)) = started else { continue };
        running.push(server);
        expected.push((port, kind, label));
    }
    let ports = list(expected.iter().map(|(port, ..)| *port));
    let mut said = Value::Null;
    let is_as_expected = |said: &Value, (port, kind, label): &(u16, &str, &str)| {
        let found = said.as_array().unwrap().iter().find(|found| found["port"] == *port);
        found.is_some_and(|found| {
            found["type"] == *kind && found["label"].as_str().unwrap_or_default().starts_with(label)
        })
    };
    // They listen before they are ready.
    let deadline = Instant::now() + PATIENCE;
    while !expected.is_empty() {
        said = home.run(&["discover", "--json", "--timeout", "2s", "--ports", &ports]).ok().json();
        if expected.iter().all(|one| is_as_expected(&said, one)) {
            break;
        }
        assert!(Instant::now() < deadline, "expected {expected:?}, found {said:#}");
    }
    eprintln!("{said:#}");
}

/// A service that gives each connection's first words an answer, or hangs up.
fn answering(answer: fn(&[u8]) -> &'static [u8]) -> u16 {
    service(move |mut stream| {
        let mut question = [0; 1024];
        let count = stream.read(&mut question).unwrap_or(0);
        let _ = stream.write_all(answer(&question[..count]));
    })
}

fn web(question: &[u8]) -> &'static [u8] {
    if question.starts_with(b"GET / ") {
        b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n<title>Next.js \x1b[31m\xe2\x80\xaeApp</title><p>and so on"
    } else {
        b"HTTP/1.1 400 Bad Request\r\n\r\n"
    }
}

fn postgres(question: &[u8]) -> &'static [u8] {
    if question.starts_with(b"\0\0\0\x08\x04\xd2\x16\x2f") { b"N" } else { b"" }
}

#[test]
fn what_is_found_is_shown_as_users_know_it_and_cleaned() {
    let home = Home::new();
    let mut ports = [answering(web), answering(postgres)];
    let [site, base] = ports;
    ports.sort_unstable();
    let mut blocks = [
        (site, format!("  🌐 web-{site}\n     localhost:{site} http (Next.js [31m\\u{{202e}}App)\n")),
        (base, format!("  🐘 postgres-{base}\n     localhost:{base} postgres\n")),
    ];
    blocks.sort();
    let first = if blocks[0].0 == site { "web" } else { "postgres" };
    let range = list(ports);
    let shown = format!(
        "🔍 Discovered 2 service(s):\n\n{}\n{}\n  Make one reachable:  connect expose {first}-{p} {p}\n  \
         Share all by a code: connect share --discovered --ports {range}",
        blocks[0].1,
        blocks[1].1,
        p = ports[0]
    );
    let args = ["discover", "--timeout", "2s", "--ports", &range];
    assert_eq!(home.run(&args).ok().out, shown);
    let mut plain = home.connect(&args);
    plain.env("LC_ALL", "C");
    let said = Said::of(plain).ok();
    assert!(said.out.is_ascii() && said.out.starts_with("Discovered 2"), "{said:#?}");
    // By another name of this machine, it is told which.
    let said =
        home.run(&["discover", "--host", "127.0.0.1", "--timeout", "2s", "--ports", &site.to_string()]).ok();
    assert!(said.out.ends_with(&format!("connect expose web-{site} 127.0.0.1:{site}")), "{said:#?}");
}

#[test]
fn a_service_has_one_name_and_one_protocol_however_it_is_found() {
    let team = Team::new();
    let Some((_server, plain, secure)) = servers::nginx(&team.owner) else { return };
    let base = answering(postgres);
    let ports = list([plain, secure, base]);
    let mut names =
        [format!("postgres-{base} tcp"), format!("web-{plain} http"), format!("web-{secure} https")];
    names.sort();
    let names = names.join(", ");
    let of = |list: &Value| {
        let one =
            |one: &Value| format!("{} {}", one["name"].as_str().unwrap(), one["protocol"].as_str().unwrap());
        let mut all: Vec<_> = list.as_array().unwrap().iter().map(one).collect();
        all.sort();
        all.join(", ")
    };
    let discover = ["discover", "--timeout", "2s", "--ports"];
    let found = team.owner.run(&[&discover[..], &[&ports, "--json"]].concat()).ok().json();
    assert_eq!(of(&found), names);
    let said = team.owner.run(&[&discover[..], &[&secure.to_string()]].concat()).ok().out;
    assert!(said.contains(&format!("connect expose web-{secure} {secure} --protocol https")), "{said}");
    let targets = [plain, secure, base].map(|port| port.to_string());
    let named = targets.each_ref().map(String::as_str);
    for args in [&named[..], &["--discovered", "--ports", &ports]] {
        let mut shared = team.share(args);
        let services = team.owner.run(&["services", "--json"]).ok().json();
        assert_eq!(of(&services), names, "{args:?}");
        shared.running.interrupt();
        team.owner.run(&["stop", "--all"]);
    }
    // `expose` looks too, unless it is told, and in the background as well.
    for (options, protocol) in [(&[][..], "https"), (&["-d"], "https"), (&["--protocol", "tcp"], "tcp")] {
        let line = ["expose", "--json", "site", &targets[1]];
        let running = team.owner.start(&[&line[..], options].concat());
        assert_eq!(running.wait_event("exposed")["protocol"], protocol, "{options:?}");
        drop(running);
        team.owner.run(&["stop", "--all"]);
        eventually("it is gone", PATIENCE, || {
            let all = team.owner.run(&["services", "--json"]).ok().json();
            !all.as_array().unwrap().iter().any(|one| one["name"] == "site" && one["status"] == "online")
        });
    }
}

#[test]
fn a_service_on_the_other_loopback_is_found_too() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else { return };
    let port = listener.local_addr().unwrap().port();
    let (tell, told) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.write_all(b"SSH-2.0-replayed\r\n");
            let mut written = Vec::new();
            let _ = stream.read_to_end(&mut written);
            tell.send(written).unwrap();
        }
    });
    let home = Home::new();
    for host in ["localhost", "::1", "[::1]"] {
        let said = home.run(&[
            "discover",
            "--json",
            "--timeout",
            "2s",
            "--host",
            host,
            "--ports",
            &port.to_string(),
        ]);
        assert_eq!(said.ok().json()[0]["type"], "ssh", "{host}");
        assert!(told.recv_timeout(PATIENCE).unwrap().is_empty(), "it spoke first and was written to");
    }
}

#[test]
fn ctrl_c_cuts_a_scan_and_a_port_that_drops_packets_costs_one_wait() {
    let home = Home::new();
    let (told, heard) = std::sync::mpsc::channel();
    let silent = service(move |mut stream| {
        told.send(()).unwrap();
        let _ = stream.read(&mut [0]);
    });
    let mut scan = home.start(&["discover", "--timeout", "5m", "--ports", &silent.to_string()]);
    heard.recv_timeout(PATIENCE).unwrap();
    let (status, took) = scan.interrupt();
    assert_eq!(status.code(), Some(130));
    assert!(took < Duration::from_secs(1), "{took:?}");

    // A full queue of a listener drops what comes, as a firewall does.
    let full = TcpListener::bind("127.0.0.1:0").unwrap();
    let backlog = nix::sys::socket::Backlog::new(0).unwrap();
    nix::sys::socket::listen(&full, backlog).unwrap();
    let address = full.local_addr().unwrap();
    let mut held = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        held.push(stream);
        assert!(held.len() < 100, "{} never drops", full.as_raw_fd());
    }
    let began = Instant::now();
    let said = home.run(&["discover", "--host", "127.0.0.1", "--ports", &address.port().to_string()]).ok();
    assert!(said.out.contains("There was not even a refusal"), "{said:#?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// On a loopback of its own, so that nobody else's services are looked at.
#[test]
fn every_port_is_scanned_with_few_descriptors_and_nothing_is_imagined() {
    if !(is_root() && is_here("unshare", "util-linux") && is_here("ip", "iproute2")) {
        eprintln!("\n*** SKIPPED: a network of its own needs root ***\n");
        return;
    }
    let home = Home::new();
    let scan = home.connect(&["discover", "--range", "1-65535"]);
    let mut alone = Command::new("unshare");
    let script = "ip link set lo up && ulimit -n 64 && exec \"$0\" \"$@\"";
    alone.args(["-n", "sh", "-c", script]).arg(scan.get_program()).args(scan.get_args());
    common::team::copy_environment(&scan, &mut alone);
    let began = Instant::now();
    let said = Said::of(alone).ok();
    let nothing = "Nothing listens on localhost at any of the 65535 ports that were scanned";
    assert_eq!(said.out.lines().next(), Some(nothing), "{said:#?}");
    assert!(!said.err.contains("of 65535 ports"), "a pipe gets no progress: {said:#?}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

#[test]
fn what_was_discovered_is_shared_without_our_own_listeners() {
    let team = Team::new();
    let (own, other) = (service(echo), service(echo));
    let _exposed = expose(&team.owner, "other", other);
    let (_reached, tunnel) = reach(&team.owner, "other");
    let hub: u16 = team.hub.address.rsplit_once(':').unwrap().1.parse().unwrap();
    let ports = list([own, tunnel, hub]);
    let shared =
        team.share(&["--discovered", "--ports", &ports, "--name", "found", &format!("named={other}")]);
    let found = shared.running.wait_event("discovered");
    assert_eq!(found["services"].as_array().unwrap().len(), 1, "{found:#}");
    let name = format!("tcp-{own}");
    let (_joined, services) = team.join(&[&shared.code]);
    let mut names: Vec<&String> = services.as_object().unwrap().keys().collect();
    names.sort();
    assert_eq!(names, ["named", &name]);
    assert!(echoes(port_of(&services, &name), b"by its name in discover"));

    let said = team.owner.run(&["share", "--discovered", "--ports", &list([tunnel, hub])]);
    assert_eq!(said.code, Some(1), "{said:#?}");
    assert!(said.err.contains("Nothing that could be shared"), "{said:#?}");
    let said = team.owner.run(&["share", "--ports", "80"]);
    assert_eq!(said.code, Some(2), "{said:#?}");
}

#[test]
fn a_live_table_tells_each_change_and_bears_a_hub_that_is_away() {
    let mut team = Team::new();
    let mut watch = team.user.start(&["services", "--watch", "--json"]);
    let port = service(echo);
    let mut exposed = expose(&team.owner, "here-and-gone", port);
    let added = watch.wait_event("added");
    assert_eq!(added["service"]["name"], "here-and-gone");
    exposed.interrupt();
    watch.wait_event("removed");
    team.hub.running.kill();
    watch.wait_event("lost");
    team.hub.restart();
    watch.wait_event("back");
    let (status, took) = watch.interrupt();
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(1), "{took:?}");

    if !is_here("script", "util-linux") {
        return;
    }
    let _exposed = expose(&team.owner, "a-service-whose-name-is-longer-than-its-column", port);
    let mut command = on_terminal(&team.user.connect(&["services", "--watch"]));
    command.env("COLUMNS", "60").env("LINES", "20");
    let screen = Running::start(command);
    // What does not fit is listed below its name, which stays whole.
    screen.wait_out(|line| line.contains("a-service-whose-name-is-longer-than-its-column"));
    screen.wait_out(|line| line.contains("status online"));
    // It is drawn again, from the top.
    eventually("a second screen", PATIENCE, || screen.out().matches("\u{1b}[H\u{1b}[J").count() > 1);
}
