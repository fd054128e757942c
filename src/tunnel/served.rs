//! The agent's own record of what it serves, `served.log` in the state folder: a chained log like the hub's, and independent
//! of it. `connect hub audit verify --with` compares the two, so a hub can neither invent nor hide a session.
//!
//! A session is recorded before its first byte, each of its connections when that ends, and the session once more at its
//! end, however it ends. Nothing is done for a byte.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Instant;

use serde_json::Value;

use super::traffic::CarriedBytes;
use crate::error::Result;
use crate::model::name::Name;
use crate::net::address::HubUrl;
use crate::os::clock;
use crate::os::lock::locked;
use crate::state::chained_log::ChainedLog;
use crate::state::chained_log::ChainedLogOptions;
use crate::state::chained_log::LogOwner;
use crate::state::home::Home;
use crate::wire::chain::LineFields;
use crate::wire::control::SessionOffer;

const SERVED_FILE: &str = "served.log";
/// A closed segment's length, and how many are kept: about 150,000 connections in 64 MiB.
const SEGMENT_LENGTH: u64 = 8 * 1024 * 1024;
const SEGMENTS_KEPT: usize = 7;
const SERVED_VERSION: u64 = 1;

/// What is recorded, and the fields of each besides `v`, `at`, `event`, those of the chain, and at the end of something those
/// of its beginning.
pub const SERVED_EVENTS: [(&str, &[&str]); 5] = [
    ("session.opened", &["hub", "url", "agent", "session", "service", "peer", "path"]),
    ("connection.closed", &CLOSED_FIELDS),
    ("session.closed", &CLOSED_FIELDS),
    ("audit.missing", &["count"]),
    ("audit.broken", &["reason"]),
];
const CLOSED_FIELDS: [&str; 5] = ["outcome", "since", "durationMs", "toAgent", "toJoiner"];

pub struct ServedLog {
    log: ChainedLog,
    agent: String,
    /// The name of the hub in its own log.
    hub: Mutex<String>,
}

/// A session's part of the record. Its end is recorded when this is dropped.
pub struct SessionRecord {
    log: Arc<ServedLog>,
    /// The fields of all its lines.
    common: LineFields,
    begun: Beginning,
    /// How it ended; nothing yet while it is being set up.
    pub outcome: &'static str,
    pub bytes: CarriedBytes,
}

/// When a session or a connection began.
pub struct Beginning {
    at: String,
    instant: Instant,
}

impl Beginning {
    pub fn now() -> Self {
        Self { at: clock::stamp(), instant: Instant::now() }
    }
}

impl ServedLog {
    pub fn open(home: &Home, agent: &str) -> Result<Self> {
        let log = ChainedLog::open(ChainedLogOptions {
            path: home.file(SERVED_FILE),
            owner: LogOwner::Machine { segment: SEGMENT_LENGTH, kept: SEGMENTS_KEPT },
            own_line: Box::new(|event| line(event, [])),
            written: Box::new(|_| ()),
        })?;
        Ok(Self { log, agent: agent.to_owned(), hub: Mutex::default() })
    }

    /// The hub has said its name.
    pub fn at_hub(&self, hub: &str) {
        hub.clone_into(&mut locked(&self.hub));
    }

    /// A session that has come by the hub at `url`. `path` is the way of its bytes.
    pub fn begin(
        self: &Arc<Self>,
        offer: &SessionOffer,
        service: &Name,
        url: &HubUrl,
        path: &'static str,
    ) -> SessionRecord {
        let fields = [
            ("hub", locked(&self.hub).clone()),
            ("url", url.to_string()),
            ("agent", self.agent.clone()),
            ("session", offer.session.clone()),
            ("service", service.to_string()),
            ("peer", offer.peer.to_string()),
            ("path", path.to_owned()),
        ];
        let common: LineFields =
            fields.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        let opened = line("session.opened", []).into_iter().chain(common.clone()).collect();
        self.log.write(opened);
        let bytes = CarriedBytes::default();
        SessionRecord { log: Arc::clone(self), common, begun: Beginning::now(), outcome: "failed", bytes }
    }
}

impl SessionRecord {
    pub fn connection_closed(&self, begun: &Beginning, outcome: &str, bytes: &CarriedBytes) {
        self.write("connection.closed", begun, outcome, bytes);
    }

    fn write(&self, event: &str, begun: &Beginning, outcome: &str, bytes: &CarriedBytes) {
        let duration = u64::try_from(begun.instant.elapsed().as_millis()).unwrap_or(u64::MAX);
        let own = [
            ("outcome", outcome.into()),
            ("since", begun.at.clone().into()),
            ("durationMs", duration.into()),
            ("toAgent", bytes.to_agent.into()),
            ("toJoiner", bytes.to_joiner.into()),
        ];
        self.log.log.write(line(event, own).into_iter().chain(self.common.clone()).collect());
    }
}

impl Drop for SessionRecord {
    fn drop(&mut self) {
        self.write("session.closed", &self.begun, self.outcome, &self.bytes);
    }
}

fn line<const N: usize>(event: &str, own: [(&str, Value); N]) -> LineFields {
    debug_assert!(
        SERVED_EVENTS
            .iter()
            .any(|(known, fields)| { *known == event && own.iter().all(|(name, _)| fields.contains(name)) })
    );
    let common = [("v", SERVED_VERSION.into()), ("at", clock::stamp().into()), ("event", event.into())];
    common.into_iter().chain(own).map(|(name, value)| (name.to_owned(), value)).collect()
}
