//! The messages of agent and hub on the control channel: one JSON object per line, and an empty line as heartbeat.

use serde::Deserialize;
use serde::Serialize;

use crate::model::fingerprint::Fingerprint;
use crate::model::hub_records::AuditHead;
use crate::model::name::Name;
use crate::model::service::Protocol;
use crate::wire::api::RelayTicket;

/// The upgrades end with the protocol's number, so a peer with another one is refused before the first message.
pub const CONTROL_UPGRADE: &str = "connect-control/1";
pub const RELAY_UPGRADE: &str = "connect-relay/1";
/// Longer than any message of ours. A longer line is an attack.
pub const CONTROL_LINE_LIMIT: usize = 16 * 1024;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ToHub {
    /// The first message: which agent this is. With `share`, the agent's own word for a share that it will make, the
    /// services of this channel belong to that share.
    Hello {
        agent: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        share: Option<String>,
    },
    Expose {
        name: Name,
        port: u16,
        protocol: Protocol,
    },
    /// The service is withdrawn for good, not just offline. By its name: the agent may not have heard the ID yet.
    Withdraw {
        name: Name,
    },
    /// The agent does not open this session. The joiner gets the reason.
    Decline {
        session: String,
        reason: String,
    },
    /// The key exchange and the cipher suite of a session that has begun, for the audit log.
    Secured {
        session: String,
        tls: String,
    },
    Direct(DirectReport),
    /// A message of a later program. Ignoring it is allowed.
    #[serde(other)]
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ToAgent {
    Welcome,
    /// Instead of the welcome: this agent has as many channels as it may.
    Full,
    #[serde(rename_all = "camelCase")]
    Exposed {
        name: Name,
        service: String,
        tunnel_port: Option<u16>,
    },
    Refused {
        name: Name,
        reason: String,
        hint: String,
    },
    Open(SessionOffer),
    /// The head of the hub's audit log, after the welcome and whenever it has changed. The agent keeps it as a witness.
    Audit(AuditHead),
    /// The hub is about to end. Sessions that the agent serves now end when they are idle.
    Draining,
    /// The hub has a new root, which another handshake shows. The channel stays.
    NewRoot {
        pin: String,
    },
    /// The key's next secret, sealed for who has the present one.
    Rotate {
        sealed: String,
    },
    /// The session must end: its key or share is no longer good, or the hub knows nothing of it.
    Close {
        session: String,
    },
    #[serde(other)]
    Unknown,
}

/// An agent carries a session that its joiner has opened without the relay. Sent when the session begins and when it is
/// over, and again on each new control channel: a hub that does not answer with CLOSE has confirmed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectReport {
    pub session: String,
    pub is_over: bool,
    /// How long it was, and the bytes of its connections. They are told at its end.
    pub duration_ms: u64,
    pub to_agent: u64,
    pub to_joiner: u64,
}

impl DirectReport {
    pub fn begun(session: &str) -> Self {
        Self { session: session.to_owned(), is_over: false, duration_ms: 0, to_agent: 0, to_joiner: 0 }
    }
}

/// A joiner wants a session: dial the relay with this ticket, or expect the joiner at the agent's own listener. Accept only
/// this identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionOffer {
    pub session: String,
    pub service: String,
    /// Who the joiner is, for fair shares only: it is the same for all of one key, and says nothing more.
    pub principal: String,
    pub peer: Fingerprint,
    /// The agent's own identity, as the joiner was told and will expect it.
    pub agent: Fingerprint,
    #[serde(flatten)]
    pub relay: Option<RelayTicket>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_were_written() {
        let expose = ToHub::Expose { name: Name::parse("db").unwrap(), port: 5432, protocol: Protocol::Tcp };
        let line = serde_json::to_string(&expose).unwrap();
        assert_eq!(line, r#"{"type":"expose","name":"db","port":5432,"protocol":"tcp"}"#);
        assert_eq!(serde_json::from_str::<ToHub>(&line).unwrap(), expose);
        let exposed = ToAgent::Exposed {
            name: Name::parse("db").unwrap(),
            service: "svc_1".into(),
            tunnel_port: Some(45001),
        };
        let line = serde_json::to_string(&exposed).unwrap();
        assert_eq!(line, r#"{"type":"exposed","name":"db","service":"svc_1","tunnelPort":45001}"#);
        assert_eq!(serde_json::from_str::<ToAgent>(&line).unwrap(), exposed);
    }

    #[test]
    fn the_upgrades_end_with_the_protocols_number() {
        let end = format!("/{}", crate::model::version::PROTOCOL);
        assert!(CONTROL_UPGRADE.ends_with(&end) && RELAY_UPGRADE.ends_with(&end));
    }

    #[test]
    fn what_a_later_version_adds_is_ignored() {
        let line = r#"{"type":"welcome","version":"9","more":[1]}"#;
        assert_eq!(serde_json::from_str::<ToAgent>(line).unwrap(), ToAgent::Welcome);
        let line = r#"{"type":"fly","to":{"the":"moon"}}"#;
        assert_eq!(serde_json::from_str::<ToHub>(line).unwrap(), ToHub::Unknown);
        assert_eq!(serde_json::from_str::<ToAgent>(line).unwrap(), ToAgent::Unknown);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for line in [
            "",
            "{}",
            "[]",
            r#"{"type":"expose","name":"A B","port":1,"protocol":"tcp"}"#,
            r#"{"type":"expose","name":"a","port":70000,"protocol":"tcp"}"#,
            r#"{"type":"hello"}"#,
        ] {
            assert!(serde_json::from_str::<ToHub>(line).is_err(), "{line}");
        }
    }
}
