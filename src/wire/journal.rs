//! The hub's journal and snapshot as bytes: one line per entry, with a checksum and a number. An incomplete last line is
//! the trace of a crash; any other line that does not check out is damage.

use serde::Deserialize;
use serde::Serialize;

use crate::model::hub_records::Change;
use crate::model::hub_records::Record;

/// Hexadecimal digits at the start of a line: the checksum of the rest, from `ChecksumFn`.
pub const CHECKSUM_DIGITS: usize = 8;

pub type ChecksumFn = fn(&[u8]) -> String;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    pub n: u64,
    pub changes: Vec<Change>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub version: u32,
    /// The number of the last journal entry that the snapshot includes.
    pub n: u64,
    pub records: Vec<Record>,
}

pub fn write(entry: &JournalEntry, sum: ChecksumFn) -> serde_json::Result<Vec<u8>> {
    let json = serde_json::to_string(entry)?;
    Ok(format!("{} {json}\n", sum(json.as_bytes())).into_bytes())
}

/// The entries after number `after`, and the length of the complete lines; or the number of the damaged line. Entries that
/// the snapshot includes are skipped. A gap in the numbers is damage.
pub fn read(bytes: &[u8], after: u64, sum: ChecksumFn) -> Result<(Vec<JournalEntry>, u64), usize> {
    let (mut entries, mut whole) = (Vec::new(), 0);
    let mut next = None;
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let Some(line) = line.strip_suffix(b"\n") else { break };
        let follows =
            |entry: &JournalEntry| next.map_or(entry.n <= after.saturating_add(1), |next| entry.n == next);
        let entry = parse_line(line, sum).filter(follows).ok_or(index + 1)?;
        next = Some(entry.n.checked_add(1).ok_or(index + 1)?);
        entries.push(entry);
        whole += line.len() + 1;
    }
    entries.retain(|entry| entry.n > after);
    Ok((entries, whole as u64))
}

fn parse_line(line: &[u8], sum: ChecksumFn) -> Option<JournalEntry> {
    let (head, rest) = line.split_at_checked(CHECKSUM_DIGITS)?;
    let json = rest.strip_prefix(b" ")?;
    if sum(json).as_bytes() != head {
        return None;
    }
    serde_json::from_slice(json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::hub_records::Table;

    fn sum(json: &[u8]) -> String {
        let sum = json.iter().fold(1_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(*byte)));
        format!("{sum:08x}")
    }

    fn line(n: u64) -> Vec<u8> {
        let changes = vec![Change::drop(Table::Key, &format!("key_{n}"))];
        write(&JournalEntry { n, changes }, sum).unwrap()
    }

    fn journal(numbers: impl IntoIterator<Item = u64>) -> Vec<u8> {
        numbers.into_iter().flat_map(line).collect()
    }

    #[test]
    fn a_journal_cut_anywhere_keeps_every_whole_line() {
        let bytes = journal(1..6);
        for cut in 0..bytes.len() {
            let lines = bytes[..cut].split(|byte| *byte == b'\n').count() - 1;
            let (entries, whole) = read(&bytes[..cut], 0, sum).unwrap();
            assert_eq!(entries.len(), lines, "cut at {cut}");
            assert!(whole <= cut as u64);
        }
    }

    #[test]
    fn a_changed_byte_before_the_last_line_is_damage_and_not_guessed_at() {
        let bytes = journal(1..4);
        for at in 0..bytes.len() - line(3).len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(read(&damaged, 0, sum).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_missing_or_repeated_line_is_damage() {
        for (numbers, at) in [([1, 3, 4], 2), ([1, 1, 2], 2), ([1, 2, 1], 3), ([2, 3, 4], 1)] {
            assert_eq!(read(&journal(numbers), 0, sum), Err(at), "{numbers:?}");
        }
        assert_eq!(
            read(&journal([4, 5]), 2, sum),
            Err(1),
            "one that neither the snapshot nor the journal has"
        );
    }

    #[test]
    fn what_the_snapshot_holds_is_passed_over() {
        for after in 2..6 {
            let (entries, _) = read(&journal(3..6), after, sum).unwrap();
            assert!(entries.iter().map(|entry| entry.n).eq(after + 1..6), "after {after}");
        }
    }
}
