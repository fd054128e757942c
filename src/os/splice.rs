//! Moves bytes from socket to socket inside the kernel (`splice`), where the system can do that.

use std::io;
use std::net::TcpStream;

#[cfg(target_os = "linux")]
use std::os::fd::OwnedFd;

#[cfg(target_os = "linux")]
use nix::fcntl::FcntlArg;
#[cfg(target_os = "linux")]
use nix::fcntl::SpliceFFlags;
#[cfg(target_os = "linux")]
use nix::fcntl::fcntl;
#[cfg(target_os = "linux")]
use nix::fcntl::splice;

/// The largest pipe that Linux gives an unprivileged process by default.
#[cfg(target_os = "linux")]
const PIPE_CAPACITY: i32 = 1024 * 1024;

/// The pipe between two sockets that `splice` needs.
pub struct SplicePipe {
    #[cfg(target_os = "linux")]
    out: OwnedFd,
    #[cfg(target_os = "linux")]
    into: OwnedFd,
}

/// How one transfer ended.
#[derive(Debug)]
pub enum SpliceOutcome {
    /// The number of bytes moved; zero is the end of the stream.
    Bytes(u64),
    /// Reading failed or timed out, and nothing was moved.
    ReadFailed(io::Error),
    WriteFailed,
}

#[cfg(target_os = "linux")]
impl SplicePipe {
    pub fn new() -> io::Result<Self> {
        let (out, into) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        // If this fails, the default size works as well.
        let _ = fcntl(&into, FcntlArg::F_SETPIPE_SZ(PIPE_CAPACITY));
        Ok(Self { out, into })
    }

    /// Reads at most `most` bytes once and writes all of them.
    pub fn transfer(&self, from: &TcpStream, to: &TcpStream, most: u64) -> SpliceOutcome {
        let flags = SpliceFFlags::SPLICE_F_MOVE;
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(PIPE_CAPACITY as usize);
        let count = match splice(from, None, &self.into, None, most, flags) {
            Ok(count) => count,
            Err(error) => return SpliceOutcome::ReadFailed(error.into()),
        };
        let mut left = count;
        while left > 0 {
            match splice(&self.out, None, to, None, left, flags) {
                Ok(written @ 1..) => left -= written,
                Err(nix::errno::Errno::EINTR) => {}
                Ok(0) | Err(_) => return SpliceOutcome::WriteFailed,
            }
        }
        SpliceOutcome::Bytes(count as u64)
    }
}

#[cfg(not(target_os = "linux"))]
impl SplicePipe {
    pub fn new() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub fn transfer(&self, _: &TcpStream, _: &TcpStream, _: u64) -> SpliceOutcome {
        SpliceOutcome::WriteFailed
    }
}
