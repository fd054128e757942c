//! Whose connection it is: the user at the other end of a connection within this machine, as the kernel reports.
//!
//! Linux is asked for exactly that connection (`sock_diag(7)`), which costs two system calls, however many connections
//! the machine has. Other systems do not tell.

use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;

use super::user;

/// Whether this system tells at all. Tried with a connection of our own: a container may forbid the question.
pub fn is_known_here() -> bool {
    let connect = || {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        Ok::<_, std::io::Error>((listener.accept()?.0, client))
    };
    connect().is_ok_and(|(accepted, _client)| same_user(&accepted))
}

/// Whether the other end belongs to the user that this process runs for, or to root. No, if that cannot be known.
pub fn same_user(accepted: &TcpStream) -> bool {
    peer_of(accepted).is_some_and(|uid| uid == user::uid() || uid == 0 || user::by_sudo() == Some(uid))
}

/// Whether a process still holds the other end: one that has closed it altogether is told from one that only writes no
/// more. No, if that cannot be known.
pub fn is_held(accepted: &TcpStream) -> bool {
    peer_of(accepted).is_some()
}

fn peer_of(accepted: &TcpStream) -> Option<u32> {
    peer_uid(accepted.local_addr().ok()?, accepted.peer_addr().ok()?)
}

/// The user who holds the other end. `None` if nobody does any more: the kernel then reports root.
#[cfg(target_os = "linux")]
fn peer_uid(local: SocketAddr, peer: SocketAddr) -> Option<u32> {
    sock_diag::owner(peer, local)
}

#[cfg(not(target_os = "linux"))]
fn peer_uid(_: SocketAddr, _: SocketAddr) -> Option<u32> {
    None
}

#[cfg(target_os = "linux")]
mod sock_diag {
    use std::cell::Cell;
    use std::fs::File;
    use std::io::Read;
    use std::io::Write;
    use std::net::IpAddr;
    use std::net::SocketAddr;

    use nix::libc;
    use nix::sys::socket::AddressFamily;
    use nix::sys::socket::SockFlag;
    use nix::sys::socket::SockProtocol;
    use nix::sys::socket::SockType;
    use nix::sys::socket::socket;

    // From linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h. Numbers are in the host's order, ports and
    // addresses in the network's.
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLM_F_REQUEST: u16 = 1;
    const NO_COOKIE: [u8; 8] = [0xff; 8];
    const ALL_STATES: u32 = u32::MAX;
    const HEADER_SIZE: usize = 16;
    const REQUEST_SIZE: usize = HEADER_SIZE + 56;
    const ANSWER_SIZE: usize = HEADER_SIZE + 72;
    const ANSWER_STATE: usize = HEADER_SIZE + 1;
    const ANSWER_ENDS: usize = HEADER_SIZE + 4;
    const ANSWER_UID: usize = HEADER_SIZE + 64;
    const ANSWER_INODE: usize = HEADER_SIZE + 68;
    /// ESTABLISHED, and `FIN_WAIT1` and 2: a client may end its own direction first. In every other state the socket may
    /// be a later one at the same address: if there is no connection, the kernel answers for a listener.
    const OPEN_STATES: [u8; 3] = [1, 4, 5];

    thread_local! {
        /// Kept by each thread, since opening one costs more than the question.
        static KERNEL: Cell<Option<File>> = const { Cell::new(None) };
    }

    /// The user who holds the socket with these ends.
    pub fn owner(own: SocketAddr, other: SocketAddr) -> Option<u32> {
        let ends = ends(own, other);
        let family = if own.ip().to_canonical().is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let mut request = Vec::with_capacity(REQUEST_SIZE);
        request.extend(u32::try_from(REQUEST_SIZE).ok()?.to_ne_bytes());
        request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        request.extend(NLM_F_REQUEST.to_ne_bytes());
        // Sequence and port: nothing else is asked over this socket.
        request.extend([0; 8]);
        request.extend([u8::try_from(family).ok()?, u8::try_from(libc::IPPROTO_TCP).ok()?, 0, 0]);
        request.extend(ALL_STATES.to_ne_bytes());
        request.extend(ends);
        // Any interface.
        request.extend([0; 4]);
        request.extend(NO_COOKIE);

        let mut kernel = KERNEL.take().or_else(open)?;
        kernel.write_all(&request).ok()?;
        let mut answer = [0; 512];
        let length = kernel.read(&mut answer).ok()?;
        // After a failure the socket is not used again: an answer could still come.
        KERNEL.set(Some(kernel));
        if length < ANSWER_SIZE || answer[4..6] != SOCK_DIAG_BY_FAMILY.to_ne_bytes() {
            return None;
        }
        let number = |at: usize| Some(u32::from_ne_bytes(answer[at..at + 4].try_into().ok()?));
        let is_open = OPEN_STATES.contains(&answer[ANSWER_STATE]);
        let is_asked = is_same(&answer[ANSWER_ENDS..][..ends.len()], &ends);
        // No inode: no process holds it.
        let is_held = number(ANSWER_INODE)? != 0;
        (is_open && is_asked && is_held).then(|| number(ANSWER_UID))?
    }

    /// The kernel answers at once, within `write`, so no read has to wait.
    fn open() -> Option<File> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkSockDiag)
            .ok()
            .map(File::from)
    }

    /// Both ports, then both addresses. An IPv4 address takes the first four bytes of sixteen.
    fn ends(own: SocketAddr, other: SocketAddr) -> [u8; 36] {
        let mut ends = [0; 36];
        for (index, end) in [own, other].into_iter().enumerate() {
            ends[index * 2..][..2].copy_from_slice(&end.port().to_be_bytes());
            let room = &mut ends[4 + index * 16..][..16];
            match end.ip().to_canonical() {
                IpAddr::V4(address) => room[..4].copy_from_slice(&address.octets()),
                IpAddr::V6(address) => room.copy_from_slice(&address.octets()),
            }
        }
        ends
    }

    /// An IPv6 socket that is connected over IPv4 is found by its IPv4 ends, and reports them as mapped ones.
    fn is_same(answered: &[u8], asked: &[u8; 36]) -> bool {
        let mut mapped = *asked;
        for address in [4, 20] {
            mapped.copy_within(address..address + 4, address + 12);
            mapped[address..address + 12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
        }
        answered == asked || answered == mapped
    }
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::Shutdown;
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::process::Stdio;

    fn accepted_from(address: &str) -> (TcpListener, TcpStream, TcpStream) {
        let listener = TcpListener::bind(address).unwrap();
        let mut to = listener.local_addr().unwrap();
        if to.ip().is_unspecified() {
            to.set_ip("127.0.0.1".parse().unwrap());
        }
        let client = TcpStream::connect(to).unwrap();
        let accepted = listener.accept().unwrap().0;
        (listener, accepted, client)
    }

    #[test]
    fn an_own_connection_is_known_by_both_protocols_and_half_closed() {
        assert!(is_known_here());
        // The last one accepts IPv4 clients at mapped addresses.
        for address in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let (_listener, accepted, client) = accepted_from(address);
            assert!(same_user(&accepted), "{address}");
            assert!(same_user(&client), "{address}");
            client.shutdown(Shutdown::Write).unwrap();
            assert!(same_user(&accepted), "{address}");
        }
        // A client that uses an IPv6 socket for an IPv4 address.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mapped = format!("[::ffff:127.0.0.1]:{}", listener.local_addr().unwrap().port());
        let _client = TcpStream::connect(mapped).unwrap();
        assert!(same_user(&listener.accept().unwrap().0));
    }

    #[test]
    fn a_connection_that_its_maker_let_go_of_is_nobodys_not_roots() {
        let (_listener, accepted, client) = accepted_from("127.0.0.1:0");
        drop(client);
        assert!(!same_user(&accepted));
    }

    #[test]
    fn a_listener_at_the_clients_port_does_not_answer_for_it() {
        let (own, other) = (TcpListener::bind("127.0.0.1:0").unwrap(), "127.0.0.1:1".parse().unwrap());
        assert_eq!(peer_uid(other, own.local_addr().unwrap()), None);
    }

    /// Needs root, which may start a process as another user.
    #[test]
    fn another_users_connection_is_not_ours_and_its_answer_is_not_kept() {
        if !user::is_root() {
            return;
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut other = Command::new("bash")
            .args(["-c", &format!("exec 3<>/dev/tcp/127.0.0.1/{port}; echo; read")])
            .uid(65534)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        other.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let (theirs, peer) = listener.accept().unwrap();
        assert_eq!(peer_uid(theirs.local_addr().unwrap(), peer), Some(65534));
        assert!(!same_user(&theirs));
        let _client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let ours = listener.accept().unwrap().0;
        assert!(same_user(&ours) && !same_user(&theirs));
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
