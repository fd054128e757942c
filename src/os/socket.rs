//! Options of TCP sockets that the standard library does not set.

#[cfg(target_os = "linux")]
use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use nix::errno::Errno;
use nix::libc;
use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;
use nix::sys::socket::Backlog;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::getsockopt;
use nix::sys::socket::listen;
use nix::sys::socket::recv;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;
use nix::sys::time::TimeVal;

/// After this much silence the kernel asks whether the peer is there.
const KEEPALIVE_IDLE: u32 = 15;
const KEEPALIVE_INTERVAL: u32 = 5;
const KEEPALIVE_COUNT: u32 = 3;
/// If data stays unacknowledged this long, the peer's machine is gone: a laptop asleep, a cable pulled.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(25);
/// How often a waiting read checks whether its peer is still there.
const LIVENESS_POLL: Duration = Duration::from_secs(5);

/// Sends small writes without delay, and turns keepalive on, so that a peer that died without a FIN is noticed. A peer
/// on this machine cannot die without one. Its path cannot be congested either, so it gets no congestion control that
/// paces (BBR) and only adds delay. If an option cannot be set, the connection works without it.
pub fn prepare(socket: &TcpStream, peer: IpAddr) {
    let _ = socket.set_nodelay(true);
    if peer.is_loopback() {
        #[cfg(target_os = "linux")]
        let _ = setsockopt(socket, sockopt::TcpCongestion, &OsString::from("reno"));
        return;
    }
    let _ = setsockopt(socket, sockopt::KeepAlive, &true);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let _ = setsockopt(socket, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE);
    #[cfg(any(target_os = "macos", target_os = "ios"))]
    let _ = setsockopt(socket, sockopt::TcpKeepAlive, &KEEPALIVE_IDLE);
    let _ = setsockopt(socket, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL);
    let _ = setsockopt(socket, sockopt::TcpKeepCount, &KEEPALIVE_COUNT);
}

/// Lets the system queue as many connections as it can before `accept`. In a burst, a full queue costs the client a
/// second until it tries again.
pub fn set_max_backlog(listener: &TcpListener) {
    let _ = listen(listener, Backlog::MAXCONN);
}

/// Whether `SO_RCVTIMEO` applies to `accept` on this system.
#[cfg(test)]
pub const ACCEPT_HONOURS_TIMEOUT: bool = cfg!(target_os = "linux");

/// `accept` returns after this time without a connection. Accepted sockets inherit it as their read timeout.
pub fn set_accept_timeout(listener: &TcpListener, patience: Option<Duration>) {
    let Some(patience) = patience else { return };
    let seconds = i64::try_from(patience.as_secs()).unwrap_or(i64::MAX);
    let limit = TimeVal::new(seconds, patience.subsec_micros().into());
    let _ = setsockopt(listener, sockopt::ReceiveTimeout, &limit);
}

/// From now on a read of this socket times out at intervals, so that the caller can ask `peer_alive_after`.
pub fn set_liveness_poll(socket: &TcpStream) {
    let _ = socket.set_read_timeout(Some(LIVENESS_POLL));
}

/// After a failed read: whether to read again, because only the liveness poll ended it and the peer is there.
pub fn peer_alive_after(socket: &TcpStream, error: &io::Error) -> bool {
    match error.kind() {
        io::ErrorKind::Interrupted => true,
        io::ErrorKind::WouldBlock => !is_lost(socket),
        _ => false,
    }
}

/// Keepalive probes only an idle connection, and `TCP_USER_TIMEOUT` would also end one whose reader merely pauses. So
/// we read the kernel's state: a live peer acknowledges each retransmission before the next one is due.
#[cfg(target_os = "linux")]
fn is_lost(socket: &TcpStream) -> bool {
    /// The beginning of the kernel's `tcp_info`, the same since 2.6: eight bytes of flags, then numbers.
    type Info = [u32; 26];
    const NEXT_REPETITION: usize = 2;
    const UNACKNOWLEDGED: usize = 6;
    const SINCE_ACKNOWLEDGED: usize = 14;
    #[derive(Clone, Copy)]
    struct TcpInfo;
    nix::getsockopt_impl!(TcpInfo, libc::IPPROTO_TCP, libc::TCP_INFO, Info, sockopt::GetStruct<Info>);

    getsockopt(socket, TcpInfo).is_ok_and(|info| {
        let silent = Duration::from_millis(info[SINCE_ACKNOWLEDGED].into());
        let next = Duration::from_micros(info[NEXT_REPETITION].into());
        info[UNACKNOWLEDGED] > 0 && silent > UNACKNOWLEDGED_LIMIT && silent > next + next / 2
    })
}

#[cfg(not(target_os = "linux"))]
fn is_lost(_: &TcpStream) -> bool {
    false
}

/// Connects to a local socket. Where the system would wait for a full queue to get room, this fails.
pub fn connect_local(path: &Path) -> io::Result<OwnedFd> {
    #[cfg(target_os = "linux")]
    {
        use nix::sys::socket;

        let flags = socket::SockFlag::SOCK_CLOEXEC | socket::SockFlag::SOCK_NONBLOCK;
        let own = socket::socket(socket::AddressFamily::Unix, socket::SockType::Stream, flags, None)?;
        socket::connect(own.as_raw_fd(), &socket::UnixAddr::new(path)?)?;
        Ok(own)
    }
    #[cfg(not(target_os = "linux"))]
    std::os::unix::net::UnixStream::connect(path).map(OwnedFd::from)
}

/// How often a pending connect checks whether it was stopped.
const CONNECT_STOP_POLL: Duration = Duration::from_millis(50);

/// Connects by `deadline`; gives up as soon as `stopped` returns true.
#[cfg(target_os = "linux")]
pub fn connect(address: SocketAddr, deadline: Instant, stopped: &dyn Fn() -> bool) -> io::Result<TcpStream> {
    use nix::sys::socket;

    let family = if address.is_ipv4() { socket::AddressFamily::Inet } else { socket::AddressFamily::Inet6 };
    let flags = socket::SockFlag::SOCK_CLOEXEC | socket::SockFlag::SOCK_NONBLOCK;
    let own = socket::socket(family, socket::SockType::Stream, flags, None)?;
    match socket::connect(own.as_raw_fd(), &socket::SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).min(CONNECT_STOP_POLL);
        let mut waiting = [PollFd::new(own.as_fd(), PollFlags::POLLOUT)];
        let slice = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut waiting, slice) {
            Ok(1..) => break,
            Ok(_) if stopped() => return Err(io::ErrorKind::Interrupted.into()),
            Ok(_) if left.is_zero() => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let stream = TcpStream::from(own);
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    // A connect to a free loopback port can get that port as its own and connect to itself.
    if address.ip().is_loopback() && stream.local_addr()? == address {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// On other systems a pending connect is not stopped; it ends at its deadline.
#[cfg(not(target_os = "linux"))]
pub fn connect(address: SocketAddr, deadline: Instant, _: &dyn Fn() -> bool) -> io::Result<TcpStream> {
    let left = deadline.saturating_duration_since(Instant::now());
    TcpStream::connect_timeout(&address, left.max(CONNECT_STOP_POLL))
}

/// Whether `reset_on_close` was called for this socket.
pub fn resets_on_close(socket: &TcpStream) -> bool {
    getsockopt(socket, sockopt::Linger).is_ok_and(|linger| linger.l_onoff != 0 && linger.l_linger == 0)
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    Readable,
    WatcherClosed,
    TimedOut,
}

/// Linux reports the peer's FIN even while unread data is queued; on other systems that data hides it.
#[cfg(target_os = "linux")]
const PEER_CLOSED: PollFlags = PollFlags::from_bits_retain(libc::POLLRDHUP);
#[cfg(not(target_os = "linux"))]
const PEER_CLOSED: PollFlags = PollFlags::POLLHUP;

/// Waits until `socket` can be read. Ends early if the peer of `watcher`, which the data is for, closes first.
pub fn wait_for_data(socket: &TcpStream, watcher: &TcpStream, patience: Duration) -> io::Result<Wakeup> {
    let mut both =
        [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(watcher.as_fd(), PEER_CLOSED)];
    let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    match poll(&mut both, patience) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    // nix has no name for POLLRDHUP and returns None if it is set.
    let [data, left] = both.map(|one| one.revents().is_none_or(|seen| !seen.is_empty()));
    Ok(match (data, left) {
        (true, _) => Wakeup::Readable,
        (_, true) => Wakeup::WatcherClosed,
        _ => Wakeup::TimedOut,
    })
}

/// Copies what has arrived without taking it from the socket; zero bytes if nothing has.
pub fn peek(socket: &TcpStream, room: &mut [u8]) -> usize {
    recv(socket.as_raw_fd(), room, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT).unwrap_or(0)
}

/// Whether an idle connection can be used again: it is open, and the peer has sent nothing unasked.
pub fn is_idle_and_open(socket: &TcpStream) -> bool {
    let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    recv(socket.as_raw_fd(), &mut [0], peek) == Err(Errno::EAGAIN)
}

/// Makes the last close of this socket send a reset, which tells the peer that data was lost.
pub fn reset_on_close(socket: &TcpStream) {
    let _ = setsockopt(socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
}
