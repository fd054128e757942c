//! Fits text into the columns of a terminal, at words.
//!
//! A row of two columns continues below its second column, any other line below its own beginning. What is to be typed
//! stays together where it fits; a line that is a command is broken as a shell lets it be.

use std::mem;

/// A second column that would be narrower goes on near the margin instead.
const NARROWEST_TEXT: usize = 24;
const TEXT_BELOW: usize = 8;
/// A longer word is a key or a link. It is copied together with its command.
const LONGEST_WORD: usize = 40;

/// Breaks the lines that are too long.
pub fn wrap(text: &str, width: usize) -> String {
    let fit = |line: &str| if length(line) > width { wrap_line(line, width) } else { line.to_owned() };
    text.split('\n').map(fit).collect::<Vec<_>>().join("\n")
}

/// Undoes the line breaks of paragraphs and rows, which were filled for a wider terminal.
pub fn unfill(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in text.split('\n') {
        match lines.last_mut() {
            Some(above) if continues(above, line) => *above += &format!(" {}", line.trim_start()),
            _ => lines.push(line.to_owned()),
        }
    }
    lines.join("\n")
}

fn length(text: &str) -> usize {
    text.chars().count()
}

fn indent_of(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Where the text of a line begins: after its mark or number, and after its first column.
fn text_start(line: &str) -> usize {
    let inner = line.trim_start();
    let (first, rest) = inner.split_once(' ').unwrap_or((inner, ""));
    let is_number = |text: &str| text.parse::<u8>().is_ok();
    let is_mark = ["[ok]", "[!]", "[x]", "•", "*", "Usage:"].contains(&first)
        || first.strip_suffix('.').is_some_and(is_number);
    let rest = if is_mark { rest.trim_start() } else { inner };
    let text = rest.split_once("  ").map_or(rest, |(_, text)| text.trim_start());
    line.len() - text.len()
}

/// Whether a line is to be typed. A sentence that begins so has its punctuation, and a row its second column.
fn is_command(line: &str) -> bool {
    let is_known = |word: &str| ["connect", "sudo", "curl"].contains(&word);
    let mut words = line.trim_start().split(' ');
    let is_end = |word: &str| word.is_empty() || word.ends_with(['.', ',', ';', ':']);
    words.next().is_some_and(is_known) && !words.any(is_end)
}

/// Whether a line is the rest of what is above it. Lines without columns that are indented further are to be typed.
fn continues(above: &str, line: &str) -> bool {
    let (start, indent) = (text_start(above), indent_of(line));
    let is_filled = start > indent_of(above) || (indent == 2 && !above.ends_with(['.', ':']));
    let is_text = !line.trim().is_empty() && !is_command(line) && !is_command(above);
    is_text && is_filled && start == indent && text_start(line) == indent
}

fn wrap_line(line: &str, width: usize) -> String {
    // A first column that does not fit is text as well.
    let start = Some(text_start(line)).filter(|start| *start < width).unwrap_or(indent_of(line));
    let (head, text) = line.split_at(start);
    let is_command = is_command(line);
    if is_command && text.split(' ').any(|word| length(word) > LONGEST_WORD) {
        return line.to_owned();
    }
    let end = if is_command { " \\" } else { "" };
    let hanging = length(head) + if is_command { 4 } else { 0 };
    let indent = " ".repeat(if hanging + NARROWEST_TEXT > width { TEXT_BELOW } else { hanging });
    let room = width.saturating_sub(end.len());
    let mut lines = Vec::new();
    let mut line = if head.trim().is_empty() {
        head[..head.len().min(indent.len())].to_owned()
    } else {
        head.to_owned()
    };
    let mut has_text = false;
    for unit in units(text, room.saturating_sub(indent.len()), is_command) {
        let is_full = length(&line) + usize::from(has_text) + length(&unit) > room;
        if is_full && length(&line) > indent.len() {
            lines.push(mem::replace(&mut line, indent.clone()).trim_end().to_owned());
        } else if has_text {
            line.push(' ');
        }
        line += &unit;
        has_text = true;
    }
    lines.push(line);
    lines.join(&format!("{end}\n"))
}

/// The words of a text. What is to be typed is one: in backticks or brackets, an option with its value, or from `connect` to
/// the end of the clause.
fn units(text: &str, room: usize, is_command: bool) -> Vec<String> {
    let is_open = |unit: &str, word: &str| {
        unit.matches('`').count() % 2 == 1
            || (unit.starts_with('[') && !unit.contains(']'))
            || (unit.starts_with("--") && !unit.contains([' ', '=']) && !word.starts_with('-'))
            || (unit.split(' ').next() == Some("connect")
                && !(is_command || word.starts_with('['))
                && !unit.ends_with(['.', ',', ';', ':', ')']))
    };
    let mut units: Vec<String> = Vec::new();
    for word in text.split(' ') {
        let fits = |unit: &str| length(unit) + 1 + length(word) <= room || length(word) > LONGEST_WORD;
        match units.last_mut() {
            Some(unit) if is_open(unit, word) && fits(unit) => *unit += &format!(" {word}"),
            _ => units.push(word.to_owned()),
        }
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_at_words_and_go_on_below_their_text() {
        let cases = [
            (
                "[x] Cannot reach the hub: it did not answer\n  short",
                "[x] Cannot reach the hub: it did\n    not answer\n  short",
            ),
            (
                "  -q  Print only results, and errors of it",
                "  -q  Print only results, and\n      errors of it",
            ),
            (
                "[!]  proxy  Its port is taken by another one",
                "[!]  proxy  Its port is taken by\n        another one",
            ),
            (
                "  Name your hub: connect up --hub URL. Or run",
                "  Name your hub:\n  connect up --hub URL. Or run",
            ),
            (
                "Usage: connect hub ca [--data DIR] [more options]",
                "Usage: connect hub ca\n       [--data DIR]\n       [more options]",
            ),
            (
                "    connect share 5432 6379 api=8080 --name staging-env",
                "    connect share 5432 6379 \\\n        api=8080 \\\n        --name staging-env",
            ),
        ];
        for (line, wrapped) in cases {
            assert_eq!(wrap(line, 32), wrapped);
            assert_eq!(wrap(line, 100), line);
        }
    }

    #[test]
    fn a_key_stays_with_its_command() {
        let key = "pc_".to_owned() + &"k".repeat(53);
        let line = format!("  Use it: connect up --hub URL --api-key {key}");
        assert_eq!(wrap(&line, 60), format!("  Use it:\n  connect up --hub URL --api-key {key}"));
        let typed = format!("    connect up --hub URL --api-key {key}");
        assert_eq!(wrap(&typed, 60), typed);
    }

    #[test]
    fn paragraphs_and_rows_are_filled_again_and_lists_stay() {
        let text = "title\n\nPart:\n  One two\n  three. Four\n  five.\n  Six.\n    row   its text\n          goes on\n    connect up\n    connect hub\n  1. First\n     step\n  connect up\n  connect hub";
        let filled = "title\n\nPart:\n  One two three. Four five.\n  Six.\n    row   its text goes on\n    connect up\n    connect hub\n  1. First step\n  connect up\n  connect hub";
        assert_eq!(unfill(text), filled);
    }

    #[test]
    fn no_topic_loses_a_word() {
        let words = |text: &str| {
            text.split_whitespace().filter(|word| *word != "\\").map(str::to_owned).collect::<Vec<_>>()
        };
        for topic in crate::cli::topics::all() {
            for width in [40, 60, 79] {
                let narrow = wrap(&unfill(topic.text), width);
                assert_eq!(words(&narrow), words(topic.text), "{}", topic.name);
                let has_long_word = |line: &str| line.split(' ').any(|word| length(word) > LONGEST_WORD);
                let long = narrow.lines().filter(|line| length(line) > width && !has_long_word(line));
                let long = long.collect::<Vec<_>>();
                assert!(width < 60 || long.is_empty(), "{}: {long:?}", topic.name);
            }
        }
    }
}
