//! The files of a chained log: `NAME.log`, which grows, and its closed segments `NAME.N.log`, where N is the number of the
//! last line. All of them together are one chain.

use std::fs;
use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::path::Path;
use std::path::PathBuf;

use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::hub_records::ChainHead;
use crate::os::secret;
use crate::wire::chain;
use crate::wire::chain::CHAIN_LINE_LIMIT;
use crate::wire::chain::ChainLine;

/// What reading a whole log has shown.
#[derive(Default)]
pub struct ChainReading {
    pub head: ChainHead,
    /// What the first line names as its predecessor. Other than zeroes, if older segments are elsewhere.
    pub begins_after: ChainHead,
    /// The first line that does not fit: somebody changed it, or what was before it.
    pub broken: Option<Error>,
}

pub fn hash(bytes: &[u8]) -> String {
    secret::sha256(bytes).to_string()
}

/// Where the segment that ends with line `last` is kept.
pub fn segment(path: &Path, last: u64) -> PathBuf {
    path.with_extension(format!("{last}.log"))
}

/// The closed segments, the oldest first.
pub fn segments(path: &Path) -> Vec<PathBuf> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let entries = path.parent().and_then(|folder| fs::read_dir(folder).ok());
    let last_line = |name: &str| -> Option<u64> {
        name.strip_prefix(&*stem)?.strip_prefix('.')?.strip_suffix(".log")?.parse().ok()
    };
    let names = entries.into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut found: Vec<u64> = names.filter_map(|name| last_line(&name.to_string_lossy())).collect();
    found.sort_unstable();
    found.into_iter().map(|last| segment(path, last)).collect()
}

/// The head of the log as the last line says it; without one, as the newest segment does. Only the end of a file is read.
/// Also the length of the file's complete lines: a crash may have left half a line behind them.
pub fn end_of(path: &Path, file: &mut File) -> io::Result<(ChainHead, u64)> {
    let (last, length) = last_line(file)?;
    if let Some(line) = last {
        return Ok((line.head, length));
    }
    let newest = segments(path).pop().map(File::open).transpose()?;
    let last = newest.map(|mut file| last_line(&mut file)).transpose()?.and_then(|(line, _)| line);
    Ok((last.map(|line| line.head).unwrap_or_default(), length))
}

fn last_line(file: &mut File) -> io::Result<(Option<ChainLine>, u64)> {
    let from = file.metadata()?.len().saturating_sub(2 * CHAIN_LINE_LIMIT);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    (&*file).take(2 * CHAIN_LINE_LIMIT).read_to_end(&mut tail)?;
    let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let last = tail[..whole].split(|byte| *byte == b'\n').rfind(|line| !line.is_empty());
    Ok((last.and_then(|line| chain::parse(line, hash)), from + whole as u64))
}

/// Reads all segments in order. `visit` gets every line that has the form of one, also after a break.
pub fn read(path: &Path, visit: &mut dyn FnMut(&ChainLine)) -> Result<ChainReading> {
    let mut reading = ChainReading::default();
    let mut is_first = true;
    for file in segments(path).into_iter().chain([path.to_owned()]) {
        let opened = match File::open(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.or_say(|| format!("Cannot read {}", file.display()))?,
        };
        let mut reader = BufReader::new(opened);
        for number in 1.. {
            let mut line = Vec::new();
            let limited = (&mut reader).take(CHAIN_LINE_LIMIT).read_until(b'\n', &mut line);
            limited.or_say(|| format!("Cannot read {}", file.display()))?;
            let parsed = match line.strip_suffix(b"\n") {
                Some(line) => chain::parse(line, hash),
                // The log's writer may be about to end this line.
                None if (line.len() as u64) < CHAIN_LINE_LIMIT && file == path => break,
                None if line.is_empty() => break,
                None => None,
            };
            if let Some(first) = parsed.as_ref().filter(|_| is_first) {
                let before = ChainHead {
                    count: first.head.count.saturating_sub(1),
                    hash: first.text("prev").to_owned(),
                };
                (reading.head, reading.begins_after) = (before.clone(), before);
            }
            is_first = false;
            let fits = parsed.as_ref().is_some_and(|line| line.follows(&reading.head));
            if !fits && reading.broken.is_none() {
                let seq = parsed.as_ref().map_or(0, |line| line.head.count);
                reading.broken = Some(broken(&file, number, reading.head.count + 1, seq));
            }
            if let Some(line) = parsed {
                visit(&line);
                reading.head = line.head;
            }
        }
    }
    Ok(reading)
}

/// Line `number` of the file has the number `seq` and should have `expected`.
fn broken(file: &Path, number: usize, expected: u64, seq: u64) -> Error {
    let what = if seq > expected {
        format!("Lines {expected} to {} of the log are missing", seq - 1)
    } else {
        format!("The log was changed at line {number}")
    };
    Error::new(what)
        .because(file.display().to_string())
        .hint("Somebody changed it there or just before; compare it with a copy")
}
