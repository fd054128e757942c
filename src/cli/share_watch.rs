//! Whether a share that `connect share` stays for still stands, and who has joined it.

use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use crate::api::Hub;
use crate::cli::say::Say;
use crate::error::Error;
use crate::error::Result;
use crate::model::hub_records::ShareInfo;

/// How often the hub is asked whether the share still stands, and how long it has to answer.
const SHARE_POLL: Duration = Duration::from_secs(5);
const SHARE_ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether a share that was made here is still one, as its hub says from time to time.
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

    /// Its time is over, or somebody has revoked it. Tells of those who have joined.
    pub fn is_over(&mut self, hub_is_away: bool, say: &Say) -> Result<bool> {
        let now = Instant::now();
        if now >= self.next && !hub_is_away {
            // To the hub its time may end a moment before it ends here.
            let is_near = self.until.is_some_and(|until| until <= now + SHARE_POLL);
            self.is_revoked = self.look(say) && !is_near;
            self.next = Instant::now() + SHARE_POLL;
        }
        if self.is_revoked {
            return Err(Error::new("The share was revoked from elsewhere")
                .hint("Nothing is shared any more; make another: connect share"));
        }
        Ok(self.until.is_some_and(|until| now >= until))
    }

    /// Tells of those who have joined; true when it is gone.
    fn look(&mut self, say: &Say) -> bool {
        let Ok(shares) = self.hub.shares() else { return false };
        if let Some(share) = shares.iter().find(|share| share.id == self.id) {
            self.tell_joins(share, say);
            return false;
        }
        // A hub without its fleet's store may not have heard of a new share.
        self.hub.health().is_ok_and(|health| health.store.is_none_or(|store| store == "ok"))
    }

    fn tell_joins(&mut self, share: &ShareInfo, say: &Say) {
        let new = share.join_count.saturating_sub(std::mem::replace(&mut self.joins, share.join_count));
        let named = share.joins.len().saturating_sub(new as usize);
        for join in &share.joins[named..] {
            say.event(&json!({ "event": "join", "who": join.who, "at": join.at }));
            let who = if join.who == "link" { "Somebody with the link" } else { &join.who };
            say.line(&format!("[ok] {who} has joined"));
        }
    }
}
