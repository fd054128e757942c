//! `hub-heads.json`: how far the audit log of each hub has come, as the hub told its agents. A hub cannot take back what
//! others have kept: `connect hub audit verify --witness` compares its log with this file.

use std::collections::BTreeMap;
use std::time::Duration;

use super::home::Home;
use crate::error::Result;
use crate::model::hub_records::AuditHead;

const HUB_HEADS_FILE: &str = "hub-heads.json";
/// No machine has agents at more addresses, and no fleet has more hubs behind one. The limits keep a hub from filling the file
/// with names.
const ADDRESSES_KEPT: usize = 64;
const HUBS_KEPT: usize = 64;

/// Another agent of this machine may have heard a later head a moment ago.
const LATE_HEAD: Duration = Duration::from_mins(1);

/// By the address where a hub was reached, and the name that it gives itself. So no hub can speak for another one.
pub type HubHeads = BTreeMap<String, BTreeMap<String, AuditHead>>;

/// Keeps a head unless it is older than what is kept. False if it cannot belong to the same log.
pub fn keep(home: &Home, url: &str, audit: AuditHead) -> Result<bool> {
    let all = home.read::<HubHeads>(HUB_HEADS_FILE)?.unwrap_or_default();
    if let Some(known) = all.get(url).and_then(|heads| heads.get(&audit.hub))
        && known.head.count >= audit.head.count
    {
        let is_late = audit.at.since(known.at) < LATE_HEAD;
        return Ok(known.head == audit.head || (known.head.count > audit.head.count && is_late));
    }
    home.update(HUB_HEADS_FILE, |all: &mut HubHeads| {
        if all.len() >= ADDRESSES_KEPT && !all.contains_key(url) {
            return;
        }
        let heads = all.entry(url.to_owned()).or_default();
        if heads.len() < HUBS_KEPT || heads.contains_key(&audit.hub) {
            heads.insert(audit.hub.clone(), audit);
        }
    })?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::hub_records::ChainHead;
    use crate::model::time::Time;
    use crate::os::secret;

    #[test]
    fn a_hub_does_not_speak_for_another_one() {
        let home = Home::at(std::env::temp_dir().join(secret::id("connect-heads")));
        let head = |count| AuditHead {
            hub: "hub-a".to_owned(),
            head: ChainHead { count, hash: count.to_string() },
            at: Time::from_unix(0),
        };
        assert!(keep(&home, "https://a:8443", head(5)).unwrap());
        assert!(keep(&home, "https://b:8443", head(900)).unwrap());
        assert!(keep(&home, "https://a:8443", head(6)).unwrap(), "the other's head is not in its way");
        let all: HubHeads = home.read(HUB_HEADS_FILE).unwrap().unwrap();
        assert_eq!(all["https://a:8443"]["hub-a"], head(6));
        std::fs::remove_dir_all(home.file("")).unwrap();
    }
}
