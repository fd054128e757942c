//! How connections end, and a target that closes and opens its port.
#![allow(dead_code)] // Each test file uses its part.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;
use std::thread;

use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;

/// The close of this connection will be a reset.
pub fn reset(stream: TcpStream) {
    reset_on_close(&stream);
    drop(stream);
}

pub fn reset_on_close(stream: &TcpStream) {
    setsockopt(stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
}

/// Whether an echo comes back on a connection that stays open.
pub fn exchanges(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    let mut back = vec![0; bytes.len()];
    stream.write_all(bytes).is_ok() && stream.read_exact(&mut back).is_ok() && back == bytes
}

/// How a connection ended for the one who reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Eof,
    Reset,
    /// Nothing came for too long.
    Hung,
    Other(io::ErrorKind),
}

/// Everything up to the end, and what kind of end it was.
pub fn read_out(mut stream: &TcpStream) -> (Vec<u8>, Ending) {
    let (mut all, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (all, Ending::Eof),
            Ok(count) => all.extend_from_slice(&buffer[..count]),
            Err(error) => return (all, ending_of(&error)),
        }
    }
}

fn ending_of(error: &io::Error) -> Ending {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Ending::Reset,
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Ending::Hung,
        kind => Ending::Other(kind),
    }
}

/// Whether a connection to this port is reset without a byte. A reset that comes before all is written shows
/// at the write, and only there.
pub fn is_refused(port: u16, bytes: &[u8]) -> bool {
    let Ok(mut client) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    client.set_read_timeout(Some(super::PATIENCE)).unwrap();
    match client.write_all(bytes) {
        Ok(()) => read_out(&client) == (Vec::new(), Ending::Reset),
        Err(error) => ending_of(&error) == Ending::Reset,
    }
}

/// A service that can go and come back on its port.
pub struct Target {
    pub port: u16,
    serve: Arc<dyn Fn(TcpStream) + Send + Sync>,
    accepting: Option<thread::JoinHandle<()>>,
    closing: Arc<AtomicBool>,
    bound: AtomicU16,
}

impl Target {
    pub fn serving(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let serve: Arc<dyn Fn(TcpStream) + Send + Sync> = Arc::new(serve);
        let (closing, bound) = Default::default();
        let mut target = Self { port: 0, serve, accepting: None, closing, bound };
        target.open();
        target.port = target.bound.load(Ordering::SeqCst);
        target
    }

    pub fn open(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).unwrap();
        self.bound.store(listener.local_addr().unwrap().port(), Ordering::SeqCst);
        let (serve, closing) = (Arc::clone(&self.serve), Arc::clone(&self.closing));
        self.accepting = Some(thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if closing.load(Ordering::SeqCst) {
                    return;
                }
                let serve = Arc::clone(&serve);
                thread::spawn(move || serve(stream));
            }
        }));
    }

    /// From here on connections are refused.
    pub fn close(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        self.accepting.take().unwrap().join().unwrap();
        self.closing.store(false, Ordering::SeqCst);
    }
}
