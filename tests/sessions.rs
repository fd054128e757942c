//! Sessions carry one connection after another, whatever end the one before came to.

mod common;

use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use common::Hub;
use common::PATIENCE;
use common::Running;
use common::Tunnelled;
use common::dial;
use common::echo;
use common::echoes;
use common::ends::Ending;
use common::ends::Target;
use common::ends::is_refused;
use common::ends::read_out;
use common::ends::reset;
use common::ends::reset_on_close;
use common::eventually;
use common::expose;
use common::fault::Kind;
use common::fault::Path;
use common::noise;
use common::reach;
use common::service;

#[test]
fn ten_thousand_connections_make_a_handful_of_sessions() {
    let tunnel = Tunnelled::to(service(echo));
    for index in 0..10_000_u32 {
        let mut client = dial(tunnel.port);
        let sent = index.to_be_bytes();
        client.write_all(&sent).unwrap();
        let mut back = [0; 4];
        client.read_exact(&mut back).unwrap();
        assert_eq!(back, sent);
    }
    // A client leaves without waiting, so on a busy machine the next one may overtake its end.
    let sessions = tunnel.hub.sessions();
    assert!(sessions <= 50, "{sessions} sessions");
}

#[test]
fn a_new_connection_waits_for_nothing_but_its_own_data() {
    const ONE_WAY: Duration = Duration::from_millis(40);
    let hub = Hub::start();
    let path = Path::to(&hub.address);
    let (owner, user) = (hub.machine("member"), hub.machine_by(&path.url(), "member"));
    let _exposed = expose(&owner, "echo", service(echo));
    let (_reached, port) = reach(&user, "echo");
    assert!(echoes(port, b"warm"));
    path.delay(ONE_WAY);
    let mut times: Vec<Duration> = (0..20_u8)
        .map(|byte| {
            let began = Instant::now();
            let mut client = dial(port);
            client.write_all(&[byte]).unwrap();
            let mut back = [0];
            client.read_exact(&mut back).unwrap();
            let took = began.elapsed();
            drop(client);
            took
        })
        .collect();
    times.sort();
    // There and back, and no second time.
    assert!(times[10] >= ONE_WAY * 2, "{times:?}");
    assert!(times[10] < ONE_WAY * 3, "{times:?}");
}

#[test]
fn connections_need_neither_the_api_nor_the_control_channel_while_sessions_stand() {
    let hub = Hub::start();
    let path = Path::to(&hub.address);
    let (owner, user) = (hub.machine_by(&path.url(), "member"), hub.machine_by(&path.url(), "member"));
    let _exposed = expose(&owner, "echo", service(echo));
    let (_reached, port) = reach(&user, "echo");
    // A session is free again a moment after its client has the last byte, so one would not do.
    let held: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut client = dial(port);
            client.write_all(b"w").unwrap();
            client.read_exact(&mut [0]).unwrap();
            client
        })
        .collect();
    drop(held);
    path.silence_kind(Kind::Api);
    for index in 0..50 {
        assert!(echoes(port, &noise(index, 1000)));
    }
}

/// How a connection goes, as its client tells the server in its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    /// Question, end of file, answer, end of file.
    ClientEndsFirst,
    /// Answer, end of file, question, end of file.
    ServerEndsFirst,
    ClientResets,
    ServerResets,
    /// The client leaves in the middle of a large answer.
    ClientLeaves,
    /// The client has ended its direction, and then leaves in the middle of a large answer.
    ClientEndsAndLeaves,
}

const COURSES: [Course; 6] = [
    Course::ClientEndsFirst,
    Course::ServerEndsFirst,
    Course::ClientResets,
    Course::ServerResets,
    Course::ClientLeaves,
    Course::ClientEndsAndLeaves,
];
const LARGE: usize = 2 * 1024 * 1024;

/// Number of the connection, course, lengths of question and answer.
#[derive(Clone, Copy, Debug)]
struct Script {
    number: u32,
    course: Course,
    question: usize,
    answer: usize,
}

impl Script {
    fn drawn(number: u32) -> Self {
        let dice = noise(u64::from(number) + 1000, 16);
        let course = COURSES[usize::from(dice[0]) % COURSES.len()];
        let length = |at: usize| match dice[at] % 4 {
            0 => usize::from(dice[at + 1]),
            1 => 16_384 - 3 + usize::from(dice[at + 1] % 6),
            2 => usize::from(dice[at + 1]) * 300,
            _ => usize::from(dice[at + 1]) * 4000,
        };
        let leaves = matches!(course, Course::ClientLeaves | Course::ClientEndsAndLeaves);
        Self { number, course, question: length(2), answer: if leaves { LARGE } else { length(6) } }
    }

    fn encode(self) -> [u8; 13] {
        let mut bytes = [0; 13];
        bytes[..4].copy_from_slice(&self.number.to_be_bytes());
        bytes[4] = self.course as u8;
        bytes[5..9].copy_from_slice(&u32::try_from(self.question).unwrap().to_be_bytes());
        bytes[9..].copy_from_slice(&u32::try_from(self.answer).unwrap().to_be_bytes());
        bytes
    }

    fn decode(bytes: [u8; 13]) -> Self {
        let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        let course = COURSES[usize::from(bytes[4])];
        Self { number: word(0), course, question: word(5) as usize, answer: word(9) as usize }
    }

    fn asks(self) -> Vec<u8> {
        noise(u64::from(self.number) * 2, self.question)
    }

    fn answers(self) -> Vec<u8> {
        noise(u64::from(self.number) * 2 + 1, self.answer)
    }
}

/// The target's side. What it finds wrong goes back to the test.
fn serve(mut stream: TcpStream, wrong: &std::sync::mpsc::Sender<String>) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut head = [0; 13];
    // A proof that the tunnel made of its own ends here.
    let Ok(()) = stream.read_exact(&mut head) else { return };
    let script = Script::decode(head);
    let expect = |what: &str, holds: bool| {
        if !holds {
            let _ = wrong.send(format!("{script:?} at the server: {what}"));
        }
    };
    match script.course {
        Course::ClientEndsFirst => {
            expect("the question", read_out(&stream) == (script.asks(), Ending::Eof));
            expect("answering", stream.write_all(&script.answers()).is_ok());
        }
        Course::ServerEndsFirst => {
            expect("answering", stream.write_all(&script.answers()).is_ok());
            expect("ending", stream.shutdown(Shutdown::Write).is_ok());
            expect("the question", read_out(&stream) == (script.asks(), Ending::Eof));
        }
        Course::ClientResets => {
            let _ = stream.write_all(&script.answers());
            let (heard, ending) = read_out(&stream);
            expect("the question's beginning", script.asks().starts_with(&heard));
            expect(&format!("a reset, not {ending:?}"), ending == Ending::Reset);
        }
        Course::ServerResets => {
            let mut heard = vec![0; script.question];
            expect("reading", stream.read_exact(&mut heard).is_ok());
            expect("the question", heard == script.asks());
            let _ = stream.write_all(&script.answers());
            reset_on_close(&stream);
        }
        Course::ClientLeaves | Course::ClientEndsAndLeaves => {
            let _ = stream.write_all(&script.answers());
            let (heard, ending) = read_out(&stream);
            expect("the question's beginning", script.asks().starts_with(&heard));
            // What was in flight when the client left may have fitted into the path's buffers.
            let left = matches!(ending, Ending::Reset | Ending::Eof);
            expect(&format!("an end, not {ending:?}"), left);
        }
    }
}

/// The client's side; panics at the first thing that is wrong.
fn follow(script: Script, port: u16) {
    let mut stream = dial(port);
    stream.write_all(&script.encode()).unwrap();
    match script.course {
        Course::ClientEndsFirst => {
            stream.write_all(&script.asks()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            assert!(read_out(&stream) == (script.answers(), Ending::Eof), "{script:?}");
        }
        Course::ServerEndsFirst => {
            assert!(read_out(&stream) == (script.answers(), Ending::Eof), "{script:?}");
            stream.write_all(&script.asks()).unwrap();
        }
        Course::ClientResets => {
            stream.write_all(&script.asks()).unwrap();
            let mut some = vec![0; script.answer / 2];
            stream.read_exact(&mut some).unwrap();
            assert!(script.answers().starts_with(&some), "{script:?}");
            reset(stream);
        }
        Course::ServerResets => {
            // The reset may overtake the end of the question only if the server has not read it: it has.
            stream.write_all(&script.asks()).unwrap();
            let (heard, ending) = read_out(&stream);
            assert!(script.answers().starts_with(&heard), "{script:?}");
            assert_eq!(ending, Ending::Reset, "{script:?}");
        }
        Course::ClientLeaves | Course::ClientEndsAndLeaves => {
            stream.write_all(&script.asks()).unwrap();
            if script.course == Course::ClientEndsAndLeaves {
                stream.shutdown(Shutdown::Write).unwrap();
            }
            let mut some = vec![0; 50_000];
            stream.read_exact(&mut some).unwrap();
            assert!(script.answers().starts_with(&some), "{script:?}");
        }
    }
}

#[test]
fn endings_of_every_kind_alternate_and_no_byte_strays() {
    let (wrong, told) = std::sync::mpsc::channel();
    let mut target = Target::serving(move |stream| serve(stream, &wrong));
    let tunnel = Tunnelled::to(target.port);
    let port = tunnel.port;
    // One after another, with a target that is away now and then.
    for number in 0..150 {
        if number % 10 == 9 {
            target.close();
            assert!(is_refused(port, &noise(u64::from(number), 5000)), "{number}");
            target.open();
        } else {
            follow(Script::drawn(number), port);
        }
    }
    together(port, 1000);
    let programs = [&tunnel.hub.running, &tunnel.exposed, &tunnel.reached];
    let settled = || programs.map(Running::resources);
    let before = settled();
    for round in 2..5 {
        together(port, round * 1000);
    }
    eventually("threads and descriptors are given back", PATIENCE, || {
        settled().iter().zip(&before).all(|(now, then)| now.0 <= then.0 + 4 && now.1 <= then.1 + 4)
    });
    let complaints: Vec<String> = told.try_iter().collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    let sessions = tunnel.hub.sessions();
    eprintln!("{sessions} sessions for 550 connections");
    assert!(sessions < 150, "{sessions} sessions");
}

/// A hundred connections, eight at a time.
fn together(port: u16, from: u32) {
    let next = Arc::new(std::sync::atomic::AtomicU32::new(0));
    thread::scope(|scope| {
        for _ in 0..8 {
            let next = Arc::clone(&next);
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if index >= 100 {
                        return;
                    }
                    follow(Script::drawn(from + index), port);
                }
            });
        }
    });
}
