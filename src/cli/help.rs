//! Help, drawn from the table.

use super::CommandResult;
use super::args::did_you_mean;
use super::call::Call;
use super::command;
use super::command::Command;
use super::command::GLOBAL;
use super::command::Opt;
use super::man;
use super::say;
use super::say::Say;
use crate::error::Error;

pub const FIRST_STEPS: &str = "connect: reach a private service from somewhere else

  On one machine, a meeting point:     connect hub
  On every machine, log in to it:      connect up --hub URL --api-key KEY
  Beside a service, offer it:          connect expose NAME PORT
  See what is offered:                 connect services
  Where you need it, bring it near:    connect reach NAME

  All commands: connect --help";

/// `connect help`.
pub fn run(call: &Call) -> CommandResult {
    if call.args.flag("man") {
        say::for_programs(man::page(call.args.table).trim_end());
        return Ok(0);
    }
    show(&call.say, call.args.table, &call.args.positionals)
}

/// Help for the words given: a command, a group of commands, or all of it.
pub fn show(say: &Say, table: &'static [Command], words: &[String]) -> CommandResult {
    let path = words.join(" ");
    if let Some(command) = command::find(table, &path) {
        let mut text = of_command(command);
        let more: Vec<&str> = within(table, &path).map(|command| command.path).collect();
        if !more.is_empty() {
            text.push_str(&format!("\n\nMore: {}", more.join(", ")));
        }
        say.result(&text);
        return Ok(0);
    }
    let within: Vec<&Command> = within(table, &path).collect();
    if within.is_empty() {
        return Err(no_such_command(table, &path));
    }
    say.result(&of_group(&path, &within));
    Ok(0)
}

/// The line ended before it named a command.
pub fn unfinished(table: &[Command], words: &[String]) -> Error {
    let path = words.join(" ");
    let mut next: Vec<&str> = table.iter().filter_map(|command| command.next_word(&path)).collect();
    next.dedup();
    Error::usage(format!("`connect {path}` needs one more word")).hint(format!("One of: {}", next.join(", ")))
}

fn no_such_command(table: &[Command], path: &str) -> Error {
    let known = table.iter().map(|command| command.path);
    let hint = did_you_mean(path, known, "connect help ", "See: connect --help");
    Error::unknown("command", path).hint(hint)
}

/// The commands that more words lead to.
fn within(table: &'static [Command], path: &str) -> impl Iterator<Item = &'static Command> {
    table.iter().filter(move |command| command.next_word(path).is_some())
}

fn of_group(path: &str, commands: &[&Command]) -> String {
    let mut text = String::from("connect: reach a private service from somewhere else\n\n");
    let title = format!("Usage: connect {path}");
    text.push_str(&format!("{} COMMAND [options]\n\nCommands:\n", title.trim_end()));
    let width = commands.iter().map(|command| command.path.len()).max().unwrap_or(0);
    for command in commands {
        text.push_str(&format!("  {:width$}  {}\n", command.path, command.about));
    }
    text.push_str("\nEverywhere:\n");
    text.push_str(&options(&GLOBAL));
    text.push_str("\nMore on a command: connect help COMMAND");
    text
}

fn of_command(command: &Command) -> String {
    let mut text = format!("{}\n\nUsage: {}\n", command.about, command.line());
    if !command.options.is_empty() {
        text.push_str("\nOptions:\n");
        text.push_str(&options(command.options));
    }
    text.push_str("\nEverywhere:\n");
    text.push_str(&options(&GLOBAL));
    text.push_str("\nExamples:\n");
    for example in command.examples() {
        text.push_str(&format!("  {example}\n"));
    }
    text.trim_end().to_owned()
}

fn options(options: &[Opt]) -> String {
    let left = |option: &Opt| {
        let short = option.short.map_or("    ".to_owned(), |letter| format!("-{letter}, "));
        let value = option.value.map_or(String::new(), |value| format!(" {value}"));
        format!("  {short}--{}{value}", option.long)
    };
    let width = options.iter().map(|option| left(option).chars().count()).max().unwrap_or(0);
    options.iter().map(|option| format!("{:width$}  {}\n", left(option), option.about)).collect()
}
