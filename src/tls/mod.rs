//! TLS as two halves: one thread reads, one writes, neither waits for the other.
//!
//! rustls keeps one state for both directions, so the state is behind a mutex, but only for the computation. The
//! reader reads the raw connection without the lock and decrypts under it; the writer encrypts under it and sends
//! without it. A mutex around a whole TLS stream would hang as soon as both ends write before they read.
//!
//! The unbuffered interface of rustls is used because it decrypts from our receive buffer and encrypts into our send
//! buffer, which saves a copy in each direction; `unbuffered.rs` holds its rules.

#[cfg(any(feature = "hub", feature = "proxy"))]
pub mod authority;
pub mod connector;
pub mod identity;
pub mod provider;
pub mod sealed;
pub mod succession;
pub mod trust;
mod unbuffered;

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Instant;

use rustls::AlertDescription;
use rustls::ClientConfig;
use rustls::CommonState;
use rustls::ServerConfig;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;

use unbuffered::DecryptOutcome;
use unbuffered::RecordBuffer;
use unbuffered::TlsSide;
use unbuffered::TlsState;

use crate::error::Error;
use crate::model::fingerprint::Fingerprint;
use crate::net::connect::clear_deadline;
use crate::net::connect::set_deadline;
use crate::net::duplex::Duplex;
use crate::net::duplex::ReadLayer;
use crate::net::duplex::Reader;
use crate::net::duplex::WriteLayer;
use crate::net::duplex::Writer;
use crate::os::lock::locked;
use crate::os::secret;
use crate::wire::tls_record::RecordHeaders;
use crate::wire::tls_record::plain_answer;

/// The receive buffer of an idle connection, so that thousands of them stay cheap.
const BUFFER_IDLE: usize = 1024;
/// The receive buffer of a busy one: several records for one system call. A handshake flight is smaller.
pub const BUFFER_BUSY: usize = 256 * 1024;
/// The receive buffer for a peer that is not known: two full records.
#[cfg(feature = "hub")]
pub const BUFFER_UNKNOWN: usize = 2 * (16 * 1024 + 256 + 5);
/// Stands before the words of a peer that speaks no TLS, in the error that tells of it.
pub const SAID: &str = ", it says ";
/// What one write encrypts at once: sixteen full records. Measured through the whole path, one stream is a seventh faster
/// than with four records, since fewer and larger writes wake the next process less often.
const WRITE_SIZE: usize = 256 * 1024;

pub struct TlsReader {
    tls: Arc<Mutex<TlsState>>,
    source: Reader,
    /// Below all layers: its read timeout is ours.
    socket: Arc<TcpStream>,
    headers: RecordHeaders,
    /// Received records; `start..end` of it is not yet decrypted.
    raw: Vec<u8>,
    /// The most that `raw` grows to.
    raw_limit: usize,
    start: usize,
    end: usize,
    /// Whether the last read has left no room.
    was_filled: bool,
    /// Decrypted data; the first `used` bytes of it were read.
    plain: Vec<u8>,
    used: usize,
    closed: bool,
}

pub struct TlsWriter {
    tls: Arc<Mutex<TlsState>>,
    sink: Writer,
    out: RecordBuffer,
}

/// A finished handshake.
pub struct TlsConnection {
    pub reader: TlsReader,
    pub writer: TlsWriter,
    pub socket: Arc<TcpStream>,
    /// The fingerprint of the certificate whose key the peer has.
    pub peer: Option<Fingerprint>,
    /// The application protocol that both ends agreed on, if either asked for one.
    pub application: Option<Vec<u8>>,
    /// The key exchange and the cipher suite, as in `X25519MLKEM768, TLS_AES_128_GCM_SHA256`.
    pub negotiated: String,
    /// What the peer has shown, its own certificate first.
    pub chain: Vec<CertificateDer<'static>>,
}

impl TlsConnection {
    pub fn into_duplex(self) -> Duplex {
        Duplex::layered(self.reader, self.writer, self.socket)
    }
}

pub fn client(
    config: &Arc<ClientConfig>,
    host: &str,
    below: Duplex,
    deadline: Instant,
) -> io::Result<TlsConnection> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let connection = UnbufferedClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    handshake(TlsSide::Client(connection), below, deadline, BUFFER_BUSY)
}

/// `buffer` is the most that the receive buffer grows to.
pub fn server(
    config: &Arc<ServerConfig>,
    below: Duplex,
    deadline: Instant,
    buffer: usize,
) -> io::Result<TlsConnection> {
    let connection = UnbufferedServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
    handshake(TlsSide::Server(connection), below, deadline, buffer)
}

fn handshake(side: TlsSide, below: Duplex, deadline: Instant, buffer: usize) -> io::Result<TlsConnection> {
    let Duplex { reader: source, writer: sink, socket } = below;
    let began = Instant::now();
    let tls = Arc::new(Mutex::new(TlsState::new(side)));
    let mut reader = TlsReader {
        tls: Arc::clone(&tls),
        source,
        socket: Arc::clone(&socket),
        headers: RecordHeaders::default(),
        raw: Vec::new(),
        raw_limit: buffer,
        start: 0,
        end: 0,
        was_filled: false,
        plain: Vec::new(),
        used: 0,
        closed: false,
    };
    let mut writer = TlsWriter { tls: Arc::clone(&tls), sink, out: RecordBuffer::default() };
    let is_client = locked(&tls).is_client();
    loop {
        let done = reader.decrypt();
        // What a server that is done has left are tickets. They go with its first data, which wakes the client once less.
        if !is_client && matches!(done, Ok(true)) {
            break;
        }
        // Sent even when the handshake failed: then it is the alert that says why.
        let sent = writer.send_pending();
        if done? {
            sent?;
            break;
        }
        sent?;
        set_deadline(&socket, deadline)?;
        reader.fill_raw()?;
    }
    clear_deadline(&socket)?;
    let tls = locked(&tls);
    let chain: Vec<_> =
        tls.common().peer_certificates().into_iter().flatten().map(|one| one.clone().into_owned()).collect();
    let peer = chain.first().map(|certificate| secret::sha256(certificate));
    let application = tls.common().alpn_protocol().map(<[u8]>::to_vec);
    let negotiated = negotiated(tls.common());
    drop(tls);
    if log::log_enabled!(log::Level::Debug)
        && let Ok(address) = socket.peer_addr()
    {
        log::debug!(
            "TLS on the connection with {address} in {} ms: {negotiated}",
            began.elapsed().as_millis()
        );
    }
    Ok(TlsConnection { reader, writer, socket, peer, application, negotiated, chain })
}

fn negotiated(common: &CommonState) -> String {
    let group = common.negotiated_key_exchange_group().map(|group| format!("{:?}", group.name()));
    // rustls writes TLS13_AES_128_GCM_SHA256; its registered name has no number.
    let suite = common.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite()));
    let suite = suite.unwrap_or_default().replacen("TLS13_", "TLS_", 1);
    format!("{}, {suite}", group.unwrap_or_default())
}

/// The error to show if both ends found no key exchange or cipher suite that both accept.
pub fn nothing_in_common(error: &io::Error, peer: &str) -> Option<Error> {
    let why = error.get_ref().and_then(|why| why.downcast_ref::<rustls::Error>())?;
    let is_meant = matches!(why, rustls::Error::AlertReceived(AlertDescription::HandshakeFailure));
    is_meant.then(|| {
        Error::new(format!("{peer} and this machine accept no common key exchange"))
            .because(why.to_string())
            .hint("One of them requires post-quantum key exchange (--require-pq or --tls-policy, or tlsPolicy in config.json), and the other one, or a proxy between them, has none")
            .with_code("tls-policy")
    })
}

impl TlsReader {
    /// Decrypted data that was not yet consumed. Reads from the connection only if there is none; empty at the end of
    /// the stream.
    pub fn fill(&mut self) -> io::Result<&[u8]> {
        let mut first_read = None;
        while self.used == self.plain.len() && !self.closed {
            self.plain.clear();
            self.used = 0;
            self.decrypt()?;
            if self.plain.is_empty() && !self.closed {
                match first_read {
                    None => first_read = Some(Instant::now()),
                    Some(begun) => self.check_timeout(begun)?,
                }
                self.fill_raw()?;
            }
        }
        Ok(&self.plain[self.used..])
    }

    /// The read timeout is for a whole record: a peer that sends one byte at a time would never be late otherwise. The
    /// bytes received so far stay for the next call.
    fn check_timeout(&self, begun: Instant) -> io::Result<()> {
        match self.socket.read_timeout()? {
            Some(limit) if begun.elapsed() >= limit => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(()),
        }
    }

    pub fn consume(&mut self, count: usize) {
        self.used += count;
    }

    /// Gives back the buffers of a busy time; called when a session becomes idle.
    pub fn shrink(&mut self) {
        if self.used == self.plain.len() && self.plain.capacity() > BUFFER_IDLE {
            self.plain = Vec::new();
            self.used = 0;
        }
        if self.start == self.end && self.raw.len() > BUFFER_IDLE {
            self.raw = Vec::new();
            self.start = 0;
            self.end = 0;
        }
    }

    /// Decrypts what was received. True once the handshake is done.
    fn decrypt(&mut self) -> io::Result<bool> {
        let raw = &mut self.raw[self.start..self.end];
        let mut outcome =
            DecryptOutcome { plain: &mut self.plain, used: 0, handshake_done: false, closed: self.closed };
        let decrypted = locked(&self.tls).decrypt(raw, &mut outcome);
        self.start += outcome.used;
        self.closed = outcome.closed;
        decrypted.map(|()| outcome.handshake_done)
    }

    /// One read of the connection below. Its end without a `close_notify` is a cut, not an end.
    fn fill_raw(&mut self) -> io::Result<()> {
        self.raw.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.end == self.raw.len() && self.end >= self.raw_limit {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a handshake message is too large"));
        }
        // A read that fills the buffer means that the peer sends faster than we read.
        if self.was_filled || self.end == self.raw.len() {
            self.raw.resize((self.raw.len() * 4).clamp(BUFFER_IDLE, self.raw_limit), 0);
        }
        let count = self.source.read(&mut self.raw[self.end..])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let fits = self.headers.fit(&self.raw[self.end..self.end + count]);
        self.end += count;
        self.was_filled = self.end == self.raw.len();
        // Before both have agreed on TLS, rustls says best what is wrong, unless the peer answers in plain text.
        if !fits && locked(&self.tls).common().protocol_version().is_some() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a record's header was changed"));
        }
        // A client of ours that met another kind of server. A server answers nonsense with an alert.
        let said = plain_answer(&self.raw[self.start..self.end]);
        if let Some(said) = said.filter(|_| !fits && locked(&self.tls).is_client()) {
            let why = format!("what answers there does not speak TLS{SAID}`{said}`");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(())
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

impl ReadLayer for TlsReader {
    fn is_empty(&self) -> bool {
        self.used == self.plain.len() && self.start == self.end
    }
}

impl TlsWriter {
    /// Sends the records of the handshake.
    fn send_pending(&mut self) -> io::Result<()> {
        let pending = {
            let mut tls = locked(&self.tls);
            tls.sent += tls.pending.filled as u64;
            std::mem::take(&mut tls.pending)
        };
        if pending.filled == 0 { Ok(()) } else { self.sink.write_all(pending.content()) }
    }

    /// Bytes of records that were received and sent so far, with what encryption adds.
    pub fn record_bytes(&self) -> (u64, u64) {
        let tls = locked(&self.tls);
        (tls.received, tls.sent)
    }

    pub fn shrink(&mut self) {
        if self.out.bytes.len() > BUFFER_IDLE {
            self.out = RecordBuffer::default();
        }
    }

    fn send(&mut self, data: Option<&[u8]>) -> io::Result<()> {
        self.out.filled = 0;
        locked(&self.tls).encrypt(data, &mut self.out)?;
        self.sink.write_all(self.out.content())
    }
}

impl Write for TlsWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = &bytes[..bytes.len().min(WRITE_SIZE)];
        self.send(Some(chunk))?;
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WriteLayer for TlsWriter {
    fn finish(&mut self) -> io::Result<()> {
        self.send(None)?;
        self.sink.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::connect::is_timeout;
    use crate::tls::identity::Identity;
    use crate::tls::trust;
    use rcgen::generate_simple_self_signed;
    use rustls::ServerConnection;
    use std::net::TcpListener;
    use std::thread;
    use std::time::Duration;

    /// Reads until the handshake is done, and returns what the server sends next: tickets, over several records.
    fn shake_hands(server: &mut ServerConnection, socket: &mut TcpStream) -> Vec<u8> {
        while server.is_handshaking() {
            while server.wants_write() {
                server.write_tls(socket).unwrap();
            }
            server.read_tls(socket).unwrap();
            server.process_new_packets().unwrap();
        }
        let mut pending = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut pending).unwrap();
        }
        pending
    }

    /// A client and its server.
    fn pair() -> [TlsConnection; 2] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let identity = Identity::parse(Identity::generate(None).unwrap().as_bytes()).unwrap();
        let config = trust::session_server(&identity).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let peer = thread::spawn(move || {
            let config = trust::session_client(&identity, identity.fingerprint).unwrap();
            client(&config, "localhost", Duplex::plain(Arc::new(socket)), deadline).unwrap()
        });
        let it = server(&config, Duplex::plain(Arc::new(accepted)), deadline, BUFFER_BUSY).unwrap();
        [peer.join().unwrap(), it]
    }

    #[test]
    fn a_busy_reader_takes_as_much_at_once_as_it_may_and_gives_the_room_back() {
        const ALL: usize = 16 * 1024 * 1024;
        let [mut client, mut it] = pair();
        let writing = thread::spawn(move || client.writer.write_all(&vec![7; ALL]).map(|()| client));
        let mut left = ALL;
        while left > 0 {
            let count = it.reader.fill().unwrap().len();
            it.reader.consume(count);
            left -= count;
        }
        drop(writing.join().unwrap().unwrap());
        assert_eq!(it.reader.raw.len(), BUFFER_BUSY);
        it.reader.shrink();
        assert_eq!((it.reader.raw.len(), it.reader.plain.capacity()), (0, 0));
    }

    #[test]
    fn a_record_that_comes_byte_by_byte_is_as_late_as_none() {
        let [client, mut it] = pair();
        let dripping = client.socket;
        let dripped = thread::spawn(move || {
            let mut record = [&[23, 3, 3, 64, 0][..], &[0; 200]].concat().into_iter();
            // Until the other end has let go.
            while record.next().is_some_and(|byte| (&*dripping).write_all(&[byte]).is_ok()) {
                thread::park_timeout(Duration::from_millis(20));
            }
            record.len()
        });
        it.socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(is_timeout(&it.reader.read(&mut [0]).unwrap_err()));
        drop(it);
        assert_ne!(dripped.join().unwrap(), 0, "it waited for all of it");
    }

    #[test]
    fn writing_goes_on_while_half_a_handshake_message_has_arrived() {
        let made = generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let key = made.signing_key.serialize_der().try_into().unwrap();
        let builder = ServerConfig::builder_with_provider(provider::provider());
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let mut config = builder.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        config.max_fragment_size = Some(64);

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let peer = thread::spawn(move || {
            let mut socket = listener.accept().unwrap().0;
            let mut server = ServerConnection::new(Arc::new(config)).unwrap();
            let pending = shake_hands(&mut server, &mut socket);
            let first = 5 + usize::from(u16::from_be_bytes([pending[3], pending[4]]));
            assert!(pending.len() > 2 * first);
            socket.write_all(&pending[..first]).unwrap();
            let mut heard = [0; 5];
            rustls::Stream::new(&mut server, &mut socket).read_exact(&mut heard).unwrap();
            socket.write_all(&pending[first..]).unwrap();
            rustls::Stream::new(&mut server, &mut socket).write_all(&heard).unwrap();
        });

        let socket = Arc::new(TcpStream::connect(address).unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        let below = Duplex::plain(Arc::clone(&socket));
        let mut it = client(&trust::unverified_client().unwrap(), "localhost", below, deadline).unwrap();
        // The first part has arrived and was read before anything is written.
        socket.peek(&mut [0]).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(it.reader.read(&mut [0]).is_err());
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        it.writer.write_all(b"hello").unwrap();
        let mut back = [0; 5];
        it.reader.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"hello");
        peer.join().unwrap();
    }
}
