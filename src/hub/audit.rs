//! The audit log: one line for each security event, in a chained log (`state/chained_log.rs`) that the hub never shortens.
//!
//! `AUDIT_EVENTS` lists every event with its own fields, `AUDIT_FIELDS` what every line has. The topic `audit` shows both to
//! users, and a test compares them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;

use super::audit_forward::AuditForwarder;
use super::audit_forward::AuditTarget;
use super::refusal::Refusal;
use crate::error::Result;
use crate::model::access::Principal;
use crate::model::hub_records::AuditHead;
use crate::model::hub_records::ChainHead;
use crate::model::hub_session::HubSession;
use crate::os::clock;
use crate::os::lock::locked;
use crate::state::chained_log::ChainedLog;
use crate::state::chained_log::ChainedLogOptions;
use crate::state::chained_log::ClosedSegment;
use crate::state::chained_log::LogOwner;
use crate::wire::chain::LineFields;

/// The version of the lines' form. A new event or field leaves it as it is; a field that changes its meaning does not.
const AUDIT_VERSION: u64 = 1;

/// What every line has, besides `v`, and `seq`, `prev` and `sum` of the chain. A text is empty where it does not apply.
pub const AUDIT_FIELDS: [&str; 12] = [
    "at", "hub", "event", "actor", "label", "address", "agent", "service", "share", "path", "outcome",
    "reason",
];
/// Every event, and the fields that only it has.
pub const AUDIT_EVENTS: [(&str, &[&str]); 34] = [
    ("hub.started", &["version", "url"]),
    ("hub.stopped", &[]),
    ("hub.unready", &[]),
    ("hub.ready", &["seconds"]),
    ("key.made", &["key", "role", "limits"]),
    ("key.revoked", &["key", "removed"]),
    ("key.rotating", &["key", "until"]),
    ("key.rotated", &["key"]),
    ("key.refused", &["count"]),
    ("call.refused", &["action", "count"]),
    ("device.asked", &["machine"]),
    ("device.approved", &["machine", "machineAddress"]),
    ("ca.rotated", &["from", "to", "until"]),
    ("agent.registered", &["machine"]),
    ("agent.taken-over", &["from"]),
    ("agent.identity", &["from", "to"]),
    ("agent.refused", &["count"]),
    ("agent.up", &[]),
    ("agent.down", &["durationMs"]),
    ("agent.removed", &[]),
    ("service.refused", &["count"]),
    ("service.removed", &[]),
    ("share.made", &["services"]),
    ("share.joined", &["count"]),
    ("share.refused", &["action", "count"]),
    ("share.revoked", &[]),
    ("session.opened", &["session", "peer"]),
    ("session.closed", &["session", "peer", "durationMs", "toAgent", "toJoiner", "tls"]),
    ("session.refused", &["action", "words", "count"]),
    ("session.carried", &["session", "peer", "to"]),
    ("audit.rotated", &["segment", "count"]),
    ("audit.missing", &["count"]),
    ("audit.unsent", &["count"]),
    ("audit.broken", &[]),
];
/// The fields that are numbers.
const NUMBERS: [&str; 6] = ["removed", "count", "seconds", "durationMs", "toAgent", "toJoiner"];

/// Refusals and joins are events that a client in a retry loop must not fill the disk with. The first of a minute gets a line
/// at once; those that differ from it only in their time are counted, and get one line together when the minute ends.
const COUNTED_FOR: Duration = Duration::from_mins(1);
/// Refusals of one caller that differ: those beyond are counted in one line that says no more than who it was.
const CALLER_REFUSALS: u32 = 20;
/// Counted lines of all callers: those beyond do not even say who it was. They take some megabytes.
const COUNTED_LINES: usize = 4096;

pub struct Audit {
    /// This hub's name in its log: each hub of a fleet has its own log.
    hub: String,
    log: ChainedLog,
    counts: Mutex<EventCounts>,
    forwarder: Option<AuditForwarder>,
}

/// How many equal events there were in this minute. The lines are without their time.
struct EventCounts {
    since: Instant,
    equal: HashMap<LineFields, u64>,
    /// How many lines of `equal` are refusals of this caller.
    by_caller: HashMap<String, u32>,
}

impl EventCounts {
    fn new() -> Self {
        Self { since: Instant::now(), equal: HashMap::new(), by_caller: HashMap::new() }
    }

    /// Counts the event and says whether it is the first of its kind. One that is too many loses its details.
    fn is_first(&mut self, line: &mut LineFields) -> bool {
        let mut equal = line.clone();
        equal.remove("at");
        if !self.equal.contains_key(&equal) {
            let text = |name: &str| line.get(name).and_then(Value::as_str).unwrap_or_default();
            let who = if text("actor").is_empty() { "address" } else { "actor" };
            if self.equal.len() >= COUNTED_LINES {
                keep_only(line, &[]);
            } else if text("outcome") == "refused" {
                let of_caller = self.by_caller.entry(text(who).to_owned()).or_default();
                *of_caller += 1;
                if *of_caller > CALLER_REFUSALS {
                    keep_only(line, &[who, "label"]);
                }
            }
            equal.clone_from(line);
            equal.remove("at");
        }
        let count = self.equal.entry(equal).or_default();
        *count += 1;
        *count == 1
    }
}

/// Empties all fields but the event and these.
fn keep_only(line: &mut LineFields, names: &[&str]) {
    let kept = [&["v", "at", "hub", "event", "outcome"], names].concat();
    line.iter_mut()
        .filter(|(name, _)| !kept.contains(&name.as_str()))
        .for_each(|(_, value)| *value = "".into());
}

/// Who caused an event, and from where.
#[derive(Clone, Copy)]
pub struct Actor<'a> {
    pub id: &'a str,
    pub label: &'a str,
    pub address: Option<IpAddr>,
}

impl<'a> Actor<'a> {
    pub const HUB: Self = Self { id: "hub", label: "", address: None };

    pub fn of(principal: &'a Principal, address: IpAddr) -> Self {
        Self { id: principal.id(), label: principal.label(), address: Some(address) }
    }
}

/// An event's fields: pairs of name and value.
pub type AuditDetails<'a> = &'a [(&'a str, &'a str)];

impl Audit {
    /// `known` is the head that the store has kept.
    pub fn open(folder: &Path, hub: String, known: ChainHead, to: Option<&AuditTarget>) -> Result<Self> {
        let own = hub.clone();
        let forwarding = to.map(|target| AuditForwarder::start(target.clone())).transpose()?;
        let (forwarder, written) = forwarding.unzip();
        let log = ChainedLog::open(ChainedLogOptions {
            path: log_file(folder),
            owner: LogOwner::Process(known),
            own_line: Box::new(move |event| line_of(&own, event, Actor::HUB, &[("outcome", "failed")])),
            written: written.unwrap_or_else(|| Box::new(|_| ())),
        })?;
        Ok(Self { hub, log, counts: Mutex::new(EventCounts::new()), forwarder })
    }

    /// Queues an event with the current time, or counts it. It cannot fail: a hub whose log cannot be written still serves.
    pub fn say(&self, event: &str, actor: Actor<'_>, details: AuditDetails<'_>) {
        debug_assert!(is_declared(event, details), "{event} {details:?} is not in AUDIT_EVENTS");
        let mut line = line_of(&self.hub, event, actor, details);
        let is_counted = event.ends_with(".refused") || event == "share.joined";
        if !is_counted || locked(&self.counts).is_first(&mut line) {
            self.log.write(line);
        }
    }

    /// The refusal of a call, if it is one that the log should have.
    pub fn say_refused(&self, event: &str, actor: Actor<'_>, action: &str, refusal: &Refusal) {
        if refusal.is_denial() {
            self.say(event, actor, &[("action", action), ("reason", refusal.code())]);
        }
    }

    /// An event of a session.
    pub fn say_session(&self, event: &str, session: &HubSession, details: AuditDetails<'_>) {
        let common = [
            ("session", session.id.as_str()),
            ("agent", &session.agent_id),
            ("service", &session.service),
            ("share", session.share.as_deref().unwrap_or_default()),
            ("path", session.path()),
            ("peer", &session.peer.to_string()),
        ];
        self.say(event, Actor::of(&session.caller, session.address), &[&common, details].concat());
    }

    /// The head of the log, and of what is on the disk for certain.
    pub fn head(&self) -> AuditHead {
        AuditHead { hub: self.hub.clone(), head: self.log.head(), at: clock::now() }
    }

    /// Looks whether the log's file is still where and what it was.
    pub fn check(&self) {
        self.log.check();
    }

    /// Closes the segment; the next line begins another one. Returns where the closed one is, and the head at its end.
    pub fn rotate(&self, actor: Actor<'_>) -> Result<ClosedSegment> {
        let closed = self.log.rotate()?;
        let name = closed.path.file_name().unwrap_or_default().to_string_lossy();
        self.say("audit.rotated", actor, &[("segment", &name), ("count", &closed.head.count.to_string())]);
        Ok(closed)
    }

    /// Writes all that is queued, and stops.
    pub fn close(&mut self) {
        self.end_counts();
        self.say_unsent(true);
        self.log.close();
        self.forwarder = None;
    }

    /// After each minute, what was counted after an event becomes one line.
    pub fn sweep(&self) {
        let is_over = locked(&self.counts).since.elapsed() >= COUNTED_FOR;
        self.say_unsent(is_over);
        if is_over {
            self.end_counts();
        }
    }

    /// Says what the collector has missed, once it is there again or if that `is_due`.
    fn say_unsent(&self, is_due: bool) {
        let unsent = self.forwarder.as_ref().map_or(0, |forwarder| forwarder.take_lost(is_due));
        if unsent > 0 {
            self.say("audit.unsent", Actor::HUB, &[("outcome", "failed"), ("count", &unsent.to_string())]);
        }
    }

    fn end_counts(&self) {
        let counts = std::mem::replace(&mut *locked(&self.counts), EventCounts::new());
        for (mut line, count) in counts.equal.into_iter().filter(|(_, count)| *count > 1) {
            line.insert("at".into(), clock::stamp().into());
            line.insert("count".into(), (count - 1).into());
            self.log.write(line);
        }
    }
}

/// Waits until all is written.
impl Drop for Audit {
    fn drop(&mut self) {
        self.close();
    }
}

/// A detail may also be one of the fields that every line has.
fn line_of(hub: &str, event: &str, actor: Actor<'_>, details: AuditDetails<'_>) -> LineFields {
    let mut line: LineFields = AUDIT_FIELDS.iter().map(|name| ((*name).to_owned(), "".into())).collect();
    let address = actor.address.map(|address| address.to_string()).unwrap_or_default();
    let stamp = clock::stamp();
    let outcome = if event.ends_with(".refused") { "refused" } else { "ok" };
    let common = [
        ("at", stamp.as_str()),
        ("hub", hub),
        ("event", event),
        ("actor", actor.id),
        ("label", actor.label),
        ("address", &address),
        ("outcome", outcome),
    ];
    line.insert("v".into(), AUDIT_VERSION.into());
    for (name, value) in common.iter().chain(details) {
        let number = value.parse::<u64>().ok().filter(|_| NUMBERS.contains(name));
        line.insert((*name).to_owned(), number.map_or_else(|| Value::from(*value), Value::from));
    }
    line
}

fn is_declared(event: &str, details: AuditDetails<'_>) -> bool {
    let declared = AUDIT_EVENTS.iter().find(|(name, _)| *name == event);
    declared.is_some_and(|(_, own)| {
        details.iter().all(|(name, _)| own.contains(name) || AUDIT_FIELDS.contains(name))
    })
}

pub fn log_file(folder: &Path) -> PathBuf {
    folder.join("audit.log")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::files;
    use crate::os::secret;
    use crate::state::chain_files;
    use std::io::Write;

    fn verify(folder: &Path) -> Option<u64> {
        let reading = chain_files::read(&log_file(folder), &mut |_| ()).unwrap();
        reading.broken.is_none().then_some(reading.head.count)
    }

    fn audit(folder: &Path) -> Audit {
        Audit::open(folder, "hub_1".into(), ChainHead::default(), None).unwrap()
    }

    #[test]
    fn a_changed_removed_or_swapped_line_is_found() {
        let folder = std::env::temp_dir().join(secret::id("connect-audit"));
        files::private_dir(&folder).unwrap();
        for round in 0..2 {
            let audit = audit(&folder);
            for n in 0..5 {
                audit.say("key.made", Actor::HUB, &[("key", &format!("{round}-{n}"))]);
            }
        }
        assert_eq!(verify(&folder), Some(10));
        let text = std::fs::read_to_string(log_file(&folder)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for at in 0..10 {
            let (mut changed, mut removed, mut swapped) = (lines.clone(), lines.clone(), lines.clone());
            let altered = changed[at].replace("made", "mode");
            changed[at] = &altered;
            if at == 9 {
                // Taking away the end leaves no trace in what is left; the head that is kept elsewhere does.
                std::fs::write(log_file(&folder), changed.join("\n") + "\n").unwrap();
                assert_eq!(verify(&folder), None, "the last line");
                continue;
            }
            removed.remove(at);
            swapped.swap(at, at + 1);
            for tampered in [changed, removed, swapped] {
                std::fs::write(log_file(&folder), tampered.join("\n") + "\n").unwrap();
                // Without its first line it reads as the rest of a longer log.
                let is_seen = verify(&folder).is_none();
                assert!(is_seen || at == 0, "line {at}");
            }
        }
    }

    #[test]
    fn a_torn_last_line_is_cut_off_and_the_chain_goes_on() {
        let folder = std::env::temp_dir().join(secret::id("connect-audit"));
        files::private_dir(&folder).unwrap();
        audit(&folder).say("hub.stopped", Actor::HUB, &[]);
        let mut file = files::append(&log_file(&folder)).unwrap();
        file.write_all(b"{\"at\":\"torn").unwrap();
        audit(&folder).say("hub.stopped", Actor::HUB, &[]);
        assert_eq!(verify(&folder), Some(2));
    }
}
