//! What the table of commands is made of.

use super::Call;
use super::Outcome;

pub struct Command {
    /// The words that name it: `hub key create`.
    pub path: &'static str,
    /// What stands behind those words, as help shows it.
    pub usage: &'static str,
    pub about: &'static str,
    pub positionals: (usize, usize),
    pub options: &'static [Opt],
    /// Whether `-- CMD` may follow.
    pub runs_command: bool,
    pub examples: &'static [&'static str],
    pub run: fn(&Call) -> Outcome,
}

#[derive(Clone, Copy)]
pub struct Opt {
    pub long: &'static str,
    pub short: Option<char>,
    /// What its value is called; `None` for a switch.
    pub value: Option<&'static str>,
    pub about: &'static str,
}

pub const fn opt(long: &'static str, value: &'static str, about: &'static str) -> Opt {
    Opt { long, short: None, value: Some(value), about }
}

pub const fn switch(long: &'static str, about: &'static str) -> Opt {
    Opt { long, short: None, value: None, about }
}

pub const GLOBAL: [Opt; 7] = [
    opt("hub", "URL", "Hub to use for this call; more of its fleet behind commas"),
    opt("config", "FILE", "Config file to use instead of ~/.privateconnect/config.json"),
    switch("json", "Print JSON: one value, or one object a line for what goes on"),
    Opt { short: Some('q'), ..switch("quiet", "Print results and errors only") },
    Opt { short: Some('v'), ..switch("verbose", "Say on stderr what happens underneath") },
    Opt { short: Some('h'), ..switch("help", "Show help") },
    Opt { short: Some('V'), ..switch("version", "Show the version") },
];
