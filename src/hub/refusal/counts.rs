//! How often the hub refuses what, and the answers that it gives then.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::Refusal;
use super::RefusalText;
use crate::http::message::ErrorBody;
use crate::http::reply::Reply;
use crate::os::lock::locked;
use crate::wire::control::CONTROL_UPGRADE;
use crate::wire::control::RELAY_UPGRADE;

/// How often each refusal was answered, by its code.
#[derive(Default)]
pub struct RefusalCounts {
    by_code: Mutex<BTreeMap<&'static str, u64>>,
}

impl RefusalCounts {
    /// Counts a refusal that is not answered at all.
    pub fn count(&self, refusal: &Refusal) {
        self.text(refusal);
    }

    /// Counts the refusal and returns its text, for answers that are not the API's JSON.
    pub fn text(&self, refusal: &Refusal) -> RefusalText {
        let text = refusal.text();
        *locked(&self.by_code).entry(text.code).or_default() += 1;
        text
    }

    /// Counts the refusal and returns its reply.
    pub fn reply(&self, refusal: Refusal) -> Reply {
        let RefusalText { status, code, what, hint } = self.text(&refusal);
        let mut body = ErrorBody { error: what, hint, code: code.to_owned() }.to_json();
        // With these two fields a client finds the hub that it should ask.
        match &refusal {
            Refusal::Fenced => body["elsewhere"] = true.into(),
            Refusal::AgentAtOtherHub { hub, .. } => body["hub"] = hub.as_str().into(),
            _ => {}
        }
        let reply = Reply::json(status, body);
        match refusal {
            Refusal::OtherHub(theirs) => theirs,
            Refusal::TooManyTries { seconds, .. } => reply.field("retry-after", seconds.to_string()),
            Refusal::OtherMethod { allowed } => reply.field("allow", allowed),
            Refusal::OtherProtocol { .. } | Refusal::UpgradeMissing => {
                reply.field("upgrade", format!("{CONTROL_UPGRADE}, {RELAY_UPGRADE}"))
            }
            Refusal::TlsRequired { .. } => {
                reply.field("upgrade", "TLS/1.3, HTTP/1.1").field("connection", "Upgrade")
            }
            _ => reply,
        }
    }

    pub fn by_code(&self) -> BTreeMap<&'static str, u64> {
        locked(&self.by_code).clone()
    }
}
