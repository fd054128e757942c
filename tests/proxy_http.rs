//! What the proxy passes on, and how: framing, connections, early and broken answers. Raw sockets at both ends.

mod common;
#[path = "common/proxy.rs"]
mod proxy;

use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use common::PATIENCE;
use common::eventually;
use common::noise;
use common::service;
use proxy::Proxy;
use proxy::answering;
use proxy::field;
use proxy::read_exactly;
use proxy::read_head;
use proxy::read_message;
use proxy::status;
use proxy::write_routes;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn requests_follow_each_other_on_one_connection_even_without_waiting() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let port = service(move |mut stream| {
        counted.fetch_add(1, Ordering::SeqCst);
        while let Some(head) = read_head(&mut stream) {
            let path = head.split(' ').nth(1).unwrap().to_owned();
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len());
        }
    });
    let proxy = Proxy::start(&[("api", port)]);
    let mut client = proxy.dial();
    let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: API.localhost:1\r\n\r\n");
    client.write_all([ask("/1"), ask("/22"), ask("/333")].concat().as_bytes()).unwrap();
    for path in ["/1", "/22", "/333"] {
        assert_eq!(read_message(&mut client).1, path);
    }
    client.write_all(ask("/4").as_bytes()).unwrap();
    assert_eq!(read_message(&mut client).1, "/4");
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[test]
fn the_service_gets_the_request_written_anew() {
    let (port, heard) = answering(OK);
    let proxy = Proxy::start(&[("api", port)]);
    let request = "GET http://api.localhost:3456/x?y=1 HTTP/1.1\r\nhost: api.localhost:3456\r\nConnection: close, X-Hop\r\n\
        X-Hop: 1\r\nX-Forwarded-For: 6.6.6.6\r\nCookie: a=b\r\n\r\n";
    assert!(proxy.raw(request.as_bytes()).ends_with("ok"));
    let heard = String::from_utf8(heard.lock().unwrap().clone()).unwrap();
    assert!(
        heard.starts_with("GET /x?y=1 HTTP/1.1\r\nHost: api.localhost:3456\r\nCookie: a=b\r\n"),
        "{heard}"
    );
    assert!(heard.contains("\r\nX-Forwarded-For: 127.0.0.1\r\n") && !heard.contains("6.6.6.6"), "{heard}");
    assert!(
        heard.contains("\r\nVia: 1.1 connect-proxy") && !heard.to_lowercase().contains("x-hop"),
        "{heard}"
    );
}

#[test]
fn a_service_that_insists_gets_its_own_host() {
    let (port, heard) = answering(OK);
    let proxy = Proxy::start_with(&[("api", port)], &["--rewrite-host", "api"]);
    assert!(proxy.get("api", "/").ends_with("ok"));
    let heard = String::from_utf8(heard.lock().unwrap().clone()).unwrap();
    assert!(heard.contains(&format!("\r\nHost: localhost:{port}\r\n")), "{heard}");
    assert!(heard.contains("\r\nX-Forwarded-Host: api.localhost\r\n"), "{heard}");
}

#[test]
fn chunked_bodies_and_their_trailers_pass_in_both_directions() {
    let port = service(|mut stream| {
        let head = read_head(&mut stream).unwrap();
        assert_eq!(field(&head, "transfer-encoding").as_deref(), Some("chunked"));
        let mut body = Vec::new();
        while !body.ends_with(b"0\r\nX-Sum: 7\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            body.push(byte[0]);
        }
        let text = String::from_utf8(body).unwrap();
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{text}");
    });
    let proxy = Proxy::start(&[("api", port)]);
    let mut client = proxy.dial();
    let head =
        "POST / HTTP/1.1\r\nHost: api.localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    // Cut in the middle of a size line, of the data and of the trailers.
    for piece in [head, "00", "5;x=y\r\nhel", "lo\r\n0", "\r\nX-Sum:", " 7\r\n", "\r\n"] {
        client.write_all(piece.as_bytes()).unwrap();
    }
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("5\r\nhello\r\n") && answer.ends_with("0\r\nX-Sum: 7\r\n\r\n"), "{answer}");
}

#[test]
fn large_bodies_stream_through_both_ways() {
    let port = service(|mut stream| {
        let head = read_head(&mut stream).unwrap();
        let length: usize = field(&head, "content-length").unwrap().parse().unwrap();
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        let _ = stream.write_all(&body);
    });
    let proxy = Proxy::start(&[("api", port)]);
    let body = noise(3, 20_000_000);
    let mut client = proxy.dial();
    let head = format!("POST / HTTP/1.1\r\nHost: api.localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    client.write_all(head.as_bytes()).unwrap();
    client.write_all(&body).unwrap();
    let head = read_head(&mut client).unwrap();
    assert_eq!(status(&head), 200);
    let mut back = vec![0; body.len()];
    client.read_exact(&mut back).unwrap();
    assert!(back == body);
}

#[test]
fn answers_without_a_body_end_with_their_head() {
    for (method, answer, has) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Some("5")),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", None),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", Some("9")),
    ] {
        let (port, _) = answering(answer);
        let proxy = Proxy::start(&[("api", port)]);
        let mut client = proxy.dial();
        for _ in 0..2 {
            write!(client, "{method} / HTTP/1.1\r\nHost: api.localhost\r\n\r\n").unwrap();
            let head = read_head(&mut client).unwrap();
            assert_eq!(field(&head, "content-length").as_deref(), has, "{method} {head}");
        }
    }
}

#[test]
fn interim_answers_are_passed_on_and_expect_waits_for_its_own() {
    let port = service(|mut stream| {
        let head = read_head(&mut stream).unwrap();
        assert_eq!(field(&head, "expect").as_deref(), Some("100-continue"));
        stream
            .write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
            .unwrap();
        assert_eq!(read_exactly(&mut stream, 5), "hello");
        stream.write_all(OK.as_bytes()).unwrap();
    });
    let proxy = Proxy::start(&[("api", port)]);
    let mut client = proxy.dial();
    client
        .write_all(
            b"PUT / HTTP/1.1\r\nHost: api.localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
        )
        .unwrap();
    let hints = read_head(&mut client).unwrap();
    assert!(status(&hints) == 103 && hints.contains("Link: </a>"), "{hints}");
    assert_eq!(status(&read_head(&mut client).unwrap()), 100);
    client.write_all(b"hello").unwrap();
    assert_eq!(read_message(&mut client).1, "ok");
}

#[test]
fn an_old_client_gets_an_answer_it_understands() {
    let port = service(|mut stream| {
        let head = read_head(&mut stream).unwrap();
        assert!(head.starts_with("GET / HTTP/1.1\r\n"));
        let _ = stream.write_all(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n");
    });
    let proxy = Proxy::start(&[("api", port)]);
    let answer = proxy.raw(b"GET / HTTP/1.0\r\nHost: api.localhost\r\n\r\n");
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nok") && !answer.contains("chunked"),
        "{answer}"
    );
}

#[test]
fn an_answer_that_ends_with_its_connection_is_chunked_for_the_client() {
    let port = service(|mut stream| {
        read_head(&mut stream).unwrap();
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nall of it").unwrap();
    });
    let proxy = Proxy::start(&[("api", port)]);
    let mut client = proxy.dial();
    for _ in 0..2 {
        client.write_all(b"GET / HTTP/1.1\r\nHost: api.localhost\r\n\r\n").unwrap();
        let head = read_head(&mut client).unwrap();
        assert_eq!(field(&head, "transfer-encoding").as_deref(), Some("chunked"));
        let mut body = String::new();
        while !body.ends_with("0\r\n\r\n") {
            body.push_str(&read_exactly(&mut client, 1));
        }
        assert!(body.contains("all of it"), "{body}");
    }
}

#[test]
fn events_come_as_they_happen() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let port = service(move |mut stream| {
        read_head(&mut stream).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n").unwrap();
        wait.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        stream.write_all(b"data: 2\n\n").unwrap();
        wait.lock().unwrap().recv_timeout(PATIENCE).unwrap();
    });
    let proxy = Proxy::start(&[("api", port)]);
    let mut client = proxy.dial();
    client.write_all(b"GET / HTTP/1.1\r\nHost: api.localhost\r\n\r\n").unwrap();
    read_head(&mut client).unwrap();
    assert_eq!(read_exactly(&mut client, 14), "9\r\ndata: 1\n\n\r\n");
    go.send(()).unwrap();
    assert_eq!(read_exactly(&mut client, 14), "9\r\ndata: 2\n\n\r\n");
    go.send(()).unwrap();
}

#[test]
fn an_answer_before_the_end_of_the_upload_arrives_whole() {
    let answer = format!("HTTP/1.1 413 Too Large\r\nContent-Length: 300000\r\n\r\n{}", "x".repeat(300_000));
    let port = service(move |mut stream| {
        read_head(&mut stream).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
        // Closes with the upload unread, which resets the connection to the proxy.
    });
    let proxy = Proxy::start(&[("api", port)]);
    let client = proxy.dial();
    let mut sender = client.try_clone().unwrap();
    let upload = std::thread::spawn(move || {
        let _ =
            sender.write_all(b"POST / HTTP/1.1\r\nHost: api.localhost\r\nContent-Length: 30000000\r\n\r\n");
        sender.write_all(&vec![b'y'; 30_000_000]).is_ok()
    });
    let mut reader = client;
    let (head, body) = read_message(&mut reader);
    assert_eq!((status(&head), body.len()), (413, 300_000));
    assert_eq!(field(&head, "connection").as_deref(), Some("close"));
    assert!(upload.join().unwrap(), "the upload was reset");
}

#[test]
fn a_service_that_breaks_off_breaks_its_client_visibly() {
    let cases: [(&str, &str); 3] = [
        ("HTTP/1.1", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"),
        ("HTTP/1.1", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
        ("HTTP/1.0", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
    ];
    for (version, broken) in cases {
        let port = service(move |mut stream| {
            read_head(&mut stream).unwrap();
            let _ = stream.write_all(broken.as_bytes());
        });
        let proxy = Proxy::start(&[("api", port)]);
        let mut client = proxy.dial();
        write!(client, "GET / {version}\r\nHost: api.localhost\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        let end = client.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer);
        match version {
            // Only a reset tells such a client that this was not all.
            "HTTP/1.0" => assert!(end.is_err(), "{text}"),
            _ => assert!(!text.ends_with("0\r\n\r\n") && !text.ends_with("0123456789"), "{text}"),
        }
    }
}

#[test]
fn an_answer_that_is_no_http_is_a_502() {
    for garbled in [
        "SSH-2.0-OpenSSH_9\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-",
    ] {
        let port = service(move |mut stream| {
            read_head(&mut stream).unwrap();
            let _ = stream.write_all(garbled.as_bytes());
            let _ = stream.shutdown(Shutdown::Write);
        });
        let proxy = Proxy::start(&[("api", port)]);
        let answer = proxy.get("api", "/");
        assert!(
            answer.starts_with("HTTP/1.1 502") && answer.contains("Bad Gateway"),
            "{garbled:?}: {answer}"
        );
    }
}

#[test]
fn a_service_that_is_down_is_said_to_be_as_the_page_says() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let proxy = Proxy::start(&[("postgres", free)]);
    let answer = proxy.get("postgres", "/");
    let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    let reason = format!("Nothing is listening at localhost:{free}");
    let said = serde_json::json!({ "error": "Bad Gateway: the service is not responding.", "service": "postgres", "reason": reason, "hint": "Start the service; it needs nothing else" });
    assert_eq!((status(&answer), body), (502, said));
    let page = proxy
        .raw(b"GET / HTTP/1.1\r\nHost: postgres.localhost\r\nAccept: text/html\r\nConnection: close\r\n\r\n");
    assert!(
        page.starts_with("HTTP/1.1 502") && page.contains("<h1>Bad Gateway") && page.contains(&reason),
        "{page}"
    );
}

#[test]
fn a_service_that_gives_no_response_is_explained() {
    let says = |bytes: &'static [u8]| {
        service(move |mut stream| {
            read_head(&mut stream);
            let _ = stream.write_all(bytes);
        })
    };
    let cases = [
        (says(b"-ERR unknown command\r\n"), "api does not speak HTTP"),
        (says(b"\x15\x03\x01\0\x02\x02\x0a"), "api speaks TLS"),
        (says(b""), "api closed the connection without an answer"),
        (says(b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n"), "The answer is not valid"),
    ];
    for (port, reason) in cases {
        let answer = Proxy::start(&[("api", port)]).get("api", "/");
        let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!(body["error"], "Bad Gateway: the service is not responding.");
        assert!(body["reason"].as_str().unwrap().starts_with(reason), "{reason}: {body}");
        assert_ne!(body["hint"], "", "{reason}");
    }
}

#[test]
fn a_connection_that_died_idle_is_replaced_unless_the_request_could_count_twice() {
    let heard = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&heard);
    let (closed, wait) = mpsc::channel();
    let closed = std::sync::Mutex::new(closed);
    // Answers one request for each connection, and then closes without a word.
    let port = service(move |mut stream| {
        if read_head(&mut stream).is_some() {
            counted.fetch_add(1, Ordering::SeqCst);
            let _ = stream.write_all(OK.as_bytes());
            drop(stream);
            closed.lock().unwrap().send(()).unwrap();
        }
    });
    let proxy = Proxy::start(&[("api", port)]);
    let mut client = proxy.dial();
    for method in ["GET", "GET", "POST", "GET", "POST"] {
        write!(client, "{method} / HTTP/1.1\r\nHost: api.localhost\r\n\r\n").unwrap();
        assert_eq!(read_message(&mut client).1, "ok", "{method}");
        wait.recv_timeout(PATIENCE).unwrap();
    }
    assert_eq!(heard.load(Ordering::SeqCst), 5);
}

#[test]
fn entries_by_hand_need_name_and_port_only_and_a_bad_one_affects_only_itself() {
    let (port, _) = answering(OK);
    let home = common::Home::new();
    let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let text = format!(
        "\u{feff}[{{\"serviceName\":\"api\",\"localPort\":{port}}},{{\"serviceName\":\"bad\"}},\
         {{\"serviceName\":\"No Label\",\"localPort\":{port}}},\
         {{\"serviceName\":\"tool\",\"localPort\":{port},\"pid\":{},\"its\":\"own\"}},\
         {{\"serviceName\":\"dead\",\"localPort\":{port},\"pid\":4194999}}]",
        other.id()
    );
    std::fs::write(home.file("active-routes.json"), text).unwrap();
    let proxy = Proxy::start_in(home, &[]);
    assert!(proxy.get("api", "/").ends_with("ok") && proxy.get("tool", "/").ends_with("ok"));
    let fault = proxy.running.wait_err(|line| line.contains("is left out"));
    assert!(fault.contains("Entry 2 of") && fault.contains("has no localPort"), "{fault}");
    proxy.running.wait_err(|line| line.contains("Entry 3 of") && line.contains("has a serviceName that"));
    // Whoever writes next removes only what is dead.
    proxy.home.run(&["doctor", "--fix"]);
    let left = std::fs::read_to_string(proxy.home.file("active-routes.json")).unwrap();
    for kept in ["api", "bad", "tool", "own"] {
        assert!(left.contains(&format!("\"{kept}\"")), "{left}");
    }
    assert!(!left.contains("dead"), "{left}");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn a_client_that_ends_its_own_direction_gets_its_answer() {
    let (ended, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let port = service(move |mut stream| {
        if read_head(&mut stream).is_some() {
            wait.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            // Longer than the proxy waits before it watches its client.
            std::thread::park_timeout(Duration::from_millis(700));
            let _ = stream.write_all(OK.as_bytes());
        }
    });
    let proxy = Proxy::start(&[("api", port)]);
    let mut client = proxy.dial();
    client.write_all(b"GET / HTTP/1.1\r\nHost: api.localhost\r\n\r\n").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    ended.send(()).unwrap();
    assert_eq!(read_message(&mut client).1, "ok");
}

#[test]
fn a_client_that_leaves_frees_its_service_at_once() {
    let (gone, left) = mpsc::channel();
    let gone = std::sync::Mutex::new(gone);
    let (asked, heard) = mpsc::channel();
    let asked = std::sync::Mutex::new(asked);
    let port = service(move |mut stream| {
        read_head(&mut stream).unwrap();
        asked.lock().unwrap().send(()).unwrap();
        // Never answers.
        let ended = matches!(stream.read(&mut [0]), Ok(0) | Err(_));
        gone.lock().unwrap().send(ended).unwrap();
    });
    let proxy = Proxy::start(&[("api", port)]);
    let mut client = proxy.dial();
    client.write_all(b"GET / HTTP/1.1\r\nHost: api.localhost\r\n\r\n").unwrap();
    heard.recv_timeout(PATIENCE).unwrap();
    drop(client);
    let began = Instant::now();
    assert!(left.recv_timeout(PATIENCE).unwrap());
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_service_connection_is_used_for_the_next_client_and_let_go_when_nobody_comes() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let port = service(move |mut stream| {
        counted.fetch_add(1, Ordering::SeqCst);
        while read_head(&mut stream).is_some() {
            let _ = stream.write_all(OK.as_bytes());
        }
        counted.fetch_sub(1, Ordering::SeqCst);
    });
    let proxy = Proxy::start(&[("api", port)]);
    let open: Vec<usize> = (0..20)
        .map(|_| {
            assert!(proxy.get("api", "/").ends_with("ok"));
            connections.load(Ordering::SeqCst)
        })
        .collect();
    assert!(open.iter().all(|open| (1..20).contains(open)), "{open:?}");
    eventually("nothing stays open", PATIENCE, || connections.load(Ordering::SeqCst) == 0);
}

#[test]
fn nothing_of_one_client_reaches_the_next() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let (left, client_left) = mpsc::channel();
    let client_left = std::sync::Mutex::new(client_left);
    let (said, stray_is_there) = mpsc::channel();
    let port = service(move |mut stream| {
        let own = counted.fetch_add(1, Ordering::SeqCst);
        while let Some(head) = read_head(&mut stream) {
            let seen = head.contains("X: quiet");
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{own:04}");
            stream.write_all(answer.as_bytes()).unwrap();
            if !seen {
                // What this one says though nobody asks must not be the next client's answer.
                client_left.lock().unwrap().recv_timeout(PATIENCE).unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen").unwrap();
                said.send(()).unwrap();
            }
        }
    });
    let proxy = Proxy::start(&[("api", port)]);
    for round in 0..6 {
        let answer = proxy.get("api", "/");
        assert!(answer.ends_with(&format!("{round:04}")), "{answer}");
        left.send(()).unwrap();
        stray_is_there.recv_timeout(PATIENCE).unwrap();
    }
    // Whoever proves who it is for the connection has it for itself, and so has whoever sends a body: of that a
    // service may leave something unread.
    let alone = ["GET / HTTP/1.1\r\nAuthorization: ntlm TlRM", "POST / HTTP/1.1\r\nContent-Length: 6"];
    for (round, head) in (6..).zip([alone[0]; 6].iter().chain(&[alone[1]; 6])) {
        let body = if head.starts_with("POST") { "GET / " } else { "" };
        let request = format!("{head}\r\nHost: api.localhost\r\nX: quiet\r\nConnection: close\r\n\r\n{body}");
        let answer = proxy.raw(request.as_bytes());
        assert!(answer.ends_with(&format!("{round:04}")), "{answer}");
    }
}

#[test]
fn services_on_either_loopback_are_found() {
    let Ok(six) = TcpListener::bind("[::1]:0") else {
        println!("skipped: no IPv6 loopback here");
        return;
    };
    let port = six.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in six.incoming().map_while(Result::ok) {
            read_head(&mut stream);
            let _ = stream.write_all(OK.as_bytes());
        }
    });
    let proxy = Proxy::start(&[("six", port)]);
    assert!(proxy.get("six", "/").ends_with("ok"));
    let mut client = TcpStream::connect(("::1", proxy.port)).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: six.localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("ok"));
}

#[test]
fn a_changed_routes_file_counts_within_a_second_and_a_damaged_one_changes_nothing() {
    let (one, two) = (answering(OK).0, answering("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntwo").0);
    let proxy = Proxy::start(&[("api", one)]);
    let mut client = proxy.dial();
    let mut ask = || {
        client.write_all(b"GET / HTTP/1.1\r\nHost: api.localhost\r\n\r\n").unwrap();
        read_message(&mut client).1
    };
    assert_eq!(ask(), "ok");
    write_routes(&proxy.home, &[("api", two), ("new", one)]);
    let took = eventually("the new target answers", PATIENCE, || ask() == "two");
    assert!(took < Duration::from_millis(1500), "{took:?}");
    std::fs::write(proxy.home.file("active-routes.json"), "[{").unwrap();
    proxy.running.wait_err(|line| line.contains("active-routes.json is damaged"));
    assert!(ask() == "two" && proxy.get("new", "/").ends_with("ok"));
    let err = proxy.running.err();
    assert_eq!(err.matches("damaged").count(), 1, "{err}");
}
