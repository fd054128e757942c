//! What `connect help TOPIC` prints: plain texts that the binary holds, for users, operators and auditors.
//!
//! The first line of a text is its title, `NAME: what it is about`. A line that begins at the margin and ends in a
//! colon is a heading; the manual page of the topic shows it as one.

pub struct Topic {
    pub name: &'static str,
    pub about: &'static str,
    pub text: &'static str,
}

/// In the order in which a reader needs them.
const TEXTS: &[&str] = &[
    include_str!("topics/ci.txt"),
    include_str!("topics/proxy.txt"),
    include_str!("topics/fleet.txt"),
    include_str!("topics/operate.txt"),
    include_str!("topics/security.txt"),
    include_str!("topics/controls.txt"),
    include_str!("topics/audit.txt"),
    include_str!("topics/limits.txt"),
    include_str!("topics/protocol.txt"),
    include_str!("topics/environment.txt"),
    include_str!("topics/files.txt"),
    include_str!("topics/json.txt"),
    include_str!("topics/exit-codes.txt"),
    include_str!("topics/performance.txt"),
    include_str!("topics/design.txt"),
];

pub fn all() -> impl Iterator<Item = Topic> + Clone {
    TEXTS.iter().map(|text| {
        let title = text.lines().next().unwrap_or_default();
        let (name, about) = title.split_once(": ").expect("a unit test reads these titles");
        Topic { name, about, text }
    })
}

pub fn find(name: &str) -> Option<Topic> {
    all().find(|topic| topic.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args;
    use crate::cli::manual::Manual;
    use crate::cli::manual::TEXT;
    use crate::hub::audit::AUDIT_EVENTS;
    use crate::hub::audit::AUDIT_FIELDS;
    use crate::tunnel::served::SERVED_EVENTS;
    use std::ffi::OsString;
    use std::fs;
    use std::path::Path;
    use std::path::PathBuf;

    /// Words in capitals that are not variables, in the files that read some.
    const OTHER_WORDS: [&str; 6] =
        ["CONNECT", "UTF", "STATUS", "READY", "CARGO_PKG_VERSION", "CONNECT_BUILD"];

    fn manual() -> &'static Manual {
        Box::leak(Box::new(Manual::parse(TEXT, |_| true).unwrap()))
    }

    fn topic(name: &str) -> &'static str {
        find(name).unwrap().text
    }

    /// The files below `src/ROOM`, without comments and unit tests.
    fn sources(room: &str) -> Vec<String> {
        let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(room)];
        let mut files: Vec<PathBuf> = Vec::new();
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if path.is_dir() { &mut folders } else { &mut files }.push(path);
            }
        }
        let read = |path: &PathBuf| {
            let text = fs::read_to_string(path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            lines.map(|line| format!("{line}\n")).collect::<String>()
        };
        files.iter().filter(|path| path.extension().is_some_and(|kind| kind == "rs")).map(read).collect()
    }

    /// What stands in quotes on one line.
    fn literals(code: &str) -> impl Iterator<Item = &str> {
        code.lines().flat_map(|line| line.split('"').skip(1).step_by(2))
    }

    #[test]
    fn every_topic_has_a_title_and_fits_a_terminal() {
        let manual = manual();
        for topic in all() {
            assert!(!topic.about.is_empty() && !topic.name.contains(' '), "{}", topic.name);
            assert!(
                manual.find(topic.name).is_none() || topic.name == "proxy",
                "{} is a command",
                topic.name
            );
            for line in topic.text.lines() {
                assert!(line.chars().count() <= 100, "{}: {line}", topic.name);
                assert!(line.is_ascii() && !line.ends_with(' '), "{}: {line}", topic.name);
            }
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/topics");
        for entry in fs::read_dir(folder).unwrap() {
            // `make install` takes the names of the manual pages from the files.
            let name = entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned();
            assert!(find(&name).is_some(), "{name} is in no list");
        }
    }

    #[test]
    fn every_variable_that_the_program_reads_is_in_environment() {
        let is_name = |text: &&str| {
            text.len() > 1
                && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
                && !text.starts_with('_')
        };
        let mut missing = Vec::new();
        for code in sources("") {
            let reads = code.contains("env::var") || code.contains("variable(");
            let names = literals(&code).filter(is_name);
            let names = names.filter(|name| name.starts_with("CONNECT_") || reads);
            let names = names.filter(|name| !OTHER_WORDS.contains(name));
            let rests = names.map(|name| name.trim_start_matches("PRIVATE"));
            missing.extend(rests.filter(|name| !topic("environment").contains(name)).map(str::to_owned));
        }
        assert!(missing.is_empty(), "not in the topic: {}", missing.join(" "));
    }

    #[test]
    fn every_file_that_the_program_names_is_in_files() {
        let kinds = [".json", ".log", ".pem", ".lock", ".crt", ".key", ".yml", ".yaml", ".plist", ".service"];
        let mut missing = Vec::new();
        for code in ["state", "cli", "hub", "proxy", "os"].map(sources).iter().flatten() {
            let is_file = |text: &&str| {
                kinds.iter().any(|kind| text.ends_with(kind) && text.len() > kind.len())
                    && !text.contains([' ', '%'])
                    && !text.starts_with("/etc/")
            };
            for text in literals(code).filter(is_file) {
                let name = text.rsplit(['/', '}']).next().unwrap_or_default();
                missing.extend((!topic("files").contains(name)).then(|| text.to_owned()));
            }
        }
        assert!(missing.is_empty(), "not in the topic: {}", missing.join(" "));
    }

    #[test]
    fn the_topic_lists_the_events_and_fields_of_the_audit_log_as_the_program_knows_them() {
        let text = topic("audit").split("The events,").collect::<Vec<_>>();
        let served = text[1].split("Besides v,").nth(1).unwrap();
        let rows = |text: &str| -> Vec<(String, String)> {
            let rows =
                text.lines().filter_map(|line| line.strip_prefix("    ")).filter(|row| !row.starts_with(' '));
            rows.filter_map(|row| row.split_once(' '))
                .map(|(name, rest)| {
                    (name.to_owned(), rest.trim_start().split("  ").next().unwrap().to_owned())
                })
                .collect()
        };
        for name in AUDIT_FIELDS {
            assert!(rows(text[0]).iter().any(|(row, _)| row == name), "{name} is not in the topic");
        }
        let events = rows(text[1].split("\n\n").nth(1).unwrap());
        let known = AUDIT_EVENTS.map(|(event, own)| {
            (event.to_owned(), if own.is_empty() { "-".to_owned() } else { own.join(", ") })
        });
        assert_eq!(events, known);
        let served = rows(served.split("\n\n").nth(1).unwrap());
        let fields = |text: &str| text.split(';').next().unwrap().to_owned();
        let served: Vec<_> = served.into_iter().map(|(event, own)| (event, fields(&own))).collect();
        assert_eq!(served, SERVED_EVENTS.map(|(event, own)| (event.to_owned(), own.join(", "))));
    }

    #[test]
    fn every_refusal_is_in_json() {
        let mut missing = Vec::new();
        for code in sources("hub") {
            for row in code.split(" row(").skip(1).filter(|row| row.starts_with(|c: char| c.is_ascii_digit()))
            {
                let code = row.split('"').nth(1).unwrap_or_default();
                let is_constant = row.split(',').nth(1).is_some_and(|word| !word.contains('"'));
                missing.extend((!is_constant && !topic("json").contains(code)).then(|| code.to_owned()));
            }
        }
        assert!(missing.is_empty(), "not in the topics: {}", missing.join(" "));
    }

    /// The code of a Markdown text: its fenced blocks, indented as in a topic.
    fn code_of(markdown: &str) -> String {
        let parts = markdown.split("```").enumerate();
        parts
            .map(|(at, part)| match at % 2 {
                0 => part.to_owned(),
                _ => part.lines().skip(1).map(|line| format!("    {line}\n")).collect(),
            })
            .collect()
    }

    /// The texts that are to be typed: in backticks, in lines that are indented by four, and in lists of two columns.
    fn typed(text: &str) -> Vec<String> {
        let text = text.replace("\\\n", " ");
        let mut found = Vec::new();
        for line in text.lines() {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
            let inner = line.trim_start();
            let end = inner.find("  ").or_else(|| inner.find(" #")).unwrap_or(inner.len());
            if line.starts_with("    ") || inner.contains("  ") {
                found.push(inner[..end].to_owned());
            }
        }
        found
    }

    /// The arguments of each `connect` in a line for a shell.
    fn calls(line: &str) -> Vec<Vec<OsString>> {
        let (mut calls, mut quote) = (vec![Vec::new()], None);
        let mut word = String::new();
        for c in format!("{line} ").chars() {
            match (quote, c) {
                (Some(open), c) if open == c => quote = None,
                (None, '"' | '\'') => quote = Some(c),
                (None, '|' | '>' | ';' | '&') => calls.push(Vec::new()),
                (None, ' ') if word.is_empty() => {}
                (None, ' ') => calls.last_mut().unwrap().push(std::mem::take(&mut word)),
                (_, c) => word.push(c),
            }
        }
        let starts = |word: &str| {
            let before = ["-", "$", "run:", "sudo", "-u", "connect-hub", "docker", "exec"];
            word.contains('=') || before.contains(&word)
        };
        let own = |words: Vec<String>| {
            let is_own = |word: &String| word == "connect" || word.ends_with("/connect");
            let at = words.iter().rposition(is_own)?;
            let runs_image = words.first().is_some_and(|word| word == "docker");
            let is_call = runs_image || words[..at].iter().all(|word| starts(word));
            is_call.then(|| words[at + 1..].iter().map(OsString::from).collect())
        };
        calls.into_iter().filter_map(own).collect()
    }

    /// What is wrong with a call. The bare name of a command is a mention of it.
    fn fault(call: Vec<OsString>, manual: &'static Manual) -> Option<String> {
        let words: Vec<String> = call.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let is_known = |words: &str| {
            manual.commands.iter().any(|command| command.begins_with(words)) || find(words).is_some()
        };
        if is_known(&words.join(" ")) {
            return None;
        }
        let args = match args::parse(call, manual) {
            Ok(args) => args,
            Err(error) => return Some(error.to_string()),
        };
        let subject = args.positionals.join(" ");
        let is_help = args.command.is_some_and(|command| command.path == "help");
        let is_fine = !is_help || ["COMMAND", "TOPIC"].contains(&subject.as_str()) || is_known(&subject);
        (!is_fine).then(|| format!("there is no topic {subject}"))
    }

    #[test]
    fn every_command_line_in_the_texts_is_one_that_connect_takes() {
        let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
        let manual = manual();
        let (mut count, mut faults) = (0, Vec::new());
        for text in all().map(|topic| topic.text.to_owned()).chain([code_of(&readme)]) {
            for line in typed(&text) {
                for call in calls(&line) {
                    count += 1;
                    faults.extend(fault(call, manual).map(|fault| format!("{line}: {fault}")));
                }
            }
        }
        assert!(faults.is_empty(), "{}", faults.join("\n"));
        assert!(count > 100, "only {count} command lines were found");
    }
}
