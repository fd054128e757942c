//! `--audit-to`: sends each line of the audit log to a collector, as RFC 5424 syslog with the line as its message.
//!
//! Nothing waits for the collector. Lines queue while it is away; what does not fit is lost for it, not for the log, and
//! counted. The lines carry the chain, so the collector can tell as well what it has missed.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;
use std::time::Instant;

use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::host_port::HostPort;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::connect::dial;
use crate::net::stop::Stop;
use crate::net::threads::ThreadGroup;
use crate::os::clock;
use crate::os::socket;
use crate::os::user;
use crate::state::chained_log::OnWritten;

/// Lines that wait for the collector: some megabytes.
const FORWARD_QUEUE: usize = 8192;
/// How long until the next attempt to reach the collector.
const FORWARD_RETRY: Duration = Duration::from_secs(1);
/// A collector that accepts nothing for this long is left, and another connection is made. The end of the hub may wait for it.
const FORWARD_TIMEOUT: Duration = Duration::from_millis(500);
/// What is queued when the hub stops is sent within this time, or stays in the log only. The log says so.
const LAST_LINES_TIMEOUT: Duration = Duration::from_millis(500);
/// The longest that RFC 5424 allows.
const HOSTNAME_LENGTH: usize = 255;
/// Facility 13, log audit; severity 5, notice.
const SYSLOG_PRIORITY: u8 = 13 * 8 + 5;

#[derive(Clone)]
pub enum AuditTarget {
    /// A datagram for each message, as `/dev/log` takes them.
    Syslog(PathBuf),
    /// A stream, with each message's length before it (RFC 6587).
    Unix(PathBuf),
    Tcp(HostPort),
}

impl AuditTarget {
    pub fn parse(text: &str) -> Result<Self> {
        let absolute = |path: &str| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
        let target = match text.split_once(':') {
            Some(("syslog", path)) => absolute(path).map(Self::Syslog),
            Some(("unix", path)) => absolute(path).map(Self::Unix),
            Some(("tcp", at)) => at.strip_prefix("//").and_then(|at| HostPort::parse(at, 0)).map(Self::Tcp),
            _ => None,
        };
        let is_whole = |target: &Self| !matches!(target, Self::Tcp(at) if at.port == 0);
        target.filter(is_whole).ok_or_else(|| {
            Error::misread(text, "is not a collector")
                .hint("Write it like syslog:/dev/log, tcp://HOST:PORT or unix:/run/collector.sock")
        })
    }

    /// All three are written to in the same way, as the descriptors that they are.
    fn connect(&self, stop: &Stop) -> Result<Collector> {
        let connected = match self {
            Self::Syslog(path) => {
                UnixDatagram::unbound().and_then(|socket| socket.connect(path).map(|()| socket.into()))
            }
            Self::Unix(path) => socket::connect_local(path),
            Self::Tcp(at) => {
                let stream = dial(&at.host, at.port, Instant::now() + NETWORK_TIMEOUT, stop)?;
                stream.try_clone().map(OwnedFd::from)
            }
        };
        let socket = TcpStream::from(connected.or_say(|| "Cannot connect")?);
        socket.set_write_timeout(Some(FORWARD_TIMEOUT)).or_say(|| "Cannot connect")?;
        Ok(Collector { socket, is_stream: !matches!(self, Self::Syslog(_)) })
    }
}

struct Collector {
    socket: TcpStream,
    is_stream: bool,
}

impl Collector {
    fn send(&mut self, message: &str) -> io::Result<()> {
        self.socket.set_nonblocking(true)?;
        let read = self.socket.read(&mut [0]);
        self.socket.set_nonblocking(false)?;
        check_open(read)?;
        let framed = if self.is_stream { format!("{} {message}", message.len()) } else { message.to_owned() };
        self.socket.write_all(framed.as_bytes())
    }
}

/// The first write to a collector that has ended would succeed, and its line would be lost uncounted.
fn check_open(read: io::Result<usize>) -> io::Result<()> {
    match read {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}

/// Sends until it is dropped. The log's writer holds the other end of the queue, and ends first if its disk answers.
pub struct AuditForwarder {
    state: Arc<ForwardState>,
    stop: Stop,
    threads: ThreadGroup,
}

#[derive(Default)]
struct ForwardState {
    lost: AtomicU64,
    is_away: AtomicBool,
}

impl AuditForwarder {
    /// Returns also what takes each line.
    pub fn start(target: AuditTarget) -> Result<(Self, OnWritten)> {
        let (queue, lines) = mpsc::sync_channel::<String>(FORWARD_QUEUE);
        let (state, stop, threads) = (Arc::<ForwardState>::default(), Stop::new(), ThreadGroup::default());
        let (sending, stopped) = (Arc::clone(&state), stop.clone());
        threads.spawn("audit-forward", move || send_all(&target, &lines, &sending, &stopped))?;
        let counting = Arc::clone(&state);
        let take = move |line: &str| {
            if queue.try_send(line.to_owned()).is_err() {
                counting.lost.fetch_add(1, Ordering::Relaxed);
            }
        };
        Ok((Self { state, stop, threads }, Box::new(take)))
    }

    /// How many lines were lost since the last call, if the collector takes lines again or if the report `is_due`. The loss of
    /// such a report is not worth another one.
    pub fn take_lost(&self, is_due: bool) -> u64 {
        let ForwardState { lost, is_away } = &*self.state;
        let is_worth_it = !is_away.load(Ordering::Relaxed) || (is_due && lost.load(Ordering::Relaxed) > 1);
        if is_worth_it { lost.swap(0, Ordering::Relaxed) } else { 0 }
    }
}

impl Drop for AuditForwarder {
    fn drop(&mut self) {
        self.threads.join_within(LAST_LINES_TIMEOUT);
        self.stop.stop();
        self.threads.join(|| ());
    }
}

fn send_all(target: &AuditTarget, lines: &Receiver<String>, state: &ForwardState, stop: &Stop) {
    let host: String =
        user::hostname().chars().filter(char::is_ascii_graphic).take(HOSTNAME_LENGTH).collect();
    let sender = format!("{host} connect {} audit -", process::id());
    let mut collector: Option<Collector> = None;
    let mut is_sent = |message: &str| {
        let connected = collector.take().map_or_else(|| target.connect(stop), Ok);
        let sent = connected.and_then(|mut connected| {
            connected.send(message).or_say(|| "Cannot send")?;
            collector = Some(connected);
            Ok(())
        });
        let was_away = state.is_away.swap(sent.is_err(), Ordering::Relaxed);
        match &sent {
            Ok(()) if was_away => log::warn!("the audit log's collector is reached"),
            Err(error) if !was_away => {
                log::warn!("the audit log's collector is not reached, lines wait: {error}");
            }
            _ => {}
        }
        sent.is_ok()
    };
    let mut left = 0;
    while let Some(line) = next_line(lines, stop) {
        let message = format!("<{SYSLOG_PRIORITY}>1 {} {sender} {line}", clock::stamp());
        while left == 0 && !is_sent(&message) {
            left = usize::from(stop.wait_for(FORWARD_RETRY));
        }
    }
    left += lines.try_iter().count();
    if left > 0 {
        log::warn!("the audit log's collector has not got the last {left} lines");
    }
}

/// `None` when no more lines come, or when it is time to stop.
fn next_line(lines: &Receiver<String>, stop: &Stop) -> Option<String> {
    while !stop.is_stopped() {
        match lines.recv_timeout(FORWARD_RETRY) {
            Err(RecvTimeoutError::Timeout) => {}
            received => return received.ok(),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::files;
    use crate::os::secret;
    use nix::sys::socket::Backlog;
    use nix::sys::socket::listen;
    use std::io::BufRead;
    use std::io::BufReader;
    use std::os::unix::net::UnixListener;
    use std::thread;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A collector that accepts nothing, in whose queue is room for one connection.
    fn hanging() -> (UnixListener, AuditTarget) {
        let folder = std::env::temp_dir().join(secret::id("connect-collector"));
        files::private_dir(&folder).unwrap();
        let path = folder.join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        (listener, AuditTarget::Unix(path))
    }

    /// How many whole records come on one connection.
    fn received(stream: impl Read) -> u64 {
        let mut reader = BufReader::new(stream);
        for count in 0.. {
            let mut length = Vec::new();
            reader.read_until(b' ', &mut length).unwrap();
            let length = String::from_utf8(length).unwrap().trim().parse().unwrap_or(0);
            let mut record = vec![0; length];
            if length == 0 || reader.read_exact(&mut record).is_err() {
                return count;
            }
        }
        0
    }

    #[test]
    fn what_a_hanging_collector_misses_is_counted_and_nobody_waits_for_it() {
        let (listener, target) = hanging();
        let (forwarder, take) = AuditForwarder::start(target).unwrap();
        let total = 3 * FORWARD_QUEUE as u64;
        let began = Instant::now();
        for _ in 0..total {
            take(&"x".repeat(400));
        }
        assert!(began.elapsed() < PATIENCE / 3, "{:?}", began.elapsed());
        let lost = forwarder.state.lost.load(Ordering::Relaxed);
        assert!((1..=total - FORWARD_QUEUE as u64).contains(&lost), "{lost}");
        assert_eq!((forwarder.take_lost(true), forwarder.take_lost(true)), (lost, 0));
        // It takes lines again: those that waited, and no others.
        drop(take);
        let reading = thread::spawn(move || {
            let mut all = 0;
            while all + lost < total {
                all += received(listener.accept().unwrap().0);
            }
            all
        });
        assert!(forwarder.threads.join_within(PATIENCE), "not all is sent");
        drop(forwarder);
        assert_eq!(reading.join().unwrap() + lost, total);
    }

    #[test]
    fn the_end_waits_for_no_collector_and_not_for_a_log_that_cannot_end() {
        let (_listener, target) = hanging();
        let _first = target.connect(&Stop::new()).unwrap();
        let (forwarder, take) = AuditForwarder::start(target).unwrap();
        take("x");
        let (end, ended) = mpsc::channel();
        thread::spawn(move || {
            drop(forwarder);
            end.send(()).unwrap();
        });
        ended.recv_timeout(PATIENCE / 3).expect("it waits");
        drop(take);
    }
}
