//! Makes a peer's text safe to show.

/// Enough for any error message. A peer must not fill the terminal.
const SHOWN_LIMIT: usize = 500;

/// At most `SHOWN_LIMIT` characters on one line: with line breaks a peer could write lines that look like ours.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c == '\n' { ' ' } else { c }).take(SHOWN_LIMIT).collect()
}
