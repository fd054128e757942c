//! What rustls does for one connection: decrypts what was read, encrypts what is to be written. No I/O.

use std::io;

use rustls::CommonState;
use rustls::client::ClientConnectionData;
use rustls::client::UnbufferedClientConnection;
use rustls::server::ServerConnectionData;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::ConnectionState;
use rustls::unbuffered::EncodeError;
use rustls::unbuffered::EncodeTlsData;
use rustls::unbuffered::EncryptError;
use rustls::unbuffered::InsufficientSizeError;
use rustls::unbuffered::UnbufferedStatus;

use crate::model::fingerprint::Fingerprint;
use crate::os::secret;

pub enum TlsSide {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

pub struct TlsState {
    side: TlsSide,
    /// Records that rustls wants sent and that the reader came upon; the writer sends them first.
    pub pending: Vec<u8>,
    /// Bytes at the front of what the reader has left that rustls still counts on, since half a handshake message
    /// is in them. It counts them in whatever it is given next, also when that comes from the writer.
    held: usize,
}
/// Records on their way out. The bytes behind them stay as they are between two writes: clearing 64 KiB
/// for each would cost a tenth of encrypting them.
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

    fn append(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.filled += bytes.len();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeProgress {
    /// The handshake wants more bytes.
    Blocked,
    /// Application data may flow.
    Ready,
}
impl TlsState {
    pub fn new(side: TlsSide) -> Self {
        Self { side, pending: Vec::new(), held: 0 }
    }

    /// What rustls knows of either side alike.
    fn common(&self) -> &CommonState {
        match &self.side {
            TlsSide::Client(connection) => connection,
            TlsSide::Server(connection) => connection,
        }
    }

    pub fn peer(&self) -> Option<Fingerprint> {
        let certificates = self.common().peer_certificates();
        certificates.and_then(<[_]>::first).map(|certificate| secret::sha256(certificate))
    }

    pub fn application(&self) -> Option<Vec<u8>> {
        self.common().alpn_protocol().map(<[u8]>::to_vec)
    }

    pub fn speaks_1_3(&self) -> bool {
        self.common().protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3)
    }

    pub fn decrypt(&mut self, raw: &mut [u8], plain: &mut Vec<u8>) -> (usize, io::Result<DecryptOutcome>) {
        let (used, outcome) = match &mut self.side {
            TlsSide::Client(connection) => decrypt(connection, &mut self.pending, raw, plain),
            TlsSide::Server(connection) => decrypt(connection, &mut self.pending, raw, plain),
        };
        self.held = whole_records(&raw[used..]);
        (used, outcome)
    }

    /// Appends the records for `data` (or, without data, a close) to `out`, behind what is pending.
    pub fn encrypt(&mut self, data: Option<&[u8]>, out: &mut RecordBuffer) -> io::Result<()> {
        out.append(&std::mem::take(&mut self.pending));
        match &mut self.side {
            TlsSide::Client(connection) => encrypt(connection, self.held, data, out),
            TlsSide::Server(connection) => encrypt(connection, self.held, data, out),
        }
    }
}

/// The client's and the server's connection, which rustls makes two types, as one.
trait UnbufferedConnection {
    type Data;
    fn process<'c, 'i>(&'c mut self, raw: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn has_more_to_say(&self) -> bool;
}

impl UnbufferedConnection for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, raw: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(raw)
    }

    fn has_more_to_say(&self) -> bool {
        self.wants_write()
    }
}

impl UnbufferedConnection for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, raw: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(raw)
    }

    fn has_more_to_say(&self) -> bool {
        self.wants_write()
    }
}

pub struct DecryptOutcome {
    pub progress: HandshakeProgress,
    pub closed: bool,
}

/// Decrypts every whole record in `raw` into `plain`. Returns how many bytes of `raw` are used up.
fn decrypt<C: UnbufferedConnection>(
    connection: &mut C,
    pending: &mut Vec<u8>,
    raw: &mut [u8],
    plain: &mut Vec<u8>,
) -> (usize, io::Result<DecryptOutcome>) {
    let (mut used, mut closed) = (0, false);
    loop {
        let UnbufferedStatus { mut discard, state } = connection.process(&mut raw[used..]);
        let progress = match state {
            Err(error) => {
                // rustls queues the alert that names the fault, behind what it had to say before, and does not bear to
                // be called once all of it is encoded. Each call must see the same bytes: where half a message is
                // behind the fault, rustls counts from their beginning.
                let fault = io::Error::new(io::ErrorKind::InvalidData, error);
                used += discard;
                while connection.has_more_to_say()
                    && let Ok(ConnectionState::EncodeTlsData(mut record)) =
                        connection.process(&mut raw[used..]).state
                {
                    let _ = encode(&mut record, pending);
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
            Ok(ConnectionState::EncodeTlsData(mut record)) => match encode(&mut record, pending) {
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
                Some(HandshakeProgress::Ready)
            }
            Ok(ConnectionState::WriteTraffic(_)) => Some(HandshakeProgress::Ready),
            Ok(_) => Some(HandshakeProgress::Blocked),
        };
        used += discard;
        if let Some(progress) = progress {
            return (used, Ok(DecryptOutcome { progress, closed }));
        }
    }
}

fn encode<D>(record: &mut EncodeTlsData<'_, D>, pending: &mut Vec<u8>) -> io::Result<()> {
    let at = pending.len();
    let mut room = 0;
    loop {
        pending.resize(at + room, 0);
        match record.encode(&mut pending[at..]) {
            Ok(written) => {
                pending.truncate(at + written);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
                room = required_size;
            }
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

/// How many of these bytes are whole records. Behind `decrypt` rustls has taken them all, and holds those that are left.
fn whole_records(raw: &[u8]) -> usize {
    let mut at = 0;
    while let Some(&[_, _, _, high, low]) = raw.get(at..at + 5)
        && let end = at + 5 + usize::from(u16::from_be_bytes([high, low]))
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
    // In the place of what the reader has: rustls passes over as much without looking at it.
    let mut held = vec![0; held];
    loop {
        match connection.process(&mut held).state.map_err(io::Error::other)? {
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
    out: &mut RecordBuffer,
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
