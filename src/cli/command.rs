//! What the table of commands is made of.

use super::Call;
use super::CommandResult;

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
    pub run: fn(&Call) -> CommandResult,
}

impl Command {
    /// How it is typed.
    pub fn line(&self) -> String {
        format!("connect {} {}", self.path, self.usage).trim_end().to_owned()
    }

    /// It at work; without examples of its own, as it is typed without anything behind it.
    pub fn examples(&self) -> Vec<String> {
        match self.examples {
            [] => vec![format!("connect {}", self.path)],
            examples => examples.iter().map(|example| (*example).to_owned()).collect(),
        }
    }

    /// What of its path stands behind these words; empty when they are all of it.
    fn behind(&self, words: &str) -> Option<&'static str> {
        let rest = self.path.strip_prefix(words)?;
        if words.is_empty() || rest.is_empty() { Some(rest) } else { rest.strip_prefix(' ') }
    }

    /// Whether these words are the beginning of its path, or all of it.
    pub fn begins_with(&self, words: &str) -> bool {
        self.behind(words).is_some()
    }

    /// The word that leads from these further to it.
    pub fn next_word(&self, words: &str) -> Option<&'static str> {
        self.behind(words)?.split(' ').next().filter(|word| !word.is_empty())
    }
}

pub fn find(table: &'static [Command], path: &str) -> Option<&'static Command> {
    table.iter().find(|command| command.path == path)
}

/// Its own and those that stand with every command.
pub fn options_of(command: Option<&'static Command>) -> impl Iterator<Item = &'static Opt> {
    command.map_or(&[][..], |command| command.options).iter().chain(&GLOBAL)
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

pub static GLOBAL: [Opt; 7] = [
    opt("hub", "URL", "Hub to use for this call; more of its fleet behind commas"),
    opt("config", "FILE", "Config file to use instead of ~/.privateconnect/config.json"),
    switch("json", "Print JSON: one value, or one object a line for what goes on"),
    Opt { short: Some('q'), ..switch("quiet", "Print results and errors only") },
    Opt { short: Some('v'), ..switch("verbose", "Say on stderr what happens underneath") },
    Opt { short: Some('h'), ..switch("help", "Show help") },
    Opt { short: Some('V'), ..switch("version", "Show the version") },
];
