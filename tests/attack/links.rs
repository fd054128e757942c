//! The links of one member take all the sessions they can get: one that wants 4096 of them, then ten that ask and never
//! come. Another member and another workspace open new connections meanwhile, and must hardly notice.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use rustls::ClientConnection;
use rustls::StreamOwned;
use serde_json::Value;
use serde_json::json;

use crate::Report;
use crate::common::Home;
use crate::common::Hub;
use crate::common::Running;
use crate::common::dial;
use crate::common::echo;
use crate::common::expose;
use crate::common::fault::read_head;
use crate::common::https::Answer;
use crate::common::https::LOOPBACK;
use crate::common::https::dial_from;
use crate::common::https::request;
use crate::common::https::tls_over;
use crate::common::raw::Stranger;
use crate::common::raw::key_of;
use crate::common::raw::relay_request;
use crate::common::reach;
use crate::common::service;

const WANTED: usize = 4096;
/// What the README says that one link may have, and one key whose links ask and never come.
const ONE_LINK: usize = 256;
const ONE_KEY_COMING: usize = 1000;
const LINKS: usize = 10;
const ASKING: Duration = Duration::from_secs(5);
const ASKING_THREADS: usize = 4;
/// A thread ends after this many refusals in a row.
const REFUSALS: usize = 20;

/// Somebody who opens one new session after another: each connection stays open, so none is used twice.
struct Victim {
    port: u16,
    _programs: Vec<Running>,
    _homes: Vec<Home>,
}

impl Victim {
    fn of(hub: &Hub, workspace: &str) -> Self {
        let machine = || {
            let home = Home::new();
            let key = hub.new_key(&["--role", "member", "--workspace", workspace]).0;
            home.run(&["up", "--hub", &hub.url, "--api-key", &key]).ok();
            home
        };
        let (owner, user) = (machine(), machine());
        let exposed = expose(&owner, "echo", service(echo));
        let (reached, port) = reach(&user, "echo");
        Self { port, _programs: vec![exposed, reached], _homes: vec![owner, user] }
    }

    fn connect(&self, count: usize) -> Vec<f64> {
        let mut open = Vec::new();
        let took = (0..count).map(|_| {
            let began = Instant::now();
            let stream = dial(self.port);
            stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket");
            let answered = (&stream).write_all(b"x").is_ok()
                && std::io::Read::read(&mut &stream, &mut [0]).is_ok_and(|count| count == 1);
            open.push(stream);
            if answered { began.elapsed().as_secs_f64() * 1e3 } else { f64::INFINITY }
        });
        took.collect()
    }
}

/// A link, as a program of the attacker's own uses it.
struct Link {
    key: String,
    ca: String,
    share: Value,
    stranger: Stranger,
}

impl Link {
    fn of(hub: &Hub, owner: &Home) -> Self {
        let agent = owner.run(&["whoami", "--json"]).ok().json()["agentId"].clone();
        let ask = json!({ "name": "x", "agent": agent, "services": ["echo"], "expiresInSeconds": 600, "link": true });
        let made = hub.ask("POST /v1/shares", &key_of(owner), &ask.to_string());
        let (key, code) = (format!("pl_{}", made.text("secret")), made.text("code"));
        let joined = hub.ask("POST /v1/shares/join", &key, &json!({ "code": code }).to_string());
        Self {
            key,
            ca: hub.ca(),
            share: json!({ "code": code, "token": joined.text("token") }),
            stranger: Stranger::new(),
        }
    }

    /// The ticket and the ALPN of a session, if the hub grants one.
    fn ask(&self, hub: &Hub) -> Option<Value> {
        let ask =
            json!({ "service": "echo", "fingerprint": self.stranger.fingerprint(), "share": self.share });
        let mut tls = tls_over(dial_from(LOOPBACK, &hub.address).ok()?, "127.0.0.1", &self.ca);
        let fields = [("x-api-key", self.key.as_str())];
        let asked = request("POST /v1/sessions", &hub.address, &fields, &ask.to_string());
        tls.write_all(asked.as_bytes()).ok()?;
        let answer = Answer::read(&mut tls);
        (answer.status == 200).then(|| serde_json::from_str(&answer.body).expect("JSON"))
    }

    /// A session with the agent that says nothing.
    fn open(&self, hub: &Hub) -> Option<StreamOwned<ClientConnection, TcpStream>> {
        let granted = self.ask(hub)?;
        let mut socket = TcpStream::connect(&hub.address).ok()?;
        socket.write_all(relay_request(hub, granted["ticket"].as_str()?).as_bytes()).ok()?;
        read_head(&socket).starts_with("HTTP/1.1 101").then_some(())?;
        let mut session = self.stranger.as_joiner(socket, &granted);
        // The agent answers a ping of a session that stands.
        session.write_all(b"p\0\0\0").ok()?;
        std::io::Read::read_exact(&mut session, &mut [0; 4]).ok()?;
        Some(session)
    }
}

pub fn attack(report: &mut Report) {
    let hub = Hub::start();
    let owner = hub.machine("member");
    let exposed = expose(&owner, "victim", service(echo));
    let user = hub.machine("member");
    let _exposed = expose(&owner, "echo", service(echo));
    let (reached, port) = reach(&user, "victim");
    let member = Victim { port, _programs: vec![exposed, reached], _homes: vec![user] };
    let other = Victim::of(&hub, "w2");
    let links: Vec<Link> = (0..LINKS).map(|_| Link::of(&hub, &owner)).collect();

    let held = hold(&hub, &links[0]);
    report.at_most("sessions that one link holds of one agent", held.len() as f64, ONE_LINK as f64, "");
    report.p99_at_most("another member's new connection there", &mut member.connect(20), 500.0);
    drop(held);

    let (granted, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (mut members, mut others) = (Vec::new(), Vec::new());
    thread::scope(|scope| {
        for link in &links {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    granted.fetch_add(usize::from(link.ask(&hub).is_some()), Ordering::SeqCst);
                }
            });
        }
        thread::sleep(ASKING);
        members = member.connect(20);
        others = other.connect(20);
        over.store(true, Ordering::SeqCst);
    });
    report.at_most("tickets that ten links hold", granted.into_inner() as f64, ONE_KEY_COMING as f64, "");
    report.p99_at_most("another member's new connection", &mut members, 500.0);
    report.p99_at_most("another workspace's new connection", &mut others, 500.0);
}

fn hold(hub: &Hub, link: &Link) -> Vec<StreamOwned<ClientConnection, TcpStream>> {
    thread::scope(|scope| {
        let holding = (0..ASKING_THREADS).map(|_| {
            scope.spawn(|| {
                let (mut held, mut refused) = (Vec::new(), 0);
                while held.len() < WANTED / ASKING_THREADS && refused < REFUSALS {
                    match link.open(hub) {
                        Some(session) => held.push(session),
                        None => refused += 1,
                    }
                }
                held
            })
        });
        let holding: Vec<_> = holding.collect();
        holding.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    })
}
