//! A command and its options, as one page of the manual describes them.

use crate::error::Error;

pub struct Command {
    /// The words that name it: `hub key create`.
    pub path: &'static str,
    pub about: &'static str,
    /// How it is typed, without `connect`: `reach NAME [PORT] [-- CMD...]`.
    pub usage: &'static str,
    pub arguments: Arguments,
    /// Its own options, then those of the sections that the usage names.
    pub options: Vec<CommandOption>,
    pub examples: Vec<&'static str>,
    /// Its page and these sections, as help prints them.
    pub help: String,
    /// The role whose build holds it; `every` for all of them.
    pub role: &'static str,
    pub is_built: bool,
}

/// What may follow the words of a command.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// By position, as the usage calls them.
    pub names: Vec<&'static str>,
    pub least: usize,
    pub most: usize,
    /// Whether `-- CMD` may follow.
    pub runs_command: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandOption {
    pub long: &'static str,
    pub short: Option<char>,
    /// What its value is called; `None` for a switch.
    pub value: Option<&'static str>,
    /// The value may be left out: `--direct[=ADDR:PORT]`.
    pub is_value_optional: bool,
    pub about: &'static str,
}

impl Command {
    /// The rest of its path after these words; empty if they are all of it.
    fn rest_after(&self, words: &str) -> Option<&'static str> {
        let rest = self.path.strip_prefix(words)?;
        if words.is_empty() || rest.is_empty() { Some(rest) } else { rest.strip_prefix(' ') }
    }

    /// For an argument too many. It may begin a command that `--` should stand before.
    pub fn unexpected(&self, text: &str) -> Error {
        let dashes = if self.arguments.runs_command { "Put -- before a command to run. " } else { "" };
        Error::usage(format!("Unexpected argument `{}`", text.escape_debug()))
            .hint(format!("{dashes}Usage: connect {}", self.usage))
    }

    /// Whether these words are the beginning of its path, or all of it.
    pub fn begins_with(&self, words: &str) -> bool {
        self.rest_after(words).is_some()
    }

    /// The word of its path that follows these.
    pub fn next_word(&self, words: &str) -> Option<&'static str> {
        self.rest_after(words)?.split(' ').next().filter(|word| !word.is_empty())
    }
}
