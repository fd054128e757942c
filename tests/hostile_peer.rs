//! Peers that take more than their share of a hub or an agent: what they get is bounded.

mod common;

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::Duration;

use common::Hub;
use common::PATIENCE;
use common::expose;
use common::fault::read_head;
use common::raw::Stranger;
use common::raw::call;
use common::raw::relay_request;
use common::service;
use serde_json::Value;

/// What the README lets one address have without a key or a ticket.
const GUESTS: usize = 500;

#[test]
fn whoever_comes_with_tickets_of_his_own_making_has_no_more_connections_than_other_guests() {
    let hub = Hub::start();
    let status = format!("/proc/{}/status", hub.running.pid());
    let Some(before) = threads(&status) else {
        return eprintln!("SKIPPED: this system does not count threads");
    };
    let request = relay_request(&hub, "of-my-own-making");
    let coming = (0..GUESTS + 800).map(|_| {
        let mut stream = TcpStream::connect(&hub.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(request.as_bytes());
        stream
    });
    let coming: Vec<TcpStream> = coming.collect();
    let mut most = 0;
    for (number, mut stream) in coming.iter().enumerate() {
        let mut answer = [0; 12];
        // One too many may be reset before it has read why.
        let _ = stream.read_exact(&mut answer);
        if number % 50 == 0 {
            most = most.max(threads(&status).unwrap_or(0));
        }
    }
    // Those that are being let go, and spare ones.
    assert!(most < before + GUESTS + 200, "{most} threads served one address");
}

fn threads(status: &str) -> Option<usize> {
    let text = fs::read_to_string(status).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Threads:")?.trim().parse().ok())
}

/// More than fits into the sockets between a joiner and an agent.
const ENOUGH: usize = 32 * 1024 * 1024;

/// The stream on which the agent of `service` has come to meet a joiner, and what the hub granted that joiner.
fn met(hub: &Hub, stranger: &Stranger) -> (TcpStream, Value) {
    let ask = format!(r#"{{"service":"service","fingerprint":"{}"}}"#, stranger.fingerprint());
    let (status, granted) = call(hub, &hub.key("member"), "POST /v1/sessions", &ask);
    assert_eq!(status, 200, "{granted}");
    let mut socket = TcpStream::connect(&hub.address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(relay_request(hub, granted["ticket"].as_str().unwrap()).as_bytes()).unwrap();
    assert!(read_head(&socket).starts_with("HTTP/1.1 101 "));
    (socket, granted)
}

#[test]
fn a_joiner_that_names_no_service_is_not_served() {
    let hub = Hub::start();
    let owner = hub.machine("member");
    let _exposed = expose(&owner, "service", service(common::echo));
    let stranger = Stranger::new();
    let answer = |application: Option<Vec<Vec<u8>>>| {
        let (socket, granted) = met(&hub, &stranger);
        let mut session = match application {
            Some(application) => stranger.as_joiner_of(socket, application),
            None => stranger.as_joiner(socket, &granted),
        };
        let mut pong = [0];
        // A ping is answered by an agent that serves the session.
        session.write_all(b"p\0\0\0").is_ok() && session.read_exact(&mut pong).is_ok()
    };
    assert!(answer(None));
    assert!(!answer(Some(Vec::new())));
    assert!(!answer(Some(vec![b"another".to_vec()])));
}

#[test]
fn a_joiner_that_does_not_listen_is_not_heard_any_further() {
    let hub = Hub::start();
    let owner = hub.machine("member");
    let (tell, stuck) = mpsc::channel();
    let endless = move |mut stream: TcpStream| {
        stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        while stream.write_all(&[0; 8 * 1024]).is_ok() {}
        let _ = tell.send(());
        let _ = stream.read(&mut [0]);
    };
    let _exposed = expose(&owner, "service", service(endless));
    let stranger = Stranger::new();
    let (socket, granted) = met(&hub, &stranger);
    let mut session = stranger.as_joiner(socket, &granted);
    session.write_all(b"o\0\0\0").unwrap();
    // From here on the agent cannot get rid of a word.
    stuck.recv_timeout(PATIENCE).unwrap();
    session.write_all(b"r\0\0\0").unwrap();
    let pings = b"p\0\0\0".repeat(16 * 1024);
    session.sock.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut said = 0;
    while said < ENOUGH && session.write_all(&pings).is_ok() {
        said += pings.len();
    }
    assert!(said < ENOUGH, "the agent takes questions for whose answers there is no room");
}
