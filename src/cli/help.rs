//! Help, as the manual has it, and the errors of a command that is misspelt, incomplete or not in this build.

use serde_json::json;

use super::args::did_you_mean;
use super::call::Call;
use super::call::CommandResult;
use super::command::Command;
use super::man_page;
use super::manual::Manual;
use super::say;
use super::say::Say;
use super::topics;
use super::topics::Topic;
use super::wrap::unfill;
use crate::error::Error;

const TITLE: &str = "connect: reach a private service from somewhere else";

/// For somebody who types only `connect`.
pub const FIRST_STEPS: &str = include_str!("first_steps.txt").trim_ascii_end();

/// `connect help`
pub fn run(call: &Call) -> CommandResult {
    let words = &call.args.positionals;
    if call.args.flag("man") {
        let topic = topics::find(&words.join(" "));
        let page =
            topic.map_or_else(|| man_page::page(call.args.manual), |topic| man_page::topic_page(&topic));
        say::for_programs(page.trim_end());
        return Ok(0);
    }
    show(&call.say, call.args.manual, words)
}

/// Help for the words given: a command, a group of commands, a topic, or everything.
pub fn show(say: &Say, manual: &Manual, words: &[String]) -> CommandResult {
    let path = words.join(" ");
    let below: Vec<&Command> = manual.below(&path).collect();
    let text = match (manual.find(&path), topics::find(&path)) {
        (Some(command), _) if !command.is_built => return Err(not_in_this_build(manual, command)),
        // `proxy` is both.
        (Some(command), topic) => command_help(manual, command, &below, topic),
        (None, Some(topic)) => topic.text.trim_end().to_owned(),
        (None, None) if below.is_empty() => return Err(no_such_command(manual, &path)),
        (None, None) => group_help(manual, &path, &below),
    };
    let is_narrow = text.lines().any(|line| line.len() > say::width());
    say.result(&if is_narrow { unfill(&text) } else { text.clone() });
    say.value(&json!({ "help": text }));
    Ok(0)
}

fn command_help(manual: &Manual, command: &Command, below: &[&Command], topic: Option<Topic>) -> String {
    let mut text = format!("{}\n\n{}", command.help, common_options(manual));
    if !below.is_empty() {
        let more: Vec<&str> = below.iter().map(|command| command.path).collect();
        text.push_str(&format!("\n\nMore: {}", more.join(", ")));
    }
    if let Some(topic) = topic {
        text.push_str(&format!("\n\n{}", topic.text.trim_end()));
    }
    text
}

/// The options of every command in one line: their descriptions stand in `connect help`.
fn common_options(manual: &Manual) -> String {
    let names = manual.options_of(None).map(|option| match option.short {
        Some(short) => format!("-{short}"),
        None => format!("--{}", option.long),
    });
    format!("Every command takes {}: see connect help", names.collect::<Vec<_>>().join(", "))
}

/// The commands that begin with these words; without words all commands in their groups, and the topics.
fn group_help(manual: &Manual, path: &str, commands: &[&Command]) -> String {
    let usage = format!("Usage: connect {path}");
    let mut text = format!("{TITLE}\n\n{} COMMAND [options]\n", usage.trim_end());
    if path.is_empty() {
        for group in &manual.groups.entries {
            let commands: Vec<&Command> = manual.in_group(group).collect();
            push_list(&mut text, group.name, commands.iter().map(|command| (command.path, command.about)));
        }
        push_list(&mut text, "Topics", topics::all().map(|topic| (topic.name, topic.about)));
        text.push_str(&format!("\n{}\n", manual.everywhere.text));
    } else {
        push_list(&mut text, "Commands", commands.iter().map(|command| (command.path, command.about)));
    }
    format!("{text}\nMore: connect help COMMAND, connect help TOPIC")
}

fn push_list<'l>(text: &mut String, title: &str, rows: impl Iterator<Item = (&'l str, &'l str)> + Clone) {
    let width = rows.clone().map(|(name, _)| name.len()).max().unwrap_or(0);
    // A role's build may hold no command of a group.
    if width > 0 {
        text.push_str(&format!("\n{title}:\n"));
    }
    for (name, about) in rows {
        text.push_str(&format!("  {name:width$}  {about}\n"));
    }
}

/// These words begin a command and do not name one.
pub fn unfinished(manual: &Manual, words: &[String]) -> Error {
    let path = words.join(" ");
    let mut next: Vec<&str> = manual.below(&path).filter_map(|command| command.next_word(&path)).collect();
    next.dedup();
    if next.is_empty() {
        return no_such_command(manual, &path);
    }
    Error::usage(format!("`connect {path}` needs a subcommand")).hint(format!("One of: {}", next.join(", ")))
}

/// A group of which nothing was built is left out as a whole; anything else is a misspelling.
fn no_such_command(manual: &Manual, path: &str) -> Error {
    if let Some(command) = manual.commands.iter().find(|command| command.begins_with(path)) {
        return not_in_this_build(manual, command);
    }
    let known = manual.commands.iter().map(|command| command.path);
    let known = known.chain(topics::all().map(|topic| topic.name));
    let hint = did_you_mean(path, known, "connect help ", "See: connect --help");
    Error::unknown("command or topic", path).hint(hint)
}

/// The command exists, but this build was made without its role.
pub fn not_in_this_build(manual: &Manual, command: &Command) -> Error {
    let roles: Vec<&str> = manual.roles().into_iter().collect();
    let held = if roles.is_empty() { "no role".to_owned() } else { roles.join(", ") };
    Error::new(format!("`connect {}` is not in this build, which holds {held}", command.path))
        .hint(format!("The full build has it, and so has: make ROLE={}", command.role))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::manual::TEXT;

    #[test]
    fn a_command_that_was_left_out_names_the_build_that_has_it() {
        let manual = Manual::parse(TEXT, |path| path == "reach" || path == "status").unwrap();
        for (path, role) in [("hub", "hub"), ("hub migrate", "fleet"), ("proxy start", "proxy")] {
            let error = not_in_this_build(&manual, manual.find(path).unwrap());
            assert_eq!(error.to_string(), format!("`connect {path}` is not in this build, which holds join"));
            assert_eq!(error.hint.unwrap(), format!("The full build has it, and so has: make ROLE={role}"));
        }
        // A group of which nothing was built is left out as a whole.
        let error = unfinished(&manual, &["daemon".to_owned()]);
        assert!(error.to_string().starts_with("`connect daemon start` is not in this build"), "{error}");
    }
}
