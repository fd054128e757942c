//! The local connection that a session carries: the client's at the joiner, the target's at the agent.

use std::io;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::time::Duration;

use crate::net::connect::is_timeout;
use crate::os::socket;

/// A blocked write wakes this often to see whether the connection was aborted.
const WRITE_POLL: Duration = Duration::from_millis(250);

/// Ends a local connection as broken. A thread that reads it wakes at once, one that writes to it within `WRITE_POLL`,
/// and its peer gets a reset when the last owner closes it. A `shutdown` of both directions would send an end of file
/// first, and a connection that was cut would look complete.
pub fn abort(local: &TcpStream) {
    socket::reset_on_close(local);
    let _ = local.shutdown(Shutdown::Read);
}

/// From now on `write_all` notices when the connection is aborted.
pub fn poll_while_blocked(local: &TcpStream) {
    let _ = local.set_write_timeout(Some(WRITE_POLL));
}

/// Writes everything, unless the connection is aborted meanwhile.
pub fn write_all(mut local: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match local.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_timeout(&error) && !socket::resets_on_close(local) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
