//! What the terminal can show.

use std::env;
use std::io;
use std::io::IsTerminal;

pub fn is_terminal_out() -> bool {
    io::stdout().is_terminal()
}

pub fn is_terminal_err() -> bool {
    io::stderr().is_terminal()
}

pub fn is_terminal_in() -> bool {
    io::stdin().is_terminal()
}

/// One line of stdin and not a byte more: the rest belongs to the command that is run.
pub fn read_line(limit: usize) -> io::Result<String> {
    let (stdin, mut line, mut byte) = (io::stdin(), Vec::new(), [0]);
    while line.len() < limit && nix::unistd::read(&stdin, &mut byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// Bare containers set no locale at all and still feed UTF-8 terminals and logs, so only a locale that
/// names another charset (`C` and `POSIX` do) means plain text.
pub fn is_utf8() -> bool {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .find_map(|name| env::var(name).ok().filter(|v| !v.is_empty()));
    let folded = set.map(|locale| locale.to_ascii_lowercase());
    folded.is_none_or(|locale| locale.contains("utf-8") || locale.contains("utf8"))
}

pub fn wants_colour() -> bool {
    env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Columns, as the shell exports them; 80 when nobody says.
pub fn width() -> usize {
    env::var("COLUMNS").ok().and_then(|text| text.parse().ok()).filter(|width| *width >= 40).unwrap_or(80)
}
