//! `make demo`: the main job on this one machine, with nothing but the binary. A hub, an agent that exposes
//! a web page, another machine that reaches it, a teammate who joins by a code and a job that joins by a link. Every step is
//! printed with the command that a user would type. Machines are state folders of their own.

mod common;

use std::io::IsTerminal;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;

use common::Home;
use common::Running;
use common::dial;
use common::service;

const PAGE: &str =
    "<h1>It works</h1><p>This page came from machine A to machine B, end-to-end encrypted.</p>";

fn main() {
    println!("connect demo: three machines on this one, each with a state folder of its own");

    step("1. Machine H: the hub, where the others meet. It relays what it cannot read.");
    typed("connect hub");
    let home = Home::new();
    let hub = home.start(&["hub", "--listen", "127.0.0.1:0", "--tunnel-ports", "off"]);
    let listening = hub.wait_out(|line| line.contains("Hub listening on"));
    let url = format!("https://{}", listening.rsplit(' ').next().unwrap());
    show(&hub);

    step(
        "2. Machines A and B log in with a key that is made on machine H; on a terminal the hub prints a first one.",
    );
    typed("connect hub key create --role admin --label demo");
    let key = home.run(&["hub", "key", "create", "--role", "admin", "--label", "demo", "-q"]).ok().out;
    let login = ["up", "--hub", &url, "--api-key", key.trim()];
    let (a, b) = (Home::new(), Home::new());
    for (machine, label) in [(&a, "machine-a"), (&b, "machine-b")] {
        typed("connect up --hub https://… --api-key pc_…");
        println!("{}", indented(&machine.run(&[&login[..], &["--label", label]].concat()).ok().out));
    }

    step("3. Machine A has a web page on a local port, and exposes it.");
    let page = service(serve_page).to_string();
    typed(&format!("connect expose demo-web {page}"));
    let exposed = a.start(&["expose", "demo-web", &page, "--protocol", "http"]);
    exposed.wait_out(|line| line.contains("Ctrl+C"));
    show(&exposed);

    step("4. Machine B sees it, and brings it to a port of its own.");
    typed("connect services");
    println!("{}", indented(&b.run(&["services"]).ok().out));
    typed("connect reach demo-web");
    let reached = b.start(&["reach", "demo-web"]);
    let port = port_in(&reached.wait_out(|line| line.contains("[ok] demo-web →")));
    reached.wait_out(|line| line.contains("Ctrl+C"));
    show(&reached);
    typed(&format!("curl http://localhost:{port}/"));
    println!("{}", indented(&fetch(port)));

    step("5. Machine A shares it by a code that opens this and nothing else, until it expires.");
    typed("connect share --service demo-web --name demo --code demo42 --expires 1h");
    let share = ["share", "--service", "demo-web", "--name", "demo", "--expires", "1h"];
    let shared = a.run(&[&share[..], &["--code", "demo42"]].concat()).ok();
    println!("{}", indented(&shared.out));
    typed("connect join demo42");
    let joined = b.start(&["join", "demo42"]);
    let joined_port = port_in(&joined.wait_out(|line| line.contains("[ok] demo-web →")));
    joined.wait_out(|line| line.contains("Ctrl+C"));
    show(&joined);
    typed(&format!("curl http://localhost:{joined_port}/"));
    println!("{}", indented(&fetch(joined_port)));

    step("6. A CI job joins by a link, with nothing but that: no account, no key.");
    typed("connect share --service demo-web --name demo --link");
    let shared = a.run(&[&share[..], &["--link", "--json"]].concat()).ok();
    let link = shared.json()["link"].as_str().unwrap_or_default().to_owned();
    println!("{}", indented(&format!("{}…", &link[..link.len().min(60)])));
    typed("CONNECT_JOIN=\"$LINK\" connect join - -- sh -c 'echo \"the page is at $DEMO_WEB_ADDR\"'");
    let mut job =
        Home::new().connect(&["join", "-", "--", "sh", "-c", "echo \"the page is at $DEMO_WEB_ADDR\""]);
    job.env("CONNECT_JOIN", &link);
    let said = common::Said::of(job).ok();
    println!("{}", indented(&said.out));

    if std::io::stdin().is_terminal() {
        println!("\nThe page stays at http://localhost:{port}/ until you press Enter.");
        let _ = std::io::stdin().read(&mut [0]);
    }
    println!("\nThat is all. Everything of it is gone again.");
}

fn step(title: &str) {
    println!("\n{title}\n");
}

fn typed(command: &str) {
    println!("  $ {command}");
}

fn show(running: &Running) {
    println!("{}", indented(&running.out()));
}

fn indented(text: &str) -> String {
    text.trim_end().lines().map(|line| format!("    {line}\n")).collect()
}

fn port_in(line: &str) -> u16 {
    let digits: String = line
        .rsplit("localhost:")
        .next()
        .unwrap_or_default()
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().expect("the line names a port")
}

fn serve_page(mut stream: TcpStream) {
    let _ = stream.read(&mut [0; 4096]);
    let _ = write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{PAGE}",
        PAGE.len()
    );
}

fn fetch(port: u16) -> String {
    let mut stream = dial(port);
    stream.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").expect("the tunnel takes the request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the page comes whole");
    assert!(answer.ends_with(PAGE), "{answer}");
    answer
}
