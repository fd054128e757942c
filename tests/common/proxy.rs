//! A proxy of the real binary with routes of its own, and raw HTTP to talk to it.
#![allow(dead_code)] // Each test file uses its part.

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;

use crate::common::Home;
use crate::common::Running;
use crate::common::dial;
use crate::common::service;

pub struct Proxy {
    pub home: Home,
    pub running: Running,
    pub port: u16,
}

impl Proxy {
    pub fn start(routes: &[(&str, u16)]) -> Self {
        Self::start_with(routes, &[])
    }

    pub fn start_with(routes: &[(&str, u16)], options: &[&str]) -> Self {
        let home = Home::new();
        write_routes(&home, routes);
        Self::start_in(home, options)
    }

    pub fn start_in(home: Home, options: &[&str]) -> Self {
        let mut args = vec!["proxy", "start", "--foreground", "--json", "--port", "0"];
        args.extend_from_slice(options);
        let running = home.start(&args);
        let port = running.wait_event("listening")["port"].as_u64().unwrap();
        Self { home, running, port: u16::try_from(port).unwrap() }
    }

    pub fn dial(&self) -> TcpStream {
        dial(self.port)
    }

    /// Sends `request` on a connection of its own and returns all that comes until it closes.
    pub fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.dial();
        stream.write_all(request).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// A page of the proxy's own.
    pub fn get_page(&self, path: &str) -> String {
        self.raw(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())
    }

    /// A GET for `name`, closed behind it.
    pub fn get(&self, name: &str, path: &str) -> String {
        self.raw(
            format!("GET {path} HTTP/1.1\r\nHost: {name}.localhost\r\nConnection: close\r\n\r\n").as_bytes(),
        )
    }
}

/// A port that nothing listens on.
pub fn unused_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub fn write_routes(home: &Home, routes: &[(&str, u16)]) {
    let pid = std::process::id();
    let entries: Vec<_> = routes
        .iter()
        .map(|(name, port)| {
            serde_json::json!({ "serviceName": name, "localPort": port, "pid": pid, "startedAt": "2026-03-02T10:30:00Z" })
        })
        .collect();
    let draft = home.file("routes.draft");
    fs::write(&draft, serde_json::to_string(&entries).unwrap()).unwrap();
    fs::rename(draft, home.file("active-routes.json")).unwrap();
}

/// A service that says `answer` whenever it has heard an empty line, and notes all it hears.
pub fn answering(answer: impl Into<Vec<u8>>) -> (u16, Arc<Mutex<Vec<u8>>>) {
    let (answer, heard) = (answer.into(), Arc::new(Mutex::new(Vec::new())));
    let own = Arc::clone(&heard);
    let port = service(move |mut stream| {
        while let Some(head) = read_head(&mut stream) {
            own.lock().unwrap().extend_from_slice(head.as_bytes());
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
    });
    (port, heard)
}

/// Up to and with the empty line; `None` at the end of the stream.
pub fn read_head(stream: &mut TcpStream) -> Option<String> {
    read_head_from(stream)
}

pub fn read_head_from(stream: &mut impl Read) -> Option<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

pub fn read_exactly(stream: &mut TcpStream, count: usize) -> String {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A head and a body of `Content-Length`.
pub fn read_message(stream: &mut TcpStream) -> (String, String) {
    let head = read_head(stream).expect("an answer");
    let length = field(&head, "content-length").map_or(0, |length| length.parse().unwrap());
    let body = read_exactly(stream, length);
    (head, body)
}

pub fn field(head: &str, name: &str) -> Option<String> {
    head.lines().find_map(|line| {
        let (known, value) = line.split_once(':')?;
        known.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

pub fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}
