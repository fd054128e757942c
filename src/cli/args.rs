//! Reads the command line, as the manual describes it.
//!
//! Options that every command takes may stand anywhere, those of a command after its name. The words that continue the path of a command name it, all
//! others are its arguments. What follows `--` belongs to another program and is not looked at.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::time::Duration;

use lexopt::Arg;
use lexopt::Parser;

use super::command::Command;
use super::command::CommandOption;
use super::manual::Manual;
use crate::error::Error;
use crate::error::Result;
use crate::model::host_port::HostPort;
use crate::model::host_port::parse_port;
use crate::model::name::Name;
use crate::model::suggest;
use crate::model::time::parse_duration;

/// Where a hub listens, also one that is installed as a service.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7443";
pub const DEFAULT_TUNNEL_PORTS: &str = "45000-45999";

pub struct Args {
    pub manual: &'static Manual,
    pub command: Option<&'static Command>,
    /// The words that begin a command's path, whether or not they are all of it.
    pub words: Vec<String>,
    pub positionals: Vec<String>,
    options: Vec<(&'static str, String)>,
    /// The command after `--`.
    pub run: Option<Vec<OsString>>,
}

/// Reads the whole line; the caller decides what to do if it names no command.
pub fn parse(mut arguments: Vec<OsString>, manual: &'static Manual) -> Result<Args> {
    // Cut off first, so that an option of the other program is never taken for one of ours.
    let dashes = arguments.iter().position(|argument| argument == "--");
    let run = dashes.map(|at| arguments.split_off(at).into_iter().skip(1).collect());
    let (words, positionals, options) = (Vec::new(), Vec::new(), Vec::new());
    let mut args = Args { manual, command: None, words, positionals, options, run };
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
                args.add_option(option, &mut parser)?;
            }
            Some(Arg::Short(letter)) => {
                let option = args.find(|option| option.short == Some(letter));
                let unknown = || Error::usage(format!("There is no option -{letter}")).hint(args.see_help());
                args.add_option(option.ok_or_else(unknown)?, &mut parser)?;
            }
        }
    }
    args.check()?;
    Ok(args)
}

impl Args {
    /// A word that continues the path of a command belongs to it, all others are its arguments.
    fn add_word(&mut self, text: String) -> Result<()> {
        let path = format!("{} {text}", self.words.join(" ")).trim_start().to_owned();
        let continues = self.manual.commands.iter().any(|command| command.begins_with(&path));
        if continues && self.positionals.is_empty() {
            self.words.push(text);
            self.command = self.manual.find(&path);
            return Ok(());
        }
        // `hub kye` is a misspelt command, while `whoami x` has an argument too many, which `check` reports.
        let takes_arguments = self.command.is_some_and(|command| command.arguments.most > 0);
        if !takes_arguments && self.next_words().next().is_some() {
            return Err(self.unknown_word(&text));
        }
        self.positionals.push(text);
        let Some(command) = self.command.filter(|command| command.arguments.runs_command) else {
            return Ok(());
        };
        // Before more is read: an option of a command without `--` would be taken for one of ours.
        let extra = self.positionals.get(command.arguments.most).filter(|_| self.run.is_none());
        extra.map_or(Ok(()), |extra| Err(command.unexpected(extra)))
    }

    /// The words that would continue the path.
    fn next_words(&self) -> impl Iterator<Item = &'static str> {
        let path = self.words.join(" ");
        self.manual.commands.iter().filter_map(move |command| command.next_word(&path))
    }

    fn unknown_word(&self, text: &str) -> Error {
        let path = self.words.join(" ");
        let before = if path.is_empty() { path } else { format!("{path} ") };
        let synonym = self.manual.synonym(text).filter(|_| before.is_empty());
        let hint = match synonym {
            Some(command) => format!("Did you mean: connect {command}"),
            None => {
                did_you_mean(text, self.next_words(), &format!("connect {before}"), "See: connect --help")
            }
        };
        Error::unknown("command", &format!("{before}{text}")).hint(hint)
    }

    fn find(&self, is_meant: impl Fn(&CommandOption) -> bool) -> Option<CommandOption> {
        self.manual.options_of(self.command).copied().find(is_meant)
    }

    fn unknown(&self, name: &str) -> Error {
        let known = self.manual.options_of(self.command).map(|option| option.long);
        let hint = did_you_mean(name, known, "--", &self.see_help());
        Error::usage(format!("There is no option --{}", name.escape_debug())).hint(hint)
    }

    /// The help of the command as far as it was typed.
    fn see_help(&self) -> String {
        format!("See: connect help {}", self.words.join(" ")).trim_end().to_owned()
    }

    fn add_option(&mut self, option: CommandOption, parser: &mut Parser) -> Result<()> {
        let Some(name) = option.value else {
            self.options.push((option.long, String::new()));
            return Ok(());
        };
        let value = if option.is_value_optional {
            parser.optional_value().unwrap_or_default()
        } else {
            parser.value().map_err(|_| {
                Error::usage(format!("--{} needs a value", option.long))
                    .hint(format!("Write: --{} {name}", option.long))
            })?
        };
        let value = value
            .into_string()
            .map_err(|_| Error::usage(format!("The value of --{} is not text", option.long)))?;
        self.options.push((option.long, value));
        Ok(())
    }

    /// Whether the arguments fit the usage. `--help` and `--version` need none.
    fn check(&self) -> Result<()> {
        let Some(command) = self.command.filter(|_| !self.flag("help") && !self.flag("version")) else {
            return Ok(());
        };
        let path = command.path;
        let arguments = &command.arguments;
        let wrong = if self.positionals.len() < arguments.least {
            format!("`connect {path}` needs an argument {}", arguments.names[self.positionals.len()])
        } else if let Some(extra) = self.positionals.get(arguments.most) {
            return Err(command.unexpected(extra));
        } else if self.run.is_some() && !arguments.runs_command {
            format!("`connect {path}` takes no command after --")
        } else if self.run.as_ref().is_some_and(Vec::is_empty) {
            "There is no command after --".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::usage(wrong).hint(format!("Usage: connect {}", command.usage)))
    }

    pub fn flag(&self, name: &str) -> bool {
        self.options.iter().any(|(known, _)| *known == name)
    }

    /// If an option is repeated, the last value counts.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.values(name).last()
    }

    pub fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.options.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// All options as they were given; those without a value have an empty one.
    pub fn given(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.options.iter().map(|(name, value)| (*name, value.as_str()))
    }

    pub fn positional(&self, at: usize) -> Option<&str> {
        self.positionals.get(at).map(String::as_str)
    }

    pub fn duration(&self, name: &str) -> Result<Option<Duration>> {
        let Some(text) = self.value(name) else { return Ok(None) };
        // Days, hours or minutes? A wrong guess would only be noticed when the key or share is gone.
        if name == "expires" && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Error::misread(text, "has no unit")
                .hint(format!("Write: --{name} {text}d, {text}h or {text}m")));
        }
        let is_allowed = |duration: &Duration| !duration.is_zero() || name == "overlap";
        parse_duration(text).filter(is_allowed).map(Some).ok_or_else(|| {
            Error::misread(text, "is not a time").hint(format!("Write it like --{name} 30s, 5m, 12h or 30d"))
        })
    }

    /// How many of something there may be: one at least.
    pub fn count(&self, name: &str) -> Result<Option<u32>> {
        let Some(text) = self.value(name) else { return Ok(None) };
        let number =
            text.parse().ok().filter(|number| *number > 0 && text.bytes().all(|b| b.is_ascii_digit()));
        number
            .map(Some)
            .ok_or_else(|| Error::misread(text, "is not a number").hint(format!("Try: --{name} 5")))
    }

    /// The items of an option that takes a list with commas and may be repeated.
    pub fn list<T: TryFrom<String, Error = &'static str>>(&self, name: &str) -> Result<Option<Vec<T>>> {
        let texts = self.values(name).flat_map(|list| list.split(','));
        let items: Vec<T> = texts
            .map(|text| T::try_from(text.trim().to_owned()).map_err(|why| Error::misread(text, why)))
            .collect::<Result<_>>()?;
        Ok((!items.is_empty()).then_some(items))
    }

    pub fn port(&self, name: &str) -> Result<Option<u16>> {
        self.value(name).map(port_of).transpose()
    }
}

/// The hint for a misspelt word: the nearest known one, after the words before it.
#[allow(single_use_lifetimes)] // It cannot be left out yet.
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

/// The value of `--option`, like `0.0.0.0:7443` or `[::]:7443`.
pub fn listen_address(option: &str, text: &str) -> Result<(String, u16)> {
    // Port 0 lets the system choose; tests and scripts read the port from what is printed.
    let at = match text.strip_suffix(":0") {
        Some(host) => HostPort::parse(host, 0).filter(|at| at.port == 0),
        None => HostPort::parse(text, 0).filter(|at| at.port != 0),
    };
    at.map(|at| (at.host, at.port)).ok_or_else(|| {
        Error::misread(text, "is not an address to listen on")
            .hint(format!("Write it like --{option} 0.0.0.0:7443"))
    })
}

/// Those of the hub; none if they are off.
pub fn tunnel_ports(args: &Args) -> Result<Option<RangeInclusive<u16>>> {
    match args.value("tunnel-ports").unwrap_or(DEFAULT_TUNNEL_PORTS) {
        "off" => Ok(None),
        range => range_of(range)
            .map(Some)
            .map_err(|error| error.hint("Write it like --tunnel-ports 45000-45999, or off")),
    }
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
        let manual = Manual::parse(crate::cli::manual::TEXT, |_| true).unwrap();
        parse(line.split_whitespace().map(OsString::from).collect(), Box::leak(Box::new(manual)))
    }

    #[test]
    fn commands_of_several_words_and_their_options_are_read() {
        let args = read("--json hub key create --role join --label=ci -v").unwrap();
        assert_eq!(args.command.unwrap().path, "hub key create");
        assert_eq!((args.value("role"), args.value("label")), (Some("join"), Some("ci")));
        assert!(args.flag("json") && args.flag("verbose") && !args.flag("quiet"));
    }

    #[test]
    fn the_command_after_two_dashes_is_left_alone() {
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
            ("join - sh -c env", "Put -- before a command to run. Usage: connect join"),
            ("services -- ls", "connect services"),
            ("reach db --", "connect reach NAME"),
            ("up --label", "--label LABEL"),
            ("whoami x", "connect whoami"),
        ] {
            let error = read(line).err().unwrap();
            assert_eq!(error.kind, crate::error::ErrorKind::Usage, "{line}");
            assert!(error.hint.as_deref().unwrap_or_default().contains(hint), "{line}: {:?}", error.hint);
        }
    }

    #[test]
    fn a_missing_and_an_extra_argument_are_named() {
        for (line, what) in [
            ("reach", "`connect reach` needs an argument NAME"),
            ("expose", "`connect expose` needs an argument NAME"),
            ("hub key revoke", "`connect hub key revoke` needs an argument ID|LABEL"),
            ("reach a b c", "Unexpected argument `c`"),
            ("join - sh -c env", "Unexpected argument `sh`"),
            ("dev npm start", "Unexpected argument `npm`"),
            ("reach db 1 psql --version", "Unexpected argument `psql`"),
            ("whoami x", "Unexpected argument `x`"),
            ("stop a b", "Unexpected argument `b`"),
            ("services -- ls", "`connect services` takes no command after --"),
            ("reach db --", "There is no command after --"),
        ] {
            assert_eq!(read(line).err().unwrap().to_string(), what, "{line}");
        }
    }
}
