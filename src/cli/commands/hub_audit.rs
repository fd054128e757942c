//! `connect hub audit`: checks, shows and closes the audit log, with or without a running hub.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::commands::hub_audit_compare::compare;
use crate::cli::local_hub::LocalHub;
use crate::cli::local_hub::data_folder;
use crate::cli::local_hub::no_hub;
use crate::cli::say;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::hub::audit;
use crate::model::hub_records::AuditHead;
use crate::model::hub_records::ChainHead;
use crate::model::text::counted;
use crate::model::time::Time;
use crate::model::time::parse_duration;
use crate::os::clock;
use crate::os::files;
use crate::state::chain_files;
use crate::state::hub_heads::HubHeads;
use crate::wire::chain::ChainLine;

/// A line that the log must have, because somebody has seen it.
struct KnownLine {
    /// Who has seen it.
    witness: String,
    /// `None` if only its hash is known.
    number: Option<u64>,
    hash: String,
}

pub fn verify(call: &Call) -> CommandResult {
    let data = data_folder(call)?;
    // The hub, or what it has stored, knows how long the log was. It is asked first: the log may grow meanwhile.
    let hub = LocalHub::find(call)?;
    let stored = hub.call("GET", "/v1/audit", None)?;
    let stored: AuditHead = serde_json::from_value(stored).or_say(|| "The hub does not tell its head")?;
    let seen_by = |witness: &str, number: Option<u64>, hash: &str| KnownLine {
        witness: witness.to_owned(),
        number,
        hash: hash.to_owned(),
    };
    let mut known = vec![seen_by("The hub's store", Some(stored.head.count), &stored.head.hash)];
    for file in call.args.values("witness") {
        let heads = witnessed(file, &stored.hub)?;
        known.extend(heads.iter().map(|head| seen_by(file, Some(head.count), &head.hash)));
    }
    let expected: Vec<&str> = call.args.values("expect").collect();
    known.extend(expected.iter().map(|hash| seen_by("--expect", None, hash)));
    known.retain(|line| line.number != Some(0));
    let mut at = String::new();
    let reading = chain_files::read(&audit::log_file(&data), &mut |line| {
        line.text("at").clone_into(&mut at);
        known.retain(|known| known.hash != line.head.hash);
    })?;
    if let Some(broken) = reading.broken {
        return Err(broken);
    }
    let before = reading.begins_after;
    if before.count > 0 && !expected.contains(&before.hash.as_str()) {
        return Err(Error::new(format!("Lines 1 to {} of the log are missing", before.count))
            .because(data.display().to_string())
            .hint(format!("If you keep them elsewhere: connect hub audit verify --expect {}", before.hash)));
    }
    let is_before = |known: &KnownLine| {
        (before.count > 0 && known.hash == before.hash)
            || known.number.is_some_and(|number| number < before.count)
    };
    if let Some(lost) = known.iter().find(|known| !is_before(known)) {
        return Err(not_there(lost, reading.head.count));
    }
    let compared = compare_all(call, &audit::log_file(&data), &stored.hub)?;
    let (lines, hash) = (reading.head.count, reading.head.hash);
    call.say.value(&json!({ "hub": stored.hub, "lines": lines, "whole": true, "hash": hash, "at": at,
        "compared": compared }));
    call.say.result(&format!("[ok] {}, unchanged and complete", counted(lines, "line")));
    call.say.line(&format!("  Hub:   {}\n  Last:  {at}\n  Hash:  {hash}", stored.hub));
    Ok(0)
}

/// Compares with each agent's record that is named. Returns how many sessions both sides know.
fn compare_all(call: &Call, log: &Path, hub: &str) -> Result<usize> {
    let mut common = 0;
    for file in call.args.values("with") {
        let compared = compare(log, hub, Path::new(file))?;
        for one in &compared.differences {
            call.say.event(
                &json!({ "event": "difference", "session": one.session, "difference": one.difference }),
            );
            call.say.warn(&format!("{}: {}", one.session, one.difference));
        }
        if !compared.differences.is_empty() {
            let count = counted(compared.differences.len(), "session");
            return Err(Error::new(format!("{count} of {file} and of the hub do not agree")));
        }
        common += compared.common;
        call.say.line(&format!("[ok] {} of {file} agree", counted(compared.common, "session")));
        for other in compared.other_hubs {
            call.say.line(&format!("  It also has sessions by another hub: {other}"));
        }
    }
    Ok(common)
}

/// What an agent's file says about this hub, at each address where it was reached.
fn witnessed(file: &str, hub: &str) -> Result<Vec<ChainHead>> {
    let bytes =
        files::read(Path::new(file))?.ok_or_else(|| Error::new(format!("There is no file {file}")))?;
    let all: HubHeads = serde_json::from_slice(&bytes).or_say(|| format!("Cannot read {file}"))?;
    let heads: Vec<ChainHead> =
        all.values().filter_map(|heads| heads.get(hub)).map(|audit| audit.head.clone()).collect();
    if !heads.is_empty() {
        return Ok(heads);
    }
    let of_address = |(url, heads): (&String, &BTreeMap<String, AuditHead>)| {
        heads.keys().map(|hub| format!("{hub} ({url})")).collect::<Vec<_>>()
    };
    let others: Vec<String> = all.iter().flat_map(of_address).collect();
    Err(Error::new(format!("{file} knows nothing of this hub, {hub}")).hint(format!(
        "It knows {}. A hub has another name if its data folder was replaced",
        others.join(", ")
    )))
}

fn not_there(lost: &KnownLine, lines: u64) -> Error {
    let KnownLine { witness, number, hash } = lost;
    match number {
        Some(number) if *number > lines => {
            Error::new(format!("The log was shortened: it has {}", counted(lines, "line")))
                .because(format!("{witness} has seen {number}"))
        }
        Some(number) => Error::new("The log was rewritten")
            .because(format!("line {number} is not the one that {witness} has seen")),
        None => Error::new(format!("No line of the log has the hash {}", hash.escape_debug())),
    }
}

pub fn rotate(call: &Call) -> CommandResult {
    let closed = LocalHub::find(call)?.call("POST", "/v1/audit/rotate", None)?;
    call.say.value(&closed);
    let text = |name: &str| closed[name].as_str().unwrap_or_default();
    call.say.result(&format!("[ok] Closed {}\n  Hash:  {}", text("segment"), text("hash")));
    Ok(0)
}

pub fn show(call: &Call) -> CommandResult {
    let data = data_folder(call)?;
    let since = call.args.value("since").map(|text| {
        let age = parse_duration(text).ok_or_else(|| Error::misread(text, "is not a time like 90m or 7d"));
        age.map(|age| Time::from_unix(clock::now().unix().saturating_sub(age.as_secs())))
    });
    let since = since.transpose()?.unwrap_or_default();
    let matches = |option: &str, line: &ChainLine, names: &[&str]| {
        call.args.value(option).is_none_or(|wanted| names.iter().any(|name| line.text(name) == wanted))
    };
    let mut rows = Vec::new();
    let reading = chain_files::read(&audit::log_file(&data), &mut |line| {
        let is_new = Time::parse(line.text("at")).is_none_or(|at| at >= since);
        if is_new && matches("actor", line, &["actor", "label"]) && matches("service", line, &["service"]) {
            call.say.event(&Value::Object(line.fields.clone()));
            rows.push(row(line));
        }
    })?;
    if reading.head.count == 0 {
        return Err(no_hub(&data));
    }
    let headings = ["TIME (UTC)", "EVENT", "WHO", "FROM", "WHAT", "RESULT"];
    call.say.result(&say::columns(&headings, rows.into_iter()));
    if let Some(broken) = reading.broken {
        call.say.warn(&format!("{broken}. Look at it: connect hub audit verify"));
    }
    Ok(0)
}

fn row(line: &ChainLine) -> [String; 6] {
    let first = |names: &[&str]| {
        names.iter().map(|name| line.text(name)).find(|text| !text.is_empty()).unwrap_or_default().to_owned()
    };
    let bytes = line.number("toAgent").zip(line.number("toJoiner"));
    let carried = bytes.map(|(to_agent, to_joiner)| format!(" {to_agent}/{to_joiner} B"));
    let counted = line.number("count").map(|count| format!(" ({count})"));
    let figures = carried.or(counted).unwrap_or_default();
    let at = line.text("at");
    let what = first(&["service", "share", "key", "machine", "agent", "segment", "to"]);
    let share = line.text("share");
    let by_link = if share.is_empty() || what == share { String::new() } else { format!(" ({share})") };
    [
        // Without the year and the fraction of a second.
        at.get(5..19).unwrap_or(at).replace('T', " "),
        line.text("event").to_owned(),
        first(&["label", "actor"]),
        line.text("address").to_owned(),
        format!("{what}{by_link}"),
        format!("{}{figures}", first(&["reason", "outcome"])),
    ]
}
