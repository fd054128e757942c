//! One transfer: both ends know every byte, both directions flow at once, and both stop half-way until they are let go.

use std::collections::HashMap;
use std::io;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use crate::common::PATIENCE;
use crate::common::noise;
use crate::common::service;

/// Nothing may take longer, once the fault is gone.
pub const DEADLINE: Duration = PATIENCE;
const HEAD: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Whole,
    /// An error says so.
    Broken(io::ErrorKind),
    /// The end came early and looked like one.
    Short(usize),
    /// From this byte on it is something else.
    Altered(usize),
    Hung(usize),
}

/// What one end has to see: these bytes, then the end.
fn read_all(mut stream: &TcpStream, wanted: &[u8]) -> Outcome {
    let (mut have, mut buffer) = (0, vec![0; 16 * 1024]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) if have == wanted.len() => return Outcome::Whole,
            Ok(0) => return Outcome::Short(have),
            Ok(count) => {
                let expected = wanted.get(have..have + count);
                if expected != Some(&buffer[..count]) {
                    return Outcome::Altered(have);
                }
                have += count;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Outcome::Hung(have),
            Err(error) => return Outcome::Broken(error.kind()),
        }
    }
}

/// Holds everybody half-way.
#[derive(Default)]
pub struct Gate {
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Gate {
    fn arrive(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        self.changed.notify_all();
        drop(self.changed.wait_timeout_while(state, DEADLINE, |state| !state.1).unwrap());
    }

    /// Waits until so many have arrived; how many did.
    pub fn gather(&self, count: usize, patience: Duration) -> usize {
        let state = self.state.lock().unwrap();
        let (state, _) = self.changed.wait_timeout_while(state, patience, |state| state.0 < count).unwrap();
        state.0
    }

    pub fn open(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}

/// What a service has seen, by the seed of the transfer; `None` while it goes on.
#[derive(Default)]
pub struct Seen {
    outcomes: Mutex<HashMap<u64, Option<Outcome>>>,
    changed: Condvar,
    gates: Mutex<HashMap<u64, Arc<Gate>>>,
}

impl Seen {
    /// A service that takes transfers; returns its port.
    pub fn serve(self: &Arc<Self>) -> u16 {
        let own = Arc::clone(self);
        service(move |stream| own.take(&stream))
    }

    /// What the service saw of it in the end; `None` when it never began there.
    pub fn wait_for(&self, seed: u64) -> Option<Outcome> {
        let goes_on = |outcomes: &mut HashMap<u64, Option<Outcome>>| outcomes.get(&seed) == Some(&None);
        let outcomes = self.outcomes.lock().unwrap();
        let (outcomes, late) = self.changed.wait_timeout_while(outcomes, DEADLINE, goes_on).unwrap();
        assert!(!late.timed_out(), "the service still waits for the rest of a transfer that has ended");
        outcomes.get(&seed).copied().flatten()
    }

    fn take(&self, stream: &TcpStream) {
        stream.set_read_timeout(Some(DEADLINE * 2)).unwrap();
        stream.set_write_timeout(Some(DEADLINE * 2)).unwrap();
        let mut head = [0; HEAD];
        let mut reader = stream;
        if reader.read_exact(&mut head).is_err() {
            return;
        }
        let [seed, length] = [0, 8].map(|at| u64::from_le_bytes(head[at..at + 8].try_into().unwrap()));
        let Some(gate) = self.gates.lock().unwrap().get(&seed).cloned() else {
            panic!("a transfer that nobody began: the head was altered");
        };
        self.outcomes.lock().unwrap().insert(seed, None);
        let length = usize::try_from(length).unwrap();
        let outcome = exchange(stream, &noise(!seed, length), &noise(seed, length), &gate);
        self.outcomes.lock().unwrap().insert(seed, Some(outcome));
        self.changed.notify_all();
    }
}

/// Sends and reads at once. A connection's error is told once, to whoever asks first: the other half sees an end.
fn exchange(stream: &TcpStream, sent: &[u8], wanted: &[u8], gate: &Gate) -> Outcome {
    thread::scope(|scope| {
        let sending = scope.spawn(|| send(stream, sent, gate));
        match (read_all(stream, wanted), sending.join().unwrap()) {
            (Outcome::Short(_), Err(error)) => Outcome::Broken(error.kind()),
            (outcome, _) => outcome,
        }
    })
}

/// The first half, the gate, the rest.
fn send(mut stream: &TcpStream, bytes: &[u8], gate: &Gate) -> io::Result<()> {
    let (first, rest) = bytes.split_at(bytes.len() / 2);
    let begun = stream.write_all(first);
    gate.arrive();
    begun?;
    stream.write_all(rest)?;
    stream.shutdown(Shutdown::Write)
}

/// Sends and gets `length` bytes through `port`. Both ends meet `gate` when they have sent half of it.
pub fn transfer(seen: &Seen, port: u16, seed: u64, length: usize, gate: &Arc<Gate>) -> Outcome {
    seen.gates.lock().unwrap().insert(seed, Arc::clone(gate));
    let stream = match TcpStream::connect(("127.0.0.1", port)) {
        Ok(stream) => stream,
        Err(error) => return Outcome::Broken(error.kind()),
    };
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    let head = [seed.to_le_bytes(), (length as u64).to_le_bytes()].concat();
    if let Err(error) = (&stream).write_all(&head) {
        return Outcome::Broken(error.kind());
    }
    exchange(&stream, &noise(seed, length), &noise(!seed, length), gate)
}
