//! `connect completions`: a short script for each shell, which asks us at every key what could stand there. The
//! answer comes from the table of commands and from local files; no network is waited for.

use std::collections::BTreeSet;
use std::ffi::OsString;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::args::did_you_mean;
use crate::cli::command;
use crate::cli::command::Command;
use crate::cli::command::Opt;
use crate::cli::command::options_of;
use crate::cli::say;
use crate::error::Error;
use crate::state::runs;
use crate::state::service_cache;

const SHELLS: [(&str, &str); 3] = [
    ("bash", include_str!("completions/connect.bash")),
    ("zsh", include_str!("completions/connect.zsh")),
    ("fish", include_str!("completions/connect.fish")),
];

pub fn script(call: &Call) -> CommandResult {
    let asked = call.args.positional(0).unwrap_or_default();
    let Some((shell, script)) = SHELLS.iter().find(|(shell, _)| *shell == asked) else {
        let known = SHELLS.iter().map(|(shell, _)| *shell);
        let hint = did_you_mean(asked, known, "connect completions ", "One of: bash, zsh, fish");
        return Err(
            Error::usage(format!("There are no completions for `{}`", asked.escape_debug())).hint(hint)
        );
    };
    call.say.value(&serde_json::json!({ "shell": shell, "script": script }));
    call.say.result(script.trim_end());
    Ok(0)
}

/// What could stand in the place of the last of these words, with what it is about.
#[allow(clippy::unnecessary_wraps)] // The shape that the table asks for.
pub fn words(call: &Call) -> CommandResult {
    let given: Vec<String> =
        call.args.run.iter().flatten().map(|word: &OsString| word.to_string_lossy().into_owned()).collect();
    let (last, before) = given.split_last().map_or(("", &[][..]), |(last, before)| (last.as_str(), before));
    let fitting = candidates(call, before, last).into_iter().filter(|(word, _)| word.starts_with(last));
    let shown: Vec<String> = fitting.map(|(word, about)| format!("{word}\t{about}")).collect();
    if !shown.is_empty() {
        say::for_programs(&shown.join("\n"));
    }
    Ok(0)
}

type Candidates = Vec<(String, String)>;

fn candidates(call: &Call, before: &[String], last: &str) -> Candidates {
    // What stands behind is another program's.
    if before.iter().any(|word| word == "--") {
        return Vec::new();
    }
    let (path, command) = command_of(call.args.table, before);
    let is_asked = |option: &&Opt| before.last().is_some_and(|word| takes_value(option, word));
    if let Some(option) = options_of(command).find(is_asked) {
        return values(call, option);
    }
    if last.starts_with('-') {
        return options_of(command)
            .map(|option| (format!("--{}", option.long), option.about.to_owned()))
            .collect();
    }
    let mut found: Candidates = next_words(call.args.table, &path);
    if let Some(command) = command {
        found.extend(positionals(call, command, before));
    }
    found
}

/// The longest command that these words name, as the parser reads them.
fn command_of(table: &'static [Command], before: &[String]) -> (String, Option<&'static Command>) {
    let (mut path, mut skip) = (String::new(), false);
    for word in before {
        if std::mem::take(&mut skip) {
            continue;
        }
        if word.starts_with('-') {
            skip = options_of(command::find(table, &path)).any(|option| takes_value(option, word));
            continue;
        }
        let longer = format!("{path} {word}").trim_start().to_owned();
        if !table.iter().any(|command| command.begins_with(&longer)) {
            break;
        }
        path = longer;
    }
    let command = command::find(table, &path);
    (path, command)
}

fn takes_value(option: &Opt, word: &str) -> bool {
    option.value.is_some()
        && (word.strip_prefix("--") == Some(option.long)
            || option.short.is_some_and(|letter| word.strip_prefix('-') == Some(letter.to_string().as_str())))
}

/// The words that lead further into the table.
fn next_words(table: &[Command], path: &str) -> Candidates {
    let mut seen = BTreeSet::new();
    let next = table.iter().filter_map(|command| {
        let word = command.next_word(path)?;
        let about = if command.path == format!("{path} {word}").trim_start() { command.about } else { "" };
        Some((word.to_owned(), about.to_owned()))
    });
    next.filter(|(word, _)| seen.insert(word.clone())).collect()
}

fn named(names: impl IntoIterator<Item = String>, about: &str) -> Candidates {
    names.into_iter().map(|name| (name, about.to_owned())).collect()
}

/// `tcp|http|https` are choices; a name is one that is known.
fn values(call: &Call, option: &Opt) -> Candidates {
    match option.value.unwrap_or_default() {
        choices if choices.contains('|') => named(choices.split('|').map(str::to_owned), option.about),
        "NAME" if option.long == "service" => named(service_cache::names(&call.home), "service"),
        _ => Vec::new(),
    }
}

fn positionals(call: &Call, command: &Command, before: &[String]) -> Candidates {
    let runs = |kinds: &[&str]| -> Candidates {
        let all = runs::all(&call.home)
            .into_iter()
            .filter(|run| kinds.is_empty() || kinds.contains(&run.kind.as_str()));
        all.flat_map(|run| {
            let about = run.title();
            run.names.into_iter().map(move |name| (name, about.clone()))
        })
        .collect()
    };
    let is_first = before.last().is_some_and(|word| command.path.ends_with(word.as_str()));
    match command.path {
        "help" => next_words(call.args.table, &before[1..].join(" ")),
        _ if !is_first => Vec::new(),
        "reach" => named(service_cache::names(&call.home), "service"),
        "stop" => {
            let kept = call.config().map(|config| config.exposures.clone()).unwrap_or_default();
            let kept = named(kept.keys().map(ToString::to_string), "kept by the daemon");
            runs(&[]).into_iter().chain(kept).collect()
        }
        "join" | "share revoke" => runs(&["share", "join"]),
        "completions" => named(SHELLS.iter().map(|(shell, _)| (*shell).to_owned()), "shell"),
        _ => Vec::new(),
    }
}
