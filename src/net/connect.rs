//! Outgoing connections: every step has the same deadline, and a proxy is used where one is set.

use std::io;
use std::io::Read;
use std::io::Write;
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

use super::address::ProxyServer;
use super::address::bracketed;
use super::address::proxy_for;
use super::stop::Stop;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::OrSay;
use crate::error::Result;
use crate::http::head;
use crate::os::socket;

/// Every network step ends by then unless an option says otherwise.
pub const NETWORK_TIMEOUT: Duration = Duration::from_secs(10);
/// With several addresses, one that does not answer must leave time for the next.
const TIME_SHARE_PER_ADDRESS: u32 = 2;

/// A connection to `host`, straight or through the proxy that the environment names.
pub fn dial_hub(host: &str, port: u16, deadline: Instant, stop: &Stop) -> Result<Arc<TcpStream>> {
    match proxy_for(host, port)? {
        Some(proxy) => {
            let stream = dial_proxy(&proxy, deadline, stop)?;
            let cut = stop.attach(&stream).ok_or_else(Error::stopped)?;
            through_proxy(&stream, &proxy, (host, port), deadline)?;
            drop(cut);
            Ok(stream)
        }
        None => dial(host, port, deadline, stop),
    }
}

/// A connection by `deadline`; `stop` ends the attempt.
pub fn dial(host: &str, port: u16, deadline: Instant, stop: &Stop) -> Result<Arc<TcpStream>> {
    let addresses = resolve(host, port, deadline, stop)?;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for (index, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = if index + 1 < addresses.len() { left / TIME_SHARE_PER_ADDRESS } else { left };
        match socket::connect(*address, Instant::now() + share, &|| stop.is_stopped()) {
            Ok(stream) => {
                socket::prepare(&stream, address.ip());
                return Ok(Arc::new(stream));
            }
            Err(_) if stop.is_stopped() => return Err(Error::stopped()),
            Err(error) => last = error,
        }
    }
    let what = format!("Cannot connect to {}:{port}", bracketed(host));
    Err(Error::new(what).because(last).kind(ErrorKind::Unreachable))
}

/// The system's resolver has no deadline and no cut, so it runs in a thread of its own that is left to
/// itself when it takes too long or is not wanted any more.
pub fn resolve(host: &str, port: u16, deadline: Instant, stop: &Stop) -> Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    // Every new connection of a tunnel comes by here; both loopbacks are tried without asking anyone.
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![
            SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
        ]);
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

fn dial_proxy(proxy: &ProxyServer, deadline: Instant, stop: &Stop) -> Result<Arc<TcpStream>> {
    dial(&proxy.host, proxy.port, deadline, stop).map_err(|error| {
        error.hint(format!(
            "HTTPS_PROXY names {}:{}; unset it, or add the hub to NO_PROXY",
            proxy.host, proxy.port
        ))
    })
}

fn through_proxy(
    mut stream: &TcpStream,
    proxy: &ProxyServer,
    (host, port): (&str, u16),
    deadline: Instant,
) -> Result<()> {
    let authority = format!("{}:{port}", bracketed(host));
    let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
    if let Some(authorization) = &proxy.authorization {
        request.push_str(&format!("Proxy-Authorization: {authorization}\r\n"));
    }
    request.push_str("\r\n");
    let said = || format!("The proxy {}:{} does not answer", proxy.host, proxy.port);
    set_deadline(stream, deadline).and_then(|()| stream.write_all(request.as_bytes())).or_say(said)?;
    let status = read_status(stream, deadline).or_say(said)?;
    if !(200..300).contains(&status) {
        return Err(Error::new(format!(
            "The proxy {}:{} refused with status {status}",
            proxy.host, proxy.port
        ))
        .hint(format!("Allow {authority} on the proxy, or add it to NO_PROXY"))
        .kind(ErrorKind::Unreachable));
    }
    Ok(())
}

/// Reads a proxy's answer byte by byte: what comes behind it belongs to the tunnel and must stay in the socket.
fn read_status(stream: &TcpStream, deadline: Instant) -> io::Result<u16> {
    let mut answer = Vec::new();
    let mut byte = [0];
    loop {
        set_deadline(stream, deadline)?;
        (&*stream).read_exact(&mut byte)?;
        answer.push(byte[0]);
        if answer.len() > head::HEAD_LIMIT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is too long"));
        }
        if byte[0] == b'\n' {
            let parsed = head::parse_response(&answer);
            if let Some(response) =
                parsed.map_err(|bad| io::Error::new(io::ErrorKind::InvalidData, bad.reason()))?
            {
                return Ok(response.status);
            }
        }
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

/// They wait for as long as it takes again.
pub fn clear_deadline(socket: &TcpStream) -> io::Result<()> {
    socket.set_read_timeout(None)?;
    socket.set_write_timeout(None)
}

/// What is told of such an error; the system's words for a time that is up are `Resource temporarily unavailable`.
pub fn timeout_in_words(error: io::Error) -> io::Error {
    if is_timeout(&error) {
        io::Error::new(io::ErrorKind::TimedOut, "it did not answer in time")
    } else {
        error
    }
}

/// Whether a read or write failed because its time was up: systems name it in two ways.
pub fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}
