//! `connect completions`: a short script for each shell, which calls `connect completions words` at every key.
//!
//! The words come from the manual and from local files, never from the network: a shell cannot wait for a hub.

use std::collections::BTreeSet;
use std::ffi::OsString;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::args::did_you_mean;
use crate::cli::command::Command;
use crate::cli::command::CommandOption;
use crate::cli::manual::Manual;
use crate::cli::say;
use crate::error::Error;
use crate::state::runs;
use crate::state::service_cache;

const SHELLS: [(&str, &str); 3] = [
    ("bash", include_str!("completions/connect.bash")),
    ("zsh", include_str!("completions/connect.zsh")),
    ("fish", include_str!("completions/connect.fish")),
];

/// A word that may come next.
struct Completion {
    word: String,
    about: String,
}

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

/// Prints what completes the last of the words after `--`.
#[allow(clippy::unnecessary_wraps)] // The table of functions asks for this type.
pub fn words(call: &Call) -> CommandResult {
    // The shell gives every word up to the cursor; the last one may be empty.
    let given: Vec<String> =
        call.args.run.iter().flatten().map(|word: &OsString| word.to_string_lossy().into_owned()).collect();
    let (last, before) = given.split_last().map_or(("", &[][..]), |(last, before)| (last.as_str(), before));
    let found = completions(call, before, last);
    let fitting = found.iter().filter(|found| found.word.starts_with(last));
    let shown: Vec<String> = fitting.map(|found| format!("{}\t{}", found.word, found.about)).collect();
    if !shown.is_empty() {
        say::for_programs(&shown.join("\n"));
    }
    Ok(0)
}

fn completions(call: &Call, before: &[String], last: &str) -> Vec<Completion> {
    // What follows belongs to another program.
    if before.iter().any(|word| word == "--") {
        return Vec::new();
    }
    let manual = call.args.manual;
    // In this order: the value of an option, an option, then a subcommand or an argument.
    let (path, command) = command_of(manual, before);
    let awaits_value = |option: &&CommandOption| before.last().is_some_and(|word| takes_value(option, word));
    if let Some(option) = manual.options_of(command).find(awaits_value) {
        return values(call, option);
    }
    if last.starts_with('-') {
        let options = manual.options_of(command);
        return options
            .map(|option| Completion { word: format!("--{}", option.long), about: option.about.to_owned() })
            .collect();
    }
    let mut found = next_words(manual, &path);
    if let Some(command) = command {
        found.extend(arguments(call, command, before));
    }
    found
}

/// The longest command that these words name, as the parser reads them.
fn command_of<'m>(manual: &'m Manual, before: &[String]) -> (String, Option<&'m Command>) {
    let mut path = String::new();
    let mut is_value = false;
    for word in before {
        if is_value {
            is_value = false;
        } else if word.starts_with('-') {
            is_value = manual.options_of(manual.find(&path)).any(|option| takes_value(option, word));
        } else {
            let longer = format!("{path} {word}").trim_start().to_owned();
            if !manual.commands.iter().any(|command| command.begins_with(&longer)) {
                break;
            }
            path = longer;
        }
    }
    let command = manual.find(&path);
    (path, command)
}

fn takes_value(option: &CommandOption, word: &str) -> bool {
    let is_letter = option.short.is_some_and(|letter| word == format!("-{letter}"));
    option.value.is_some()
        && !option.is_value_optional
        && (is_letter || word.strip_prefix("--") == Some(option.long))
}

/// The words that continue the path.
fn next_words(manual: &Manual, path: &str) -> Vec<Completion> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for command in manual.below(path) {
        let Some(word) = command.next_word(path).filter(|word| seen.insert(*word)) else { continue };
        let is_whole = command.path == format!("{path} {word}").trim_start();
        let about = if is_whole { command.about } else { "" };
        found.push(Completion { word: word.to_owned(), about: about.to_owned() });
    }
    found
}

fn named(words: impl IntoIterator<Item = String>, about: &str) -> Vec<Completion> {
    words.into_iter().map(|word| Completion { word, about: about.to_owned() }).collect()
}

/// `tcp|http|https` are choices.
fn choices(text: &str) -> impl Iterator<Item = String> {
    text.split('|').map(str::to_owned)
}

fn values(call: &Call, option: &CommandOption) -> Vec<Completion> {
    match option.value.unwrap_or_default() {
        value if value.contains('|') => named(choices(value), option.about),
        "NAME" if option.long == "service" => named(service_cache::names(&call.home), "service"),
        _ => Vec::new(),
    }
}

/// What may stand for the first argument.
fn arguments(call: &Call, command: &Command, before: &[String]) -> Vec<Completion> {
    let is_first = before.last().is_some_and(|word| command.path.ends_with(word.as_str()));
    match command.path {
        "help" => next_words(call.args.manual, &before[1..].join(" ")),
        _ if !is_first => Vec::new(),
        "reach" | "services remove" => named(service_cache::names(&call.home), "service"),
        "stop" => {
            let kept = call.config().map(|config| config.exposures.clone()).unwrap_or_default();
            let kept = named(kept.keys().map(ToString::to_string), "kept by the daemon");
            running(call, |_| true).into_iter().chain(kept).collect()
        }
        "join" | "share revoke" => running(call, |kind| kind == "share" || kind == "join"),
        "completions" => named(choices(command.arguments.names[0]), "shell"),
        _ => Vec::new(),
    }
}

/// The names of the commands that run on this machine.
fn running(call: &Call, is_wanted: impl Fn(&str) -> bool) -> Vec<Completion> {
    let runs = runs::all(&call.home).into_iter().filter(|run| is_wanted(&run.kind));
    runs.flat_map(|run| {
        let about = run.title();
        named(run.names, &about)
    })
    .collect()
}
