//! TLS as two halves: one thread reads, one writes, neither waits for the other.
//!
//! rustls keeps one state for both directions, so it stands behind a mutex; but only its arithmetic does.
//! The reader reads the raw socket without the lock and decrypts under it; the writer encrypts under it
//! and sends without it. A mutex around a whole TLS stream would hang as soon as both ends write before
//! they read. The unbuffered interface of rustls is used because it encrypts into and decrypts out of
//! our own buffers, which saves a copy in each direction.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Instant;

use rustls::ClientConfig;
use rustls::ServerConfig;
use rustls::client::ClientConnectionData;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::ServerConnectionData;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::ConnectionState;
use rustls::unbuffered::EncodeError;
use rustls::unbuffered::EncodeTlsData;
use rustls::unbuffered::EncryptError;
use rustls::unbuffered::InsufficientSizeError;
use rustls::unbuffered::UnbufferedStatus;

use super::connect::set_deadline;
use super::duplex::Duplex;
use super::duplex::Reader;
use super::duplex::Writer;
use crate::model::fingerprint::Fingerprint;
use crate::os::lock::locked;
use crate::os::secret;
use crate::wire::record::Headers;

/// An idle connection waits with this much, so that thousands of them stay cheap.
const BUFFER_IDLE: usize = 1024;
/// A busy one reads this much at once: several records for one system call.
const BUFFER_BUSY: usize = 128 * 1024;
/// What one write encrypts at once: four full records.
pub const CHUNK: usize = 64 * 1024;
/// A handshake flight larger than this is an attack.
const HANDSHAKE_LIMIT: usize = 128 * 1024;

enum Side {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

struct Shared {
    tls: Mutex<Tls>,
}

struct Tls {
    side: Side,
    /// Records that rustls wants sent and that the reader came upon; the writer sends them first.
    owed: Vec<u8>,
}

pub struct TlsReader {
    shared: Arc<Shared>,
    source: Reader,
    /// Raw records, `start..end` of it not yet decrypted.
    raw: Vec<u8>,
    headers: Headers,
    start: usize,
    end: usize,
    plain: Vec<u8>,
    used: usize,
    closed: bool,
}

pub struct TlsWriter {
    shared: Arc<Shared>,
    sink: Writer,
    out: Outgoing,
}

/// Records on their way out. The bytes behind them stay as they are between two writes: clearing 64 KiB
/// for each would cost a tenth of encrypting them.
#[derive(Default)]
struct Outgoing {
    bytes: Vec<u8>,
    filled: usize,
}

impl Outgoing {
    fn room(&mut self, length: usize) -> &mut [u8] {
        let end = self.filled + length;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        &mut self.bytes[self.filled..end]
    }

    fn append(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.filled += bytes.len();
    }
}

/// A finished handshake.
pub struct Established {
    pub reader: TlsReader,
    pub writer: TlsWriter,
    pub socket: Arc<TcpStream>,
    /// The fingerprint of the certificate that the peer proved to hold.
    pub peer: Option<Fingerprint>,
}

impl Established {
    pub fn into_duplex(self) -> Duplex {
        Duplex::tls(self.reader, self.writer, self.socket)
    }
}

pub fn client(
    config: &Arc<ClientConfig>,
    name: ServerName<'static>,
    below: Duplex,
    deadline: Instant,
) -> io::Result<Established> {
    let connection = UnbufferedClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    handshake(Side::Client(connection), below, deadline)
}

pub fn server(config: &Arc<ServerConfig>, below: Duplex, deadline: Instant) -> io::Result<Established> {
    let connection = UnbufferedServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
    handshake(Side::Server(connection), below, deadline)
}

fn handshake(side: Side, below: Duplex, deadline: Instant) -> io::Result<Established> {
    let Duplex { reader: source, writer: sink, socket } = below;
    let shared = Arc::new(Shared { tls: Mutex::new(Tls { side, owed: Vec::new() }) });
    let mut reader = TlsReader::new(Arc::clone(&shared), source);
    let mut writer = TlsWriter { shared: Arc::clone(&shared), sink, out: Outgoing::default() };
    loop {
        let done = reader.decrypt();
        // An alert that says why is owed even when the handshake failed.
        let sent = writer.pay();
        if done? == Progress::Ready {
            sent?;
            break;
        }
        sent?;
        set_deadline(&socket, deadline)?;
        if reader.end - reader.start > HANDSHAKE_LIMIT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the handshake is too large"));
        }
        reader.fill_raw()?;
    }
    socket.set_read_timeout(None)?;
    socket.set_write_timeout(None)?;
    let peer = shared.lock().peer();
    Ok(Established { reader, writer, socket, peer })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// The handshake wants more bytes.
    Blocked,
    /// Application data may flow.
    Ready,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Tls> {
        locked(&self.tls)
    }
}

impl Tls {
    fn peer(&self) -> Option<Fingerprint> {
        let certificates = match &self.side {
            Side::Client(connection) => connection.peer_certificates(),
            Side::Server(connection) => connection.peer_certificates(),
        };
        certificates.and_then(<[_]>::first).map(|certificate| secret::sha256(certificate))
    }

    fn speaks_1_3(&self) -> bool {
        let version = match &self.side {
            Side::Client(connection) => connection.protocol_version(),
            Side::Server(connection) => connection.protocol_version(),
        };
        version == Some(rustls::ProtocolVersion::TLSv1_3)
    }

    fn decrypt(&mut self, raw: &mut [u8], plain: &mut Vec<u8>) -> (usize, io::Result<Decrypted>) {
        match &mut self.side {
            Side::Client(connection) => decrypt(connection, &mut self.owed, raw, plain),
            Side::Server(connection) => decrypt(connection, &mut self.owed, raw, plain),
        }
    }

    /// Appends the records for `data` (or, without data, a close) to `out`, behind what is owed.
    fn encrypt(&mut self, data: Option<&[u8]>, out: &mut Outgoing) -> io::Result<()> {
        out.append(&std::mem::take(&mut self.owed));
        match &mut self.side {
            Side::Client(connection) => encrypt(connection, data, out),
            Side::Server(connection) => encrypt(connection, data, out),
        }
    }
}

/// The client's and the server's connection, which rustls makes two types, as one.
trait Connection {
    type Data;
    fn process<'c, 'i>(&'c mut self, raw: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Connection for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, raw: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(raw)
    }
}

impl Connection for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, raw: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(raw)
    }
}

struct Decrypted {
    progress: Progress,
    closed: bool,
}

/// Decrypts every whole record in `raw` into `plain`. Returns how many bytes of `raw` are used up.
fn decrypt<C: Connection>(
    connection: &mut C,
    owed: &mut Vec<u8>,
    raw: &mut [u8],
    plain: &mut Vec<u8>,
) -> (usize, io::Result<Decrypted>) {
    let (mut used, mut closed) = (0, false);
    loop {
        let UnbufferedStatus { mut discard, state } = connection.process(&mut raw[used..]);
        let progress = match state {
            Err(error) => {
                // rustls queues the alert that names the fault; it is encoded by the next call. That call must see
                // the same bytes: where half a message is behind it, rustls counts from their beginning.
                let fault = io::Error::new(io::ErrorKind::InvalidData, error);
                used += discard;
                if let Ok(ConnectionState::EncodeTlsData(mut record)) =
                    connection.process(&mut raw[used..]).state
                {
                    let _ = encode(&mut record, owed);
                }
                return (used, Err(fault));
            }
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    match record {
                        Ok(record) => {
                            plain.extend_from_slice(record.payload);
                            discard += record.discard;
                        }
                        Err(error) => return (used + discard, Err(io::Error::other(error))),
                    }
                }
                None
            }
            Ok(ConnectionState::EncodeTlsData(mut record)) => match encode(&mut record, owed) {
                Ok(()) => None,
                Err(error) => return (used + discard, Err(error)),
            },
            Ok(ConnectionState::TransmitTlsData(transmit)) => {
                transmit.done();
                None
            }
            Ok(ConnectionState::PeerClosed) => {
                closed = true;
                None
            }
            Ok(ConnectionState::Closed) => {
                closed = true;
                Some(Progress::Ready)
            }
            Ok(ConnectionState::WriteTraffic(_)) => Some(Progress::Ready),
            Ok(_) => Some(Progress::Blocked),
        };
        used += discard;
        if let Some(progress) = progress {
            return (used, Ok(Decrypted { progress, closed }));
        }
    }
}

fn encode<D>(record: &mut EncodeTlsData<'_, D>, owed: &mut Vec<u8>) -> io::Result<()> {
    let at = owed.len();
    let mut room = 0;
    loop {
        owed.resize(at + room, 0);
        match record.encode(&mut owed[at..]) {
            Ok(written) => {
                owed.truncate(at + written);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
                room = required_size;
            }
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

fn encrypt<C: Connection>(connection: &mut C, data: Option<&[u8]>, out: &mut Outgoing) -> io::Result<()> {
    loop {
        match connection.process(&mut []).state.map_err(io::Error::other)? {
            ConnectionState::WriteTraffic(mut traffic) => {
                return grow_until_it_fits(out, data.map_or(0, <[u8]>::len), |room| match data {
                    Some(data) => traffic.encrypt(data, room),
                    None => traffic.queue_close_notify(room),
                });
            }
            ConnectionState::EncodeTlsData(mut record) => {
                let mut encoded = Vec::new();
                encode(&mut record, &mut encoded)?;
                out.append(&encoded);
            }
            ConnectionState::TransmitTlsData(transmit) => transmit.done(),
            ConnectionState::PeerClosed => {}
            _ => return Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

fn grow_until_it_fits(
    out: &mut Outgoing,
    length: usize,
    mut encrypt: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>,
) -> io::Result<()> {
    // Header, tag and content type of each record come on top; guessing right saves a second try.
    let mut room = length + (length / 16_384 + 1) * 22;
    loop {
        match encrypt(out.room(room)) {
            Ok(written) => {
                out.filled += written;
                return Ok(());
            }
            Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size }))
                if required_size > room =>
            {
                room = required_size;
            }
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

impl TlsReader {
    fn new(shared: Arc<Shared>, source: Reader) -> Self {
        let (headers, raw, plain) = Default::default();
        Self { shared, source, raw, headers, start: 0, end: 0, plain, used: 0, closed: false }
    }

    /// Plaintext that is here, reading more only when there is none. Empty at the end of the stream.
    pub fn fill(&mut self) -> io::Result<&[u8]> {
        while self.used == self.plain.len() && !self.closed {
            self.plain.clear();
            self.used = 0;
            self.decrypt()?;
            if self.plain.is_empty() && !self.closed {
                self.fill_raw()?;
            }
        }
        Ok(&self.plain[self.used..])
    }

    pub fn consume(&mut self, count: usize) {
        self.used += count;
    }

    pub fn is_empty(&self) -> bool {
        self.used == self.plain.len() && self.start == self.end
    }

    /// Gives back the buffers of a busy time; called when a session falls idle.
    pub fn shrink(&mut self) {
        if self.used == self.plain.len() && self.plain.capacity() > BUFFER_IDLE {
            self.plain = Vec::new();
            self.used = 0;
        }
        if self.start == self.end && self.raw.len() > BUFFER_IDLE {
            self.raw = Vec::new();
            (self.start, self.end) = (0, 0);
        }
    }

    fn decrypt(&mut self) -> io::Result<Progress> {
        let raw = &mut self.raw[self.start..self.end];
        let (used, outcome) = self.shared.lock().decrypt(raw, &mut self.plain);
        self.start += used;
        let outcome = outcome?;
        self.closed |= outcome.closed;
        Ok(outcome.progress)
    }

    /// One read of the raw connection. Its end without TLS's own farewell is a cut, not an end.
    fn fill_raw(&mut self) -> io::Result<()> {
        self.raw.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.end == self.raw.len() {
            // A full buffer says that the peer sends faster than we ask.
            let size = (self.raw.len() * 4).clamp(BUFFER_IDLE, BUFFER_BUSY.max(self.end + BUFFER_IDLE));
            self.raw.resize(size, 0);
        }
        match self.source.read(&mut self.raw[self.end..])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                let fits = self.headers.fit(&self.raw[self.end..self.end + count]);
                self.end += count;
                if fits || !self.shared.lock().speaks_1_3() {
                    return Ok(());
                }
                Err(io::Error::new(io::ErrorKind::InvalidData, "a record's header was changed"))
            }
        }
    }
}

impl Read for TlsReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let plain = self.fill()?;
        let count = plain.len().min(buffer.len());
        buffer[..count].copy_from_slice(&plain[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl TlsWriter {
    /// Sends what the handshake owes.
    fn pay(&mut self) -> io::Result<()> {
        let owed = std::mem::take(&mut self.shared.lock().owed);
        if owed.is_empty() { Ok(()) } else { self.sink.write_all(&owed) }
    }

    pub fn finish(&mut self) -> io::Result<()> {
        self.send(None)?;
        self.sink.finish()
    }

    pub fn shrink(&mut self) {
        if self.out.bytes.len() > BUFFER_IDLE {
            self.out = Outgoing::default();
        }
    }

    fn send(&mut self, data: Option<&[u8]>) -> io::Result<()> {
        self.out.filled = 0;
        self.shared.lock().encrypt(data, &mut self.out)?;
        self.sink.write_all(&self.out.bytes[..self.out.filled])
    }
}

impl Write for TlsWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = &bytes[..bytes.len().min(CHUNK)];
        self.send(Some(chunk))?;
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
