//! The JSON bodies of the hub's API that make, list and join shares.

use serde::Deserialize;
use serde::Serialize;

use super::api::Status;
use super::api::shown;
use crate::model::fingerprint::Fingerprint;
use crate::model::hub_records::ShareInfo;
use crate::model::name::Name;
use crate::model::service::SharedService;
use crate::model::time::Time;

/// Services in one share. A joiner runs threads for each of them.
pub const SHARED_SERVICES: usize = 100;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MakeShare {
    pub name: String,
    pub agent: String,
    /// Names of services that the agent exposes.
    pub services: Vec<Name>,
    pub expires_in_seconds: u64,
    pub max_joins: Option<u32>,
    #[serde(default)]
    pub max_sessions: Option<u32>,
    pub code: Option<String>,
    /// The agent's own word for this share, if it has registered services for it alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<String>,
    /// Whether to make the secret of a link as well.
    #[serde(default)]
    pub link: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewShare {
    pub id: String,
    pub code: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    pub expires_at: Time,
    pub agent_fingerprint: Fingerprint,
    pub services: Vec<SharedService>,
}

/// A share by its code or, for its owner, by its ID.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareCode {
    pub code: String,
}

/// A share as its owner sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OwnShare {
    #[serde(flatten)]
    pub info: ShareInfo,
    pub services: Vec<SharedService>,
}

/// A share as a joiner sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SharePreview {
    #[serde(deserialize_with = "shown")]
    pub name: String,
    pub expires_at: Time,
    pub expires_in_seconds: u64,
    pub agent_id: String,
    #[serde(deserialize_with = "shown")]
    pub agent_label: String,
    pub agent_fingerprint: Fingerprint,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub agent_chain: String,
    pub services: Vec<JoinableService>,
    /// The token that joining gives and that sessions require.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hubs: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinableService {
    #[serde(flatten)]
    pub service: SharedService,
    pub status: Status,
}
