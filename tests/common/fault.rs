//! Faults between programs: a TCP path to a hub that falls silent, is cut, listens and changes bytes.
#![allow(dead_code)] // Each test file uses its part.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use super::ends::reset_on_close;

/// What the first byte of a connection to a hub says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TLS: the API or a control channel.
    Api,
    /// The plain upgrade: one half of a session.
    Relay,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the client of the path to the hub.
    Up,
    Down,
}

/// Sees, and may change, each piece that a relay connection carries behind the upgrade. What it empties is
/// not passed on.
pub type Meddle = Box<dyn FnMut(Way, &mut Vec<u8>) -> Verdict + Send>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// Ends both sides as if they had ended by themselves.
    Close,
}

/// A TCP proxy between programs and a hub.
pub struct Path {
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    to: Mutex<SocketAddr>,
    lines: Mutex<Vec<Arc<Line>>>,
    /// New connections are taken and then hear nothing.
    silent: AtomicBool,
    relayed: Mutex<Vec<u8>>,
    meddle: Mutex<Option<Meddle>>,
    /// Takes a relay connection in the hub's place.
    impostor: Mutex<Option<Impostor>>,
    delay: Mutex<Duration>,
    /// What is under way waits here.
    held: AtomicBool,
    /// Pieces go on as so many bytes at a time; 0: as they came.
    bits: AtomicUsize,
    /// The hub's answer to an upgrade is held back until what follows it is there.
    glue: AtomicBool,
}

/// Gets a relay connection whose request has been read, and the request.
pub type Impostor = Arc<dyn Fn(TcpStream, String) + Send + Sync>;

struct Line {
    kind: OnceLock<Kind>,
    silent: AtomicBool,
    broken: AtomicBool,
    ends: [TcpStream; 2],
}

impl Path {
    pub fn to(address: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            to: Mutex::new(address.parse().unwrap()),
            lines: Mutex::default(),
            silent: AtomicBool::new(false),
            relayed: Mutex::default(),
            meddle: Mutex::default(),
            impostor: Mutex::default(),
            delay: Mutex::default(),
            held: AtomicBool::new(false),
            bits: AtomicUsize::new(0),
            glue: AtomicBool::new(false),
        });
        let own = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let own = Arc::clone(&own);
                thread::spawn(move || own.serve(client));
            }
        });
        Self { port, shared }
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Nothing is forwarded any more, and nothing is closed: as for a laptop that sleeps.
    pub fn fall_silent(&self) {
        self.shared.silent.store(true, Ordering::SeqCst);
        self.silence(|_| true);
    }

    /// Connections of one kind fall silent; new ones work.
    pub fn silence_kind(&self, kind: Kind) {
        self.silence(|line| line.kind.get() == Some(&kind));
    }

    fn silence(&self, fits: impl Fn(&Line) -> bool) {
        let lines = self.shared.lines.lock().unwrap();
        lines.iter().filter(|line| fits(line)).for_each(|line| line.silent.store(true, Ordering::SeqCst));
    }

    /// New connections work again; those that fell silent stay so.
    pub fn recover(&self) {
        self.shared.silent.store(false, Ordering::SeqCst);
    }

    /// Cuts every connection of this kind.
    pub fn cut(&self, kind: Kind) {
        self.cut_all(|line| line.kind.get() == Some(&kind));
    }

    /// Those that fell silent end now.
    pub fn cut_silent(&self) {
        self.cut_all(|line| line.silent.load(Ordering::SeqCst));
        self.shared.lines.lock().unwrap().retain(|line| !line.silent.load(Ordering::SeqCst));
    }

    /// Cuts whatever there is.
    pub fn cut_everything(&self) {
        self.cut_all(|_| true);
    }

    /// Ends one direction of every connection as if it had ended by itself; the other goes on.
    pub fn halve(&self, way: Way) {
        for line in self.shared.lines.lock().unwrap().iter() {
            let (from, to) = line.between(way);
            let _ = from.shutdown(Shutdown::Read).and_then(|()| to.shutdown(Shutdown::Write));
        }
    }

    /// Nothing arrives until it is let go; nothing is lost.
    pub fn hold(&self, is_held: bool) {
        self.shared.held.store(is_held, Ordering::SeqCst);
    }

    /// Everything arrives in pieces of so many bytes, each a moment after the one before; 0: as it came.
    pub fn split(&self, bytes: usize) {
        self.shared.bits.store(bytes, Ordering::SeqCst);
    }

    /// Where new connections go.
    pub fn lead_to(&self, address: &str) {
        *self.shared.to.lock().unwrap() = address.parse().unwrap();
    }

    /// How many connections of this kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        let lines = self.shared.lines.lock().unwrap();
        lines.iter().filter(|line| line.kind.get() == Some(&kind)).count()
    }

    fn cut_all(&self, fits: impl Fn(&Line) -> bool) {
        for line in self.shared.lines.lock().unwrap().iter().filter(|line| fits(line)) {
            line.ends.iter().for_each(|end| drop(end.shutdown(Shutdown::Both)));
        }
    }

    /// Everything that relay connections have carried so far, in both directions.
    pub fn relayed(&self) -> Vec<u8> {
        self.shared.relayed.lock().unwrap().clone()
    }

    pub fn meddle(&self, meddle: impl FnMut(Way, &mut Vec<u8>) -> Verdict + Send + 'static) {
        *self.shared.meddle.lock().unwrap() = Some(Box::new(meddle));
    }

    pub fn leave_alone(&self) {
        *self.shared.meddle.lock().unwrap() = None;
    }

    pub fn impersonate(&self, impostor: impl Fn(TcpStream, String) + Send + Sync + 'static) {
        *self.shared.impostor.lock().unwrap() = Some(Arc::new(impostor));
    }

    /// Relay connections reach the hub again.
    pub fn stop_impersonating(&self) {
        *self.shared.impostor.lock().unwrap() = None;
    }

    /// The answer to an upgrade and the bytes that follow it arrive in one piece.
    pub fn glue_upgrades(&self) {
        self.shared.glue.store(true, Ordering::SeqCst);
    }

    /// Each piece takes this long in each direction.
    pub fn delay(&self, delay: Duration) {
        *self.shared.delay.lock().unwrap() = delay;
    }
}

impl Shared {
    fn serve(self: Arc<Self>, client: TcpStream) {
        let Ok(hub) = TcpStream::connect(*self.to.lock().unwrap()) else { return };
        let _ = client.set_nodelay(true);
        let _ = hub.set_nodelay(true);
        let line = Arc::new(Line {
            kind: OnceLock::new(),
            silent: AtomicBool::new(self.silent.load(Ordering::SeqCst)),
            broken: AtomicBool::new(false),
            ends: [client, hub],
        });
        self.lines.lock().unwrap().push(Arc::clone(&line));
        let mut first = [0];
        if !matches!(line.ends[0].peek(&mut first), Ok(1)) {
            return self.forget(&line);
        }
        let kind = if first[0] == 0x16 { Kind::Api } else { Kind::Relay };
        let _ = line.kind.set(kind);
        let impostor = self.impostor.lock().unwrap().clone().filter(|_| kind == Kind::Relay);
        if let Some(impostor) = impostor {
            let client = line.ends[0].try_clone().unwrap();
            self.forget(&line);
            drop(line);
            let head = read_head(&client);
            return impostor(client, head);
        }
        let (own, other) = (Arc::clone(&self), Arc::clone(&line));
        let down = thread::spawn(move || own.forward(&other, Way::Down));
        self.forward(&line, Way::Up);
        let _ = down.join();
        self.forget(&line);
    }

    /// A silent line is kept, so that its ends stay open.
    fn forget(&self, line: &Arc<Line>) {
        if !line.silent.load(Ordering::SeqCst) {
            self.lines.lock().unwrap().retain(|other| !Arc::ptr_eq(other, line));
        }
    }

    fn forward(self: &Arc<Self>, line: &Arc<Line>, way: Way) {
        let (mut from, _) = line.between(way);
        let (later, due) = mpsc::sync_channel::<(Instant, Vec<u8>)>(64);
        let (own, shared) = (Arc::clone(line), Arc::clone(self));
        thread::spawn(move || own.deliver(&shared, way, &due));
        let mut buffer = vec![0; 64 * 1024];
        let mut in_head = line.kind.get() == Some(&Kind::Relay);
        loop {
            let count = match from.read(&mut buffer) {
                _ if line.silent.load(Ordering::SeqCst) && line.kind.get().is_none() => return,
                Ok(0) if line.silent.load(Ordering::SeqCst) => return,
                Ok(0) => return,
                Err(_) => return line.close(),
                Ok(_) if line.silent.load(Ordering::SeqCst) => continue,
                Ok(count) => count,
            };
            let mut piece = buffer[..count].to_vec();
            if line.kind.get() == Some(&Kind::Relay) && !in_head {
                self.relayed.lock().unwrap().extend_from_slice(&piece);
                let verdict = self.meddle.lock().unwrap().as_mut().map(|meddle| meddle(way, &mut piece));
                if verdict == Some(Verdict::Close) {
                    let _ = later.send((Instant::now(), piece));
                    return;
                }
            }
            let is_bare = std::mem::take(&mut in_head) && way == Way::Down && piece.ends_with(b"\r\n\r\n");
            if is_bare && self.glue.load(Ordering::SeqCst) {
                let Ok(more @ 1..) = from.read(&mut buffer) else { return line.close() };
                piece.extend_from_slice(&buffer[..more]);
            }
            let due = Instant::now() + *self.delay.lock().unwrap();
            if later.send((due, piece)).is_err() {
                return line.close();
            }
        }
    }
}

impl Shared {
    /// At most so many bits of one piece: a large one would take for ever otherwise.
    const BITS: usize = 200;

    fn pass_on(&self, mut to: &TcpStream, piece: &[u8]) -> io::Result<()> {
        let mut rest = piece;
        let mut bits = 0;
        while !rest.is_empty() {
            while self.held.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(5));
            }
            let size = self.bits.load(Ordering::SeqCst);
            if size == 0 || bits == Self::BITS {
                return to.write_all(rest);
            }
            let (bit, later) = rest.split_at(size.min(rest.len()));
            to.write_all(bit)?;
            thread::sleep(Duration::from_micros(300));
            (rest, bits) = (later, bits + 1);
        }
        Ok(())
    }
}

impl Line {
    /// Whence and whither bytes of this direction go.
    fn between(&self, way: Way) -> (&TcpStream, &TcpStream) {
        let [client, hub] = &self.ends;
        if way == Way::Up { (client, hub) } else { (hub, client) }
    }

    /// Passes on each piece when it is due, and then the end.
    fn deliver(&self, shared: &Shared, way: Way, due: &mpsc::Receiver<(Instant, Vec<u8>)>) {
        let (_, to) = self.between(way);
        for (when, piece) in due {
            thread::sleep(when.saturating_duration_since(Instant::now()));
            if self.silent.load(Ordering::SeqCst) {
                return;
            }
            if shared.pass_on(to, &piece).is_err() {
                return self.close();
            }
        }
        if !self.silent.load(Ordering::SeqCst) && !self.broken.load(Ordering::SeqCst) {
            let _ = to.shutdown(Shutdown::Write);
        }
    }

    /// One side broke: both get a reset as soon as nobody here holds them any more. A shutdown of both directions
    /// would be an end of file.
    fn close(&self) {
        if !self.silent.load(Ordering::SeqCst) {
            self.broken.store(true, Ordering::SeqCst);
            for end in &self.ends {
                reset_on_close(end);
                let _ = end.shutdown(Shutdown::Read);
            }
        }
    }
}

/// Reads a request's head byte by byte and leaves what comes behind it.
pub fn read_head(mut stream: &TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}
