//! What goes in comes out: bytes, half-closes and resets through the whole path.

mod common;

use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Barrier;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use common::PATIENCE;
use common::Tunnelled;
use common::dial;
use common::echo;
use common::echoes;
use common::ends::Ending;
use common::ends::Target;
use common::ends::is_refused;
use common::ends::read_out;
use common::ends::reset;
use common::noise;
use common::service;

const MIB: usize = 1024 * 1024;

/// Writes until nothing goes any more, says so, and then writes the rest.
fn write_until_stuck(mut stream: &TcpStream, bytes: &[u8], stuck: &Barrier) {
    stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let (mut written, mut told) = (0, false);
    let began = Instant::now();
    while written < bytes.len() {
        match stream.write(&bytes[written..]) {
            Ok(count) => written += count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                assert!(began.elapsed() < PATIENCE, "stuck at {written}");
                if !std::mem::replace(&mut told, true) {
                    stuck.wait();
                }
            }
            Err(error) => panic!("{error} at {written}"),
        }
    }
    assert!(told, "{} bytes went without anybody reading", bytes.len());
    stream.shutdown(Shutdown::Write).unwrap();
}

#[test]
fn both_ends_write_64_mib_before_either_reads() {
    let (gave, got) = mpsc::channel();
    let target = service(move |stream| drop(gave.send(stream)));
    let tunnel = Tunnelled::to(target);
    let (client, server) = (dial(tunnel.port), connected(&got));
    let (up, down) = (noise(1, 64 * MIB), noise(2, 64 * MIB));
    // Both writers and both readers: nobody reads before both writers are stuck.
    let stuck = Barrier::new(4);
    thread::scope(|scope| {
        for (stream, sent, wanted) in [(&client, &up, &down), (&server, &down, &up)] {
            scope.spawn(|| write_until_stuck(stream, sent, &stuck));
            scope.spawn(|| {
                stuck.wait();
                let (received, ending) = read_out(stream);
                assert_eq!((received.len(), ending), (wanted.len(), Ending::Eof));
                assert!(received == *wanted, "the bytes differ");
            });
        }
    });
}

/// The connection at the target that belongs to a client which has just connected: the proofs that a tunnel
/// makes of its own end at once, and are passed over.
fn connected(got: &mpsc::Receiver<TcpStream>) -> TcpStream {
    loop {
        let stream = got.recv_timeout(PATIENCE).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let ended = matches!(stream.peek(&mut [0]), Ok(0));
        if !ended {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            return stream;
        }
    }
}

/// A tunnel whose target's connections come out here.
fn open_ended() -> (Tunnelled, mpsc::Receiver<TcpStream>) {
    let (gave, got) = mpsc::channel();
    let tunnel = Tunnelled::to(service(move |stream| drop(gave.send(stream))));
    (tunnel, got)
}

#[test]
fn a_half_close_leaves_the_other_direction_open() {
    let (tunnel, got) = open_ended();
    let (question, answer) = (noise(3, 100_000), noise(4, 8 * MIB));
    for client_first in [true, false] {
        let (client, server) = (dial(tunnel.port), connected(&got));
        let (mut first, mut second) = if client_first { (&client, &server) } else { (&server, &client) };
        first.write_all(&question).unwrap();
        first.shutdown(Shutdown::Write).unwrap();
        assert!(read_out(second) == (question.clone(), Ending::Eof));
        thread::scope(|scope| {
            scope.spawn(|| {
                second.write_all(&answer).unwrap();
                second.shutdown(Shutdown::Write).unwrap();
            });
            let (received, ending) = read_out(first);
            assert_eq!((received.len(), ending), (answer.len(), Ending::Eof));
            assert!(received == answer, "the bytes differ");
        });
    }
    assert!(tunnel.hub.sessions() <= 2, "a half-close cost a session");
}

#[test]
fn a_reset_stays_a_reset() {
    let (tunnel, got) = open_ended();
    for client_first in [true, false] {
        let (client, server) = (dial(tunnel.port), connected(&got));
        let (mut breaking, other) = if client_first { (client, server) } else { (server, client) };
        breaking.write_all(b"so far").unwrap();
        let mut heard = [0; 6];
        (&other).read_exact(&mut heard).unwrap();
        reset(breaking);
        assert_eq!(read_out(&other), (Vec::new(), Ending::Reset), "client first: {client_first}");
    }
}

#[test]
fn a_reset_after_a_half_close_is_a_reset() {
    let (tunnel, got) = open_ended();
    for client_first in [true, false] {
        let (client, server) = (dial(tunnel.port), connected(&got));
        let (breaking, other) = if client_first { (client, server) } else { (server, client) };
        breaking.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_out(&other), (Vec::new(), Ending::Eof));
        reset(breaking);
        let began = Instant::now();
        // What is written from here on must not be taken for delivered for ever.
        while (&other).write_all(b"still there?").is_ok() {
            assert!(began.elapsed() < Duration::from_secs(5), "client first: {client_first}");
            thread::park_timeout(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_refused_target_is_a_reset_within_a_second() {
    let mut target = Target::serving(echo);
    let tunnel = Tunnelled::to(target.port);
    assert!(echoes(tunnel.port, b"hello"));
    target.close();
    for _ in 0..5 {
        let began = Instant::now();
        assert!(is_refused(tunnel.port, b"hello?"));
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }
    target.open();
    assert!(echoes(tunnel.port, b"hello again"));
}

#[test]
fn either_side_may_speak_first() {
    let banner = Tunnelled::to(service(|mut stream| {
        let _ = stream.write_all(b"220 ready\r\n");
        echo(stream);
    }));
    for _ in 0..3 {
        let mut client = dial(banner.port);
        let mut heard = [0; 11];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"220 ready\r\n");
        client.write_all(b"QUIT").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_out(&client), (b"QUIT".to_vec(), Ending::Eof));
    }
}

#[test]
fn single_bytes_are_not_delayed() {
    let tunnel = Tunnelled::to(service(|stream| {
        stream.set_nodelay(true).unwrap();
        echo(stream);
    }));
    let mut client = dial(tunnel.port);
    let began = Instant::now();
    for byte in 0..=255_u8 {
        for half in [byte, !byte] {
            client.write_all(&[half]).unwrap();
            let mut back = [0];
            client.read_exact(&mut back).unwrap();
            assert_eq!(back[0], half);
        }
    }
    // A delayed acknowledgement costs 40 ms each time: 20 s.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn a_target_that_listens_on_ipv6_only_is_reached() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        return eprintln!("SKIPPED: this machine has no IPv6 loopback");
    };
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(echo));
    for target in [format!("[::1]:{port}"), port.to_string()] {
        let tunnel = Tunnelled::to_target(&target);
        assert!(echoes(tunnel.port, b"six"), "{target}");
    }
}

#[test]
fn clients_that_leave_at_once_cost_nothing() {
    let tunnel = Tunnelled::to(service(echo));
    for index in 0..200 {
        let client = dial(tunnel.port);
        if index % 2 == 0 {
            reset(client);
        }
    }
    assert!(echoes(tunnel.port, &noise(5, MIB)));
}

#[test]
fn a_slow_reader_holds_up_nobody() {
    let large = noise(6, 32 * MIB);
    let sent = large.clone();
    let tunnel = Tunnelled::to(service(move |mut stream| {
        let mut asked = [0];
        match stream.read(&mut asked) {
            Ok(1) if asked[0] == b'L' => drop(stream.write_all(&sent)),
            Ok(1) => drop(stream.write_all(&asked)),
            _ => {}
        }
    }));
    let mut slow = dial(tunnel.port);
    slow.write_all(b"L").unwrap();
    let mut first = [0; 1000];
    slow.read_exact(&mut first).unwrap();
    for _ in 0..50 {
        let began = Instant::now();
        let mut fast = dial(tunnel.port);
        fast.write_all(b"f").unwrap();
        assert_eq!(read_out(&fast), (b"f".to_vec(), Ending::Eof));
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
    let (rest, ending) = read_out(&slow);
    assert_eq!((first.len() + rest.len(), ending), (large.len(), Ending::Eof));
    assert!(first[..] == large[..1000] && rest[..] == large[1000..], "the bytes differ");
}
