//! A peer's text, made fit to be shown.

/// Room for any error message; a peer must not fill the terminal.
const SHOWN_LIMIT: usize = 500;

/// At most `SHOWN_LIMIT` characters on one line: with line breaks a peer could write lines that look like ours.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c == '\n' { ' ' } else { c }).take(SHOWN_LIMIT).collect()
}
