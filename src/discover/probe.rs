//! How services are recognised: a table of harmless probes, and a table of the signatures of their answers.

use ServiceKind as Kind;

use crate::model::service::Protocol;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    Http,
    Https,
    Grpc,
    Postgres,
    Mysql,
    Redis,
    Memcached,
    Mongodb,
    Elasticsearch,
    Opensearch,
    Etcd,
    Kafka,
    Amqp,
    Mqtt,
    Nats,
    Ssh,
    /// It speaks TLS and does not reveal what is inside.
    Tls,
    /// It accepts connections and does not reveal what it is.
    Tcp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Nothing is sent: some services speak first.
    Greeting,
    Ping,
    /// `GET /`.
    WebPage,
    /// A handshake.
    Tls,
    SslRequest,
    Hello,
    ApiVersions,
    Amqp,
    Mqtt,
    Version,
}

/// The bytes of a probe, and the ports where a service that answers it usually listens.
pub struct ProbeSpec {
    pub probe: Probe,
    pub bytes: &'static [u8],
    pub ports: &'static [u16],
}

/// In the order in which they are sent to a port with an unusual number. Text comes first: most services answer a line
/// that they do not understand, and hang up on binary.
pub const PROBES: [ProbeSpec; 10] = [
    ProbeSpec {
        probe: Probe::Greeting,
        bytes: b"",
        ports: &[21, 22, 25, 110, 143, 587, 1025, 2222, 3306, 3307, 4222, 5900],
    },
    ProbeSpec { probe: Probe::Ping, bytes: b"PING\r\n", ports: &[6379, 6380, 6381] },
    ProbeSpec {
        probe: Probe::WebPage,
        bytes: b"",
        ports: &[
            80, 81, 1313, 2379, 3000, 3001, 3002, 3003, 3100, 3333, 4000, 4200, 4321, 5000, 5001, 5173, 5174,
            5500, 5601, 7474, 7860, 8000, 8001, 8008, 8025, 8069, 8080, 8081, 8082, 8083, 8086, 8088, 8090,
            8123, 8200, 8500, 8787, 8888, 8983, 9000, 9001, 9080, 9090, 9091, 9093, 9100, 9200, 9411, 10000,
            11434, 15672, 16686, 50051,
        ],
    },
    ProbeSpec { probe: Probe::Tls, bytes: b"", ports: &[443, 2376, 4443, 5671, 6443, 8443, 8883, 9443] },
    // Length 8, code 80877103.
    ProbeSpec {
        probe: Probe::SslRequest,
        bytes: b"\0\0\0\x08\x04\xd2\x16\x2f",
        ports: &[5432, 5433, 5434, 6432, 26257],
    },
    // OP_MSG number 1: {hello: 1, $db: "admin"}.
    ProbeSpec {
        probe: Probe::Hello,
        bytes: b"\x34\0\0\0\x01\0\0\0\0\0\0\0\xdd\x07\0\0\0\0\0\0\0\
                 \x1f\0\0\0\x10hello\0\x01\0\0\0\x02$db\0\x06\0\0\0admin\0\0",
        ports: &[27017, 27018, 27019],
    },
    // ApiVersions 0, with the correlation ID `conn`.
    ProbeSpec {
        probe: Probe::ApiVersions,
        bytes: b"\0\0\0\x11\0\x12\0\0conn\0\x07connect",
        ports: &[9092, 9094, 29092],
    },
    ProbeSpec { probe: Probe::Amqp, bytes: b"AMQP\0\0\x09\x01", ports: &[5672] },
    // CONNECT of version 3.1.1 without a client ID and with a clean session, then DISCONNECT.
    ProbeSpec { probe: Probe::Mqtt, bytes: b"\x10\x0c\0\x04MQTT\x04\x02\0\x0a\0\0\xe0\0", ports: &[1883] },
    ProbeSpec { probe: Probe::Version, bytes: b"version\r\n", ports: &[11211] },
];

impl Probe {
    pub fn bytes(self) -> &'static [u8] {
        PROBES.iter().find(|spec| spec.probe == self).map_or(b"", |spec| spec.bytes)
    }
}

/// Where services usually listen.
pub fn usual_ports() -> Vec<u16> {
    let mut ports: Vec<u16> = PROBES.iter().flat_map(|spec| spec.ports).copied().collect();
    ports.sort_unstable();
    ports
}

/// What is known of a kind.
pub struct KindSpec {
    kind: Kind,
    pub name: &'static str,
    pub icon: &'static str,
    /// The probe that reveals most about a service of this kind.
    pub probe: Probe,
    /// The port where it usually is the only one on a machine. Of web sites there are several, so they have none.
    port: u16,
}

const KINDS: [KindSpec; 18] = [
    KindSpec { kind: Kind::Http, name: "http", icon: "🌐", probe: Probe::WebPage, port: 0 },
    KindSpec { kind: Kind::Https, name: "https", icon: "🌐", probe: Probe::Tls, port: 0 },
    KindSpec { kind: Kind::Grpc, name: "grpc", icon: "🧩", probe: Probe::Greeting, port: 50051 },
    KindSpec { kind: Kind::Postgres, name: "postgres", icon: "🐘", probe: Probe::SslRequest, port: 5432 },
    KindSpec { kind: Kind::Mysql, name: "mysql", icon: "🐬", probe: Probe::Greeting, port: 3306 },
    KindSpec { kind: Kind::Redis, name: "redis", icon: "📦", probe: Probe::Ping, port: 6379 },
    KindSpec { kind: Kind::Memcached, name: "memcached", icon: "🧠", probe: Probe::Version, port: 11211 },
    KindSpec { kind: Kind::Mongodb, name: "mongodb", icon: "🍃", probe: Probe::Hello, port: 27017 },
    KindSpec {
        kind: Kind::Elasticsearch,
        name: "elasticsearch",
        icon: "🔎",
        probe: Probe::WebPage,
        port: 9200,
    },
    KindSpec { kind: Kind::Opensearch, name: "opensearch", icon: "🔎", probe: Probe::WebPage, port: 9200 },
    KindSpec { kind: Kind::Etcd, name: "etcd", icon: "🧩", probe: Probe::WebPage, port: 2379 },
    KindSpec { kind: Kind::Kafka, name: "kafka", icon: "📨", probe: Probe::ApiVersions, port: 9092 },
    KindSpec { kind: Kind::Amqp, name: "amqp", icon: "📨", probe: Probe::Amqp, port: 5672 },
    KindSpec { kind: Kind::Mqtt, name: "mqtt", icon: "📨", probe: Probe::Mqtt, port: 1883 },
    KindSpec { kind: Kind::Nats, name: "nats", icon: "📨", probe: Probe::Greeting, port: 4222 },
    KindSpec { kind: Kind::Ssh, name: "ssh", icon: "🔑", probe: Probe::Greeting, port: 22 },
    KindSpec { kind: Kind::Tls, name: "tcp", icon: "🔌", probe: Probe::Tls, port: 0 },
    KindSpec { kind: Kind::Tcp, name: "tcp", icon: "🔌", probe: Probe::Greeting, port: 0 },
];

impl ServiceKind {
    pub fn spec(self) -> &'static KindSpec {
        KINDS.iter().find(|spec| spec.kind == self).expect("every kind has a row, as a unit test checks")
    }

    /// The name for a service that has none: `postgres`, `postgres-5433`, `web-3000`. The same wherever it is named.
    pub fn name_at(self, port: u16) -> String {
        let KindSpec { name, port: usual, .. } = self.spec();
        let is_web = matches!(self, Self::Http | Self::Https);
        if *usual == port && !is_web { (*name).to_owned() } else { self.listed_at(port) }
    }

    /// What a list of found services calls it, where two of a kind must differ at a glance: `postgres-5432`.
    pub fn listed_at(self, port: u16) -> String {
        match self {
            Self::Http | Self::Https => format!("web-{port}"),
            _ => format!("{}-{port}", self.spec().name),
        }
    }

    pub fn protocol(self) -> Protocol {
        match self {
            Self::Http | Self::Elasticsearch | Self::Opensearch | Self::Etcd => Protocol::Http,
            Self::Https => Protocol::Https,
            _ => Protocol::Tcp,
        }
    }
}

/// The probe that was sent, the kind that its answer shows, and a function that reads the answer. The function returns
/// `None` for no match or not enough bytes, else a note about the service, which may be empty.
type Signature = (Option<Probe>, ServiceKind, fn(&[u8]) -> Option<String>);

/// The answer means the same whatever was sent.
const ANY_PROBE: Option<Probe> = None;

const SIGNATURES: [Signature; 19] = [
    // CONNACK, accepted or refused. First, because it may look like MySQL's greeting, which needs no probe.
    (Some(Probe::Mqtt), Kind::Mqtt, |said| matches!(said, [0x20, 2..=127, 0 | 1, _, ..]).then(String::new)),
    (ANY_PROBE, Kind::Http, |said| begins(said, b"HTTP/")),
    (ANY_PROBE, Kind::Tls, |said| begins(said, b"\x15\x03")),
    (ANY_PROBE, Kind::Grpc, http2_frame),
    (ANY_PROBE, Kind::Ssh, |said| {
        line(said, "SSH-").map(|line| word(line.split_once('-').unwrap_or_default().1))
    }),
    (ANY_PROBE, Kind::Mysql, mysql_greeting),
    (ANY_PROBE, Kind::Nats, |said| {
        line(said, "INFO {").map(|json| json_text(json, "version").unwrap_or_default())
    }),
    (ANY_PROBE, Kind::Redis, |said| line(said, "-DENIED Redis").map(|_| "protected mode".to_owned())),
    (ANY_PROBE, Kind::Redis, |said| {
        line(said, "-ERR max number of clients").map(|_| "too many clients".to_owned())
    }),
    // To a wrong protocol header it answers with the right one and hangs up.
    (ANY_PROBE, Kind::Amqp, |said| begins(said, b"AMQP")),
    (Some(Probe::Amqp), Kind::Amqp, amqp_start),
    (Some(Probe::Ping), Kind::Redis, |said| line(said, "+PONG").map(|_| String::new())),
    (Some(Probe::Ping), Kind::Redis, |said| line(said, "-NOAUTH").map(|_| "needs a password".to_owned())),
    (Some(Probe::Ping), Kind::Redis, |said| line(said, "-LOADING").map(|_| "loading".to_owned())),
    (Some(Probe::Ping), Kind::Memcached, |said| line(said, "ERROR").map(|_| String::new())),
    (Some(Probe::Version), Kind::Memcached, |said| line(said, "VERSION ").map(word)),
    // Exactly one byte: a longer answer that begins with it comes from another service.
    (Some(Probe::SslRequest), Kind::Postgres, |said| matches!(said, b"S" | b"N").then(String::new)),
    (Some(Probe::Hello), Kind::Mongodb, |said| {
        // It answers number 1, by OP_MSG or by the older OP_REPLY.
        let (number, code) = (said.get(8..12)?, said.get(12..16)?);
        (number == [1, 0, 0, 0] && matches!(code, [0xdd, 7, 0, 0] | [1, 0, 0, 0])).then(String::new)
    }),
    (Some(Probe::ApiVersions), Kind::Kafka, |said| {
        (said.get(4..8)? == b"conn" && said.starts_with(&[0, 0])).then(String::new)
    }),
];

/// The kind and a note about the service, once enough of the answer has arrived.
pub fn recognise(probe: Probe, said: &[u8]) -> Option<(ServiceKind, String)> {
    let bytes = probe.bytes();
    if !bytes.is_empty() && said.starts_with(bytes) {
        return None; // An echo.
    }
    let mut fits = SIGNATURES.iter().filter(|(to, ..)| to.is_none_or(|to| to == probe));
    fits.find_map(|(_, kind, reads)| Some((*kind, reads(said)?)))
}

fn begins(said: &[u8], start: &[u8]) -> Option<String> {
    said.starts_with(start).then(String::new)
}

/// What follows `start` on the first line, once that line is complete.
fn line<'a>(said: &'a [u8], start: &str) -> Option<&'a str> {
    let end = said.iter().position(|&byte| byte == b'\n')?;
    str::from_utf8(&said[..end]).ok()?.strip_prefix(start)
}

fn word(text: &str) -> String {
    shown(text.split_whitespace().next().unwrap_or_default().as_bytes())
}

/// The SETTINGS or GOAWAY frame that an HTTP/2-only server, such as gRPC's, sends first.
fn http2_frame(said: &[u8]) -> Option<String> {
    matches!(said, [0, _, _, 4 | 7, 0, 0, 0, 0, 0, ..]).then(String::new)
}

/// Three bytes of length, number 0, then protocol 10 and a version, or 255 and why it is refused.
fn mysql_greeting(said: &[u8]) -> Option<String> {
    let [_, _, 0, 0, protocol @ (10 | 0xff), rest @ ..] = said else { return None };
    if *protocol == 0xff {
        return (rest.len() > 2).then(|| shown(&rest[2..]));
    }
    let version = str::from_utf8(&rest[..rest.iter().position(|&byte| byte == 0)?]).ok()?;
    // MariaDB puts 5.5.5 first for old replicas.
    let version = version.strip_prefix("5.5.5-").unwrap_or(version);
    version.bytes().all(|byte| byte.is_ascii_graphic()).then(|| match version.split_once("-MariaDB") {
        Some((number, _)) => shown(format!("MariaDB {number}").as_bytes()),
        None => shown(version.as_bytes()),
    })
}

/// `Connection.Start`: a frame on channel 0 with class 10, method 10, and a table of server properties.
fn amqp_start(said: &[u8]) -> Option<String> {
    let [1, 0, 0, _, _, _, _, 0, 10, 0, 10, ..] = said else { return None };
    let length = u32::from_be_bytes(said[3..7].try_into().ok()?) as usize;
    let table = said.get(..length.checked_add(8)?)?;
    let text = |name: &[u8]| {
        let behind = &table[table.windows(name.len()).position(|window| window == name)? + name.len()..];
        let (length, text) = behind.strip_prefix(b"S")?.split_first_chunk()?;
        Some(shown(text.get(..u32::from_be_bytes(*length) as usize)?))
    };
    let all = [text(b"\x07product"), text(b"\x07version")];
    Some(shown(all.into_iter().flatten().collect::<Vec<_>>().join(" ").as_bytes()))
}

/// A text value in JSON, found without parsing the rest, which may be incomplete.
pub fn json_text(json: &str, key: &str) -> Option<String> {
    let behind = json.split_once(&format!("\"{key}\""))?.1;
    let value = behind.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    Some(shown(value.split_once('"')?.0.as_bytes()))
}

/// The longest text of a peer that we show: one line of a terminal.
const NOTE_LIMIT: usize = 80;

/// A peer's text as one short line without control characters.
pub fn shown(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(&said[..said.len().min(NOTE_LIMIT * 8)]);
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let line = plain.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= NOTE_LIMIT {
        return line;
    }
    line.chars().take(NOTE_LIMIT - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ServiceKind::Amqp;
    use ServiceKind::Grpc;
    use ServiceKind::Http;
    use ServiceKind::Kafka;
    use ServiceKind::Memcached;
    use ServiceKind::Mongodb;
    use ServiceKind::Mqtt;
    use ServiceKind::Mysql;
    use ServiceKind::Nats;
    use ServiceKind::Postgres;
    use ServiceKind::Redis;
    use ServiceKind::Ssh;
    use ServiceKind::Tls;

    const MARIADB: &[u8] = b"d\0\0\0\n5.5.5-10.11.19-MariaDB-0+deb12u1\0\x03\0\0\0;pFI{Rg/\0\xfe\xf7";
    const RABBITMQ: &[u8] = b"\x01\0\0\0\0\0\x42\0\x0a\0\x0a\0\x09\0\0\0\x22\x07productS\0\0\0\x08RabbitMQ\
        \x07versionS\0\0\0\x063.10.8\0\0\0\x0eAMQPLAIN PLAIN\0\0\0\x05en_US\xce";

    /// Replayed from the programs themselves; Kafka's and `MongoDB`'s by their specifications.
    #[test]
    fn first_words_are_known_wherever_they_are_split() {
        use Probe::ApiVersions;
        use Probe::Greeting;
        use Probe::Hello;
        use Probe::Ping;
        use Probe::SslRequest;
        use Probe::Version;
        use Probe::WebPage;
        let cases: [(Probe, &[u8], ServiceKind, &str); 29] = [
            (Greeting, b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u10\r\n", Ssh, "OpenSSH_9.2p1"),
            (Greeting, MARIADB, Mysql, "MariaDB 10.11.19"),
            (Greeting, b"J\0\0\0\n8.0.36\0\x08\0\0\0", Mysql, "8.0.36"),
            (Ping, MARIADB, Mysql, "MariaDB 10.11.19"),
            (Greeting, b"INFO {\"server_id\":\"N\",\"version\":\"2.9.10\"} \r\n", Nats, "2.9.10"),
            (Greeting, b"-DENIED Redis is running in protected mode\r\n", Redis, "protected mode"),
            (Greeting, b"-ERR max number of clients reached\r\n", Redis, "too many clients"),
            (Greeting, b"\0\0\x06\x04\0\0\0\0\0\0\x05\0\0\x40\0", Grpc, ""),
            (WebPage, b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x01", Grpc, ""),
            (Ping, b"+PONG\r\n", Redis, ""),
            (Ping, b"-NOAUTH Authentication required.\r\n", Redis, "needs a password"),
            (Ping, b"-LOADING Redis is loading the dataset in memory\r\n", Redis, "loading"),
            (Ping, b"ERROR\r\n", Memcached, ""),
            (Version, b"VERSION 1.6.18\r\n", Memcached, "1.6.18"),
            (Ping, b"HTTP/1.1 400 Bad Request\r\n", Http, ""),
            (Ping, b"\x15\x03\x01\0\x02\x02\x46", Tls, ""),
            (WebPage, b"\x15\x03\x03\0\x02\x02\x0a", Tls, ""),
            (SslRequest, b"S", Postgres, ""),
            (SslRequest, b"N", Postgres, ""),
            (Hello, b"\x7f\x01\0\0\x2a\0\0\0\x01\0\0\0\xdd\x07\0\0\0\0\0\0", Mongodb, ""),
            (Hello, b"\x7f\x01\0\0\x2a\0\0\0\x01\0\0\0\x01\0\0\0\x08\0\0\0", Mongodb, ""),
            (ApiVersions, b"\0\0\x01\x0aconn\0\0\0\0\0\x3c", Kafka, ""),
            (Ping, b"AMQP\0\0\x09\x01", Amqp, ""),
            (Probe::Amqp, b"AMQP\0\x01\0\0", Amqp, ""),
            (Probe::Amqp, RABBITMQ, Amqp, "RabbitMQ 3.10.8"),
            (Probe::Mqtt, b"\x20\x02\0\0", Mqtt, ""),
            (Probe::Mqtt, b"\x20\x02\0\x05", Mqtt, ""),
            (Probe::Mqtt, b"\x20\x03\0\x84\0", Mqtt, ""),
            (Greeting, b"\x4a\0\0\0\xff\x6a\x04Host 'x' is not allowed", Mysql, "Host 'x' is not allowed"),
        ];
        for (probe, said, kind, note) in cases {
            let told = || format!("{probe:?} {}", String::from_utf8_lossy(said));
            assert_eq!(recognise(probe, said), Some((kind, note.to_owned())), "{}", told());
            for part in 0..said.len() {
                let early = recognise(probe, &said[..part]).map(|(kind, _)| kind);
                assert!(early.is_none_or(|early| early == kind), "{} at {part}: {early:?}", told());
            }
        }
    }

    #[test]
    fn other_words_are_nobodys() {
        let words: [(Probe, &[u8]); 14] = [
            (Probe::Greeting, b"220 mail ESMTP\r\n"),
            (Probe::Greeting, b"SSH"),
            (Probe::Greeting, b"d\0\0\0\n5.5.5-10.11.19-MariaDB"),
            (Probe::Greeting, b"d\0\0\0\n5.5 \x1b[31m\0"),
            (Probe::Greeting, b"+PONG\r\n"),
            (Probe::Ping, b"PING\r\n"),
            (Probe::Ping, b"UNKNOWN_COMMAND\r\n"),
            (Probe::SslRequest, b"NO\r\n"),
            (Probe::Amqp, b"AMQP\0\0\x09\x01"),
            (Probe::Amqp, &RABBITMQ[..40]),
            (Probe::Hello, b"\x34\0\0\0\x01\0\0\0\0\0\0\0\xdd\x07\0\0"),
            (Probe::ApiVersions, b"\0\0\0\x11\0\x12\0\0conn\0\x07connect"),
            (Probe::Mqtt, b"\x20\0\0\0"),
            (Probe::Version, b"ERROR\r\n"),
        ];
        for (probe, said) in words {
            assert_eq!(recognise(probe, said), None, "{probe:?} {}", String::from_utf8_lossy(said));
        }
    }

    #[test]
    fn no_bytes_are_too_odd_to_be_read() {
        let mut state = 1u32;
        for _ in 0..20_000 {
            let mut said = [0; 24];
            for byte in &mut said {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Few values, so that frames and lengths come about.
                *byte = [0, 1, 2, 4, 7, 10, 0x20, 0xff, b'A', b'\n', 3, 0x15][(state >> 16) as usize % 12];
            }
            let length = (state >> 8) as usize % said.len();
            PROBES.iter().for_each(|spec| drop(recognise(spec.probe, &said[..length])));
        }
    }

    #[test]
    fn every_usual_port_has_one_likely_question() {
        let mut ports = usual_ports();
        let count = ports.len();
        ports.dedup();
        assert_eq!(ports.len(), count);
        assert!(PROBES.iter().all(|spec| spec.probe.bytes() == spec.bytes));
    }

    #[test]
    fn a_peers_words_are_one_short_line() {
        assert_eq!(shown(b" a\r\n\tb\x1b[31m\xff \0"), "a b [31m\u{fffd}");
        assert_eq!(shown(&[b'x'; 5000]).chars().count(), 80);
    }

    #[test]
    fn names_are_those_that_users_know() {
        assert_eq!([Http, ServiceKind::Https].map(|kind| kind.name_at(443)), ["web-443", "web-443"]);
        assert_eq!([5432, 5433].map(|port| Postgres.name_at(port)), ["postgres", "postgres-5433"]);
        assert_eq!([Tls, ServiceKind::Tcp].map(|kind| kind.name_at(1)), ["tcp-1", "tcp-1"]);
    }

    #[test]
    fn every_kind_has_a_row() {
        // The enum's last kind is `Tcp`, and each row has another kind.
        let mut kinds: Vec<_> = KINDS.iter().map(|spec| spec.kind as usize).collect();
        kinds.sort_unstable();
        assert_eq!(kinds, (0..=ServiceKind::Tcp as usize).collect::<Vec<_>>());
    }
}
