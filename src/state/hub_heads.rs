//! `hub-heads.json`: how far the audit log of each hub has come, as the hub told its agents. A hub cannot take back what
//! others have kept: `connect hub audit verify --witness` compares its log with this file.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use super::home::Home;
use crate::error::Result;
use crate::model::hub_records::AuditHead;

const HUB_HEADS_FILE: &str = "hub-heads.json";
/// More hubs than any machine has agents at. A hub must not fill the file, or push others out of it, with names.
const HUBS_KEPT: usize = 64;

/// Another agent of this machine may have heard a later head a moment ago.
const LATE_HEAD: Duration = Duration::from_mins(1);

/// By the hub's name in its log.
pub type HubHeads = BTreeMap<String, HubHead>;

#[derive(Serialize, Deserialize)]
pub struct HubHead {
    /// Where the hub was reached.
    pub url: String,
    #[serde(flatten)]
    pub audit: AuditHead,
}

/// Keeps a head unless it is older than what is kept. False if it cannot belong to the same log.
pub fn keep(home: &Home, url: &str, audit: AuditHead) -> Result<bool> {
    let known = home.read::<HubHeads>(HUB_HEADS_FILE)?.and_then(|mut heads| heads.remove(&audit.hub));
    if let Some(HubHead { audit: known, .. }) = known
        && known.head.count >= audit.head.count
    {
        let is_late = audit.at.since(known.at) < LATE_HEAD;
        return Ok(known.head == audit.head || (known.head.count > audit.head.count && is_late));
    }
    home.update(HUB_HEADS_FILE, |heads: &mut HubHeads| {
        if heads.len() < HUBS_KEPT || heads.contains_key(&audit.hub) {
            heads.insert(audit.hub.clone(), HubHead { url: url.to_owned(), audit });
        }
    })?;
    Ok(true)
}
