//! The hub's one port: the first byte decides, everybody gets an answer, and nobody costs the others anything.

mod common;

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use common::Home;
use common::Hub;
use common::PATIENCE;
use common::Said;
use common::dial;
use common::https::Answer;
use common::https::LOOPBACK;
use common::https::dial_from;
use common::https::request;
use common::is_here;
use common::under;

fn plain(hub: &Hub, bytes: &[u8]) -> Answer {
    let mut stream = dial_from(LOOPBACK, &hub.address).unwrap();
    stream.write_all(bytes).unwrap();
    Answer::read(&mut stream)
}

#[test]
fn in_the_clear_only_the_relay_is_spoken_and_all_else_hears_of_https() {
    let hub = Hub::start();
    let key = [("x-api-key", hub.admin_key.as_str())];
    for call in [
        "GET /health",
        "GET /v1/services",
        "GET /v1/relay",
        "GET /v1/agent",
        "POST /v1/keys",
        "GET /",
        "DELETE /x",
    ] {
        let answer = plain(&hub, request(call, "hub.example:7443", &key, "").as_bytes());
        assert_eq!(answer.status, 426, "{call}: {answer:?}");
        let path = call.split(' ').nth(1).unwrap();
        assert!(answer.text("hint").contains(&format!("https://hub.example:7443{path}")), "{answer:?}");
        assert!(answer.field("upgrade").unwrap().contains("tls"));
    }
    for upgrade in ["connect-control/1", "websocket", "h2c", "connect-relay/2"] {
        let fields = [("Connection", "Upgrade"), ("Upgrade", upgrade), key[0]];
        let answer = plain(&hub, request("GET /v1/agent", "h", &fields, "").as_bytes());
        assert_eq!(answer.status, 426, "{upgrade}");
    }
    let fields =
        [("Connection", "keep-alive, Upgrade"), ("Upgrade", "connect-relay/1"), ("x-ticket", "none")];
    assert_eq!(plain(&hub, request("GET /v1/relay", "h", &fields, "").as_bytes()).status, 403);
    // The same over TLS is told where the relay is.
    assert_eq!(hub.from(LOOPBACK).ask_with("GET /v1/relay", &fields, "").status, 400);
}

#[test]
fn what_is_neither_tls_nor_http_is_let_go_and_leaves_the_hub_as_it_was() {
    let hub = Hub::start();
    for bytes in [
        &b"\0\0\0\0"[..],
        b"\xff\xfe\r\n",
        b"ssh-2.0-x\r\n",
        b"\n\n\n\n",
        b"\x80\x80\x01\x03\x01",
        b" GET / HTTP/1.1\r\n\r\n",
    ] {
        assert_eq!(plain(&hub, bytes).head, "", "{bytes:?}");
    }
    for bytes in [
        &b"GET / HTTP/1.1\r\nA b\r\n\r\n"[..],
        b"GET / HTTP/1.1\nHost: h\n\n",
        b"GET /\0 HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /%00 HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\nx",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n",
    ] {
        let answer = plain(&hub, bytes);
        assert!((400..=505).contains(&answer.status), "{:?}: {answer:?}", String::from_utf8_lossy(bytes));
        assert!(answer.text("error").len() > 5);
    }
    // A handshake that is none, a record that says it is huge, and one that ends in the middle.
    for bytes in [&b"\x16\x03\x01\xff\xff"[..], b"\x16\x03\x01\x00\x05hello", &[0x16; 16_000], b"\x16"] {
        let mut stream = dial_from(LOOPBACK, &hub.address).unwrap();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert_eq!(hub.ask("GET /health", "", "").status, 200);
    assert!(!hub.running.err().contains("a bug of connect"), "{}", hub.running.err());
}

#[test]
fn silence_ends_after_ten_seconds_whatever_was_said_before() {
    let hub = Hub::start();
    let waited =
        |began: Instant| assert!((9..12).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    thread::scope(|scope| {
        for said in ["", "GET /health HT", "GET /health HTTP/1.1\r\nHost: h\r\n"] {
            let hub = &hub;
            scope.spawn(move || {
                let began = Instant::now();
                let answer = plain(hub, said.as_bytes());
                assert_eq!(answer.status, if said.is_empty() { 0 } else { 408 }, "{said}: {answer:?}");
                waited(began);
            });
        }
        let half_a_body = "POST /v1/device HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab";
        for said in ["", "GET /health HT", "GET /health HTTP/1.1\r\nHost: h\r\n", half_a_body] {
            let hub = &hub;
            scope.spawn(move || {
                let began = Instant::now();
                let mut stream = hub.tls();
                stream.write_all(said.as_bytes()).unwrap();
                stream.conn.complete_io(&mut stream.sock).unwrap();
                assert_eq!(Answer::read(&mut stream).status, 408, "{said}");
                waited(began);
            });
        }
        // Half a handshake; and a head that comes byte by byte for ever.
        scope.spawn(|| {
            let began = Instant::now();
            assert_eq!(plain(&hub, b"\x16\x03\x01\x02").status, 0);
            waited(began);
        });
        scope.spawn(|| {
            let began = Instant::now();
            let mut stream = dial_from(LOOPBACK, &hub.address).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            let mut got = [0; 12];
            stream.write_all(b"GET / HTTP/1.1\r\nA: ").unwrap();
            while stream.peek(&mut got).is_err() && began.elapsed() < PATIENCE {
                let _ = stream.write_all(b"a");
            }
            assert_eq!(&got, b"HTTP/1.1 408");
            waited(began);
        });
        // Meanwhile the others are served.
        scope.spawn(|| assert_eq!(hub.ask("GET /health", "", "").status, 200));
    });
}

#[test]
fn a_head_or_a_body_that_is_too_large_is_told_so_while_its_sender_still_sends() {
    let hub = Hub::start();
    let long = "a".repeat(8000);
    let mut fields = vec![("x-api-key", hub.admin_key.as_str())];
    fields.extend((0..9).map(|_| ("x-long", long.as_str())));
    let head = request("GET /v1/keys", "h", &fields, "");
    assert_eq!(hub.from(LOOPBACK).ask_with("GET /v1/keys", &fields, "").status, 431);
    assert_eq!(plain(&hub, head.as_bytes()).status, 431);
    let many: Vec<(&str, &str)> = (0..200).map(|_| ("a", "b")).collect();
    assert_eq!(hub.from(LOOPBACK).ask_with("GET /v1/keys", &many, "").status, 431);
    let line = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(9000));
    assert_eq!(plain(&hub, line.as_bytes()).status, 431);

    let fits = "x".repeat(64 * 1024);
    assert_eq!(hub.ask("POST /v1/keys", &hub.admin_key, &fits).status, 400);
    for size in [64 * 1024 + 1, 1_000_000] {
        let answer = hub.ask("POST /v1/keys", &hub.admin_key, &"x".repeat(size));
        assert_eq!(answer.status, 413, "{size}: {answer:?}");
    }
    let mut chunked = hub.tls();
    let fields = [("x-api-key", hub.admin_key.as_str()), ("Transfer-Encoding", "chunked")];
    chunked.write_all(request("POST /v1/keys", "h", &fields, "").as_bytes()).unwrap();
    for _ in 0..20 {
        let _ = chunked.write_all(format!("1000\r\n{}\r\n", "x".repeat(4096)).as_bytes());
    }
    assert_eq!(Answer::read(&mut chunked).status, 413);
    // What is still on its way is taken in, so that no reset overtakes the answer.
    let mut sending = dial_from(LOOPBACK, &hub.address).unwrap();
    let mut reading = sending.try_clone().unwrap();
    let sender = thread::spawn(move || {
        let body = vec![b'x'; 500_000];
        sending.write_all(b"POST /v1/keys HTTP/1.1\r\nHost: h\r\nContent-Length: 500000\r\n\r\n").unwrap();
        let _ = sending.write_all(&body);
        let _ = sending.shutdown(std::net::Shutdown::Write);
    });
    let mut answer = Vec::new();
    reading.read_to_end(&mut answer).expect("it is not reset");
    assert!(answer.starts_with(b"HTTP/1.1 426"));
    sender.join().unwrap();
    // One that goes on sending without end gets its answer, and then its end.
    let mut endless = dial_from(LOOPBACK, &hub.address).unwrap();
    endless.write_all(b"POST /v1/keys HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999\r\n\r\n").unwrap();
    let mut reading = endless.try_clone().unwrap();
    let sender = thread::spawn(move || while endless.write_all(&[0; 4096]).is_ok() {});
    assert_eq!(Answer::read(&mut reading).status, 426);
    sender.join().unwrap();
}

#[test]
fn a_crowd_without_keys_displaces_itself_and_a_key_always_finds_room() {
    let home = Home::new();
    let command = home.hub(&["hub", "--json", "--listen", "127.0.0.1:0", "--tunnel-ports", "off"]);
    let command = under("ulimit -n 100", &command);
    let hub = Hub::start_by(home, command, &[]);
    let crowd: Vec<TcpStream> = (0..100).map(|_| dial_from(LOOPBACK, &hub.address).unwrap()).collect();
    let is_open = |mut stream: &TcpStream| {
        stream.set_nonblocking(true).unwrap();
        stream.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    // All would be gone after ten seconds anyway.
    common::eventually("the oldest are cut", Duration::from_secs(5), || {
        crowd.iter().filter(|one| is_open(one)).count() <= 2
    });
    // Those that are left hold all the room that there is without a key.
    assert_eq!(hub.ask("GET /v1/keys", &hub.admin_key, "").status, 200);
    assert_eq!(plain(&hub, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").status, 426);
}

#[test]
fn without_a_key_a_connection_gets_one_answer_and_a_body_of_4_kib() {
    let hub = Hub::start();
    let answers_of_one_connection = |key: &str| {
        let mut stream = hub.tls();
        let asked = request("GET /v1/whoami", "h", &[("x-api-key", key)], "").replace("close", "keep-alive");
        let _ = stream.write_all(asked.repeat(3).as_bytes());
        let last = request("GET /health", "h", &[], "");
        let _ = stream.write_all(last.as_bytes());
        let mut answers = String::new();
        let _ = stream.read_to_string(&mut answers);
        answers.matches("HTTP/1.1 ").count()
    };
    assert_eq!([hub.admin_key.as_str(), "", "pc_wrong"].map(answers_of_one_connection), [4, 1, 1]);
    let body = |size: usize| format!("{{\"label\":\"{}\"}}", "x".repeat(size));
    assert_eq!(hub.ask("POST /v1/device", "", &body(4000)).status, 201);
    assert_eq!(hub.ask("POST /v1/device", "", &body(5000)).status, 413);
    // A wrong key is refused by the head alone.
    let mut stream = hub.tls();
    let asked = "POST /v1/keys HTTP/1.1\r\nHost: h\r\nx-api-key: pc_wrong\r\nContent-Length: 60000\r\n\r\n";
    stream.write_all(asked.as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut stream).status, 401);
}

#[test]
fn the_leaf_is_for_the_name_or_address_by_which_the_client_came() {
    if !is_here("openssl", "openssl") {
        return;
    }
    let hub = Hub::start_with(&["--tunnel-ports", "off", "--name", "hub.example", "--name", "192.0.2.7"]);
    let ca = hub.home.file("hub/certs/ca.crt").display().to_string();
    let show = |arguments: &str| {
        let line = format!(
            "openssl s_client -connect {} -CAfile {ca} -verify_return_error {arguments} </dev/null",
            hub.address
        );
        let mut shell = Command::new("sh");
        shell.args(["-c", &line]);
        Said::of(shell)
    };
    for arguments in [
        "-noservername -verify_ip 127.0.0.1",
        "-servername localhost -verify_hostname localhost",
        "-servername any.name.example -verify_hostname any.name.example",
        "-servername HUB.Example -verify_hostname hub.example",
        "-noservername -verify_hostname hub.example",
        "-noservername -verify_ip 192.0.2.7",
        "-tls1_3 -servername localhost -verify_hostname localhost",
    ] {
        let said = show(arguments);
        assert!(said.out.contains("Verify return code: 0 (ok)"), "{arguments}: {said:#?}");
    }
    for arguments in
        ["-noservername -verify_ip 192.0.2.8", "-servername a.example -verify_hostname b.example"]
    {
        assert!(!show(arguments).out.contains("Verify return code: 0 (ok)"), "{arguments}");
    }
    assert!(show("-tls1_2").err.contains("alert protocol version"));
    // The leaf that was shown is signed by the CA on disk, and is no CA itself.
    let leaf = hub.home.file("leaf.pem");
    let shown = show("-servername localhost -showcerts").out;
    let pem = shown.split("-----BEGIN CERTIFICATE-----").nth(1).unwrap().split("-----END").next().unwrap();
    fs::write(&leaf, format!("-----BEGIN CERTIFICATE-----{pem}-----END CERTIFICATE-----\n")).unwrap();
    let mut verify = Command::new("openssl");
    verify.args(["verify", "-purpose", "sslserver", "-CAfile", &ca]).arg(&leaf);
    Said::of(verify).ok();
    let mut text = Command::new("openssl");
    text.args(["x509", "-noout", "-text", "-in"]).arg(&leaf);
    assert!(!Said::of(text).ok().out.contains("CA:TRUE"));
}

#[test]
fn curl_with_the_hubs_ca_reads_services_and_health() {
    if !is_here("curl", "curl") {
        return;
    }
    let hub = Hub::start();
    let ca = hub.home.file("hub/certs/ca.crt");
    let curl = |arguments: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--noproxy", "*", "-m", "20", "--cacert"]).arg(&ca).args(arguments);
        Said::of(curl)
    };
    let key = format!("x-api-key: {}", hub.admin_key);
    assert_eq!(curl(&[&format!("{}/health", hub.url)]).ok().json()["status"], "ok");
    assert_eq!(curl(&["-H", &key, &format!("{}/v1/services", hub.url)]).ok().out, "[]");
    let port = hub.address.rsplit(':').next().unwrap();
    assert_eq!(curl(&[&format!("https://localhost:{port}/health")]).ok().json()["status"], "ok");
    let (resolve, there) =
        (format!("hub.example:{port}:127.0.0.1"), format!("https://hub.example:{port}/health"));
    assert_eq!(curl(&["--resolve", &resolve, &there]).ok().json()["status"], "ok");
    let body = hub.home.file("body");
    fs::write(&body, vec![b'x'; 3_000_000]).unwrap();
    let upload = [
        "-H",
        &key,
        "-w",
        "%{http_code}",
        "-o",
        "/dev/null",
        "--data-binary",
        &format!("@{}", body.display()),
    ];
    assert_eq!(curl(&[&upload[..], &[&format!("{}/v1/keys", hub.url)]].concat()).out, "413");
    assert_eq!(
        curl(&[&format!("http://127.0.0.1:{port}/health")]).ok().json()["error"],
        "This hub speaks https"
    );
}

#[test]
fn a_port_that_is_taken_and_an_address_that_is_none_are_errors_with_a_hint() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let home = Home::new();
    let said = home.run(&["hub", "--listen", &address, "--tunnel-ports", "off"]);
    assert_eq!(said.code, Some(1), "{said:#?}");
    assert!(
        said.err.contains("already in use") && said.err.contains("connect hub --listen 127.0.0.1:"),
        "{said:#?}"
    );
    for odd in ["x", "127.0.0.1", ":1", "127.0.0.1:99999", "127.0.0.1:+1", ""] {
        assert_eq!(home.run(&["hub", "--listen", odd]).code, Some(2), "{odd}");
    }
    drop(dial(taken.local_addr().unwrap().port()));
}
