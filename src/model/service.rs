//! A service: one port that an agent exposes under a name.

use serde::Deserialize;
use serde::Serialize;

use super::name::Name;
use super::time::Time;

/// The protocol of the service. Only the local proxy treats the three differently: it routes no HTTP to `Tcp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Tcp,
    Http,
    Https,
}

/// A protocol other than HTTP: where its services usually listen, and the beginning of a client's command line, which
/// ends with the port.
struct OtherProtocol {
    ports: &'static [u16],
    client: Option<&'static str>,
}

const OTHER_PROTOCOLS: [OtherProtocol; 6] = [
    OtherProtocol { ports: &[5432, 5433, 5434, 6432, 26257], client: Some("psql -h localhost -p") },
    OtherProtocol { ports: &[3306, 3307], client: Some("mysql -h 127.0.0.1 -P") },
    OtherProtocol { ports: &[6379, 6380, 6381], client: Some("redis-cli -p") },
    OtherProtocol { ports: &[27017, 27018, 27019], client: Some("mongosh --port") },
    OtherProtocol { ports: &[22, 2222], client: Some("ssh localhost -p") },
    OtherProtocol {
        ports: &[
            21, 25, 110, 143, 587, 1025, 1433, 1521, 1883, 4222, 5671, 5672, 5900, 8883, 9092, 9094, 11211,
            29092,
        ],
        client: None,
    },
];

impl Protocol {
    /// The protocol of a service if nobody said: most services without a well-known port are web servers.
    pub fn usual_at(port: u16) -> Self {
        if OTHER_PROTOCOLS.iter().any(|other| other.ports.contains(&port)) { Self::Tcp } else { Self::Http }
    }

    /// A command that uses a service of this protocol, which usually listens on `usual`, at a port of this machine.
    pub fn client_command(self, usual: u16, port: u16) -> Option<String> {
        if self != Self::Tcp {
            return Some(format!("curl {}://localhost:{port}", self.as_str()));
        }
        let other = OTHER_PROTOCOLS.iter().find(|other| other.ports.contains(&usual))?;
        other.client.map(|client| format!("{client} {port}"))
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Tcp, Self::Http, Self::Https].into_iter().find(|protocol| protocol.as_str() == text)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    pub id: String,
    pub name: Name,
    pub target_port: u16,
    pub protocol: Protocol,
    pub agent_id: String,
    pub workspace: String,
    /// The share that it was registered for. Its name is then unique in that share only, and it goes with the share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<String>,
    /// The key of the agent that exposed it last. The record dies with it.
    pub key: String,
    /// Its agent gave it up, but a share still opens it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub withdrawn: bool,
    pub created_at: Time,
    pub seen_at: Time,
}

/// A service as a share's owner and joiners see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SharedService {
    pub id: String,
    pub name: Name,
    pub target_port: u16,
    pub protocol: Protocol,
}

impl Service {
    /// The ID of its presence. One name has one of them in its workspace, and one in each share.
    pub fn online_id(&self) -> String {
        let share = self.share.as_ref().map(|share| format!(".{share}")).unwrap_or_default();
        format!("{}.{}{share}", self.workspace, self.name)
    }

    pub fn shared(&self) -> SharedService {
        SharedService {
            id: self.id.clone(),
            name: self.name.clone(),
            target_port: self.target_port,
            protocol: self.protocol,
        }
    }
}
