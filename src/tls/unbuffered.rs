//! The state of one TLS connection: decrypts what was received, encrypts what is to be sent. No I/O and no lock.
//!
//! rustls's unbuffered interface hands out one state at a time and borrows the caller's input. It demands:
//!
//! 1. **Order.** Every state is acted on before the next `process`: `EncodeTlsData` is encoded, `TransmitTlsData`
//!    is confirmed, the records of `ReadTraffic` are all taken. A state that is dropped loses what it holds.
//!    We encode into `pending` and confirm at once: the caller sends `pending` before it reads again.
//! 2. **Input.** After each `process` exactly `discard` bytes are removed from the front of the input. Removing
//!    more or fewer makes rustls read records from the wrong place, and the connection ends with an error.
//! 3. **Half a message.** A handshake message may span records, as session tickets do. rustls has decrypted the first
//!    records then, but keeps no copy: it remembers ranges of the input, and **panics** if the next input is
//!    shorter. The reader's next input begins with the same bytes. The writer does not have them; it passes as
//!    many zeroes (`held`), which rustls skips without reading them.
//! 4. **Errors.** After an error rustls has an alert to send, after any records already queued. It is encoded from
//!    further calls with the *same* input, because of 3. We stop when nothing is left to send: the next call
//!    would parse the faulty bytes again, **which may panic**. The caller ends the connection after an error.
//! 5. **End.** `PeerClosed` comes once, at the peer's `close_notify`, and writing goes on. `Closed` comes after both.
//!
//! rustls computes a record's header itself when it checks the record, so it does not notice a header that was
//! changed on the way. `TlsReader` checks headers (`wire/tls_record.rs`) as bytes arrive, before they come here.
//!
//! The buffered interface has none of these rules, but copies each direction once more. Measured without sockets, as
//! the median of nine turns, a stream of 64 KiB writes takes 12 to 18 % more CPU through it.

use std::io;
use std::ops::Deref;

use rustls::CommonState;
use rustls::client::ClientConnectionData;
use rustls::client::UnbufferedClientConnection;
use rustls::server::ServerConnectionData;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::ConnectionState;
use rustls::unbuffered::EncodeTlsData;
use rustls::unbuffered::EncryptError;
use rustls::unbuffered::UnbufferedConnectionCommon;
use rustls::unbuffered::UnbufferedStatus;

/// The header of a TLS record: its type, two bytes of version, two of length.
const RECORD_HEADER_SIZE: usize = 5;
/// A full record's data, and what encryption adds to each: header, authentication tag, content type.
const RECORD_DATA: usize = 16_384;
const RECORD_OVERHEAD: usize = 22;

pub enum TlsSide {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

pub struct TlsState {
    side: TlsSide,
    /// Records that `decrypt` produced, as handshakes and alerts do. To be sent before anything else.
    pub pending: RecordBuffer,
    /// How many bytes at the front of the reader's input rustls still refers to: rule 3.
    held: usize,
    /// Bytes of records so far, handshake included.
    pub received: u64,
    pub sent: u64,
}

/// What decrypting brings, up to an error too.
pub struct DecryptOutcome<'p> {
    /// Receives the data.
    pub plain: &'p mut Vec<u8>,
    /// How many bytes of the input are used up.
    pub used: usize,
    /// Whether application data may flow; otherwise the handshake needs more bytes.
    pub handshake_done: bool,
    /// The peer will send no more.
    pub closed: bool,
}

/// Records to send. The bytes after `filled` are left over from earlier use: clearing 64 KiB for each write would
/// cost a tenth of encrypting them.
#[derive(Default)]
pub struct RecordBuffer {
    pub bytes: Vec<u8>,
    pub filled: usize,
}

impl RecordBuffer {
    fn room(&mut self, length: usize) -> &mut [u8] {
        let end = self.filled + length;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        &mut self.bytes[self.filled..end]
    }

    pub fn content(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }
}

impl TlsState {
    pub fn new(side: TlsSide) -> Self {
        Self { side, pending: RecordBuffer::default(), held: 0, received: 0, sent: 0 }
    }

    /// What rustls knows of both sides alike: certificates, protocol version, ALPN.
    pub fn common(&self) -> &CommonState {
        match &self.side {
            TlsSide::Client(connection) => connection,
            TlsSide::Server(connection) => connection,
        }
    }

    pub fn is_client(&self) -> bool {
        matches!(self.side, TlsSide::Client(_))
    }

    /// Decrypts every whole record in `raw`.
    pub fn decrypt(&mut self, raw: &mut [u8], outcome: &mut DecryptOutcome<'_>) -> io::Result<()> {
        let decrypted = match &mut self.side {
            TlsSide::Client(connection) => decrypt(connection, &mut self.pending, raw, outcome),
            TlsSide::Server(connection) => decrypt(connection, &mut self.pending, raw, outcome),
        };
        self.held = whole_records(&raw[outcome.used..]);
        self.received += outcome.used as u64;
        decrypted
    }

    /// Appends to `out` what is pending and the records for `data`; without data, a `close_notify`.
    pub fn encrypt(&mut self, data: Option<&[u8]>, out: &mut RecordBuffer) -> io::Result<()> {
        let before = out.filled;
        let pending = std::mem::take(&mut self.pending);
        out.room(pending.filled).copy_from_slice(pending.content());
        out.filled += pending.filled;
        let encrypted = match &mut self.side {
            TlsSide::Client(connection) => encrypt(connection, self.held, data, out),
            TlsSide::Server(connection) => encrypt(connection, self.held, data, out),
        };
        self.sent += (out.filled - before) as u64;
        encrypted
    }
}

/// The client's and the server's connection as one: rustls has a type for each, with a method of the same name.
trait UnbufferedConnection: Deref<Target = UnbufferedConnectionCommon<Self::Data>> {
    type Data;
    fn process<'c, 'i>(&'c mut self, raw: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl UnbufferedConnection for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, raw: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(raw)
    }
}

impl UnbufferedConnection for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, raw: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(raw)
    }
}

fn decrypt<C: UnbufferedConnection>(
    connection: &mut C,
    pending: &mut RecordBuffer,
    raw: &mut [u8],
    outcome: &mut DecryptOutcome<'_>,
) -> io::Result<()> {
    loop {
        let UnbufferedStatus { discard, state } = connection.process(&mut raw[outcome.used..]);
        outcome.used += discard;
        match state {
            Err(error) => {
                encode_alert(connection, &mut raw[outcome.used..], pending);
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record.map_err(io::Error::other)?;
                    outcome.plain.extend_from_slice(record.payload);
                    outcome.used += record.discard;
                }
            }
            Ok(ConnectionState::EncodeTlsData(mut record)) => encode(&mut record, pending)?,
            Ok(ConnectionState::TransmitTlsData(transmit)) => transmit.done(),
            Ok(ConnectionState::PeerClosed) => outcome.closed = true,
            Ok(state) => {
                outcome.closed |= matches!(state, ConnectionState::Closed);
                // Else it is `BlockedHandshake`; or early data, which no configuration of ours accepts.
                outcome.handshake_done =
                    matches!(state, ConnectionState::Closed | ConnectionState::WriteTraffic(_));
                return Ok(());
            }
        }
    }
}

/// After an error, what is left to send: rule 4.
fn encode_alert<C: UnbufferedConnection>(connection: &mut C, raw: &mut [u8], pending: &mut RecordBuffer) {
    while connection.wants_write()
        && let Ok(ConnectionState::EncodeTlsData(mut record)) = connection.process(raw).state
    {
        let _ = encode(&mut record, pending);
    }
}

fn encode<D>(record: &mut EncodeTlsData<'_, D>, out: &mut RecordBuffer) -> io::Result<()> {
    out.filled += record.encode(out.room(RECORD_DATA + RECORD_OVERHEAD)).map_err(io::Error::other)?;
    Ok(())
}

/// How many bytes at the front of `raw` are whole records. `decrypt` has passed rustls every whole record, so those
/// still in the input are the ones it refers to.
fn whole_records(raw: &[u8]) -> usize {
    let mut at = 0;
    while let Some(&[_, _, _, high, low]) = raw.get(at..at + RECORD_HEADER_SIZE)
        && let end = at + RECORD_HEADER_SIZE + usize::from(u16::from_be_bytes([high, low]))
        && end <= raw.len()
    {
        at = end;
    }
    at
}

fn encrypt<C: UnbufferedConnection>(
    connection: &mut C,
    held: usize,
    data: Option<&[u8]>,
    out: &mut RecordBuffer,
) -> io::Result<()> {
    let mut placeholder = vec![0; held];
    loop {
        match connection.process(&mut placeholder).state.map_err(io::Error::other)? {
            ConnectionState::WriteTraffic(mut traffic) => {
                let length = data.map_or(0, <[u8]>::len);
                // It is enough unless rustls sends something of its own first, like the end of a handshake.
                let mut room = length + (length / RECORD_DATA + 1) * RECORD_OVERHEAD;
                loop {
                    let written = match data {
                        Some(data) => traffic.encrypt(data, out.room(room)),
                        None => traffic.queue_close_notify(out.room(room)),
                    };
                    room = match written {
                        Err(EncryptError::InsufficientSize(needs)) if needs.required_size > room => {
                            needs.required_size
                        }
                        written => {
                            out.filled += written.map_err(io::Error::other)?;
                            return Ok(());
                        }
                    };
                }
            }
            ConnectionState::EncodeTlsData(mut record) => encode(&mut record, out)?,
            ConnectionState::TransmitTlsData(transmit) => transmit.done(),
            ConnectionState::PeerClosed => {}
            _ => return Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}
