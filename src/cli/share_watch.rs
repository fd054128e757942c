//! Watches the share that `connect share` stays for: whether it still exists, and who has joined it.

use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use crate::api::Hub;
use crate::cli::say::Say;
use crate::cli::supervisor::Stay;
use crate::error::Error;
use crate::error::Result;
use crate::model::hub_records::ShareInfo;

/// A share that was revoked elsewhere is noticed this late at most.
const SHARE_POLL: Duration = Duration::from_secs(5);
/// The loop that keeps the services up waits for the answer, so it is short.
const SHARE_ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

pub struct ShareWatch {
    hub: Hub,
    id: String,
    until: Option<Instant>,
    next: Instant,
    joins: u32,
    pub is_revoked: bool,
}

impl ShareWatch {
    pub fn begin(hub: &Hub, id: String, until: Option<Instant>) -> Self {
        let hub = hub.with_timeout(SHARE_ANSWER_TIMEOUT);
        Self { hub, id, until, next: Instant::now() + SHARE_POLL, joins: 0, is_revoked: false }
    }

    /// Asks the hub when it is time to, and says who has joined. An error if somebody has revoked the share.
    pub fn poll(&mut self, is_hub_away: bool, say: &Say) -> Result<Stay> {
        let now = Instant::now();
        if now >= self.next && !is_hub_away {
            // The hub's clock may end the share a moment before ours: that is its expiry, not a revocation.
            let is_near = self.until.is_some_and(|until| until <= now + SHARE_POLL);
            self.is_revoked = self.is_gone(say) && !is_near;
            self.next = Instant::now() + SHARE_POLL;
        }
        if self.is_revoked {
            return Err(Error::new("The share was revoked from elsewhere")
                .hint("Nothing is shared any more; make another: connect share"));
        }
        let is_expired = self.until.is_some_and(|until| now >= until);
        Ok(if is_expired { Stay::Over } else { Stay::On })
    }

    fn is_gone(&mut self, say: &Say) -> bool {
        let Ok(shares) = self.hub.shares() else { return false };
        if let Some(share) = shares.iter().map(|share| &share.info).find(|share| share.id == self.id) {
            self.say_joins(share, say);
            return false;
        }
        // A hub without its fleet's store may not have heard of a new share.
        self.hub.health().is_ok_and(|health| health.store.is_none_or(|store| store == "ok"))
    }

    fn say_joins(&mut self, share: &ShareInfo, say: &Say) {
        let new = share.join_count.saturating_sub(std::mem::replace(&mut self.joins, share.join_count));
        let named = share.joins.len().saturating_sub(new as usize);
        for join in &share.joins[named..] {
            say.event(&json!({ "event": "join", "who": join.who, "at": join.at }));
            let who = if join.who == "link" { "Somebody with the link" } else { &join.who };
            say.line(&format!("[ok] {who} has joined"));
        }
    }
}
