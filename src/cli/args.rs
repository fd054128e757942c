//! The command line, read by the table.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::time::Duration;

use lexopt::Arg;
use lexopt::Parser;

use super::command;
use super::command::Command;
use super::command::Opt;
use super::command::options_of;
use crate::error::Error;
use crate::error::Result;
use crate::model::name::Name;
use crate::model::suggest;
use crate::model::target::parse_port;
use crate::model::time::parse_duration;

#[derive(Default)]
pub struct Args {
    /// The commands that there are.
    pub table: &'static [Command],
    pub command: Option<&'static Command>,
    /// The words that were read as the command's name, whether or not there is such a command.
    pub words: Vec<String>,
    pub positionals: Vec<String>,
    options: Vec<(&'static str, String)>,
    /// What stands behind `--`.
    pub run: Option<Vec<OsString>>,
}

/// Reads the whole line; whether a command was named at all is for the caller to say.
pub fn parse(arguments: Vec<OsString>, table: &'static [Command]) -> Result<Args> {
    let mut arguments = arguments;
    let run = arguments.iter().position(|argument| argument == "--").map(|at| {
        let behind = arguments.split_off(at);
        behind.into_iter().skip(1).collect::<Vec<_>>()
    });
    let mut args = Args { table, run, ..Args::default() };
    let mut parser = Parser::from_args(arguments);
    loop {
        let next =
            parser.next().map_err(|error| Error::usage(error.to_string()).hint("See: connect --help"))?;
        match next {
            None => break,
            Some(Arg::Value(value)) => {
                let text = value.into_string().map_err(|_| Error::usage("An argument is not text"))?;
                args.add_word(text)?;
            }
            Some(Arg::Long(name)) => {
                let name = name.to_owned();
                let option = args.find(|option| option.long == name).ok_or_else(|| args.unknown(&name))?;
                args.take(option, &mut parser)?;
            }
            Some(Arg::Short(letter)) => {
                let option = args.find(|option| option.short == Some(letter));
                let unknown = || Error::usage(format!("There is no option -{letter}")).hint(args.see_help());
                args.take(option.ok_or_else(unknown)?, &mut parser)?;
            }
        }
    }
    args.check()?;
    Ok(args)
}

impl Args {
    fn add_word(&mut self, text: String) -> Result<()> {
        let mut path = self.words.clone();
        path.push(text.clone());
        let path = path.join(" ");
        let continues = self.table.iter().any(|command| command.begins_with(&path));
        if continues && self.positionals.is_empty() {
            self.words.push(text);
            self.command = command::find(self.table, &path);
            return Ok(());
        }
        if self.command.is_none_or(|command| command.positionals.1 == 0) {
            return Err(self.unknown_word(&text));
        }
        self.positionals.push(text);
        Ok(())
    }

    fn unknown_word(&self, text: &str) -> Error {
        let here = self.words.join(" ");
        let next = self.table.iter().filter_map(|command| command.next_word(&here));
        let before = if here.is_empty() { here.clone() } else { format!("{here} ") };
        let hint = did_you_mean(text, next, &format!("connect {before}"), "See: connect --help");
        Error::unknown("command", &format!("{before}{text}")).hint(hint)
    }

    fn find(&self, wanted: impl Fn(&Opt) -> bool) -> Option<Opt> {
        options_of(self.command).copied().find(wanted)
    }

    fn unknown(&self, name: &str) -> Error {
        let known = options_of(self.command).map(|option| option.long);
        let hint = did_you_mean(name, known, "--", &self.see_help());
        Error::usage(format!("There is no option --{}", name.escape_debug())).hint(hint)
    }

    fn see_help(&self) -> String {
        format!("See: connect help {}", self.words.join(" ")).trim_end().to_owned()
    }

    fn take(&mut self, option: Opt, parser: &mut Parser) -> Result<()> {
        let value = match option.value {
            None => String::new(),
            Some(name) => {
                let missing = |_| {
                    Error::usage(format!("--{} needs a value", option.long))
                        .hint(format!("Write: --{} {name}", option.long))
                };
                let value = parser.value().map_err(missing)?;
                value
                    .into_string()
                    .map_err(|_| Error::usage(format!("The value of --{} is not text", option.long)))?
            }
        };
        self.options.push((option.long, value));
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let Some(command) = self.command.filter(|_| !self.flag("help") && !self.flag("version")) else {
            return Ok(());
        };
        let (least, most) = command.positionals;
        let count = self.positionals.len();
        let path = command.path;
        let wrong = if count < least {
            format!("Something is missing behind `connect {path}`")
        } else if count > most {
            format!("There is one word too many behind `connect {path}`")
        } else if self.run.is_some() && !command.runs_command {
            format!("`connect {path}` runs no command")
        } else if self.run.as_ref().is_some_and(Vec::is_empty) {
            "There is no command behind --".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::usage(wrong).hint(format!("Usage: {}", command.line())))
    }

    pub fn flag(&self, name: &str) -> bool {
        self.options.iter().any(|(known, _)| *known == name)
    }

    /// The last one wins, as everywhere.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.values(name).last()
    }

    pub fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.options.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    pub fn positional(&self, at: usize) -> Option<&str> {
        self.positionals.get(at).map(String::as_str)
    }

    pub fn duration(&self, name: &str) -> Result<Option<Duration>> {
        let Some(text) = self.value(name) else { return Ok(None) };
        parse_duration(text).filter(|duration| !duration.is_zero()).map(Some).ok_or_else(|| {
            Error::misread(text, "is not a time").hint(format!("Write it like --{name} 30s, 5m, 12h or 30d"))
        })
    }

    pub fn port(&self, name: &str) -> Result<Option<u16>> {
        self.value(name).map(port_of).transpose()
    }
}

/// For whoever misspelt a word: the nearest one that there is, with what stands before it.
#[allow(single_use_lifetimes)] // It cannot be left out here yet.
pub fn did_you_mean<'k>(
    word: &str,
    known: impl IntoIterator<Item = &'k str>,
    before: &str,
    otherwise: &str,
) -> String {
    let near = suggest::nearest(word, known);
    near.map_or_else(|| otherwise.to_owned(), |near| format!("Did you mean: {before}{near}"))
}

pub fn port_of(text: &str) -> Result<u16> {
    parse_port(text)
        .ok_or_else(|| Error::misread(text, "is not a port").hint("A port is a number from 1 to 65535"))
}

pub fn range_of(text: &str) -> Result<RangeInclusive<u16>> {
    let range = text.split_once('-').and_then(|(first, last)| Some(parse_port(first)?..=parse_port(last)?));
    range
        .filter(|range| !range.is_empty())
        .ok_or_else(|| Error::misread(text, "is not a range of ports").hint("Write it like 3000-3010"))
}

pub fn name_of(text: &str) -> Result<Name> {
    Name::parse(text).map_err(|bad| {
        let error = Error::usage(format!("The name `{}` {}", text.escape_debug(), bad.reason()));
        match Name::nearest(text) {
            Some(near) => error.hint(format!("Try: {near}")),
            None => error.hint("Use a-z, 0-9 and -"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Args> {
        parse(line.split_whitespace().map(OsString::from).collect(), crate::cli::table::TABLE)
    }

    #[test]
    fn commands_of_several_words_and_their_options_are_read() {
        let args = read("--json hub key create --role join --label=ci -v").unwrap();
        assert_eq!(args.command.unwrap().path, "hub key create");
        assert_eq!((args.value("role"), args.value("label")), (Some("join"), Some("ci")));
        assert!(args.flag("json") && args.flag("verbose") && !args.flag("quiet"));
    }

    #[test]
    fn what_stands_behind_two_dashes_is_left_alone() {
        let args = read("reach db 6000 -- psql --json -h localhost").unwrap();
        assert_eq!(args.positionals, ["db", "6000"]);
        assert_eq!(args.run.unwrap(), ["psql", "--json", "-h", "localhost"]);
    }

    #[test]
    fn mistakes_are_named_with_what_to_type_instead() {
        for (line, hint) in [
            ("exopse db 5432", "connect expose"),
            ("hub kye list", "connect hub key"),
            ("services --jsno", "--json"),
            ("reach", "connect reach NAME"),
            ("reach a b c", "connect reach NAME"),
            ("services -- ls", "connect services"),
            ("reach db --", "connect reach NAME"),
            ("up --label", "--label LABEL"),
            ("whoami x", "connect --help"),
        ] {
            let error = read(line).err().unwrap();
            assert_eq!(error.kind, crate::error::ErrorKind::Usage, "{line}");
            assert!(error.hint.as_deref().unwrap_or_default().contains(hint), "{line}: {:?}", error.hint);
        }
    }
}
