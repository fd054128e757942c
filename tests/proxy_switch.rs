//! Connections that leave HTTP: WebSocket and other upgrades, and CONNECT.

mod common;
#[path = "common/proxy.rs"]
mod proxy;

use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::process::Command;

use common::echo;
use common::noise;
use common::service;
use proxy::Proxy;
use proxy::answering;
use proxy::read_exactly;
use proxy::read_head;
use proxy::status;

const SWITCH: &str = "GET /socket HTTP/1.1\r\nHost: api.localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: a\r\n\r\n";

fn switching() -> u16 {
    service(|mut stream| {
        let head = read_head(&mut stream).unwrap();
        assert!(
            head.contains("\r\nUpgrade: websocket\r\n") && head.contains("\r\nSec-WebSocket-Key: k\r\n"),
            "{head}"
        );
        // The first frame comes right behind the handshake.
        stream.write_all(format!("{SWITCHED}early").as_bytes()).unwrap();
        echo(stream);
    })
}

#[test]
fn bytes_right_behind_the_handshake_arrive_and_each_side_may_end_first() {
    let proxy = Proxy::start(&[("api", switching())]);
    let mut client = proxy.dial();
    client.write_all(format!("{SWITCH}first").as_bytes()).unwrap();
    let head = read_head(&mut client).unwrap();
    assert!(status(&head) == 101 && head.contains("\r\nSec-WebSocket-Accept: a\r\n"), "{head}");
    assert_eq!(read_exactly(&mut client, 10), "earlyfirst");
    let bytes = noise(5, 3_000_000);
    let (mut writer, sent) = (client.try_clone().unwrap(), bytes.clone());
    let sending = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    client.read_to_end(&mut back).unwrap();
    sending.join().unwrap();
    assert!(back == bytes);
}

#[test]
fn connect_reaches_known_services_and_nothing_else() {
    let proxy = Proxy::start(&[("db", service(echo))]);
    let connect = |target: &str| {
        let mut stream = proxy.dial();
        write!(stream, "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").unwrap();
        (status(&read_head(&mut stream).unwrap()), stream)
    };
    proxy::write_routes(&proxy.home, &[("db", service(echo)), ("down", proxy::unused_port())]);
    common::eventually("the route is there", common::PATIENCE, || connect("down.localhost:5432").0 == 502);
    for target in
        ["unknown.localhost:443", "example.com:443", "127.0.0.1:22", "localhost:22", "169.254.169.254:80"]
    {
        assert_eq!(connect(target).0, 404, "{target}");
    }
    let (granted, mut stream) = connect("db.localhost:5432");
    assert_eq!(granted, 200);
    stream.write_all(b"hello").unwrap();
    assert_eq!(read_exactly(&mut stream, 5), "hello");
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn connect_waits_for_a_service_that_speaks_first() {
    let port = service(|mut stream| {
        stream.write_all(b"220 hello\r\n").unwrap();
        echo(stream);
    });
    let proxy = Proxy::start(&[("mail", port)]);
    let mut stream = proxy.dial();
    stream.write_all(b"CONNECT mail.localhost:25 HTTP/1.1\r\nHost: mail.localhost:25\r\n\r\n").unwrap();
    assert_eq!(status(&read_head(&mut stream).unwrap()), 200);
    assert_eq!(read_exactly(&mut stream, 11), "220 hello\r\n");
}

#[test]
fn connect_opens_outside_hosts_that_are_named() {
    let port = service(echo);
    let allowed = format!("127.0.0.1:{port}");
    let proxy = Proxy::start_with(&[], &["--connect-allow", &allowed]);
    let mut stream = proxy.dial();
    write!(stream, "CONNECT {allowed} HTTP/1.1\r\nHost: {allowed}\r\n\r\nhello").unwrap();
    assert_eq!(status(&read_head(&mut stream).unwrap()), 200);
    assert_eq!(read_exactly(&mut stream, 5), "hello");
    let mut other = proxy.dial();
    other.write_all(b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n").unwrap();
    assert_eq!(status(&read_head(&mut other).unwrap()), 404);
}

#[test]
fn curl_gets_https_through_connect() {
    if Command::new("curl").arg("--version").output().is_err() {
        println!("skipped: curl is not installed");
        return;
    }
    let (port, heard) = answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let proxy = Proxy::start(&[("api", port)]);
    let through = format!("http://localhost:{}", proxy.port);
    let run = |extra: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["-s", "-x", &through, "https://api.localhost/path"]).args(extra);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    assert_eq!(run(&[]), "", "an unknown CA must not be believed");
    let ca = proxy.home.file("certs/ca.crt");
    assert_eq!(run(&["--cacert", ca.to_str().unwrap()]), "ok");
    let heard = String::from_utf8(heard.lock().unwrap().clone()).unwrap();
    assert!(heard.starts_with("GET /path HTTP/1.1\r\nHost: api.localhost\r\n"), "{heard}");
    assert!(heard.contains("\r\nX-Forwarded-Proto: https\r\n"), "{heard}");
}

#[test]
fn a_stop_ends_even_what_has_left_http() {
    let mut proxy = Proxy::start(&[("api", switching())]);
    let mut client: TcpStream = proxy.dial();
    client.write_all(SWITCH.as_bytes()).unwrap();
    read_head(&mut client).unwrap();
    let (ended, took) = proxy.running.interrupt();
    assert!(ended.success() && took < std::time::Duration::from_secs(1), "{ended:?} {took:?}");
}
