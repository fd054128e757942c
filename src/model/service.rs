//! A service: one port that an agent exposes under a name.

use serde::Deserialize;
use serde::Serialize;

use super::name::Name;
use super::time::Time;

/// The protocol of the service. Only the local proxy treats the three differently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Tcp,
    Http,
    Https,
}

impl Protocol {
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
    /// The key of the agent that exposed it last. The record dies with it.
    pub key: String,
    pub created_at: Time,
    pub seen_at: Time,
}

/// A share's own copy of a service, which joiners see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SharedService {
    pub id: String,
    pub name: Name,
    pub target_port: u16,
    pub protocol: Protocol,
}

impl Service {
    pub fn shared(&self) -> SharedService {
        SharedService {
            id: self.id.clone(),
            name: self.name.clone(),
            target_port: self.target_port,
            protocol: self.protocol,
        }
    }
}
