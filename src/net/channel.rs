//! A channel of messages over a connection: JSON lines both ways, kept alive by empty lines.
//!
//! The owner of the channel reads. A second thread writes the queued messages, and a heartbeat if there are none. So
//! sending never waits for the peer.

use std::collections::VecDeque;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::connect::set_deadline;
use super::duplex::Duplex;
use super::duplex::Reader;
use super::duplex::Writer;
use super::threads::ThreadGroup;
use crate::os::lock::locked;
use crate::os::lock::wait_while;
use crate::wire::control::CONTROL_LINE_LIMIT;

const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// A little more than two missed heartbeats.
const SILENCE_LIMIT: Duration = Duration::from_secs(25);
/// A peer that accepts no byte for this long is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages that may be queued for a slow peer.
const SEND_QUEUE_LIMIT: usize = 1024;

pub struct MessageChannel {
    lines: BufReader<Reader>,
    outgoing: ChannelSender,
    /// The thread that writes.
    threads: ThreadGroup,
    socket: Arc<TcpStream>,
}

/// The sending side. Any thread may have a clone.
#[derive(Clone)]
pub struct ChannelSender {
    queue: Arc<SendQueue>,
}

#[derive(Default)]
struct SendQueue {
    state: Mutex<SendQueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct SendQueueState {
    lines: VecDeque<Vec<u8>>,
    closed: bool,
}

impl MessageChannel {
    pub fn start(connection: Duplex) -> io::Result<Self> {
        let Duplex { reader, writer, socket } = connection;
        socket.set_read_timeout(Some(SILENCE_LIMIT))?;
        socket.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let outgoing = ChannelSender { queue: Arc::default() };
        let (queue, cut) = (outgoing.clone(), Arc::clone(&socket));
        let threads = ThreadGroup::default();
        threads.spawn("control-send", move || queue.write_all_to(writer, &cut)).map_err(io::Error::other)?;
        Ok(Self { lines: BufReader::new(reader), outgoing, threads, socket })
    }

    pub fn outgoing(&self) -> ChannelSender {
        self.outgoing.clone()
    }

    pub fn socket(&self) -> Arc<TcpStream> {
        Arc::clone(&self.socket)
    }

    /// The first message. It must arrive by `deadline`; heartbeats do not extend that.
    pub fn first<M: DeserializeOwned>(&mut self, deadline: Instant) -> io::Result<M> {
        let message = self.read(Some(deadline));
        self.socket.set_read_timeout(Some(SILENCE_LIMIT))?;
        message
    }

    /// The next message. An error if the peer has left, is silent for too long, or sends something invalid.
    pub fn next<M: DeserializeOwned>(&mut self) -> io::Result<M> {
        self.read(None)
    }

    fn read<M: DeserializeOwned>(&mut self, deadline: Option<Instant>) -> io::Result<M> {
        loop {
            if let Some(deadline) = deadline {
                set_deadline(&self.socket, deadline)?;
                self.socket.set_write_timeout(Some(WRITE_TIMEOUT))?;
            }
            let mut line = Vec::new();
            (&mut self.lines).take(CONTROL_LINE_LIMIT as u64).read_until(b'\n', &mut line)?;
            match line.as_slice() {
                b"\n" => {}
                [message @ .., b'\n'] => {
                    return serde_json::from_slice(message)
                        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
                }
                [] => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is cut or too long")),
            }
        }
    }
}

/// Sends the queued messages, ends the stream in order (`close_notify`), and closes.
impl Drop for MessageChannel {
    fn drop(&mut self) {
        self.outgoing.close();
        let _ = self.socket.shutdown(Shutdown::Read);
        self.threads.join(|| ());
    }
}

impl ChannelSender {
    /// Queues a message. False if the channel is closed or its queue is full.
    pub fn send(&self, message: &impl Serialize) -> bool {
        let Ok(mut line) = serde_json::to_vec(message) else { return false };
        line.push(b'\n');
        let mut state = locked(&self.queue.state);
        if state.closed || state.lines.len() >= SEND_QUEUE_LIMIT {
            return false;
        }
        state.lines.push_back(line);
        self.queue.changed.notify_one();
        true
    }

    fn close(&self) {
        locked(&self.queue.state).closed = true;
        self.queue.changed.notify_one();
    }

    /// What to write next: all queued messages in one batch, or a heartbeat after a while without any. `None` if the
    /// channel is closed and everything has been written.
    fn next_batch(&self) -> Option<Vec<u8>> {
        let idle = |state: &mut SendQueueState| state.lines.is_empty() && !state.closed;
        let mut state = wait_while(&self.queue.changed, locked(&self.queue.state), HEARTBEAT_INTERVAL, idle);
        if !state.lines.is_empty() {
            return Some(state.lines.drain(..).flatten().collect());
        }
        if state.closed { None } else { Some(b"\n".to_vec()) }
    }

    fn write_all_to(&self, mut writer: Writer, socket: &TcpStream) {
        while let Some(batch) = self.next_batch() {
            if let Err(error) = writer.write_all(&batch) {
                log::debug!("a control channel takes no more: {error}");
                self.close();
                let _ = socket.shutdown(Shutdown::Both);
                return;
            }
        }
        let _ = writer.finish();
    }
}
