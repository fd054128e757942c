//! Reads `commands.txt`: what every command is called, which options and arguments it has, and its help.
//!
//! The reader is strict, so that a slip in the text fails the unit test and not a user. `commands.txt` says how it
//! is written.

use std::collections::BTreeSet;

use super::command::Arguments;
use super::command::Command;
use super::command::CommandOption;

pub const TEXT: &str = include_str!("commands.txt");

/// The role of commands that are in every build.
const EVERY_BUILD: &str = "every";
/// The section whose options every command takes.
const EVERYWHERE: &str = "Everywhere";
/// The section that sorts the commands for the list of all of them.
const GROUPS: &str = "Groups";
/// The section of words that other programs use for our commands.
const SYNONYMS: &str = "Synonyms";
/// An argument that may be repeated takes at most this many values, far more than anybody types.
const MOST_REPEATED: usize = 100;

pub struct Manual {
    pub commands: Vec<Command>,
    pub everywhere: Section,
    everywhere_options: Vec<CommandOption>,
    /// A title, and the first words of the commands below it.
    pub groups: Section,
    /// A command, and what it is called elsewhere.
    synonyms: Section,
}

/// A title and lines of two columns.
pub struct Section {
    pub title: &'static str,
    /// All of it, as help prints it.
    pub text: &'static str,
    pub entries: Vec<Entry>,
}

pub struct Entry {
    pub name: &'static str,
    pub about: &'static str,
}

impl Manual {
    /// `is_built` says of a command's path whether this build has its function.
    pub fn parse(text: &'static str, is_built: impl Fn(&str) -> bool) -> Result<Self, String> {
        // Sections first: a page may name one that comes later.
        let mut sections = Vec::new();
        let mut pages = Vec::new();
        for part in text.split("\n----").skip(1) {
            let (divider, page) = part.split_once('\n').ok_or("a page is empty")?;
            let role = divider.trim_start_matches('-').trim();
            let page = page.trim_end();
            if page.lines().next().is_some_and(|line| line.ends_with(':')) {
                sections.push(parse_section(page)?);
            } else {
                pages.push((role, page));
            }
        }
        let everywhere = take_section(&mut sections, EVERYWHERE)?;
        let groups = take_section(&mut sections, GROUPS)?;
        let synonyms = take_section(&mut sections, SYNONYMS)?;
        let everywhere_options = parse_options(&everywhere)?;
        let mut commands: Vec<Command> = Vec::new();
        for (role, page) in pages {
            let mut command = parse_command(page, &sections, &everywhere_options)
                .map_err(|error| format!("{}: {error}", page.lines().next().unwrap_or_default()))?;
            command.role = role;
            command.is_built = is_built(command.path);
            commands.push(command);
        }
        Ok(Self { commands, everywhere, everywhere_options, groups, synonyms })
    }

    pub fn find(&self, path: &str) -> Option<&Command> {
        self.commands.iter().find(|command| command.path == path)
    }

    /// The commands of this build that more words lead to.
    pub fn below(&self, path: &str) -> impl Iterator<Item = &Command> {
        self.commands.iter().filter(move |command| command.is_built && command.next_word(path).is_some())
    }

    /// The options of a command, then those of every command.
    pub fn options_of<'m>(&'m self, command: Option<&'m Command>) -> impl Iterator<Item = &'m CommandOption> {
        command.into_iter().flat_map(|command| &command.options).chain(&self.everywhere_options)
    }

    /// The commands of a group that this build holds.
    pub fn in_group(&self, group: &Entry) -> impl Iterator<Item = &Command> {
        self.commands.iter().filter(|command| {
            command.is_built && group.about.split(", ").any(|word| command.begins_with(word))
        })
    }

    /// The command that somebody means who knows another program.
    pub fn synonym(&self, word: &str) -> Option<&'static str> {
        let is_meant = |entry: &&Entry| entry.about.split(", ").any(|synonym| synonym == word);
        self.synonyms.entries.iter().find(is_meant).map(|entry| entry.name)
    }

    /// The roles whose commands this build holds.
    pub fn roles(&self) -> BTreeSet<&'static str> {
        let built = self.commands.iter().filter(|command| command.is_built);
        built.map(|command| command.role).filter(|role| *role != EVERY_BUILD).collect()
    }
}

/// These sections must exist; what remains afterwards are groups of options.
fn take_section(sections: &mut Vec<Section>, title: &str) -> Result<Section, String> {
    let at = sections.iter().position(|section| section.title == title);
    at.map(|at| sections.remove(at)).ok_or_else(|| format!("there is no section {title}"))
}

/// A title with a colon, then lines of a name and a description with two blanks between them.
fn parse_section(text: &'static str) -> Result<Section, String> {
    let mut lines = text.lines();
    let title = lines.next().and_then(|line| line.strip_suffix(':')).ok_or("a section has no title")?;
    let mut entries = Vec::new();
    for line in lines {
        let (name, about) =
            line.trim_start().split_once("  ").ok_or_else(|| format!("a line is not two columns: {line}"))?;
        entries.push(Entry { name, about: about.trim() });
    }
    Ok(Section { title, text, entries })
}

fn parse_options(section: &Section) -> Result<Vec<CommandOption>, String> {
    let options = section
        .entries
        .iter()
        .map(|entry| parse_option(entry).ok_or_else(|| format!("this is not an option: {}", entry.name)));
    options.collect()
}

/// `-d, --detach`, `--port PORT` or `--direct[=ADDR:PORT]`
fn parse_option(entry: &Entry) -> Option<CommandOption> {
    let (short, long) = match entry.name.split_once(", ") {
        Some((short, long)) => (Some(short.strip_prefix('-')?), long),
        None => (None, entry.name),
    };
    let short = match short {
        Some(letter) => Some(letter.parse().ok()?),
        None => None,
    };
    let long = long.strip_prefix("--")?;
    let optional = long.strip_suffix(']').and_then(|long| long.split_once("[="));
    let (long, value) = match optional.or_else(|| long.split_once(' ')) {
        Some((long, value)) => (long, Some(value)),
        None => (long, None),
    };
    let is_value_optional = optional.is_some();
    let is_plain = !long.is_empty() && long.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    is_plain.then_some(CommandOption { long, short, value, is_value_optional, about: entry.about })
}

/// A page: one sentence, the usage, and the parts `Options:` and `Examples:` if there are any.
fn parse_command(
    page: &'static str,
    sections: &[Section],
    everywhere: &[CommandOption],
) -> Result<Command, String> {
    let mut parts = page.split("\n\n");
    let about = parts.next().unwrap_or_default();
    let usage =
        parts.next().and_then(|part| part.strip_prefix("Usage: connect ")).ok_or("it has no usage")?;
    let (mut options, mut examples) = (Vec::new(), Vec::new());
    for part in parts {
        if let Some(lines) = part.strip_prefix("Examples:\n") {
            examples.extend(lines.lines().map(str::trim));
        } else if part.starts_with("Options:\n") {
            options.extend(parse_options(&parse_section(part)?)?);
        } else {
            return Err(format!("this part has no place: {part}"));
        }
    }
    // A section that the usage names adds its options and its text.
    let words = usage_words(usage);
    let mut help = page.to_owned();
    for title in words.iter().filter_map(|word| word.strip_prefix('[')?.strip_suffix(']')) {
        if title.ends_with(" options") {
            let section = sections.iter().find(|section| section.title.eq_ignore_ascii_case(title));
            let section = section.ok_or_else(|| format!("there is no section {title}"))?;
            options.extend(parse_options(section)?);
            help.push_str("\n\n");
            help.push_str(section.text);
        }
    }
    let all: Vec<CommandOption> = options.iter().chain(everywhere).copied().collect();
    let path = path_of(usage);
    let arguments = parse_arguments(&words[path.split(' ').count()..], &all);
    Ok(Command { path, about, usage, arguments, options, examples, help, role: "", is_built: false })
}

/// The words of a usage. Brackets hold what is in them together.
fn usage_words(usage: &'static str) -> Vec<&'static str> {
    let mut depth = 0;
    let is_gap = |c: char| {
        match c {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => {}
        }
        c == ' ' && depth == 0
    };
    usage.split(is_gap).collect()
}

/// The first words, as long as they are all small letters.
fn path_of(usage: &'static str) -> &'static str {
    let mut end = 0;
    for word in usage.split(' ') {
        if !word.bytes().all(|b| b.is_ascii_lowercase()) {
            break;
        }
        end += word.len() + 1;
    }
    usage[..end.min(usage.len())].trim_end()
}

/// The first form names the arguments; any form may be typed.
fn parse_arguments(words: &[&'static str], options: &[CommandOption]) -> Arguments {
    let mut forms = words.split(|word| *word == "|").map(|form| parse_form(form, options));
    let mut arguments = forms.next().unwrap_or_default();
    for form in forms {
        arguments.least = arguments.least.min(form.least);
        arguments.most = arguments.most.max(form.most);
        arguments.runs_command |= form.runs_command;
    }
    arguments
}

fn parse_form(words: &[&'static str], options: &[CommandOption]) -> Arguments {
    let mut form = Arguments::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let inner = bracketed(word);
        let name = inner.unwrap_or(word);
        // Everything after the dashes is the other program's.
        if name == "--" || name.starts_with("-- ") {
            form.runs_command = true;
            break;
        }
        if name.starts_with('-') || name.ends_with(" options") {
            // Outside of brackets an option belongs to the form, and the word after it is its value.
            let takes_value = |option: &CommandOption| {
                option.value.is_some() && name.strip_prefix("--") == Some(option.long)
            };
            if inner.is_none() && options.iter().any(takes_value) {
                words.next();
            }
            continue;
        }
        form.names.push(name.trim_end_matches("..."));
        form.least += usize::from(inner.is_none());
        form.most += if name.ends_with("...") { MOST_REPEATED } else { 1 };
    }
    form
}

/// What is inside, if one pair of brackets holds the whole word, which may be repeated.
fn bracketed(word: &'static str) -> Option<&'static str> {
    let inner = word.trim_end_matches("...").strip_prefix('[')?.strip_suffix(']')?;
    let mut depth = 0;
    for c in inner.chars() {
        match c {
            '[' => depth += 1,
            ']' if depth == 0 => return None,
            ']' => depth -= 1,
            _ => {}
        }
    }
    Some(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manual() -> Manual {
        Manual::parse(TEXT, |_| true).unwrap()
    }

    fn arguments_of(path: &str) -> Arguments {
        let manual = Manual::parse(TEXT, |_| true).unwrap();
        manual.commands.into_iter().find(|command| command.path == path).unwrap().arguments
    }

    #[test]
    fn every_command_is_in_one_group_and_every_synonym_stands_for_a_command() {
        let manual = manual();
        for command in &manual.commands {
            let groups = manual.groups.entries.iter();
            let count =
                groups.filter(|group| manual.in_group(group).any(|other| other.path == command.path)).count();
            assert_eq!(count, 1, "{}", command.path);
        }
        for entry in &manual.synonyms.entries {
            assert!(entry.name == "--version" || manual.find(entry.name).is_some(), "{}", entry.name);
            for word in entry.about.split(", ") {
                assert!(manual.commands.iter().all(|command| !command.begins_with(word)), "{word}");
            }
        }
    }

    #[test]
    fn every_option_has_a_description_and_every_command_an_example() {
        let manual = manual();
        for command in &manual.commands {
            assert!(!command.about.is_empty() && !command.about.ends_with('.'), "{}", command.path);
            let starts = |example: &str| example.contains(&format!("connect {}", command.path));
            assert!(command.examples.iter().any(|example| starts(example)), "{}", command.path);
            for option in manual.options_of(Some(command)) {
                assert!(!option.about.is_empty(), "{} --{}", command.path, option.long);
                let described = option.value.is_none_or(|value| !value.trim().is_empty());
                assert!(described, "{} --{}", command.path, option.long);
                let default = option.about.split_once("[default: ");
                assert!(default.is_none_or(|(_, value)| value.ends_with(']') && value.len() > 1));
                assert!(default.is_none() || option.value.is_some(), "a switch has no default");
            }
        }
    }

    #[test]
    fn no_command_or_option_is_there_twice_and_none_only_in_a_usage() {
        let manual = manual();
        let mut paths = BTreeSet::new();
        for command in &manual.commands {
            assert!(paths.insert(command.path), "two pages for {}", command.path);
            let (mut names, mut letters) = (BTreeSet::new(), BTreeSet::new());
            for option in manual.options_of(Some(command)) {
                let is_new =
                    names.insert(option.long) && option.short.is_none_or(|letter| letters.insert(letter));
                assert!(is_new, "{} --{} is there twice", command.path, option.long);
            }
            let used =
                command.usage.split([' ', '[', ']', '|', '=']).filter_map(|word| word.strip_prefix("--"));
            for name in used.filter(|name| !name.is_empty()) {
                assert!(names.contains(name), "{} --{name} is only in the usage", command.path);
            }
        }
    }

    #[test]
    fn a_usage_says_how_many_arguments_there_may_be() {
        let of = |names: &[&'static str], least, most, runs_command| Arguments {
            names: names.to_vec(),
            least,
            most,
            runs_command,
        };
        assert_eq!(arguments_of("reach"), of(&["NAME", "PORT"], 1, 2, true));
        assert_eq!(arguments_of("expose"), of(&["NAME", "PORT"], 1, 2, false));
        assert_eq!(arguments_of("share"), of(&["[NAME=][HOST:]PORT"], 0, MOST_REPEATED, false));
        assert_eq!(arguments_of("stop"), of(&["NAME|CODE"], 0, 1, false));
        assert_eq!(arguments_of("join"), of(&["CODE|LINK|-"], 0, 1, true));
        assert_eq!(arguments_of("completions"), of(&["bash|zsh|fish"], 1, 1, false));
        assert_eq!(arguments_of("completions words"), of(&[], 0, 0, true));
        assert_eq!(arguments_of("hub migrate"), of(&[], 0, 0, false));
        assert_eq!(arguments_of("hub key create"), of(&[], 0, 0, false));
        assert_eq!(arguments_of("proxy"), of(&[], 0, 0, false));
    }

    #[test]
    fn options_have_letters_values_and_sections() {
        let manual = manual();
        let find = |path: &str, long: &str| {
            let options = &manual.find(path).unwrap().options;
            *options.iter().find(|option| option.long == long).unwrap()
        };
        assert_eq!(find("daemon logs", "follow").short, Some('f'));
        assert_eq!(find("hub", "etcd-user").value, Some("NAME"));
        assert_eq!(find("proxy start", "https"), find("proxy", "https"));
        assert_eq!(find("expose", "protocol").value, Some("tcp|http|https"));
        assert!(
            manual.find("hub key list").unwrap().help.contains("\n\nEtcd options:\n      --etcd-ca FILE")
        );
    }

    #[test]
    fn a_slip_in_the_text_is_refused() {
        let everywhere = "\n---- every\nEverywhere:\n  -h, --help  Show help\n";
        let notes = "\n---- every\nGroups:\n\n---- every\nSynonyms:\n";
        for (page, fault) in [
            ("Does it\n\nUsage: connect it\n\nOptions:\n  --in DIR\n", "not two columns"),
            ("Does it\n\nUsage: connect it\n\nOptions:\n  -in  Where\n", "not an option"),
            ("Does it\n\nUsage: connect it [other options]\n", "no section other options"),
            ("Does it\n\nUsage: connect it\n\nNotes\n", "has no place"),
            ("Does it\n", "no usage"),
        ] {
            let text = format!("{everywhere}\n---- every\n{page}{notes}");
            let error = Manual::parse(Box::leak(text.into_boxed_str()), |_| true).err().unwrap_or_default();
            assert!(error.contains(fault), "{page}: {error}");
        }
    }
}
