//! The JSON bodies of the hub's API, as both ends read and write them.
//!
//! Unknown fields are ignored, so that minor versions work together. Requests that grant a right refuse them: a limit that
//! is misspelt or too new would otherwise limit nothing.

use std::net::IpAddr;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;

use crate::model::access::Action;
use crate::model::access::KeyLimits;
use crate::model::access::Role;
use crate::model::address_block::AddressBlock;
use crate::model::fingerprint::Fingerprint;
use crate::model::hub_records::KeyInfo;
use crate::model::name::Name;
use crate::model::name::NamePattern;
use crate::model::service::Protocol;
use crate::model::text::one_line;
use crate::model::time::Time;

/// The refusal codes that our own clients act on. The hub's `refusal.rs` has all codes.
pub const BAD_KEY_CODE: &str = "bad-key";
pub const SHARE_NOT_FOUND_CODE: &str = "share-not-found";
/// In the answer to a list, if more follows: the ID for `?after=`.
pub const NEXT_PAGE_FIELD: &str = "x-next-after";

/// Reads a peer's label. It is printed within our own lines, so it must be short and on one line.
pub fn shown<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map(|text| one_line(&text))
}

/// The answer to `GET /v1/ca`.
#[derive(Debug, Serialize, Deserialize)]
pub struct CaCertificate {
    /// As PEM; two of them while the root is replaced.
    pub certificate: String,
    pub pin: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced: Option<ReplacedCa>,
}

/// A root that was replaced and is still valid.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReplacedCa {
    pub pin: String,
    pub until: Time,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    pub status: String,
    #[serde(deserialize_with = "shown")]
    pub version: String,
    pub uptime_seconds: u64,
    /// In a fleet: `ok`, or `away` while its store does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// The hub's clock, which `connect doctor` compares with this machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}

/// `POST /v1/drain`
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DrainHub {
    pub timeout_seconds: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WhoAmI {
    pub id: String,
    #[serde(deserialize_with = "shown")]
    pub label: String,
    pub role: Option<Role>,
    pub expires_at: Option<Time>,
    #[serde(flatten)]
    pub limits: KeyLimits,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrolled_by: Option<String>,
    #[serde(deserialize_with = "shown")]
    pub workspace: String,
    /// The URLs of the fleet's hubs; empty for a hub without a fleet. The same in the answers below.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hubs: Vec<String>,
    /// The next secret of the caller's key, sealed for who has the present one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_key: Option<String>,
}

impl WhoAmI {
    pub fn role_word(&self) -> &'static str {
        self.role.map_or("local", Role::as_str)
    }

    pub fn may(&self, action: Action) -> bool {
        self.role.is_none_or(|role| role.may(action))
    }

    /// `expose, workspace default, only staging-*`
    pub fn rights(&self) -> String {
        let limits = self.limits.in_words();
        let limits = if limits.is_empty() { limits } else { format!(", {limits}") };
        format!("{}, workspace {}{limits}", self.role_word(), self.workspace)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Online,
    Offline,
}

impl Status {
    pub fn of(online: bool) -> Self {
        if online { Self::Online } else { Self::Offline }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceInfo {
    pub id: String,
    pub name: Name,
    pub target_port: u16,
    pub tunnel_port: Option<u16>,
    pub status: Status,
    pub protocol: Protocol,
    pub agent_id: String,
    #[serde(deserialize_with = "shown")]
    pub agent_label: String,
    pub created_at: Time,
    /// The share that it belongs to and that has to be joined. Without one it is the workspace's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<NamedShare>,
}

impl ServiceInfo {
    /// `postgres`, or `postgres (share ann-env)`.
    pub fn shown_name(&self) -> String {
        let share = self.share.as_ref().map(|share| format!(" (share {})", share.name));
        format!("{}{}", self.name, share.unwrap_or_default())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedShare {
    pub id: String,
    #[serde(deserialize_with = "shown")]
    pub name: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentInfo {
    pub id: String,
    #[serde(deserialize_with = "shown")]
    pub label: String,
    pub status: Status,
    pub fingerprint: Fingerprint,
    pub services: usize,
    pub workspace: String,
    /// The key that registered it.
    pub key: String,
    pub seen_at: Time,
    pub connected_at: Option<Time>,
    /// Proves which identities its own one has replaced, as PEM. Empty if there are none; the same below.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub chain: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hubs: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RegisterAgent {
    pub id: String,
    pub label: String,
    pub fingerprint: Fingerprint,
    /// The certificates of the identity and of those that it has replaced, as PEM.
    #[serde(default)]
    pub chain: String,
    /// By which the identity says that the caller's key speaks for the agent.
    #[serde(default)]
    pub proof: String,
}

/// Asks for a session to a service, by ID or name. With `share`, the share gives the right to it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AskSession {
    pub service: String,
    /// The joiner's own identity, which the agent will expect.
    pub fingerprint: Fingerprint,
    pub share: Option<Membership>,
    /// The joiner cannot reach the hub that has the agent, so this hub is to carry the bytes to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub carry: bool,
    /// The joiner wants to connect to the agent itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub direct: bool,
}

impl AskSession {
    /// A request without a share: the caller's own key gives the right.
    pub fn of(service: &str, fingerprint: Fingerprint) -> Self {
        Self { service: service.to_owned(), fingerprint, share: None, carry: false, direct: false }
    }
}

/// How one end of a session comes to the relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayTicket {
    pub ticket: String,
    /// `http://host:port` for the plain relay, `https://…` behind a proxy that terminates TLS.
    pub relay: String,
}

/// The right to a share's services, as joining gave it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Membership {
    pub code: String,
    pub token: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionGrant {
    pub session: String,
    /// `None`: the agent expects the joiner at its own addresses.
    #[serde(flatten)]
    pub relay: Option<RelayTicket>,
    pub service: String,
    pub name: Name,
    pub target_port: u16,
    pub protocol: Protocol,
    pub agent_id: String,
    #[serde(deserialize_with = "shown")]
    pub agent_label: String,
    pub agent_fingerprint: Fingerprint,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub agent_chain: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MakeKey {
    pub role: Option<Role>,
    pub label: Option<String>,
    pub workspace: Option<String>,
    pub expires_in_seconds: Option<u64>,
    pub only: Option<Vec<NamePattern>>,
    pub from: Option<Vec<AddressBlock>>,
    /// How many machines it enrols.
    pub uses: Option<u32>,
}

/// Asks for a key of the machine's own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Enrol {
    pub label: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NewKey {
    /// The key with its secret. Only this answer contains it.
    pub key: String,
    #[serde(flatten)]
    pub info: KeyInfo,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RotationOrder {
    /// How long the present secret or root stays valid; 0 ends it at once.
    pub overlap_seconds: Option<u64>,
}

/// A key in the list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeyState {
    #[serde(flatten)]
    pub info: KeyInfo,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RotationState>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RotationState {
    pub ends_at: Time,
    /// The labels of the agents that have not used the next secret yet.
    pub waits_for: Vec<String>,
    /// When the old secret was used last, by whom ever.
    pub old_used_at: Option<Time>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RevokeKey {
    /// Whether the records that were made with it are removed in the same change.
    pub with_all_it_made: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RemoveService {
    /// Removes it from an agent that has it online, too.
    pub even_online: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AskDevice {
    pub label: String,
}

/// A waiting machine asks what became of its code.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AskDeviceState {
    pub code: String,
    pub secret: String,
}

/// A waiting machine as an admin sees it before approving.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WaitingLogin {
    #[serde(deserialize_with = "shown")]
    pub label: String,
    pub address: IpAddr,
    pub age_seconds: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceCode {
    #[serde(deserialize_with = "shown")]
    pub code: String,
    pub secret: String,
    #[serde(deserialize_with = "shown")]
    pub page: String,
    pub interval_seconds: u64,
    pub expires_in_seconds: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeviceState {
    /// `pending` or `approved`.
    pub status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApproveDevice {
    pub code: String,
    pub role: Option<Role>,
    pub workspace: Option<String>,
}
