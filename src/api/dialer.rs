//! How connections to the hubs of a fleet are made, for ureq and for the upgrades.

use std::fmt;
use std::io::Read;
use std::io::Write;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Instant;

use rustls::CertificateError::Expired;
use rustls::CertificateError::ExpiredContext;
use rustls::CertificateError::NotValidYet;
use rustls::CertificateError::NotValidYetContext;
use rustls::ClientConfig;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::ResolvedSocketAddrs;
use ureq::unversioned::resolver::Resolver;
use ureq::unversioned::transport::Buffers;
use ureq::unversioned::transport::ConnectionDetails;
use ureq::unversioned::transport::Connector;
use ureq::unversioned::transport::LazyBuffers;
use ureq::unversioned::transport::NextTimeout;
use ureq::unversioned::transport::Transport;

use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::net::address::HubUrl;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::connect::dial_hub;
use crate::net::connect::is_timeout;
use crate::net::connect::set_deadline;
use crate::net::duplex::Duplex;
use crate::net::stop::Registration;
use crate::net::stop::Stop;
use crate::os::clock;
use crate::os::lock::locked;
use crate::os::socket;
use crate::tls;

type UreqResult<T> = std::result::Result<T, ureq::Error>;

/// What ureq keeps for a head and a piece of body.
const UREQ_BUFFER: usize = 16 * 1024;
/// With other hubs to go to, one that does not answer takes this part of the time.
const TIME_SHARE_PER_HUB: u32 = 3;

/// The hubs of a fleet, in the order in which they are tried.
pub struct FleetHubs {
    pub list: Vec<HubUrl>,
    /// So many were given by the user; the rest was learnt.
    pub given: usize,
    /// The one used last.
    pub at: usize,
}

/// Makes TLS connections to hubs; for ureq, and for the upgrades.
#[derive(Clone)]
pub struct Dialer {
    pub hubs: Arc<Mutex<FleetHubs>>,
    pub tls: Arc<ClientConfig>,
    pub stop: Stop,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dialer")
    }
}

impl Dialer {
    pub fn dial_plain(&self, url: &HubUrl, deadline: Instant) -> Result<(Duplex, Registration)> {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = if locked(&self.hubs).list.len() > 1 { left / TIME_SHARE_PER_HUB } else { left };
        let dialled = dial_hub(&url.host, url.port, Instant::now() + share, &self.stop);
        let socket = dialled
            .map_err(|error| unreachable_hub(url, error.to_string()).hint(error.hint.unwrap_or_default()))?;
        let cut = self.stop.attach(&socket).ok_or_else(Error::stopped)?;
        Ok((Duplex::plain(socket), cut))
    }

    pub fn dial(&self, url: &HubUrl, deadline: Instant) -> Result<(Duplex, Registration)> {
        let (below, cut) = self.dial_plain(url, deadline)?;
        let established = tls::client(&self.tls, &url.host, below, deadline);
        Ok((established.map_err(|error| distrust(url, &error))?.into_duplex(), cut))
    }
}

fn distrust(url: &HubUrl, error: &std::io::Error) -> Error {
    let certificate = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match certificate {
        Some(rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
        )) => Error::new(format!("The certificate of {url} is not valid now"))
            .because(format!("this machine's clock says {}", clock::now()))
            .hint("If that is not the time, set the clock: timedatectl set-ntp true. Otherwise restart the hub, which renews it"),
        Some(rustls::Error::InvalidCertificate(why)) => {
            Error::new(format!("{url} did not prove that it is your hub"))
                .because(format!("{why}"))
                .hint("Its certificate does not match the key's pin or your CA file. Ask for a new key (hub key create), or give --ca FILE")
        }
        _ => unreachable_hub(url, error.to_string()),
    }
}

impl Connector for Dialer {
    type Out = HubTransport;

    fn connect(&self, details: &ConnectionDetails, _: Option<()>) -> UreqResult<Option<HubTransport>> {
        let deadline = Instant::now() + (*details.timeout.after).min(NETWORK_TIMEOUT);
        let authority = details.uri.authority().map(ToString::to_string).unwrap_or_default();
        let dialled = HubUrl::parse(&authority).and_then(|url| self.dial(&url, deadline));
        let (stream, cut) = dialled.map_err(|error| ureq::Error::Other(Box::new(error)))?;
        Ok(Some(HubTransport {
            stream: Mutex::new(stream),
            buffers: LazyBuffers::new(UREQ_BUFFER, UREQ_BUFFER),
            _cut: cut,
        }))
    }
}

/// ureq wants its transports `Sync`, which a reader that holds decrypted bytes is not by itself; the
/// mutex is never contended.
pub struct HubTransport {
    stream: Mutex<Duplex>,
    buffers: LazyBuffers,
    _cut: Registration,
}

impl fmt::Debug for HubTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HubTransport")
    }
}

impl HubTransport {
    /// The stream, which ends what is begun now in time, and the buffers.
    fn armed(&mut self, timeout: &NextTimeout) -> UreqResult<(&mut Duplex, &mut LazyBuffers)> {
        let stream = self.stream.get_mut().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + (*timeout.after).min(NETWORK_TIMEOUT);
        set_deadline(&stream.socket, deadline).map_err(ureq::Error::Io)?;
        Ok((stream, &mut self.buffers))
    }
}

fn timed(error: std::io::Error, timeout: &NextTimeout) -> ureq::Error {
    if is_timeout(&error) { ureq::Error::Timeout(timeout.reason) } else { ureq::Error::Io(error) }
}

impl Transport for HubTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> UreqResult<()> {
        let (stream, buffers) = self.armed(&timeout)?;
        let output = &buffers.output()[..amount];
        stream.writer.write_all(output).map_err(|error| timed(error, &timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> UreqResult<bool> {
        let (stream, buffers) = self.armed(&timeout)?;
        let read = stream.reader.read(buffers.input_append_buf()).map_err(|error| timed(error, &timeout))?;
        buffers.input_appended(read);
        Ok(read > 0)
    }

    fn is_open(&mut self) -> bool {
        let stream = self.stream.get_mut().unwrap_or_else(PoisonError::into_inner);
        socket::is_idle_and_open(&stream.socket)
    }

    fn is_tls(&self) -> bool {
        true
    }
}

/// The dialer resolves for itself, or lets the proxy do it.
#[derive(Debug)]
pub struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> UreqResult<ResolvedSocketAddrs> {
        Ok(self.empty())
    }
}

pub fn unreachable_hub(url: &HubUrl, why: String) -> Error {
    Error::new(format!("Cannot reach the hub {url}"))
        .because(why)
        .hint("Check the address, and on its machine that it runs: connect hub status")
        .kind(ErrorKind::Unreachable)
}
