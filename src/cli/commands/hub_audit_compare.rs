//! Compares the hub's audit log with the record of an agent: each session stands in both, or somebody hides something.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;

use crate::error::Error;
use crate::error::Result;
use crate::model::time::Time;
use crate::state::chain_files;
use crate::wire::chain::ChainLine;

/// What may be on its way between hub and agent when a session is cut: the largest buffers of both systems.
const CUT_BYTES: u64 = 16 * 1024 * 1024;
/// And when it ends in order: answers to a joiner that is gone already.
const LAST_BYTES: u64 = 64 * 1024;
/// Sessions that begin together may be logged in either order, and clocks are corrected now and then.
const ORDER_TOLERANCE: u64 = 60;

pub struct SessionDifference {
    pub session: String,
    pub difference: String,
}

pub struct Comparison {
    /// Sessions that both know.
    pub common: usize,
    pub differences: Vec<SessionDifference>,
    /// Of the agent, by other hubs: their names and addresses.
    pub other_hubs: BTreeSet<String>,
}

/// One side's lines of a session.
#[derive(Default)]
struct LoggedSession {
    /// Its place among all of this log.
    number: u64,
    /// How often the log has it as opened.
    opened: usize,
    at: Time,
    service: String,
    peer: String,
    path: String,
    /// To the agent and to the joiner, once it has ended.
    bytes: Option<[u64; 2]>,
    is_cut: bool,
}

#[derive(Default)]
struct LoggedSessions {
    by_id: BTreeMap<String, LoggedSession>,
    /// When the log begins, if that is not with its first line.
    since: Option<Time>,
}

impl LoggedSessions {
    fn add(&mut self, line: &ChainLine) {
        let number = line.head.count;
        let at = Time::parse(line.text("at")).unwrap_or_default();
        let new = || LoggedSession { number, at, ..LoggedSession::default() };
        let session = self.by_id.entry(line.text("session").to_owned()).or_insert_with(new);
        session.opened += usize::from(line.text("event") == "session.opened");
        line.text("service").clone_into(&mut session.service);
        line.text("peer").clone_into(&mut session.peer);
        line.text("path").clone_into(&mut session.path);
        if line.text("event") == "session.closed" {
            session.bytes = line.number("toAgent").zip(line.number("toJoiner")).map(<[u64; 2]>::from);
            session.is_cut = line.text("outcome") == "cut";
        }
    }

    /// Whether the log has all lines of that time.
    fn covers(&self, at: Time) -> bool {
        self.since.is_none_or(|since| at >= since)
    }
}

/// `hub` is the hub's name in its log.
pub fn compare(hub_log: &Path, hub: &str, agent_log: &Path) -> Result<Comparison> {
    let (mut other_hubs, mut agents) = (BTreeSet::new(), BTreeSet::new());
    let served = read(agent_log, |line| {
        let is_ours = line.text("hub") == hub;
        if !is_ours {
            other_hubs.insert(format!("{} ({})", line.text("hub"), line.text("url")));
        }
        agents.insert(line.text("agent").to_owned());
        is_ours
    })?;
    let relayed = read(hub_log, |line| agents.contains(line.text("agent")))?;
    let mut differences = Vec::new();
    let mut differ = |session: &str, difference: String| {
        differences.push(SessionDifference { session: session.to_owned(), difference });
    };
    let mut common: Vec<_> = Vec::new();
    for (id, ours) in &relayed.by_id {
        match served.by_id.get(id) {
            Some(theirs) => common.push((id, ours, theirs)),
            None if served.covers(ours.at) => differ(id, format!("only the hub knows it, {}", ours.at)),
            None => {}
        }
    }
    let is_hidden = |(id, theirs): &(&String, &LoggedSession)| {
        !relayed.by_id.contains_key(*id) && relayed.covers(theirs.at)
    };
    for (id, theirs) in served.by_id.iter().filter(is_hidden) {
        differ(id, format!("only the agent knows it, {}", theirs.at));
    }
    common.sort_by_key(|(_, ours, _)| ours.number);
    let mut latest = Time::default();
    for (id, ours, theirs) in &common {
        if latest.since(theirs.at).as_secs() > ORDER_TOLERANCE {
            differ(id, "the hub logged it in another order".to_owned());
        }
        latest = latest.max(theirs.at);
        if let Some(difference) = difference(ours, theirs) {
            differ(id, difference);
        }
    }
    Ok(Comparison { common: common.len(), differences, other_hubs })
}

fn read(path: &Path, mut wants: impl FnMut(&ChainLine) -> bool) -> Result<LoggedSessions> {
    let mut sessions = LoggedSessions::default();
    let mut first = None;
    let reading = chain_files::read(path, &mut |line| {
        first = first.or_else(|| Time::parse(line.text("at")));
        if matches!(line.text("event"), "session.opened" | "session.closed") && wants(line) {
            sessions.add(line);
        }
    })?;
    if let Some(broken) = reading.broken {
        return Err(broken);
    }
    if reading.head.count == 0 {
        return Err(Error::new(format!("There is no log at {}", path.display())));
    }
    sessions.since = first.filter(|_| reading.begins_after.count > 0);
    Ok(sessions)
}

fn difference(ours: &LoggedSession, theirs: &LoggedSession) -> Option<String> {
    // A hub could hide one behind another.
    if ours.opened.max(theirs.opened) > 1 {
        return Some("more than one session has this ID".to_owned());
    }
    let texts = [
        ("service", &ours.service, &theirs.service),
        ("joiner", &ours.peer, &theirs.peer),
        ("path", &ours.path, &theirs.path),
    ];
    if let Some((what, ours, theirs)) = texts.into_iter().find(|(_, ours, theirs)| ours != theirs) {
        return Some(format!("another {what}: {ours} at the hub, {theirs} at the agent"));
    }
    let ([hub_to_agent, hub_to_joiner], [received, sent]) = ours.bytes.zip(theirs.bytes)?;
    let tolerance = if ours.is_cut || theirs.is_cut { CUT_BYTES } else { LAST_BYTES };
    // What is lost on the way has left its sender, and has not reached its receiver.
    let fits = |sent: u64, received: u64| sent.checked_sub(received).is_some_and(|lost| lost <= tolerance);
    let is_same = fits(hub_to_agent, received) && fits(sent, hub_to_joiner);
    (!is_same)
        .then(|| format!("{hub_to_agent}/{hub_to_joiner} bytes at the hub, {received}/{sent} at the agent"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::hub_records::ChainHead;
    use crate::os::files;
    use crate::os::secret;
    use crate::wire::chain;
    use serde_json::Value;
    use serde_json::json;
    use std::path::PathBuf;

    /// Two lines for each session, one every ten minutes.
    fn lines(sessions: &[&str]) -> Vec<Value> {
        let mut lines = Vec::new();
        for (number, id) in sessions.iter().enumerate() {
            for (event, minute) in [("session.opened", 0), ("session.closed", 5)] {
                let at = Time::from_unix(1000 + (number as u64 * 10 + minute) * 60).to_string();
                lines.push(
                    json!({ "at": at, "event": event, "hub": "hub_1", "agent": "agent_1", "session": id,
                    "service": "db", "peer": "p", "path": "relay", "toAgent": 5000, "toJoiner": 7000,
                    "outcome": "ok" }),
                );
            }
        }
        lines
    }

    /// Writes a log whose chain is right, as somebody can who rewrites all of it.
    fn sealed(lines: &[Value]) -> PathBuf {
        let path = std::env::temp_dir().join(secret::id("connect-compare")).join("x.log");
        files::private_dir(path.parent().unwrap()).unwrap();
        let mut head = ChainHead::default();
        let seal = |line: &Value| {
            chain::seal(line.as_object().unwrap().clone(), &mut head, chain_files::hash) + "\n"
        };
        std::fs::write(&path, lines.iter().map(seal).collect::<String>()).unwrap();
        path
    }

    fn differences(hub: &[Value], agent: &[Value]) -> Vec<(String, String)> {
        let compared = compare(&sealed(hub), "hub_1", &sealed(agent)).unwrap();
        compared.differences.into_iter().map(|one| (one.session, one.difference)).collect()
    }

    #[test]
    fn a_hub_that_drops_invents_reorders_or_truncates_is_found_out() {
        let honest = lines(&["a", "b", "c"]);
        assert_eq!(differences(&honest, &honest), []);
        let found = |hub: &[Value]| {
            let found = differences(hub, &honest);
            found.iter().map(|(id, what)| format!("{id}: {}", &what[..8])).collect::<Vec<_>>().join(", ")
        };
        let dropped = [&honest[..2], &honest[4..]].concat();
        assert_eq!(found(&dropped), "b: only the");
        assert_eq!(found(&honest[..2]), "b: only the, c: only the");
        let invented = [&honest[..], &lines(&["d"])[..]].concat();
        assert_eq!(found(&invented), "d: only the");
        let reordered = [&honest[4..], &honest[..4]].concat();
        assert_eq!(found(&reordered), "a: the hub , b: the hub ");
        for (field, value) in
            [("service", json!("other")), ("peer", json!("q")), ("toAgent", json!(9_000_000))]
        {
            let mut changed = honest.clone();
            changed[3][field] = value;
            assert_eq!(differences(&changed, &honest).len(), 1, "{field}");
        }
    }

    #[test]
    fn a_session_that_is_hidden_behind_the_id_of_another_is_found() {
        let hub = lines(&["a", "b"]);
        let agent = lines(&["a", "b", "b"]);
        assert_eq!(
            differences(&hub, &agent),
            [("b".to_owned(), "more than one session has this ID".to_owned())]
        );
    }

    #[test]
    fn bytes_that_were_on_their_way_when_a_session_was_cut_are_no_difference() {
        let hub = lines(&["a"]);
        let mut agent = hub.clone();
        agent[1]["toJoiner"] = json!(3_000_000);
        assert_eq!(differences(&hub, &agent).len(), 1);
        agent[1]["outcome"] = json!("cut");
        assert_eq!(differences(&hub, &agent), []);
        // The hub cannot have passed on more than the agent has sent.
        agent[1]["toJoiner"] = json!(6000);
        assert_eq!(differences(&hub, &agent).len(), 1);
    }

    #[test]
    fn sessions_of_other_hubs_are_named_and_not_compared() {
        let hub = lines(&["a"]);
        let mut agent = [&hub[..], &lines(&["z"])[..]].concat();
        for line in &mut agent[2..] {
            line["hub"] = json!("hub_2");
        }
        let compared = compare(&sealed(&hub), "hub_1", &sealed(&agent)).unwrap();
        assert_eq!((compared.common, compared.differences.len(), compared.other_hubs.len()), (1, 0, 1));
    }
}
