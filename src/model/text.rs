//! Text for people: counts in words, and what makes a peer's text safe to show.

use std::fmt::Display;
use std::ops::RangeInclusive;

/// Enough for any error message. A peer must not fill the terminal.
const SHOWN_LIMIT: usize = 500;

/// Unicode's format characters (category Cf), which reorder, join or hide the text around them. Also the separators of
/// lines and paragraphs, the unassigned code point in between, and the whole block of tags and variation selectors.
const FORMAT_CHARACTERS: [RangeInclusive<char>; 19] = [
    '\u{ad}'..='\u{ad}',
    '\u{600}'..='\u{605}',
    '\u{61c}'..='\u{61c}',
    '\u{6dd}'..='\u{6dd}',
    '\u{70f}'..='\u{70f}',
    '\u{890}'..='\u{891}',
    '\u{8e2}'..='\u{8e2}',
    '\u{180e}'..='\u{180e}',
    '\u{200b}'..='\u{200f}',
    '\u{2028}'..='\u{202e}',
    '\u{2060}'..='\u{206f}',
    '\u{feff}'..='\u{feff}',
    '\u{fff9}'..='\u{fffb}',
    '\u{110bd}'..='\u{110bd}',
    '\u{110cd}'..='\u{110cd}',
    '\u{13430}'..='\u{1343f}',
    '\u{1bca0}'..='\u{1bca3}',
    '\u{1d173}'..='\u{1d17a}',
    '\u{e0000}'..='\u{e0fff}',
];

/// Whether it is not seen itself but changes what is: a control or a format character.
pub fn is_hidden(c: char) -> bool {
    c.is_control() || FORMAT_CHARACTERS.iter().any(|range| range.contains(&c))
}

/// `1 line`, `2 lines`.
pub fn counted<N: Copy + Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    let plural = if count == N::from(1) { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// At most `SHOWN_LIMIT` characters on one line: with line breaks a peer could write lines that look like ours.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c == '\n' { ' ' } else { c }).take(SHOWN_LIMIT).collect()
}
