//! TCP connections to a host, and the deadlines of sockets. Every step of one attempt has the same deadline.

use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use super::stop::Stop;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::host_port::bracketed;
use crate::os::socket;

/// The time limit of a network step, unless an option sets another.
pub const NETWORK_TIMEOUT: Duration = Duration::from_secs(10);
/// With several addresses, each attempt gets at most this fraction of the time left, so that an address that does not
/// answer leaves time for the next.
const TIME_SHARE_PER_ADDRESS: u32 = 2;

/// Connects by `deadline`. `stop` ends the attempt.
pub fn dial(host: &str, port: u16, deadline: Instant, stop: &Stop) -> Result<Arc<TcpStream>> {
    let addresses = resolve(host, port, deadline, stop)?;
    dial_first(&addresses, deadline, stop).map_err(|error| {
        if stop.is_stopped() {
            return Error::stopped();
        }
        let what = format!("Cannot connect to {}:{port}", bracketed(host));
        Error::new(what).because(error).kind(ErrorKind::Unreachable)
    })
}

/// Both loopback addresses: a listener may have either.
pub fn loopbacks(port: u16) -> [SocketAddr; 2] {
    [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))]
}

/// Where the machine itself reaches a listener. One for all addresses is reached over the loopback.
pub fn reached_locally(mut listener: SocketAddr) -> SocketAddr {
    if listener.ip().is_unspecified() {
        listener.set_ip(match listener {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    listener
}

/// Connects to the first of these addresses that accepts. If none does, the error is that of the first.
pub fn dial_first(addresses: &[SocketAddr], deadline: Instant, stop: &Stop) -> io::Result<Arc<TcpStream>> {
    let (mut first_error, began) = (None, Instant::now());
    for (index, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = if index + 1 < addresses.len() { left / TIME_SHARE_PER_ADDRESS } else { left };
        match socket::connect(*address, Instant::now() + share, &|| stop.is_stopped()) {
            Ok(stream) => {
                socket::prepare(&stream, address.ip());
                log::debug!("connected to {address} in {} ms", began.elapsed().as_millis());
                return Ok(Arc::new(stream));
            }
            Err(error) => first_error = first_error.or(Some(error)),
        }
        if stop.is_stopped() {
            break;
        }
    }
    Err(first_error.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
}

/// The system's resolver has no deadline and cannot be interrupted, so it runs in a thread of its own. If it takes too
/// long or the caller stops, that thread is abandoned: it ends when the resolver returns.
pub fn resolve(host: &str, port: u16, deadline: Instant, stop: &Stop) -> Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    // Every new connection of a tunnel resolves its target, so `localhost` must not need the resolver.
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(loopbacks(port).to_vec());
    }
    let unresolved = |why: String| {
        Error::new(format!("Cannot find the address of {host}"))
            .because(why)
            .hint(format!("Check the name, or look it up: getent hosts {host}"))
            .kind(ErrorKind::Unreachable)
    };
    let (answer, wait) = mpsc::sync_channel(1);
    let (name, cut) = (host.to_owned(), answer.clone());
    let thread = thread::Builder::new().name("resolve".into()).spawn(move || {
        let _ = answer.try_send((name.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>));
    });
    thread.or_say(|| "Cannot start a thread")?;
    let woken = stop.on_stop(move || drop(cut.try_send(Err(io::ErrorKind::Interrupted.into()))));
    let _woken = woken.ok_or_else(Error::stopped)?;
    match wait.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(Ok(addresses)) if !addresses.is_empty() => Ok(addresses),
        Ok(Ok(_)) => Err(unresolved("it has none".into())),
        Ok(Err(error)) => Err(unresolved(error.to_string())),
        Err(_) => Err(unresolved("the resolver did not answer in time".into())),
    }
}

/// The socket's next reads and writes end at `deadline`.
pub fn set_deadline(socket: &TcpStream, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    socket.set_read_timeout(Some(left))?;
    socket.set_write_timeout(Some(left))
}

/// Removes the read and write timeouts.
pub fn clear_deadline(socket: &TcpStream) -> io::Result<()> {
    socket.set_read_timeout(None)?;
    socket.set_write_timeout(None)
}

/// Whether a read or write timed out. Systems report that in two ways.
pub fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}
