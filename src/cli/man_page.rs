//! The manual page, in the language of `man`.

use super::command::Command;
use super::command::CommandOption;
use super::manual::Manual;
use super::say::plain;
use super::topics::Topic;
use super::topics::find;
use crate::os::clock;

/// The topics that a reader of the manual page looks for in it.
const SECTIONS: [(&str, &str); 3] =
    [("ENVIRONMENT", "environment"), ("FILES", "files"), ("EXIT STATUS", "exit-codes")];

pub fn page(manual: &Manual) -> String {
    let mut page = title("CONNECT", 1);
    page.push_str(".SH NAME\nconnect \\- reach a private service from somewhere else\n");
    page.push_str(".SH SYNOPSIS\n.B connect\n.I COMMAND\n.RI [ options ]\n.SH COMMANDS\n");
    let built = manual.commands.iter().filter(|command| command.is_built);
    page.extend(built.map(command_part));
    page.push_str(".SH OPTIONS\nEvery command takes these.\n");
    page.extend(manual.options_of(None).map(option_part));
    for (title, topic) in SECTIONS {
        page.push_str(&format!(".SH {title}\n"));
        page.extend(find(topic).iter().map(topic_part));
    }
    page
}

/// The manual page of a topic, for section 7.
pub fn topic_page(topic: &Topic) -> String {
    let mut page = title(&format!("CONNECT-{}", topic.name.to_ascii_uppercase()), 7);
    page.push_str(&format!(
        ".SH NAME\nconnect-{} \\- {}\n.SH DESCRIPTION\n",
        topic.name,
        escaped(topic.about)
    ));
    page.push_str(&topic_part(topic));
    page
}

fn title(name: &str, section: u8) -> String {
    // RFC 3339 begins with the date.
    let today = &clock::now().to_string()[..10];
    let version = env!("CARGO_PKG_VERSION");
    format!(".TH {name} {section} \"{today}\" \"connect {version}\" \"User Commands\"\n")
}

/// The text as it stands below the topic's title; what begins at the margin and ends in a colon is a heading.
fn topic_part(topic: &Topic) -> String {
    let mut part = ".nf\n".to_owned();
    for line in topic.text.lines().skip(2) {
        let is_heading = !line.starts_with(' ') && line.ends_with(':');
        let heading = line.strip_suffix(':').filter(|_| is_heading);
        match heading {
            Some(heading) => part.push_str(&format!(".fi\n.SS {}\n.nf\n", escaped(heading))),
            None => part.push_str(&format!("{}\n", escaped(line))),
        }
    }
    part.push_str(".fi\n");
    part
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
    let [before, after] = if option.is_value_optional { ["[=", "]"] } else { [" ", ""] };
    let value = option.value.map(|value| format!("{before}\\fI{}\\fR{after}", escaped(value)));
    let value = value.unwrap_or_default();
    format!(".TP\n{short}\\fB\\-\\-{}\\fR{value}\n{}.\n", escaped(option.long), escaped(option.about))
}

/// A line that begins with a dot or a quote would be a command of roff.
fn escaped(text: &str) -> String {
    let escaped = plain(text.trim_end()).replace('\\', "\\e").replace('-', "\\-");
    if escaped.starts_with(['.', '\'']) { format!("\\&{escaped}") } else { escaped }
}
