//! Accepting connections. The thread that accepts a connection serves it, after it has made sure that another thread
//! accepts the next one. No connection moves between threads, and threads are reused.

use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::panic;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::connect::is_timeout;
use super::connect::reached_locally;
use super::stop::Registration;
use super::stop::Stop;
use super::threads::ThreadGroup;
use crate::error::OrSay;
use crate::error::Result;
use crate::os::socket;

/// Threads that stay in `accept` after a burst. Each keeps the few KiB of stack that it has touched. Without spare
/// threads, 64 short connections at a time would cost the proxy a tenth of its CPU for making threads.
const SPARE_THREADS: usize = 64;
/// The pause after a failed `accept`, for instance when no descriptors are left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often a new connection looks for the thread of one that was ended for it.
const ROOM_POLL: Duration = Duration::from_millis(1);
const ROOM_POLLS: usize = 500;

/// Serves one connection to its end. Each thread has its own worker, which may keep state for the thread's next
/// connection.
pub type Worker = Box<dyn FnMut(Arc<TcpStream>)>;
/// Makes the worker of one thread.
pub type NewWorker = Box<dyn Fn() -> Worker + Send + Sync>;

/// A `NewWorker` whose workers keep no state between connections.
pub fn each(serve: impl Fn(Arc<TcpStream>) + Send + Sync + 'static) -> NewWorker {
    let serve = Arc::new(serve);
    Box::new(move || {
        let own = Arc::clone(&serve);
        Box::new(move |stream| own(stream))
    })
}

pub struct ServeOptions {
    pub name: &'static str,
    /// Connections served at once.
    pub limit: usize,
    pub new_worker: NewWorker,
    /// A thread without a connection for this long drops its worker's state, and ends if another thread accepts. A new
    /// connection has this as its read timeout.
    pub idle: Option<Duration>,
    /// Ends a connection when the server stops. It must wake every thread that blocks on the connection.
    pub cut: fn(&TcpStream),
    /// Ends other connections when there is no thread for a new one. False if there are none to end.
    pub make_room: Option<Box<dyn Fn() -> bool + Send + Sync>>,
    /// Refuses a connection when there are too many. It must not block.
    pub turn_away: Box<dyn Fn(&TcpStream) + Send + Sync>,
}

/// A port of this machine that is bound but not served yet.
pub struct BoundPort {
    pub port: u16,
    pub listeners: Vec<TcpListener>,
}

impl BoundPort {
    /// Binds on both loopback addresses, since `localhost` may mean either. Port 0 takes any free port.
    pub fn bind(port: u16) -> io::Result<Self> {
        Self::beside(TcpListener::bind((Ipv4Addr::LOCALHOST, port))?)
    }

    /// Binds the other loopback address as well.
    pub fn beside(first: TcpListener) -> io::Result<Self> {
        let port = first.local_addr()?.port();
        match TcpListener::bind((Ipv6Addr::LOCALHOST, port)) {
            Ok(second) => Ok(Self { port, listeners: vec![first, second] }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
            // A machine without IPv6 has only one loopback address.
            Err(_) => Ok(Self { port, listeners: vec![first] }),
        }
    }

    /// Binds on 127.0.0.1 only, for the tunnel ports that the hub lists with that address.
    pub fn bind_v4(port: u16) -> io::Result<Self> {
        Ok(Self { port, listeners: vec![TcpListener::bind((Ipv4Addr::LOCALHOST, port))?] })
    }

    /// Binds the first free port of `ports`. `None` if none is free.
    pub fn first_free(ports: impl IntoIterator<Item = u16>) -> Option<Self> {
        ports.into_iter().find_map(|port| Self::bind(port).ok())
    }
}

/// The usual cut: both directions end at once.
pub fn shut(stream: &TcpStream) {
    let _ = stream.shutdown(Shutdown::Both);
}

pub struct Server {
    shared: Arc<ServerShared>,
    _woken: Option<Registration>,
}

struct ServerShared {
    listener: TcpListener,
    address: SocketAddr,
    service: ServeOptions,
    stop: Stop,
    accepting: AtomicUsize,
    thread_count: AtomicUsize,
    threads: ThreadGroup,
}

impl Server {
    /// Serves until `stop`, or until it is dropped. Then every connection is cut.
    pub fn start(listener: TcpListener, service: ServeOptions, stop: &Stop) -> Result<Self> {
        let address = listener.local_addr().or_say(|| "Cannot tell the listener's address")?;
        let own = stop.child();
        socket::set_max_backlog(&listener);
        socket::set_accept_timeout(&listener, service.idle);
        let (accepting, thread_count) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let threads = ThreadGroup::default();
        let shared = Arc::new(ServerShared {
            listener,
            address,
            service,
            stop: own,
            accepting,
            thread_count,
            threads,
        });
        let waker = Arc::clone(&shared);
        // The cut for `accept`: once the stop flag is set, a connection of our own wakes it.
        let woken = shared.stop.on_stop(move || waker.wake());
        ServerShared::spawn(&shared)?;
        Ok(Self { shared, _woken: woken })
    }

    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.stop();
        // Each thread that waits in `accept` needs its own wake.
        self.shared.threads.join(|| self.shared.wake());
    }
}

impl ServerShared {
    fn wake(&self) {
        let _ = TcpStream::connect_timeout(&reached_locally(self.address), Duration::from_millis(100));
    }

    fn spawn(shared: &Arc<Self>) -> Result<()> {
        shared.accepting.fetch_add(1, Ordering::SeqCst);
        shared.thread_count.fetch_add(1, Ordering::SeqCst);
        let own = Arc::clone(shared);
        let spawned = shared.threads.spawn(shared.service.name, move || own.accept_and_serve());
        if spawned.is_err() {
            shared.accepting.fetch_sub(1, Ordering::SeqCst);
            shared.thread_count.fetch_sub(1, Ordering::SeqCst);
        }
        spawned
    }

    /// What one thread does until it ends. The thread already counts as accepting when this begins.
    ///
    /// It accepts a connection, makes sure that another thread accepts the next one, serves its own, and accepts again
    /// unless enough threads do.
    fn accept_and_serve(self: Arc<Self>) {
        let mut worker = (self.service.new_worker)();
        loop {
            let accepted = self.listener.accept();
            if self.stop.is_stopped() {
                break;
            }
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_timeout(&error) => {
                    self.threads.reap();
                    worker = (self.service.new_worker)();
                    if self.accepting.fetch_sub(1, Ordering::SeqCst) > 1 {
                        self.thread_count.fetch_sub(1, Ordering::SeqCst);
                        return;
                    }
                    self.accepting.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                Err(error) => {
                    log::warn!("{}: cannot accept a connection: {error}", self.service.name);
                    self.stop.wait_for(ACCEPT_PAUSE);
                    continue;
                }
            };
            if !self.hand_on_accepting(&stream) {
                continue;
            }
            if !self.serve(&mut worker, stream, peer.ip()) {
                worker = (self.service.new_worker)();
            }
            if self.accepting.fetch_add(1, Ordering::SeqCst) >= SPARE_THREADS {
                break;
            }
        }
        self.accepting.fetch_sub(1, Ordering::SeqCst);
        self.thread_count.fetch_sub(1, Ordering::SeqCst);
        self.threads.reap();
    }

    /// Before this thread serves a connection, another thread must accept. False if there can be none: then the connection
    /// is refused, and this thread goes back to accepting.
    fn hand_on_accepting(self: &Arc<Self>, stream: &TcpStream) -> bool {
        if self.accepting.fetch_sub(1, Ordering::SeqCst) > 1 {
            return true;
        }
        let full = self.thread_count.load(Ordering::SeqCst) > self.service.limit;
        let spawned = !full
            && Self::spawn(self).inspect_err(|error| log::warn!("{}: {error}", self.service.name)).is_ok();
        if spawned || self.make_room() {
            return true;
        }
        self.accepting.fetch_add(1, Ordering::SeqCst);
        (self.service.turn_away)(stream);
        false
    }

    /// Ends other connections, and waits until the thread of one of them accepts.
    fn make_room(&self) -> bool {
        let another_accepts = || {
            self.stop.wait_for(ROOM_POLL);
            self.accepting.load(Ordering::SeqCst) > 0
        };
        self.service.make_room.as_ref().is_some_and(|make_room| make_room())
            && (0..ROOM_POLLS).any(|_| another_accepts())
    }

    /// Serves one connection. False after a panic: the worker's state can no longer be trusted.
    fn serve(&self, worker: &mut Worker, stream: TcpStream, peer: IpAddr) -> bool {
        socket::prepare(&stream, peer);
        let stream = Arc::new(stream);
        let (cut, own) = (self.service.cut, Arc::clone(&stream));
        let Some(_attached) = self.stop.on_stop(move || cut(&own)) else { return true };
        let served = panic::catch_unwind(AssertUnwindSafe(|| worker(stream)));
        if served.is_err() {
            log::error!("{}: a bug of connect ended one connection; the others continue", self.service.name);
        }
        served.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::io::Write;

    fn echo_until_bang(limit: usize, stop: &Stop) -> Server {
        echo_with(limit, None, stop)
    }

    fn echo_with(limit: usize, idle: Option<Duration>, stop: &Stop) -> Server {
        let serve = |stream: Arc<TcpStream>| {
            // The listener's limit is not for reading.
            stream.set_read_timeout(None).unwrap();
            let mut byte = [0];
            while (&*stream).read_exact(&mut byte).is_ok() {
                assert_ne!(byte[0], b'!', "told to fail");
                (&*stream).write_all(&byte).unwrap();
            }
        };
        let turn_away = Box::new(|mut stream: &TcpStream| drop(stream.write_all(b"full")));
        let new_worker = each(serve);
        let service =
            ServeOptions { name: "echo", limit, new_worker, idle, cut: shut, make_room: None, turn_away };
        Server::start(TcpListener::bind("127.0.0.1:0").unwrap(), service, stop).unwrap()
    }

    fn echoed(stream: &mut TcpStream, byte: u8) -> Option<u8> {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(&[byte]).ok()?;
        let mut answer = [0];
        stream.read_exact(&mut answer).ok().map(|()| answer[0])
    }

    #[test]
    fn many_connections_are_served_at_once_and_a_panic_costs_one() {
        let server = echo_until_bang(100, &Stop::new());
        let mut streams: Vec<_> = (0..50).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
        for stream in &mut streams {
            assert_eq!(echoed(stream, b'a'), Some(b'a'));
        }
        assert_eq!(echoed(&mut streams[0], b'!'), None);
        assert_eq!(echoed(&mut streams[1], b'b'), Some(b'b'));
    }

    #[test]
    fn one_too_many_is_told_so_and_accepting_goes_on() {
        let server = echo_until_bang(2, &Stop::new());
        let mut streams: Vec<_> = (0..2).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
        for stream in &mut streams {
            assert_eq!(echoed(stream, b'a'), Some(b'a'));
        }
        let mut told = String::new();
        TcpStream::connect(server.address()).unwrap().read_to_string(&mut told).unwrap();
        assert_eq!(told, "full");
        drop(streams);
        let served =
            (0..1000).any(|_| echoed(&mut TcpStream::connect(server.address()).unwrap(), b'c') == Some(b'c'));
        assert!(served);
    }

    #[test]
    fn behind_a_burst_one_thread_stays_and_goes_on() {
        if !socket::ACCEPT_HONOURS_TIMEOUT {
            return;
        }
        let server = echo_with(100, Some(Duration::from_millis(50)), &Stop::new());
        let mut streams: Vec<_> = (0..20).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
        for stream in &mut streams {
            assert_eq!(echoed(stream, b'a'), Some(b'a'));
        }
        assert!(server.shared.thread_count.load(Ordering::SeqCst) > 20);
        drop(streams);
        let until = std::time::Instant::now() + Duration::from_secs(20);
        while server.shared.thread_count.load(Ordering::SeqCst) > 1 {
            assert!(std::time::Instant::now() < until, "threads stay");
            std::thread::yield_now();
        }
        assert_eq!(echoed(&mut TcpStream::connect(server.address()).unwrap(), b'b'), Some(b'b'));
    }

    #[test]
    fn a_stop_cuts_what_is_open_and_every_thread_is_joined() {
        let stop = Stop::new();
        let server = echo_until_bang(100, &stop);
        let mut streams: Vec<_> = (0..20).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
        for stream in &mut streams {
            assert_eq!(echoed(stream, b'a'), Some(b'a'));
        }
        stop.stop();
        let shared = Arc::clone(&server.shared);
        drop(server);
        assert_eq!(shared.thread_count.load(Ordering::SeqCst), 0);
        assert!(streams.iter_mut().all(|stream| echoed(stream, b'a').is_none()));
    }
}
