//! What answers on a port, told by what it says and not by the port's number.
//!
//! A service that speaks first is listened to and never written to. The others get one harmless question
//! each, on a connection of its own: what a TLS port answers to plain HTTP, `PostgreSQL`'s question whether
//! it speaks TLS, Redis's PING.

use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;

use crate::model::target::Target;
use crate::net::connect::resolve;
use crate::net::stop::Stop;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Postgres,
    Redis,
    Http,
    Https,
    Mysql,
    Ssh,
    /// It answers, and does not say what it is.
    Tcp,
}

/// `PostgreSQL`'s `SSLRequest`: length 8, code 80877103. It is answered with `S` or `N`.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
const ANSWER: usize = 1024;

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Http => "http",
            Self::Https => "https",
            Self::Mysql => "mysql",
            Self::Ssh => "ssh",
            Self::Tcp => "tcp",
        }
    }

    /// What a service of this kind is called when nobody gives it a name.
    pub fn default_name(self, port: u16) -> String {
        match self {
            Self::Postgres | Self::Redis | Self::Mysql | Self::Ssh => self.as_str().to_owned(),
            Self::Http | Self::Https => format!("web-{port}"),
            Self::Tcp => format!("tcp-{port}"),
        }
    }
}

/// `None` when nothing answers at all.
pub fn identify(target: &Target, patience: Duration, stop: &Stop) -> Option<Kind> {
    let deadline = std::time::Instant::now() + patience;
    let addresses = resolve(&target.host, target.port, deadline, stop).ok()?;
    let address =
        addresses.into_iter().find(|address| TcpStream::connect_timeout(address, patience).is_ok())?;
    let greeting = ask(address, b"", patience / 4).unwrap_or_default();
    if !greeting.is_empty() {
        return Some(of_greeting(&greeting));
    }
    let asked = |question: &[u8]| ask(address, question, patience).unwrap_or_default();
    if matches!(asked(&SSL_REQUEST)[..], [b'S' | b'N', ..]) {
        return Some(Kind::Postgres);
    }
    if is_redis(&asked(b"PING\r\n")) {
        return Some(Kind::Redis);
    }
    let host = format!("HEAD / HTTP/1.0\r\nHost: localhost:{}\r\n\r\n", target.port);
    Some(of_http(&asked(host.as_bytes())))
}

fn ask(address: SocketAddr, question: &[u8], patience: Duration) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(question)?;
    let mut answer = vec![0; ANSWER];
    let count = stream.read(&mut answer)?;
    answer.truncate(count);
    Ok(answer)
}

fn of_greeting(greeting: &[u8]) -> Kind {
    // MySQL's first packet: three bytes of length, number 0, protocol version 10 (or 0xff and an error).
    match greeting {
        [b'S', b'S', b'H', b'-', ..] => Kind::Ssh,
        [_, _, _, 0, 10 | 0xff, ..] => Kind::Mysql,
        _ => Kind::Tcp,
    }
}

/// Also when it wants a password first, or is protected against strangers.
fn is_redis(answer: &[u8]) -> bool {
    [b"+PONG".as_slice(), b"-NOAUTH", b"-DENIED", b"-ERR operation not permitted"]
        .iter()
        .any(|start| answer.starts_with(start))
}

fn of_http(answer: &[u8]) -> Kind {
    let text = String::from_utf8_lossy(answer);
    // A TLS server answers plain HTTP with an alert (0x15), some web servers with a page that says so.
    if answer.first() == Some(&0x15)
        || text.contains("HTTPS port")
        || text.contains("HTTP request to an HTTPS server")
    {
        Kind::Https
    } else if text.starts_with("HTTP/") {
        Kind::Http
    } else {
        Kind::Tcp
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    /// A service that greets, then answers each connection's first words.
    fn service(greeting: &'static [u8], answer: fn(&[u8]) -> &'static [u8]) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || {
                    stream.write_all(greeting).unwrap();
                    let mut question = [0; 512];
                    if let Ok(count @ 1..) = stream.read(&mut question) {
                        assert!(greeting.is_empty(), "it spoke first and was written to");
                        let _ = stream.write_all(answer(&question[..count]));
                    }
                });
            }
        });
        target
    }

    #[test]
    fn services_are_known_by_what_they_say() {
        let patience = Duration::from_secs(1);
        let redis = |question: &[u8]| {
            if question == b"PING\r\n" {
                b"-NOAUTH Authentication required.\r\n"
            } else {
                b"-ERR x\r\n".as_slice()
            }
        };
        let postgres = |question: &[u8]| if question == SSL_REQUEST { b"N".as_slice() } else { b"" };
        let web = |question: &[u8]| {
            if question.starts_with(b"HEAD ") { b"HTTP/1.1 200 OK\r\n\r\n".as_slice() } else { b"" }
        };
        let tls = |_: &[u8]| b"\x15\x03\x01\x00\x02\x02\x16".as_slice();
        assert_eq!(identify(&service(b"", redis), patience, &Stop::new()), Some(Kind::Redis));
        assert_eq!(identify(&service(b"", postgres), patience, &Stop::new()), Some(Kind::Postgres));
        assert_eq!(identify(&service(b"", web), patience, &Stop::new()), Some(Kind::Http));
        assert_eq!(identify(&service(b"", tls), patience, &Stop::new()), Some(Kind::Https));
        assert_eq!(
            identify(&service(b"SSH-2.0-OpenSSH_9\r\n", |_| b""), patience, &Stop::new()),
            Some(Kind::Ssh)
        );
        assert_eq!(
            identify(&service(b"\x4a\0\0\0\x0a8.0.1\0", |_| b""), patience, &Stop::new()),
            Some(Kind::Mysql)
        );
        assert_eq!(identify(&service(b"", |_| b"?"), patience, &Stop::new()), Some(Kind::Tcp));
        let closed = Target {
            host: "127.0.0.1".into(),
            port: TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port(),
        };
        assert_eq!(identify(&closed, patience, &Stop::new()), None);
    }
}
