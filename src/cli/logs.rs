//! Logs of what runs in the background: shown, followed, and asked for their last words.

use std::fs::File;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::Outcome;
use super::context::Call;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::os::files;

/// How often a log that is followed is looked at.
const TURN: Duration = Duration::from_millis(200);
/// What is shown of a long log.
const TAIL: u64 = 64 * 1024;

/// Prints the log's last part; with `--follow` also what is added, until Ctrl-C.
pub fn show(call: &Call, path: &Path, how_to_begin: &str) -> Outcome {
    let Some((tail, mut at)) = read_from(path, None)? else {
        return Err(Error::new("There is no log yet").hint(how_to_begin));
    };
    print(call, &tail);
    while call.args.flag("follow") && !call.stop.wait_for(TURN) {
        let Some((rest, end)) = read_from(path, Some(at))? else { continue };
        at = end;
        print(call, &rest);
    }
    Ok(0)
}

/// The last thing of note that stands in a log: hints and other indented lines belong to the one before.
pub fn last_words(path: &Path) -> Option<String> {
    let (tail, _) = read_from(path, None).ok()??;
    let text = String::from_utf8_lossy(&tail).into_owned();
    text.lines().rev().find(|line| line.starts_with(|c: char| !c.is_whitespace())).map(str::to_owned)
}

fn print(call: &Call, bytes: &[u8]) {
    String::from_utf8_lossy(bytes).lines().for_each(|line| {
        call.say.result(line);
        call.say.event(&json!({ "line": line }));
    });
}

/// What stands behind `from`, or the last piece of it all, and where it ends.
fn read_from(path: &Path, from: Option<u64>) -> Result<Option<(Vec<u8>, u64)>> {
    if !path.exists() {
        return Ok(None);
    }
    let sorry = || format!("Cannot read {}", path.display());
    let mut file: File = files::append(path)?;
    let length = file.metadata().or_say(sorry)?.len();
    // A log that is shorter than it was has been put aside, and this is the next one.
    let from = from.map_or(length.saturating_sub(TAIL), |from| if from > length { 0 } else { from });
    file.seek(SeekFrom::Start(from)).or_say(sorry)?;
    let mut bytes = Vec::new();
    file.take(TAIL * 4).read_to_end(&mut bytes).or_say(sorry)?;
    let end = from + bytes.len() as u64;
    Ok(Some((bytes, end)))
}
