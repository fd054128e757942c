//! TLS as our connections drive rustls: a client and a server that are fed anything, and a pair whose bytes are cut,
//! delayed and changed on the way.
//!
//! Keys are new in every run, so a pair's bytes cannot be replayed. What is replayed is what happens to them: the
//! input is a script for the wire between the two ends.

use std::sync::Arc;
use std::sync::LazyLock;

use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::client::UnbufferedClientConnection;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::server::UnbufferedServerConnection;

use super::cuts::Cuts;
use crate::tls::unbuffered::DecryptOutcome;
use crate::tls::unbuffered::RecordBuffer;
use crate::tls::unbuffered::TlsSide;
use crate::tls::unbuffered::TlsState;

/// As in `TlsReader`: an unfinished handshake that has more bytes unread is ended.
const UNREAD_LIMIT: usize = 128 * 1024;
/// More than any handshake has to say. What one end answers must not grow with what it is sent.
const PENDING_LIMIT: usize = 64 * 1024;

/// Ends in an error or in progress, and holds a bounded amount: for any bytes, in any pieces.
pub fn tls(bytes: &[u8], cuts: Cuts) {
    for make in [client as fn() -> End, server] {
        for cut in cuts.of(bytes) {
            let mut end = make();
            end.receive(&bytes[..cut]);
            end.receive(&bytes[cut..]);
        }
    }
    Pair::new().run(bytes);
}

struct End {
    state: TlsState,
    /// Received and not yet used up.
    raw: Vec<u8>,
    plain: Vec<u8>,
    received: usize,
    progress: Progress,
    failed: bool,
    /// Records for the other end that are still on the wire.
    wire: Vec<u8>,
    /// The data that was encrypted.
    sent: Vec<u8>,
    finished: bool,
}

/// What all reads together have brought.
#[derive(Default)]
struct Progress {
    handshake_done: bool,
    closed: bool,
}

impl End {
    fn new(side: TlsSide) -> Self {
        Self {
            state: TlsState::new(side),
            raw: Vec::new(),
            plain: Vec::new(),
            received: 0,
            progress: Progress::default(),
            failed: false,
            wire: Vec::new(),
            sent: Vec::new(),
            finished: false,
        }
    }

    /// What `TlsReader` does with one read.
    fn receive(&mut self, bytes: &[u8]) {
        if self.failed || self.progress.closed {
            return;
        }
        self.raw.extend_from_slice(bytes);
        self.received += bytes.len();
        let mut outcome = DecryptOutcome {
            plain: &mut self.plain,
            used: 0,
            handshake_done: false,
            closed: self.progress.closed,
        };
        let decrypted = self.state.decrypt(&mut self.raw, &mut outcome);
        let DecryptOutcome { used, handshake_done, closed, .. } = outcome;
        assert!(used <= self.raw.len(), "{used} of {} bytes are used up", self.raw.len());
        self.raw.drain(..used);
        assert!(self.plain.len() <= self.received, "more data than bytes");
        let pending = std::mem::take(&mut self.state.pending);
        assert!(pending.filled <= PENDING_LIMIT, "{} bytes to send", pending.filled);
        self.wire.extend_from_slice(pending.content());
        self.progress.handshake_done |= handshake_done;
        self.progress.closed = closed;
        let is_too_much = !self.progress.handshake_done && self.raw.len() > UNREAD_LIMIT;
        self.failed = decrypted.is_err() || is_too_much;
    }

    /// What `TlsWriter` does with one write; without data, at the end.
    fn write(&mut self, data: Option<&[u8]>) {
        if self.failed || self.finished || !self.progress.handshake_done {
            return;
        }
        let mut out = RecordBuffer::default();
        if self.state.encrypt(data, &mut out).is_ok() {
            self.wire.extend_from_slice(out.content());
            self.sent.extend_from_slice(data.unwrap_or_default());
            self.finished = data.is_none();
        } else {
            self.failed = true;
        }
    }
}

struct Pair {
    ends: [End; 2],
    altered: bool,
}

impl Pair {
    fn new() -> Self {
        let mut ends = [client(), server()];
        // A client speaks first.
        ends[0].receive(&[]);
        Self { ends, altered: false }
    }

    /// Two bytes a step: what happens to whom, and how much of it.
    fn run(mut self, script: &[u8]) {
        for step in script.chunks_exact(2) {
            let from = usize::from(step[0] & 1);
            let amount = usize::from(step[1]);
            match step[0] >> 1 & 3 {
                0 => self.deliver(from, amount + 1),
                1 => self.deliver(from, usize::MAX),
                2 if amount == 255 => self.ends[from].write(None),
                2 => self.ends[from].write(Some(&vec![step[0]; amount * 100])),
                _ => self.alter(from, amount),
            }
        }
        if self.altered {
            return;
        }
        // Nothing was changed: whatever the cuts and delays were, all data arrives.
        while self.ends.iter().any(|end| !end.wire.is_empty()) {
            self.deliver(0, usize::MAX);
            self.deliver(1, usize::MAX);
        }
        for (one, other) in [(0, 1), (1, 0)] {
            let [one, other] = [&self.ends[one], &self.ends[other]];
            assert!(one.progress.handshake_done && !one.failed, "an unchanged handshake succeeds");
            assert_eq!(one.sent.len(), other.plain.len(), "what was sent has arrived");
            assert!(one.sent == other.plain, "as it was sent");
            assert_eq!(one.finished, other.progress.closed, "and so has the end");
        }
    }

    fn deliver(&mut self, from: usize, amount: usize) {
        let amount = amount.min(self.ends[from].wire.len());
        let bytes: Vec<u8> = self.ends[from].wire.drain(..amount).collect();
        self.ends[1 - from].receive(&bytes);
    }

    fn alter(&mut self, from: usize, at: usize) {
        if let Some(byte) = self.ends[from].wire.get_mut(at) {
            *byte ^= 1 << (at % 8);
            self.altered = true;
        }
    }
}

static CONFIGS: LazyLock<(Arc<ClientConfig>, Arc<ServerConfig>)> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let certificate = CertificateDer::from(made.cert.der().to_vec());
    let key = made.signing_key.serialize_der().try_into().expect("a key");
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("a root");
    let provider = Arc::new(default_provider());
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a certificate with its key");
    // Messages span records, so that half of one is often held.
    server.max_fragment_size = Some(64);
    (Arc::new(client), Arc::new(server))
});

fn client() -> End {
    let name = "localhost".try_into().expect("a name");
    let connection = UnbufferedClientConnection::new(Arc::clone(&CONFIGS.0), name).expect("a client");
    End::new(TlsSide::Client(connection))
}

fn server() -> End {
    let connection = UnbufferedServerConnection::new(Arc::clone(&CONFIGS.1)).expect("a server");
    End::new(TlsSide::Server(connection))
}
