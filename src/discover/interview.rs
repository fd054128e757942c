//! One port and the questions to it, each on a connection of its own, one after the other.
//!
//! What speaks first is listened to and never written to. The question that fits the port's number comes
//! first, and an answer that points to another question is followed by that one.

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

use super::Service;
use crate::discover::page;
use crate::discover::page::PAGE_LIMIT;
use crate::discover::page::Page;
use crate::discover::probe;
use crate::discover::probe::ASKED;
use crate::discover::probe::Question;
use crate::discover::probe::ServiceKind;
use crate::net::address::bracketed;
use crate::net::connect::set_deadline;
use crate::net::duplex::Duplex;
use crate::net::stop::Registration;
use crate::net::stop::Stop;
use crate::os::socket;
use crate::tls;
use crate::tls::trust;

/// Silence to so many questions is an answer too.
const SILENCES: u32 = 5;
/// What of the patience an unlikely greeting gets, and the rest of an answer that has begun.
const PART: u32 = 4;

pub struct Interview<'a> {
    host: &'a str,
    address: SocketAddr,
    patience: Duration,
    deadline: Instant,
    stop: &'a Stop,
    /// What is asked is asked inside TLS.
    tls: Option<Arc<ClientConfig>>,
}

impl<'a> Interview<'a> {
    pub fn new(host: &'a str, address: SocketAddr, patience: Duration, stop: &'a Stop) -> Self {
        let deadline = Instant::now() + patience * SILENCES;
        Self { host, address, patience, deadline, stop, tls: None }
    }

    /// An error when nothing listens there.
    pub fn begin(&self) -> io::Result<Service> {
        let (mut stream, _cut) = self.connect()?;
        let likely = ASKED.iter().find(|asked| asked.ports.contains(&self.address.port()));
        let likely = likely.map(|asked| asked.question);
        let greets = likely == Some(Question::Greeting);
        let patience = if greets { self.patience } else { self.patience / PART };
        let patience = (patience, self.patience / PART);
        let said = self.hear(&mut stream, patience, |said| is_known(Question::Greeting, said));
        drop(stream);
        if let Some((kind, note)) = probe::recognise(Question::Greeting, &said) {
            return Ok(service(kind, note));
        }
        if !said.is_empty() {
            let banner = said.split(|byte| *byte == b'\n').next().unwrap_or_default();
            return Ok(service(ServiceKind::Tcp, probe::shown(banner)));
        }
        let order = likely.into_iter().chain(ASKED.iter().map(|asked| asked.question));
        Ok(self.ask_all(order.collect()).unwrap_or_else(|| service(ServiceKind::Tcp, String::new())))
    }

    fn ask_all(&self, mut order: VecDeque<Question>) -> Option<Service> {
        let (mut done, mut best) = (vec![Question::Greeting], None);
        while let Some(question) = order.pop_front() {
            if done.contains(&question) {
                continue;
            }
            if Instant::now() >= self.deadline || self.stop.is_stopped() {
                break;
            }
            done.push(question);
            if let Some(service) = self.ask(question) {
                let telling = service.kind.question();
                if question == Question::Tls || done.contains(&telling) {
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

    fn ask(&self, question: Question) -> Option<Service> {
        match question {
            Question::Page => self.browse(),
            Question::Tls => self.ask_inside_tls(),
            _ => {
                let rest = self.patience / PART;
                let said = self.exchange(question.bytes(), rest, |said| is_known(question, said)).ok()?;
                let (kind, note) = probe::recognise(question, &said)?;
                Some(service(kind, note))
            }
        }
    }

    /// The page at `/`, and the one to which that sends its visitors.
    fn browse(&self) -> Option<Service> {
        let said = self.fetch("/").ok()?;
        let Some(mut page) = page::read(&said) else {
            return probe::recognise(Question::Page, &said).map(|(kind, note)| service(kind, note));
        };
        if let Some(path) = page.location.take()
            && let Some(next) = self.fetch(&path).ok().and_then(|said| page::read(&said))
        {
            page = next.or(page);
        }
        Some(Service { kind: page.kind.unwrap_or(ServiceKind::Http), note: page.version.take(), page })
    }

    fn fetch(&self, path: &str) -> io::Result<Vec<u8>> {
        let host = format!("{}:{}", bracketed(self.host), self.address.port());
        let agent = concat!("connect/", env!("CARGO_PKG_VERSION"));
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {agent}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        );
        self.exchange(request.as_bytes(), self.patience, |said| match page::read(said) {
            Some(page) => page.is_whole,
            None => !said.starts_with(b"HTTP/") && is_known(Question::Page, said),
        })
    }

    /// `None` when it does not speak TLS.
    fn ask_inside_tls(&self) -> Option<Service> {
        let config = trust::anyone().ok()?;
        let inside = Interview { tls: Some(config), ..*self };
        if let Err(error) = inside.connect() {
            let told = error.get_ref().and_then(|inner| inner.downcast_ref());
            return matches!(told, Some(rustls::Error::AlertReceived(_)))
                .then(|| service(ServiceKind::Tls, String::new()));
        }
        let within = [Question::Page, Question::Ping, Question::Mqtt, Question::Amqp];
        let found = inside.ask_all(VecDeque::from(within));
        Some(match found {
            Some(web) if web.kind == ServiceKind::Http => Service { kind: ServiceKind::Https, ..web },
            Some(other) => Service {
                note: Some(format!("TLS {}", other.note.unwrap_or_default()).trim_end().to_owned()),
                ..other
            },
            None => service(ServiceKind::Tls, String::new()),
        })
    }

    fn exchange(
        &self,
        question: &[u8],
        rest: Duration,
        is_all: impl Fn(&[u8]) -> bool,
    ) -> io::Result<Vec<u8>> {
        let (mut stream, _cut) = self.connect()?;
        set_deadline(&stream.socket, self.until(self.patience))?;
        stream.writer.write_all(question)?;
        Ok(self.hear(&mut stream, (self.patience, rest), is_all))
    }

    /// Up to `first` for the first words, up to `rest` for what follows them.
    fn hear(
        &self,
        stream: &mut Duplex,
        (first, rest): (Duration, Duration),
        is_all: impl Fn(&[u8]) -> bool,
    ) -> Vec<u8> {
        let (mut until, mut said, mut chunk) = (self.until(first), Vec::new(), [0; 4096]);
        while said.len() < PAGE_LIMIT && set_deadline(&stream.socket, until).is_ok() {
            let Ok(count @ 1..) = stream.reader.read(&mut chunk) else { break };
            if said.is_empty() {
                until = self.until(rest);
            }
            said.extend_from_slice(&chunk[..count]);
            if is_all(&said) {
                break;
            }
        }
        said
    }

    fn until(&self, patience: Duration) -> Instant {
        self.deadline.min(Instant::now() + patience)
    }

    fn connect(&self) -> io::Result<(Duplex, Registration)> {
        let until = self.until(self.patience);
        let stream = Arc::new(socket::connect(self.address, until, &|| self.stop.is_stopped())?);
        let cut = self.stop.attach(&stream).ok_or(io::ErrorKind::Interrupted)?;
        let plain = Duplex::plain(stream);
        let Some(config) = &self.tls else { return Ok((plain, cut)) };
        let is_name = ServerName::try_from(self.host).is_ok();
        let name = if is_name { self.host.to_owned() } else { self.address.ip().to_string() };
        Ok((tls::client(config, &name, plain, until)?.into_duplex(), cut))
    }
}

fn is_known(question: Question, said: &[u8]) -> bool {
    probe::recognise(question, said).is_some()
}

fn service(kind: ServiceKind, note: String) -> Service {
    let note = if kind == ServiceKind::Tls { "TLS".to_owned() } else { note };
    Service { kind, note: Some(note).filter(|note| !note.is_empty()), page: Page::default() }
}
