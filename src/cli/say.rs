//! The only writer of stdout and stderr.
//!
//! Results go to stdout, warnings and errors to stderr. A peer's text never reaches the terminal with a control
//! character in it. A closed pipe is no error: the reader has seen enough.

use std::io;
use std::io::Write;
use std::sync::LazyLock;

use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use super::log_lines;
use super::wrap::wrap;
use crate::error::Error;
use crate::model::text::is_hidden;
use crate::model::time::Time;
use crate::os::clock;
use crate::os::detach;
use crate::os::terminal;

#[derive(Clone)]
#[allow(clippy::struct_excessive_bools)] // Each is one independent fact about the output.
pub struct Say {
    pub json: bool,
    pub quiet: bool,
    /// With `-- CMD` our lines go to stderr, since stdout belongs to CMD.
    pub only_stderr: bool,
    utf8: bool,
    colour_out: bool,
    colour_err: bool,
}

const MARKS: [(&str, &str); 4] = [("[ok]", "32"), ("[!]", "33"), ("[x]", "31"), ("●", "32")];
/// What terminals without UTF-8 get instead.
const ASCII_FOR: [(char, &str); 12] = [
    ('→', "->"),
    ('•', "*"),
    ('●', "*"),
    ('○', "o"),
    ('—', "-"),
    ('…', "..."),
    ('│', "|"),
    ('─', "-"),
    ('┌', "+"),
    ('┐', "+"),
    ('└', "+"),
    ('┘', "+"),
];

impl Say {
    pub fn new(json: bool, quiet: bool, only_stderr: bool) -> Self {
        let colour = terminal::wants_colour();
        Self {
            json,
            quiet,
            only_stderr,
            utf8: terminal::is_utf8(),
            colour_out: colour && terminal::is_terminal_out(),
            colour_err: colour && terminal::is_terminal_err(),
        }
    }

    /// A line for people; nothing under `--json` or `--quiet`.
    pub fn line(&self, text: &str) {
        if !self.json && !self.quiet {
            self.result(text);
        }
    }

    /// A line that is the result itself, so `--quiet` keeps it.
    pub fn result(&self, text: &str) {
        if !self.json {
            self.write(text, self.only_stderr);
        }
    }

    /// One JSON object a line, under `--json` only.
    pub fn event(&self, value: &Value) {
        if self.json {
            self.raw(&value.to_string());
        }
    }

    /// The one JSON value of a command, under `--json` only.
    pub fn value(&self, value: &impl Serialize) {
        if self.json {
            let text = serde_json::to_string_pretty(value).unwrap_or_default();
            self.raw(&text);
        }
    }

    /// Something is wrong, but the command goes on.
    pub fn warn(&self, text: &str) {
        self.write(&format!("[!] {text}"), true);
    }

    /// The hub cannot be reached; the command keeps trying.
    pub fn lost(&self, error: &Error) {
        self.event(&json!({ "event": "lost", "reason": error.to_string() }));
        self.warn(&format!("{error}; trying again until it is back"));
    }

    pub fn back(&self) {
        self.event(&json!({ "event": "back" }));
        // `--quiet` keeps the loss, so it keeps the return, at the same place.
        if !self.json {
            self.write("[ok] The hub is back", self.only_stderr || self.quiet);
        }
    }

    /// Progress, on a terminal only. The next call replaces the line; an empty one clears it.
    pub fn progress(&self, text: &str) {
        if !self.json && !self.quiet && terminal::is_terminal_err() {
            let _ =
                write!(io::stderr().lock(), "\r\u{1b}[K{}", cut(&self.shown(text), terminal::size().1 - 1));
        }
    }

    /// Shows `text` as the progress while `work` is done.
    pub fn during<T>(&self, text: &str, work: impl FnOnce() -> T) -> T {
        self.progress(text);
        let done = work();
        self.progress("");
        done
    }

    /// Replaces the whole screen. Lines that do not fit are left out.
    pub fn screen(&self, text: &str) {
        let (rows, width) = terminal::size();
        let mut lines: Vec<String> = text.lines().map(|line| cut(line, width)).collect();
        // The last row stays empty: a newline there would scroll the screen.
        if lines.len() >= rows {
            let over = lines.split_off(rows - 2).len();
            lines.push(format!("… and {over} more"));
        }
        let _ = write!(io::stdout().lock(), "\u{1b}[H\u{1b}[J");
        put(&self.coloured(&self.shown(&lines.join("\n")), false), false);
    }

    pub fn trouble(&self, error: &Error) {
        if self.json {
            let object = json!({ "error": error.to_string(), "hint": error.hint, "code": error.code() });
            return put(&clean_json(&object.to_string()), true);
        }
        self.write(&format!("[x] {error}"), true);
        if let Some(hint) = &error.hint {
            self.write(&format!("  {hint}"), true);
        }
    }

    fn raw(&self, text: &str) {
        put(&clean_json(text), self.only_stderr);
    }

    /// The text as it will be printed, which may be longer on a terminal without UTF-8.
    pub fn shown(&self, text: &str) -> String {
        let shown = clean(text);
        if self.utf8 { shown } else { plain(&shown) }
    }

    fn write(&self, text: &str, to_stderr: bool) {
        put(&self.coloured(&fitted(&self.shown(text), to_stderr), to_stderr), to_stderr);
    }

    fn coloured(&self, text: &str, to_stderr: bool) -> String {
        let marks = if if to_stderr { self.colour_err } else { self.colour_out } { &MARKS[..] } else { &[] };
        marks.iter().fold(text.to_owned(), |text, (mark, code)| {
            text.replace(mark, &format!("\u{1b}[{code}m{mark}\u{1b}[0m"))
        })
    }
}

/// Prints text that needs no more treatment, like a line of our own process in the background.
pub fn put(text: &str, to_stderr: bool) {
    match log_lines::of_output() {
        Some(format) => put_unchanged(&format.lines(text, to_stderr), to_stderr),
        None => put_unchanged(text, to_stderr),
    }
}

pub fn put_unchanged(text: &str, to_stderr: bool) {
    if to_stderr && detach::is_starting() {
        let marked = text.lines().map(|line| format!("{}{line}", detach::STDERR_MARK));
        return put_unchanged(&marked.collect::<Vec<_>>().join("\n"), false);
    }
    // A reader that went away is not an error.
    let _ = if to_stderr {
        writeln!(io::stderr().lock(), "{text}")
    } else {
        writeln!(io::stdout().lock(), "{text}")
    };
}

/// Text for a program: neither `--quiet` nor `--json` nor the terminal changes it, and tabs stay.
pub fn for_programs(text: &str) {
    put(&text.split('\t').map(clean).collect::<Vec<_>>().join("\t"), false);
}

/// Replaces control characters, and those that reorder or hide text, by their codes.
pub fn clean(text: &str) -> String {
    escaped(text, |c| c.escape_unicode().to_string())
}

/// The same JSON with every such character escaped. JSON requires that only below U+0020. Outside of strings there
/// are none but newlines.
fn clean_json(text: &str) -> String {
    escaped(text, |c| c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect())
}

fn escaped(text: &str, escape: impl Fn(char) -> String) -> String {
    let is_escaped = |c| is_hidden(c) && c != '\n';
    if !text.contains(is_escaped) {
        return text.to_owned();
    }
    text.chars().map(|c| if is_escaped(c) { escape(c) } else { c.to_string() }).collect()
}

/// Replaces or drops what a terminal without UTF-8 cannot show.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match ASCII_FOR.iter().find(|(fancy, _)| *fancy == c) {
            Some((_, plain)) => out.push_str(plain),
            None if c.is_ascii() => out.push(c),
            None => {}
        }
    }
    let indent = text.len() - text.trim_start().len();
    // An emoji at the start of the line is dropped with the space after it.
    if indent == 0 { out.trim_start().to_owned() } else { out }
}

/// The text as a terminal gets it, whose width is asked once: a proxy in the foreground prints a line a request.
pub fn fitted(text: &str, to_stderr: bool) -> String {
    static WIDTH: LazyLock<usize> = LazyLock::new(|| terminal::size().1);
    let is_terminal = if to_stderr { terminal::is_terminal_err() } else { terminal::is_terminal_out() };
    if is_terminal { wrap(text, *WIDTH) } else { text.to_owned() }
}

/// How many columns a line may have.
pub fn width() -> usize {
    if terminal::is_terminal_out() { terminal::size().1 } else { usize::MAX }
}

/// A point in time in a list: `in 3 h` on a terminal, RFC 3339 for a program.
pub fn time(at: Time) -> String {
    if terminal::is_terminal_out() { at.relative(clock::now()) } else { at.to_string() }
}

/// Rows under headings, each column as wide as its widest cell. On a terminal that is too narrow for that, columns in
/// which no row says anything are left out. If that is not enough, each cell stands with its heading: a name or an id
/// that is cut is of no use to other commands.
pub fn columns(headings: &[&str], rows: impl Iterator<Item: AsRef<[String]>>) -> String {
    columns_within(width(), headings, rows)
}

/// Blanks between two columns.
const COLUMN_GAP: usize = 2;

pub fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    // One character without UTF-8, too, or the next column would move.
    let end = if terminal::is_utf8() { '…' } else { '~' };
    text.chars().take(width - 1).chain([end]).collect()
}

fn columns_within(limit: usize, headings: &[&str], rows: impl Iterator<Item: AsRef<[String]>>) -> String {
    let mut lines: Vec<Vec<String>> = vec![headings.iter().map(ToString::to_string).collect()];
    lines.extend(rows.map(|row| row.as_ref().iter().map(|cell| clean(cell).replace('\n', " ")).collect()));
    let mut widths = vec![0; headings.len()];
    for (width, cell) in lines.iter().flat_map(|line| line.iter().enumerate()) {
        widths[width] = widths[width].max(cell.chars().count() + COLUMN_GAP);
    }
    let is_too_wide = |widths: &[usize]| widths.iter().sum::<usize>() > limit.saturating_add(COLUMN_GAP);
    if is_too_wide(&widths) {
        let is_empty = |column: usize| lines[1..].iter().all(|line| is_empty_cell(&line[column]));
        widths.iter_mut().enumerate().filter(|(at, _)| is_empty(*at)).for_each(|(_, width)| *width = 0);
    }
    if is_too_wide(&widths) {
        return lines[1..].iter().map(|row| record(limit, headings, row)).collect::<Vec<_>>().join("\n");
    }
    let line = |line: &Vec<String>| {
        let shown = line.iter().zip(&widths).filter(|(_, width)| **width > 0);
        shown.map(|(cell, width)| format!("{cell:width$}")).collect::<String>()
    };
    lines.iter().map(|cells| line(cells).trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

fn is_empty_cell(cell: &str) -> bool {
    cell.is_empty() || cell == "-"
}

/// The first cell, and below it the others, each after its heading.
fn record(limit: usize, headings: &[&str], row: &[String]) -> String {
    let cells = row.iter().zip(headings).skip(1).filter(|(cell, _)| !is_empty_cell(cell));
    let cells = cells.map(|(cell, heading)| format!("{} {cell}", heading.to_lowercase()));
    wrap(&format!("{}\n  {}", row[0], cells.collect::<Vec<_>>().join(", ")), limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_character_passes() {
        assert_eq!(clean("a\u{1b}[31mb\rc\u{202e}d\u{7}"), "a\\u{1b}[31mb\\u{d}c\\u{202e}d\\u{7}");
        assert_eq!(
            clean("a\u{61c}b\u{ad}\u{180e}\u{e0041}\u{fff9}"),
            "a\\u{61c}b\\u{ad}\\u{180e}\\u{e0041}\\u{fff9}"
        );
        assert_eq!(clean("postgres → localhost:5432"), "postgres → localhost:5432");
    }

    #[test]
    fn json_says_the_same_without_them() {
        let value = serde_json::json!({ "a": "\u{1b}\u{7f}\u{9b}31m\u{202e}\u{e0041}\u{61c}\u{e4}\n" });
        let text = clean_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(text.chars().all(|c| c == '\n' || !is_hidden(c)), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    }

    #[test]
    fn a_table_fits_or_each_cell_stands_with_its_heading() {
        let rows =
            || [["db", "5432", "a machine with a long name"], ["staging-database-one", "1", "b"]].into_iter();
        let drawn = |limit| {
            columns_within(limit, &["NAME", "PORT", "AGENT"], rows().map(|row| row.map(str::to_owned)))
        };
        let whole = "NAME                  PORT  AGENT\n\
                     db                    5432  a machine with a long name\n\
                     staging-database-one  1     b";
        assert_eq!(drawn(usize::MAX), whole);
        assert_eq!(drawn(54), whole);
        let narrow = "db\n  port 5432, agent a machine with a long name\n\
                      staging-database-one\n  port 1, agent b";
        assert_eq!(drawn(53), narrow);
        for limit in 20..60 {
            assert!(drawn(limit).lines().all(|line| line.chars().count() <= limit), "{limit}");
        }
    }

    #[test]
    fn a_narrow_list_keeps_its_ids_and_leaves_empty_columns_out() {
        let id = "key_tenv4w7d6gp5f2mzaza3";
        let row = || [[id, "member", "ann", "-", "2 min ago"].map(str::to_owned)].into_iter();
        let drawn = |limit| columns_within(limit, &["ID", "ROLE", "LABEL", "EXPIRES", "CREATED"], row());
        assert_eq!(drawn(51), format!("ID{:22}  ROLE    LABEL  CREATED\n{id}  member  ann    2 min ago", ""));
        assert_eq!(drawn(40), format!("{id}\n  role member, label ann, created 2 min\n  ago"));
    }

    #[test]
    fn plain_terminals_get_plain_characters() {
        assert_eq!(plain("🔗 Joining environment share: abc123"), "Joining environment share: abc123");
        assert_eq!(plain("    [ok] postgres → localhost:5432"), "    [ok] postgres -> localhost:5432");
        assert!(plain("é─┌→🌐").is_ascii());
    }
}
