//! The listening socket that a service manager keeps for this program across restarts. It passes it as the program's
//! stdin (`StandardInput=socket`), the one descriptor that can be taken over without `unsafe`.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::net::ToSocketAddrs;
use std::os::fd::AsFd;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt;

/// Listens on this address: with the passed socket, else with one of our own.
pub fn listen(host: &str, port: u16) -> io::Result<TcpListener> {
    let stdin = io::stdin();
    // Anything else at stdin is not for us, even a socket, as sshd passes one.
    if !getsockopt(&stdin, sockopt::AcceptConn).is_ok_and(|listens| listens) {
        return TcpListener::bind((host, port));
    }
    let listener = TcpListener::from(stdin.as_fd().try_clone_to_owned()?);
    // Programs that this one starts would inherit it.
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    let address = listener
        .local_addr()
        .map_err(|_| io::Error::other("the socket that was passed as stdin is not TCP"))?;
    let is_meant = (host, port)
        .to_socket_addrs()?
        .any(|wanted| wanted.ip() == address.ip() && [0, address.port()].contains(&wanted.port()));
    if !is_meant {
        let what = "the socket that was passed as stdin listens on";
        return Err(io::Error::other(format!(
            "{what} {address}; ListenStream= has to name the same address"
        )));
    }
    // systemd makes it non-blocking.
    listener.set_nonblocking(false)?;
    Ok(listener)
}
