//! What the terminal can show.

use std::env;
use std::io;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::process::Command;
use std::process::Stdio;

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

/// Containers set no locale at all but write to UTF-8 terminals and logs. So only a locale that names another
/// charset (`C` and `POSIX` do) means plain ASCII.
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

/// Rows and columns of the terminal at stdout: from the environment, else from the terminal, else 24 by 80.
pub fn size() -> (usize, usize) {
    let from_environment = |name| env::var(name).ok().and_then(|text| text.parse().ok());
    let (rows, columns) = match (from_environment("LINES"), from_environment("COLUMNS")) {
        (Some(rows), Some(columns)) => (rows, columns),
        (rows, columns) => {
            let asked = asked_size().unwrap_or((24, 80));
            (rows.unwrap_or(asked.0), columns.unwrap_or(asked.1))
        }
    };
    (rows.max(5), columns.max(40))
}

/// The ioctl for this has no safe wrapper in nix, and every system with terminals has `stty`.
fn asked_size() -> Option<(usize, usize)> {
    let terminal = io::stdout().as_fd().try_clone_to_owned().ok()?;
    let said = Command::new("stty").arg("size").stdin(terminal).stderr(Stdio::null()).output().ok()?.stdout;
    let (rows, columns) = str::from_utf8(&said).ok()?.trim().split_once(' ')?;
    Some((rows.parse().ok()?, columns.parse().ok()?)).filter(|(rows, columns)| *rows > 0 && *columns > 0)
}
