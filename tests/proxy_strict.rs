//! What the proxy refuses, and that the service sees not one byte of it; hostile pages and slow clients.

mod common;
#[path = "common/proxy.rs"]
mod proxy;

use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use common::service;
use proxy::Proxy;
use proxy::answering;
use proxy::read_message;
use proxy::status;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn what_is_not_plainly_valid_never_reaches_a_service() {
    let touched = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&touched);
    let port = service(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let proxy = Proxy::start(&[("api", port)]);
    let post =
        |fields: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: api.localhost\r\n{fields}\r\n{body}");
    let get = |fields: &str| format!("GET / HTTP/1.1\r\n{fields}\r\n");
    let cases: Vec<(String, u16)> = vec![
        (post("Content-Length: 1\r\nContent-Length: 2\r\n", "ab"), 400),
        (post("Content-Length: 2\r\nContent-Length: 2\r\n", "ab"), 400),
        (post("Content-Length: 2, 2\r\n", "ab"), 400),
        (post("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), 400),
        (post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), 501),
        (post("Transfer-Encoding: chunked, gzip\r\n", "0\r\n\r\n"), 400),
        (post("Transfer-Encoding: identity\r\n", ""), 400),
        (post("Content-Length: +3\r\n", "abc"), 400),
        (post("Content-Length: 0x3\r\n", "abc"), 400),
        (post("Content-Length: -1\r\n", ""), 400),
        (post("Transfer-Encoding: chunked\r\n", "0x3\r\nabc\r\n0\r\n\r\n"), 400),
        (post("Transfer-Encoding: chunked\r\n", "+3\r\nabc\r\n0\r\n\r\n"), 400),
        (post("Transfer-Encoding: chunked\r\n", "3\nabc\r\n0\r\n\r\n"), 400),
        (post("Transfer-Encoding: chunked\r\n", "3\r\nabcd\r\n0\r\n\r\n"), 400),
        (post("Transfer-Encoding: chunked\r\n", "10000000000000000\r\n"), 400),
        (post("X: a\nY: b\r\n", ""), 400),
        (post("X: a\rY: b\r\n", ""), 400),
        (post("X: a\r\n b\r\n", ""), 400),
        (post("X : a\r\n", ""), 400),
        (post("X: a\0b\r\n", ""), 400),
        (get("X: no host\r\n"), 400),
        (get("Host: api.localhost\r\nHost: api.localhost\r\n"), 400),
        (get("Host: api.localhost, evil\r\n"), 400),
        (get("Host: a@api.localhost\r\n"), 400),
        (get("Host:\r\n"), 400),
        ("GET / HTTP/1.1\nHost: api.localhost\n\n".into(), 400),
        ("GET  / HTTP/1.1\r\nHost: api.localhost\r\n\r\n".into(), 400),
        ("GET /#x HTTP/1.1\r\nHost: api.localhost\r\n\r\n".into(), 400),
        ("GET / HTTP/2.0\r\nHost: api.localhost\r\n\r\n".into(), 505),
        (format!("GET /{} HTTP/1.1\r\nHost: api.localhost\r\n\r\n", "a".repeat(9000)), 414),
        (get(&format!("Host: api.localhost\r\nX: {}\r\n", "a".repeat(70_000))), 431),
        (get(&format!("Host: api.localhost\r\n{}", "X: a\r\n".repeat(101))), 431),
        ("\u{16}\u{3}\u{1}".into(), 400),
    ];
    for (request, wanted) in cases {
        let answer = proxy.raw(request.as_bytes());
        let shown = request.escape_default().to_string();
        assert_eq!(status(&answer), wanted, "{}: {answer}", &shown[..shown.len().min(200)]);
        assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
        assert_eq!(answer.matches("\r\nContent-Length:").count(), 1, "{answer}");
    }
    assert_eq!(touched.load(Ordering::SeqCst), 0);
}

#[test]
fn hosts_from_elsewhere_are_misdirected_and_unknown_names_not_found() {
    let (port, heard) = answering(OK);
    let proxy = Proxy::start(&[("postgres", port), ("redis", port)]);
    for host in ["evil.com", "api.localhost.evil.com", "10.0.0.1", "169.254.169.254", "[::ffff:127.0.0.1]"] {
        let answer =
            proxy.raw(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes());
        assert_eq!(status(&answer), 421, "{host}: {answer}");
    }
    let answer = proxy.get("unknown", "/");
    let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    let hint = format!("Try: http://postgres.localhost:{}", proxy.port);
    let said = serde_json::json!({ "error": "Service not found", "subdomain": "unknown", "available": ["postgres", "redis"], "hint": hint });
    assert_eq!((status(&answer), body), (404, said));
    let page = proxy.raw(b"GET / HTTP/1.1\r\nHost: unknown.localhost\r\nAccept: text/html,*/*;q=0.8\r\nConnection: close\r\n\r\n");
    assert!(
        page.starts_with("HTTP/1.1 404") && page.contains("text/html") && page.contains("postgres.localhost"),
        "{page}"
    );
    assert!(heard.lock().unwrap().is_empty());
}

#[test]
fn a_request_that_comes_back_is_a_loop() {
    let home = common::Home::new();
    proxy::write_routes(&home, &[]);
    let proxy = Proxy::start_in(home, &[]);
    proxy::write_routes(&proxy.home, &[("loop", proxy.port)]);
    common::eventually("the route is there", common::PATIENCE, || {
        // The second time, the same name leads back here, so the answer of the inner round comes out.
        status(&proxy.get("loop", "/")) == 508
    });
}

/// What a client of user 65534 gets for `request`. Needs root, which may start a process as another user.
fn asked_by_nobody(port: u16, request: &str) -> String {
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; printf '{request}' >&3; timeout 10 cat <&3");
    let said = Command::new("bash").args(["-c", &script]).uid(65534).output().unwrap();
    String::from_utf8(said.stdout).unwrap()
}

#[test]
fn other_users_of_the_machine_get_nothing_unless_they_may() {
    if !nix::unistd::getuid().is_root() {
        return;
    }
    let (port, heard) = answering(OK);
    let get = "GET / HTTP/1.1\r\nHost: api.localhost\r\nConnection: close\r\n\r\n";
    let proxy = Proxy::start(&[("api", port)]);
    let state = "GET /_connect/state HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let connect = "CONNECT api.localhost:80 HTTP/1.1\r\nHost: api.localhost\r\nConnection: close\r\n\r\n";
    for request in [get, state, connect] {
        let answer = asked_by_nobody(proxy.port, request);
        assert_eq!(status(&answer), 403, "{request}: {answer}");
        assert!(answer.contains("connect proxy start --any-user") && !answer.contains("api"), "{answer}");
    }
    assert!(heard.lock().unwrap().is_empty());
    assert!(proxy.get("api", "/").ends_with("ok"));
    let open = Proxy::start_with(&[("api", port)], &["--any-user"]);
    assert_eq!(status(&asked_by_nobody(open.port, get)), 200);
    // What sudo started is for the user who typed it.
    let home = common::Home::new();
    proxy::write_routes(&home, &[("api", port)]);
    let mut command = home.connect(&["proxy", "start", "--foreground", "--json", "--port", "0"]);
    command.env("SUDO_UID", "65534");
    let by_sudo = common::Running::start(command);
    let port = by_sudo.wait_event("listening")["port"].as_u64().unwrap();
    assert_eq!(status(&asked_by_nobody(port.try_into().unwrap(), get)), 200);
}

#[test]
fn pages_from_elsewhere_open_no_websocket() {
    let (port, heard) =
        answering("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
    let proxy = Proxy::start_with(&[("api", port)], &["--allow-origin", "https://app.example"]);
    let ask = |origin: &str| {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: api.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nOrigin: {origin}\r\n\r\n"
        );
        let mut stream = proxy.dial();
        stream.write_all(request.as_bytes()).unwrap();
        status(&proxy::read_head(&mut stream).unwrap())
    };
    let elsewhere = [
        "https://evil.com",
        "null",
        "http://127.0.0.1:8000",
        "https://localhost.evil.com",
        "http://localhost:3000",
        "http://web.localhost",
        "http://api.localhost:3000",
    ];
    for origin in elsewhere {
        assert_eq!(ask(origin), 403, "{origin}");
    }
    assert!(heard.lock().unwrap().is_empty());
    for origin in ["http://api.localhost", "https://api.localhost", "https://app.example"] {
        assert_eq!(ask(origin), 101, "{origin}");
    }
}

#[test]
fn pages_of_other_sites_change_and_read_nothing() {
    let (port, heard) = answering(OK);
    let proxy = Proxy::start_with(&[("api", port)], &["--allow-origin", "https://app.example"]);
    let ask = |method: &str, fields: &str| {
        let request =
            format!("{method} / HTTP/1.1\r\nHost: api.localhost\r\n{fields}Connection: close\r\n\r\n");
        status(&proxy.raw(request.as_bytes()))
    };
    let site = "Sec-Fetch-Site: cross-site\r\n";
    let opened = "Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n";
    let refused = [
        ("POST", "Origin: https://evil.example\r\nContent-Length: 0\r\n".to_owned()),
        ("DELETE", "Origin: null\r\n".to_owned()),
        ("GET", site.to_owned()),
        ("GET", format!("{site}Sec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\n")),
        ("GET", format!("{site}Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe\r\n")),
        ("POST", format!("{site}{opened}Content-Length: 0\r\n")),
        (
            "POST",
            format!(
                "{site}Origin: https://app.example\r\nOrigin: https://evil.example\r\nContent-Length: 0\r\n"
            ),
        ),
    ];
    for (method, fields) in refused {
        assert_eq!(ask(method, &fields), 403, "{method} {fields}");
    }
    assert!(heard.lock().unwrap().is_empty());
    let passed = [
        ("GET", String::new()),
        ("POST", "Content-Length: 0\r\n".to_owned()),
        ("GET", format!("{site}{opened}")),
        ("GET", "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\n".to_owned()),
        ("GET", "Sec-Fetch-Site: none\r\n".to_owned()),
        (
            "POST",
            "Origin: http://api.localhost\r\nSec-Fetch-Site: same-origin\r\nContent-Length: 0\r\n".to_owned(),
        ),
        ("POST", format!("{site}Origin: https://app.example\r\nContent-Length: 0\r\n")),
    ];
    for (method, fields) in passed {
        assert_eq!(ask(method, &fields), 200, "{method} {fields}");
    }
}

#[test]
fn a_service_of_another_protocol_gets_no_http_and_its_own_client_is_named() {
    let (port, heard) = answering("+PONG\r\n");
    let home = common::Home::new();
    let entry = |name: &str, port: u16| serde_json::json!({ "serviceName": name, "localPort": port, "pid": std::process::id(), "startedAt": "2026-03-02T10:30:00Z", "protocol": "tcp" });
    let entries = serde_json::json!([entry("cache", port), entry("postgres", 5432)]);
    std::fs::write(home.file("active-routes.json"), entries.to_string()).unwrap();
    let proxy = Proxy::start_in(home, &[]);
    let answer = proxy.get("cache", "/");
    assert!(
        status(&answer) == 502 && answer.contains("\"reason\": \"cache does not speak HTTP\""),
        "{answer}"
    );
    assert!(proxy.get("postgres", "/").contains("psql -h localhost -p 5432"));
    assert!(heard.lock().unwrap().is_empty());
    let mut stream = proxy.dial();
    stream.write_all(b"CONNECT cache.localhost:6379 HTTP/1.1\r\nHost: cache.localhost:6379\r\n\r\n").unwrap();
    assert_eq!(status(&proxy::read_head(&mut stream).unwrap()), 200);
    stream.write_all(b"PING\r\n\r\n").unwrap();
    assert_eq!(proxy::read_exactly(&mut stream, 5), "+PONG");
}

#[test]
fn silent_and_slow_clients_leave_the_others_alone() {
    let (port, _) = answering(OK);
    let proxy = Proxy::start(&[("api", port)]);
    let quick = || {
        let began = Instant::now();
        assert!(proxy.get("api", "/").ends_with("ok"));
        began.elapsed()
    };
    quick();
    let mut slow: Vec<TcpStream> = (0..50).map(|_| proxy.dial()).collect();
    for (at, stream) in slow.iter_mut().enumerate() {
        let begun: &[u8] = if at % 2 == 0 {
            b"GET / HT"
        } else {
            b"POST / HTTP/1.1\r\nHost: api.localhost\r\nContent-Length: 9\r\n\r\n12"
        };
        stream.write_all(begun).unwrap();
    }
    let mut patient = slow.swap_remove(1);
    patient.write_all(b"3456789").unwrap();
    assert_eq!(read_message(&mut patient).1, "ok");
    // Twice what the proxy keeps: for each beyond that, the one that has been silent longest goes.
    let silent: Vec<TcpStream> = (0..2000)
        .map(|at| {
            let stream = proxy.dial();
            if at % 100 == 0 {
                quick();
            }
            stream
        })
        .collect();
    // Of many, since the machine itself may be busy for a moment.
    let best = (0..20).map(|_| quick()).min().unwrap();
    assert!(best < Duration::from_millis(100), "{best:?}");
    let closed = |stream: &TcpStream| {
        stream.set_nonblocking(true).is_ok() && matches!((&*stream).read(&mut [0]), Ok(0))
    };
    common::eventually("the oldest are closed", common::PATIENCE, || silent[..900].iter().all(closed));
    assert!(!silent[1500..].iter().any(closed), "a younger one was closed");
}

#[test]
fn uploads_that_stop_in_the_middle_make_room_like_the_silent() {
    // It waits for the whole of a request.
    let port = service(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    let proxy = Proxy::start(&[("api", port)]);
    let begun = b"POST / HTTP/1.1\r\nHost: api.localhost\r\nContent-Length: 9\r\n\r\n12";
    let stuck: Vec<TcpStream> = (0..1100)
        .map(|_| {
            let mut stream = proxy.dial();
            stream.write_all(begun).unwrap();
            stream
        })
        .collect();
    common::eventually("it is full", common::PATIENCE, || {
        let page = proxy.get_page("/_connect/state");
        // The page's own connection may be turned away, too.
        let Some((_, body)) = page.split_once("\r\n\r\n") else { return false };
        let state: serde_json::Value = serde_json::from_str(body).unwrap();
        state["connections"].as_u64().unwrap() >= 1000
    });
    let gone = |stream: &&TcpStream| {
        stream.set_nonblocking(true).is_ok() && matches!((&**stream).read(&mut [0]), Ok(0))
    };
    let mut others = Vec::new();
    common::eventually("silence is noticed, and they go", common::PATIENCE, || {
        others.push(proxy.dial());
        stuck.iter().filter(gone).count() > 50
    });
    assert_eq!(status(&proxy.get("other", "/")), 404);
}

#[test]
fn at_the_cap_the_longest_idle_connection_goes_and_accepting_goes_on() {
    let (port, _) = answering(OK);
    let proxy = Proxy::start(&[("api", port)]);
    let mut oldest = proxy.dial();
    let ask = |stream: &mut TcpStream| {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: api.localhost\r\n\r\n").unwrap();
        read_message(stream).1
    };
    assert_eq!(ask(&mut oldest), "ok");
    let mut others: Vec<TcpStream> = Vec::new();
    for _ in 0..1100 {
        others.push(proxy.dial());
    }
    assert_eq!(ask(others.last_mut().unwrap()), "ok");
    assert_eq!(oldest.read(&mut [0]).unwrap_or(0), 0);
}

#[test]
fn a_head_that_does_not_come_is_answered_and_the_connection_closed() {
    let (port, _) = answering(OK);
    let proxy = Proxy::start(&[("api", port)]);
    let began = Instant::now();
    let answer = proxy.raw(b"GET / HTTP/1.1\r\nHost: api.loc");
    assert_eq!(status(&answer), 408, "{answer}");
    assert!(began.elapsed() < Duration::from_secs(15));
}
