//! The manual page, drawn from the table.

use super::command::Command;
use super::command::GLOBAL;
use super::command::Opt;
use super::say::plain;
use crate::os::clock;

const ENVIRONMENT: &[(&str, &str)] = &[
    ("PRIVATECONNECT_HOME", "The state folder, in the place of ~/.privateconnect."),
    ("CONNECT_HUB_URL", "The hub to use; --hub comes before it."),
    ("PRIVATECONNECT_TOKEN", "The API key, in the place of the one that connect up saved."),
    ("PRIVATECONNECT_CA", "PEM file of the CA that signed the hub's certificate."),
    ("CONNECT_JOIN", "What connect join joins when it is given - or nothing."),
    ("CONNECT_NO_PROXY", "Set to 1, it keeps connect reach from starting the proxy."),
    ("HTTPS_PROXY, NO_PROXY", "The way to the hub and its relay."),
];
const FILES: &[(&str, &str)] = &[
    ("~/.privateconnect/config.json", "The hub, the key, and what the daemon keeps exposed."),
    ("~/.privateconnect/identity.pem", "This machine's identity."),
    ("~/.privateconnect/known_agents.json", "Whose agent each service had when it was first used."),
    ("~/.privateconnect/run", "What runs; each process holds a lock there for as long as it lives."),
    ("~/.privateconnect/logs, agent.log, proxy.log", "Logs of the background, rotated once."),
    ("pconnect.yml", "What a project needs, for connect dev."),
];
const EXITS: &[(&str, &str)] = &[
    ("0", "Done."),
    ("1", "It failed."),
    ("2", "The command line is wrong."),
    ("130", "Ctrl-C cut work off. A tunnel that Ctrl-C closes exits 0."),
    ("CMD's own", "With -- CMD; 128 and the signal when it was killed."),
];

pub fn page(table: &[Command]) -> String {
    let mut page = format!(
        ".TH CONNECT 1 \"{}\" \"connect {}\" \"User Commands\"\n.SH NAME\nconnect \\- reach a private service from somewhere else\n",
        // The day on which it was drawn: RFC 3339 begins with the date.
        &clock::now().to_string()[..10],
        env!("CARGO_PKG_VERSION")
    );
    page.push_str(".SH SYNOPSIS\n.B connect\n.I COMMAND\n.RI [ options ]\n.SH COMMANDS\n");
    page.extend(table.iter().map(command));
    page.push_str(".SH OPTIONS\nThese stand with every command.\n");
    page.extend(GLOBAL.iter().map(option));
    for (title, entries) in [("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES), ("EXIT STATUS", EXITS)] {
        page.push_str(&format!(".SH {title}\n"));
        page.extend(entries.iter().map(|(name, about)| format!(".TP\n.B {}\n{}\n", text(name), text(about))));
    }
    page
}

fn command(command: &Command) -> String {
    let mut part = format!(".SS {}\n{}.\n", text(&command.line()), text(command.about));
    part.extend(command.options.iter().map(option));
    part.push_str(".PP\nFor example:\n.PP\n.nf\n");
    part.extend(command.examples().iter().map(|example| format!("    {}\n", text(example))));
    part.push_str(".fi\n");
    part
}

fn option(option: &Opt) -> String {
    let short = option.short.map_or(String::new(), |letter| format!("\\fB\\-{letter}\\fR, "));
    let value = option.value.map_or(String::new(), |value| format!(" \\fI{}\\fR", text(value)));
    format!(".TP\n{short}\\fB\\-\\-{}\\fR{value}\n{}.\n", text(option.long), text(option.about))
}

/// As roff takes it for nothing but text.
fn text(words: &str) -> String {
    let escaped = plain(words.trim_end()).replace('\\', "\\e").replace('-', "\\-");
    if escaped.starts_with(['.', '\'']) { format!("\\&{escaped}") } else { escaped }
}
