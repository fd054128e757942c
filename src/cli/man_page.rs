//! The manual page, in the language of `man`.

use super::command::Command;
use super::command::CommandOption;
use super::manual::Entry;
use super::manual::Manual;
use super::say::plain;
use crate::os::clock;

pub fn page(manual: &Manual) -> String {
    // RFC 3339 begins with the date.
    let today = &clock::now().to_string()[..10];
    let version = env!("CARGO_PKG_VERSION");
    let mut page = format!(".TH CONNECT 1 \"{today}\" \"connect {version}\" \"User Commands\"\n");
    page.push_str(".SH NAME\nconnect \\- reach a private service from somewhere else\n");
    page.push_str(".SH SYNOPSIS\n.B connect\n.I COMMAND\n.RI [ options ]\n.SH COMMANDS\n");
    let built = manual.commands.iter().filter(|command| command.is_built);
    page.extend(built.map(command_part));
    page.push_str(".SH OPTIONS\nEvery command takes these.\n");
    page.extend(manual.options_of(None).map(option_part));
    for section in &manual.notes {
        page.push_str(&format!(".SH {}\n", section.title.to_ascii_uppercase()));
        page.extend(section.entries.iter().map(entry_part));
    }
    page
}

fn command_part(command: &Command) -> String {
    let mut part = format!(".SS connect {}\n{}.\n", escaped(command.usage), escaped(command.about));
    part.extend(command.options.iter().map(option_part));
    part.push_str(".PP\nFor example:\n.PP\n.nf\n");
    part.extend(command.examples.iter().map(|example| format!("    {}\n", escaped(example))));
    part.push_str(".fi\n");
    part
}

fn option_part(option: &CommandOption) -> String {
    let short = option.short.map_or(String::new(), |letter| format!("\\fB\\-{letter}\\fR, "));
    let value = option.value.map_or(String::new(), |value| format!(" \\fI{}\\fR", escaped(value)));
    format!(".TP\n{short}\\fB\\-\\-{}\\fR{value}\n{}.\n", escaped(option.long), escaped(option.about))
}

fn entry_part(entry: &Entry) -> String {
    format!(".TP\n.B {}\n{}.\n", escaped(entry.name), escaped(entry.about))
}

/// A line that begins with a dot or a quote would be a command of roff.
fn escaped(text: &str) -> String {
    let escaped = plain(text.trim_end()).replace('\\', "\\e").replace('-', "\\-");
    if escaped.starts_with(['.', '\'']) { format!("\\&{escaped}") } else { escaped }
}
