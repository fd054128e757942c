//! Bytes from socket to socket that never enter this process, where the system can do that.

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

/// What a pipe holds. The system gives an unprivileged process no more by default.
#[cfg(target_os = "linux")]
const PIPE_CAPACITY: i32 = 1024 * 1024;

/// What lies between two sockets.
#[cfg(target_os = "linux")]
pub struct SplicePipe {
    out: OwnedFd,
    into: OwnedFd,
}

/// Where an attempt ended.
#[derive(Debug)]
pub enum SpliceOutcome {
    /// So many bytes; none is the end of the stream.
    Bytes(u64),
    /// Reading failed, or had to wait for too long: nothing was moved.
    ReadFailed(io::Error),
    WriteFailed,
}

#[cfg(target_os = "linux")]
impl SplicePipe {
    pub fn new() -> io::Result<Self> {
        let (out, into) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        // A smaller one works as well.
        let _ = fcntl(&into, FcntlArg::F_SETPIPE_SZ(PIPE_CAPACITY));
        Ok(Self { out, into })
    }

    /// One read of at most `most`, written whole.
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
pub struct SplicePipe;

#[cfg(not(target_os = "linux"))]
impl SplicePipe {
    pub fn new() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub fn transfer(&self, _: &TcpStream, _: &TcpStream, _: u64) -> SpliceOutcome {
        SpliceOutcome::WriteFailed
    }
}
