//! Help, as the manual has it, and the errors of a command that is misspelt, incomplete or not in this build.

use super::args::did_you_mean;
use super::call::Call;
use super::call::CommandResult;
use super::command::Command;
use super::man_page;
use super::manual::Manual;
use super::say;
use super::say::Say;
use crate::error::Error;

const TITLE: &str = "connect: reach a private service from somewhere else";

pub const FIRST_STEPS: &str = "connect: reach a private service from somewhere else

  On one machine, a meeting point:     connect hub
  On every machine, log in to it:      connect up --hub URL --api-key KEY
  Beside a service, offer it:          connect expose NAME PORT
  See what is offered:                 connect services
  Where you need it, bring it near:    connect reach NAME

  All commands: connect --help";

/// `connect help`
pub fn run(call: &Call) -> CommandResult {
    if call.args.flag("man") {
        say::for_programs(man_page::page(call.args.manual).trim_end());
        return Ok(0);
    }
    show(&call.say, call.args.manual, &call.args.positionals)
}

/// Help for the words given: a command, a group of commands, or everything.
pub fn show(say: &Say, manual: &Manual, words: &[String]) -> CommandResult {
    let path = words.join(" ");
    let below: Vec<&Command> = manual.below(&path).collect();
    match manual.find(&path) {
        Some(command) if !command.is_built => return Err(not_in_this_build(manual, command)),
        Some(command) => {
            let mut text = format!("{}\n\n{}", command.help, manual.everywhere.text);
            if !below.is_empty() {
                let more: Vec<&str> = below.iter().map(|command| command.path).collect();
                text.push_str(&format!("\n\nMore: {}", more.join(", ")));
            }
            say.result(&text);
        }
        None if below.is_empty() => return Err(no_such_command(manual, &path)),
        None => say.result(&group_help(manual, &path, &below)),
    }
    Ok(0)
}

fn group_help(manual: &Manual, path: &str, commands: &[&Command]) -> String {
    let usage = format!("Usage: connect {path}");
    let mut text = format!("{TITLE}\n\n{} COMMAND [options]\n\nCommands:\n", usage.trim_end());
    let width = commands.iter().map(|command| command.path.len()).max().unwrap_or(0);
    for command in commands {
        text.push_str(&format!("  {:width$}  {}\n", command.path, command.about));
    }
    text.push_str(&format!("\n{}\n\nMore on a command: connect help COMMAND", manual.everywhere.text));
    text
}

/// These words begin a command and do not name one.
pub fn unfinished(manual: &Manual, words: &[String]) -> Error {
    let path = words.join(" ");
    let mut next: Vec<&str> = manual.below(&path).filter_map(|command| command.next_word(&path)).collect();
    next.dedup();
    if next.is_empty() {
        return no_such_command(manual, &path);
    }
    Error::usage(format!("`connect {path}` needs one more word")).hint(format!("One of: {}", next.join(", ")))
}

/// A group of which nothing was built is left out as a whole; anything else is a misspelling.
fn no_such_command(manual: &Manual, path: &str) -> Error {
    if let Some(command) = manual.commands.iter().find(|command| command.begins_with(path)) {
        return not_in_this_build(manual, command);
    }
    let known = manual.commands.iter().map(|command| command.path);
    let hint = did_you_mean(path, known, "connect help ", "See: connect --help");
    Error::unknown("command", path).hint(hint)
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
