//! One port and the probes it is sent, one after the other, each on a connection of its own.
//!
//! First we only listen: a service that speaks first is never written to. Then the probe that fits the port
//! number goes first, and an answer that points to a more telling probe is followed by that one.

use std::collections::VecDeque;
use std::io;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use crate::discover::probe;
use crate::discover::probe::PROBES;
use crate::discover::probe::Probe;
use crate::discover::probe::ServiceKind;
use crate::discover::web_page;
use crate::discover::web_page::WEB_PAGE_LIMIT;
use crate::discover::web_page::WebPage;
use crate::model::host_port::bracketed;
use crate::net::connect::set_deadline;
use crate::net::duplex::Duplex;
use crate::net::stop::Registration;
use crate::net::stop::Stop;
use crate::os::socket;
use crate::tls;
use crate::tls::trust;

/// A port that lets this many probes time out is reported as plain TCP.
const SILENT_PROBES: u32 = 5;
/// The fraction of the timeout that goes to a greeting nobody expects on this port, and to the rest of an
/// answer that has begun.
const SHORT_FRACTION: u32 = 4;

/// What answers on a port, and what it says about itself.
#[derive(Debug, PartialEq)]
pub struct FoundService {
    pub kind: ServiceKind,
    /// Whether it speaks TLS, and the kind is what is inside.
    pub in_tls: bool,
    /// A version, or what keeps us from learning more.
    pub note: Option<String>,
    /// What a web server shows.
    pub page: WebPage,
}

impl FoundService {
    fn new(kind: ServiceKind, note: String) -> Self {
        let note = if kind == ServiceKind::Tls { "TLS".to_owned() } else { note };
        Self {
            kind,
            in_tls: kind == ServiceKind::Tls,
            note: Some(note).filter(|note| !note.is_empty()),
            page: WebPage::default(),
        }
    }

    /// The most informative text that the service has sent.
    pub fn label(&self) -> Option<&str> {
        let page = &self.page;
        [&self.note, &page.title, &page.framework, &page.server].into_iter().find_map(Option::as_deref)
    }
}

pub struct PortProber<'a> {
    host: &'a str,
    address: SocketAddr,
    timeout: Duration,
    deadline: Instant,
    stop: &'a Stop,
    /// If set, the probes are sent inside TLS.
    tls: Option<Arc<ClientConfig>>,
}

impl<'a> PortProber<'a> {
    pub fn new(host: &'a str, address: SocketAddr, timeout: Duration, stop: &'a Stop) -> Self {
        let deadline = Instant::now() + timeout * SILENT_PROBES;
        Self { host, address, timeout, deadline, stop, tls: None }
    }

    /// An error if nothing listens on the port.
    pub fn identify(&self) -> io::Result<FoundService> {
        let (mut stream, _cut) = self.connect()?;
        let likely = PROBES.iter().find(|spec| spec.ports.contains(&self.address.port()));
        let likely = likely.map(|spec| spec.probe);
        let is_greeter = likely == Some(Probe::Greeting);
        let first_byte = if is_greeter { self.timeout } else { self.short_timeout() };
        let greeting = self.read_answer(&mut stream, first_byte, self.short_timeout(), |answer| {
            is_recognised(Probe::Greeting, answer)
        });
        drop(stream);
        if let Some((kind, note)) = probe::recognise(Probe::Greeting, &greeting) {
            return Ok(FoundService::new(kind, note));
        }
        if !greeting.is_empty() {
            let banner = greeting.split(|byte| *byte == b'\n').next().unwrap_or_default();
            return Ok(FoundService::new(ServiceKind::Tcp, probe::shown(banner)));
        }
        let order = likely.into_iter().chain(PROBES.iter().map(|spec| spec.probe));
        let found = self.try_probes(order.collect());
        Ok(found.unwrap_or_else(|| FoundService::new(ServiceKind::Tcp, String::new())))
    }

    /// Sends the probes in this order. Once one is answered, only the probe that tells most about that kind of
    /// service follows; if it adds nothing, the first answer is the result.
    fn try_probes(&self, mut order: VecDeque<Probe>) -> Option<FoundService> {
        let mut done = vec![Probe::Greeting];
        let mut best = None;
        while let Some(probe) = order.pop_front() {
            if done.contains(&probe) {
                continue;
            }
            if Instant::now() >= self.deadline || self.stop.is_stopped() {
                break;
            }
            done.push(probe);
            if let Some(service) = self.try_probe(probe) {
                let telling = service.kind.spec().probe;
                if probe == Probe::Tls || done.contains(&telling) {
                    return Some(service);
                }
                order.push_front(telling);
                best = Some(service);
            } else if best.is_some() {
                break;
            }
        }
        best
    }

    fn try_probe(&self, probe: Probe) -> Option<FoundService> {
        match probe {
            Probe::WebPage => self.browse(),
            Probe::Tls => self.probe_inside_tls(),
            _ => {
                let answer =
                    self.exchange(probe.bytes(), self.short_timeout(), |answer| is_recognised(probe, answer));
                let (kind, note) = probe::recognise(probe, &answer.ok()?)?;
                Some(FoundService::new(kind, note))
            }
        }
    }

    /// Reads the page at `/`, and the page it redirects to if that is on the same service.
    fn browse(&self) -> Option<FoundService> {
        let answer = self.fetch("/").ok()?;
        let Some(mut page) = web_page::read(&answer) else {
            let (kind, note) = probe::recognise(Probe::WebPage, &answer)?;
            return Some(FoundService::new(kind, note));
        };
        if let Some(path) = page.location.take()
            && let Some(next) = self.fetch(&path).ok().and_then(|answer| web_page::read(&answer))
        {
            page = next.or(page);
        }
        let kind = page.kind.unwrap_or(ServiceKind::Http);
        Some(FoundService { kind, in_tls: false, note: page.version.take(), page })
    }

    fn fetch(&self, path: &str) -> io::Result<Vec<u8>> {
        let host = format!("{}:{}", bracketed(self.host), self.address.port());
        let agent = concat!("connect/", env!("CARGO_PKG_VERSION"));
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {agent}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        );
        self.exchange(request.as_bytes(), self.timeout, |answer| match web_page::read(answer) {
            Some(page) => page.is_whole,
            None => !answer.starts_with(b"HTTP/") && is_recognised(Probe::WebPage, answer),
        })
    }

    /// `None` if it does not speak TLS. A server that answers our handshake with an alert does: it may want a
    /// client certificate or a name that we do not know.
    fn probe_inside_tls(&self) -> Option<FoundService> {
        let config = trust::unverified_client().ok()?;
        let inside = PortProber { tls: Some(config), ..*self };
        if let Err(error) = inside.connect() {
            let tls_error = error.get_ref().and_then(|inner| inner.downcast_ref());
            return matches!(tls_error, Some(rustls::Error::AlertReceived(_)))
                .then(|| FoundService::new(ServiceKind::Tls, String::new()));
        }
        let order = [Probe::WebPage, Probe::Ping, Probe::Mqtt, Probe::Amqp];
        let Some(found) = inside.try_probes(VecDeque::from(order)) else {
            return Some(FoundService::new(ServiceKind::Tls, String::new()));
        };
        if found.kind == ServiceKind::Http {
            return Some(FoundService { kind: ServiceKind::Https, in_tls: true, ..found });
        }
        let note = format!("TLS {}", found.note.unwrap_or_default());
        Some(FoundService { in_tls: true, note: Some(note.trim_end().to_owned()), ..found })
    }

    /// Sends `request` on a new connection and reads the answer until `is_whole`.
    fn exchange(
        &self,
        request: &[u8],
        rest: Duration,
        is_whole: impl Fn(&[u8]) -> bool,
    ) -> io::Result<Vec<u8>> {
        let (mut stream, _cut) = self.connect()?;
        set_deadline(&stream.socket, self.within(self.timeout))?;
        stream.writer.write_all(request)?;
        Ok(self.read_answer(&mut stream, self.timeout, rest, is_whole))
    }

    /// Reads until `is_whole`, the end of the stream, or a timeout: `first_byte` for the first bytes, `rest`
    /// for all that follow them.
    fn read_answer(
        &self,
        stream: &mut Duplex,
        first_byte: Duration,
        rest: Duration,
        is_whole: impl Fn(&[u8]) -> bool,
    ) -> Vec<u8> {
        let mut until = self.within(first_byte);
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        while answer.len() < WEB_PAGE_LIMIT && set_deadline(&stream.socket, until).is_ok() {
            let Ok(count @ 1..) = stream.reader.read(&mut chunk) else { break };
            if answer.is_empty() {
                until = self.within(rest);
            }
            answer.extend_from_slice(&chunk[..count]);
            if is_whole(&answer) {
                break;
            }
        }
        answer
    }

    fn short_timeout(&self) -> Duration {
        self.timeout / SHORT_FRACTION
    }

    fn within(&self, timeout: Duration) -> Instant {
        self.deadline.min(Instant::now() + timeout)
    }

    fn connect(&self) -> io::Result<(Duplex, Registration)> {
        let until = self.within(self.timeout);
        let stream = Arc::new(socket::connect(self.address, until, &|| self.stop.is_stopped())?);
        let cut = self.stop.attach(&stream).ok_or(io::ErrorKind::Interrupted)?;
        let plain = Duplex::plain(stream);
        let Some(config) = &self.tls else { return Ok((plain, cut)) };
        let is_name = ServerName::try_from(self.host).is_ok();
        let name = if is_name { self.host.to_owned() } else { self.address.ip().to_string() };
        Ok((tls::client(config, &name, plain, until)?.into_duplex(), cut))
    }
}

fn is_recognised(probe: Probe, answer: &[u8]) -> bool {
    probe::recognise(probe, answer).is_some()
}
