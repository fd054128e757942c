//! Whether a share that `connect share` stays for still stands.

use std::time::Duration;
use std::time::Instant;

use crate::api::Hub;
use crate::error::Error;
use crate::error::Result;
use crate::wire::api::ShareInfo;

/// How often the hub is asked whether the share still stands, and how long it has to answer.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(2);

/// Whether a share that was made here is still one, as its hub says from time to time.
pub struct Standing {
    hub: Hub,
    id: String,
    until: Option<Instant>,
    next: Instant,
    pub is_revoked: bool,
}

impl Standing {
    pub fn begin(hub: &Hub, id: String, until: Option<Instant>) -> Self {
        let hub = hub.for_retries(ANSWER);
        Self { hub, id, until, next: Instant::now() + LOOK_AGAIN, is_revoked: false }
    }

    /// Its time is over, or somebody has revoked it.
    pub fn is_over(&mut self, hub_is_away: bool) -> Result<bool> {
        let now = Instant::now();
        if now >= self.next && !hub_is_away {
            // To the hub its time may end a moment before it ends here.
            let is_near = self.until.is_some_and(|until| until <= now + LOOK_AGAIN);
            self.is_revoked = !is_near && self.is_gone();
            self.next = Instant::now() + LOOK_AGAIN;
        }
        if self.is_revoked {
            return Err(Error::new("The share was revoked from elsewhere")
                .hint("Nothing is shared any more; make another: connect share"));
        }
        Ok(self.until.is_some_and(|until| now >= until))
    }

    fn is_gone(&self) -> bool {
        let is_listed = |shares: Vec<ShareInfo>| shares.iter().any(|share| share.id == self.id);
        // A hub without its fleet's store may not have heard of a new share.
        self.hub.shares().is_ok_and(|shares| !is_listed(shares))
            && self.hub.health().is_ok_and(|health| health.store.is_none_or(|store| store == "ok"))
    }
}
