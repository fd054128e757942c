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
/// When nothing of what was sent has been acknowledged for so long, the peer's machine is gone: a laptop that
/// slept, a cable pulled.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(25);
/// So often a read that waits looks whether it waits for somebody.
const LIVENESS_POLL: Duration = Duration::from_secs(5);

/// No delay for small writes, and a dead peer is noticed though it sent no FIN; a peer on this machine does
/// not die without one, and nothing on the way to it gets congested: where the system's choice is to pace what it
/// sends (BBR), that only waits. Failing to set an option costs only that option.
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

/// As many may wait for `accept` as the system lets them, so that none of a burst has to knock again a second later.
pub fn set_max_backlog(listener: &TcpListener) {
    let _ = listen(listener, Backlog::MAXCONN);
}

/// Whether `accept` heeds a limit here; elsewhere it waits on.
#[cfg(test)]
pub const ACCEPT_HONOURS_TIMEOUT: bool = cfg!(target_os = "linux");

/// `accept` gives up after so long, and reads of what it accepts as well, until they get a limit of their own.
pub fn set_accept_timeout(listener: &TcpListener, patience: Option<Duration>) {
    let Some(patience) = patience else { return };
    let seconds = i64::try_from(patience.as_secs()).unwrap_or(i64::MAX);
    let limit = TimeVal::new(seconds, patience.subsec_micros().into());
    let _ = setsockopt(listener, sockopt::ReceiveTimeout, &limit);
}

/// From here on a read of this socket returns now and then without data, so that `peer_alive_after` can be asked.
pub fn set_liveness_poll(socket: &TcpStream) {
    let _ = socket.set_read_timeout(Some(LIVENESS_POLL));
}

/// After a read that failed: whether to read on, because only the glance's time was up and the peer is there.
pub fn peer_alive_after(socket: &TcpStream, error: &io::Error) -> bool {
    match error.kind() {
        io::ErrorKind::Interrupted => true,
        io::ErrorKind::WouldBlock => !is_lost(socket),
        _ => false,
    }
}

/// Keepalive asks only while nothing is on its way, and `TCP_USER_TIMEOUT` also ends a connection whose reader
/// merely pauses. A peer that is there answers each repetition, before the time for the next one is up.
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

/// How often a connection that is being made looks whether it is still wanted.
const CONNECT_STOP_POLL: Duration = Duration::from_millis(50);

/// Connects by `deadline`, or gives up as soon as `stopped` says so.
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
    // Between two loopback ports of which nobody listens on the one, a connection can meet itself.
    if address.ip().is_loopback() && stream.local_addr()? == address {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Connects to a listener on this machine: the system does that within the call, which a wait for readiness
/// would only make longer. A listener whose queue is full is waited for.
#[cfg(target_os = "linux")]
pub fn connect_local(address: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    use nix::sys::socket;

    let family = if address.is_ipv4() { socket::AddressFamily::Inet } else { socket::AddressFamily::Inet6 };
    let flags = socket::SockFlag::SOCK_CLOEXEC;
    let own = TcpStream::from(socket::socket(family, socket::SockType::Stream, flags, None)?);
    own.set_write_timeout(Some(patience))?;
    match socket::connect(own.as_raw_fd(), &socket::SockaddrStorage::from(address)) {
        Ok(()) => Ok(own),
        Err(Errno::EINPROGRESS) => Err(io::ErrorKind::TimedOut.into()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
pub fn connect_local(address: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&address, patience)
}

/// Elsewhere a connection that is being made is not cut; it ends at its deadline.
#[cfg(not(target_os = "linux"))]
pub fn connect(address: SocketAddr, deadline: Instant, _: &dyn Fn() -> bool) -> io::Result<TcpStream> {
    let left = deadline.saturating_duration_since(Instant::now());
    TcpStream::connect_timeout(&address, left.max(CONNECT_STOP_POLL))
}

/// Whether `reset_on_close` was said of this socket.
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

/// Linux tells of a peer's end even while there is data in front of it; elsewhere data hides it.
#[cfg(target_os = "linux")]
const PEER_CLOSED: PollFlags = PollFlags::from_bits_retain(libc::POLLRDHUP);
#[cfg(not(target_os = "linux"))]
const PEER_CLOSED: PollFlags = PollFlags::POLLHUP;

/// Waits until `socket` can be read, unless the peer of `watcher`, for whom it is read, leaves before.
pub fn wait_for_data(socket: &TcpStream, watcher: &TcpStream, patience: Duration) -> io::Result<Wakeup> {
    let mut both =
        [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(watcher.as_fd(), PEER_CLOSED)];
    let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
    match poll(&mut both, patience) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    // nix has no name for POLLRDHUP and says None when it is among the answers.
    let [data, left] = both.map(|one| one.revents().is_none_or(|seen| !seen.is_empty()));
    Ok(match (data, left) {
        (true, _) => Wakeup::Readable,
        (_, true) => Wakeup::WatcherClosed,
        _ => Wakeup::TimedOut,
    })
}

/// What is here to be read by now, without taking it; nothing is no error.
pub fn peek(socket: &TcpStream, room: &mut [u8]) -> usize {
    recv(socket.as_raw_fd(), room, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT).unwrap_or(0)
}

/// Whether a connection that rests is still open, with nothing said that nobody asked for.
pub fn is_idle_and_open(socket: &TcpStream) -> bool {
    let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    recv(socket.as_raw_fd(), &mut [0], peek) == Err(Errno::EAGAIN)
}

/// The last close of this socket will be a reset, which tells the peer that its data did not all arrive.
pub fn reset_on_close(socket: &TcpStream) {
    let _ = setsockopt(socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
}

/// The user at the other end of a connection that does not leave this machine; `None` where that cannot
/// be known, as when nobody holds that end any more: what is left of it is listed without an inode, and as root's.
#[cfg(target_os = "linux")]
pub fn peer_uid(local: SocketAddr, peer: SocketAddr) -> Option<u32> {
    // The peer's socket has our peer address as its local one. All in hexadecimal, host byte order.
    let (ours, theirs) = (proc_address(peer)?, proc_address(local)?);
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let matches = fields.next()? == ours && fields.next()? == theirs;
        let (user, inode) = if matches { (fields.nth(4)?, fields.nth(1)?) } else { return None };
        if inode == "0" { None } else { user.parse().ok() }
    })
}

#[cfg(not(target_os = "linux"))]
pub fn peer_uid(_: SocketAddr, _: SocketAddr) -> Option<u32> {
    None
}

#[cfg(target_os = "linux")]
fn proc_address(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(address) = address else { return None };
    Some(format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_user_behind_a_loopback_connection_is_known() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, peer) = listener.accept().unwrap();
        assert_eq!(peer_uid(server.local_addr().unwrap(), peer), Some(nix::unistd::getuid().as_raw()));
        assert_eq!(peer_uid(peer, "127.0.0.1:1".parse().unwrap()), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_connection_that_its_maker_let_go_of_is_nobodys_not_roots() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        drop(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let (server, peer) = listener.accept().unwrap();
        assert_eq!(peer_uid(server.local_addr().unwrap(), peer), None);
    }
}
