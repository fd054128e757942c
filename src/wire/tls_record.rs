//! The headers of TLS records. rustls checks a record with a header that it computes itself, so it does not notice when the
//! received header was altered. That would be harmless, but in a session any alteration must end the session.

use crate::model::text::one_line;

/// Enough of a first line to know the server.
const PLAIN_ANSWER_SHOWN: usize = 60;
const RECORD_HEADER: usize = 5;
/// The first byte of a TLS connection. Neither HTTP nor our own protocol begins with it.
pub const TLS_HANDSHAKE: u8 = 22;
/// The first byte of an alert, with which a server answers what is not TLS.
pub const TLS_ALERT: u8 = 21;
const APPLICATION_DATA: u8 = 23;
/// The version in every record, whatever version is in use. The first record may have 3.1.
const RECORD_VERSION: [u8; 2] = [3, 3];
const FIRST_RECORD_VERSION: [u8; 2] = [3, 1];

/// Reads the record headers in the bytes of one direction.
#[derive(Debug, Default)]
pub struct RecordHeaders {
    header: [u8; RECORD_HEADER],
    have: usize,
    /// Bytes of the current record that have not come yet.
    left: usize,
    begun: bool,
    encrypted: bool,
}

impl RecordHeaders {
    /// Whether these bytes may continue a TLS 1.3 connection. Once a record is encrypted, all later ones are, and an
    /// encrypted record has the type of application data.
    pub fn fit(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            if self.left > 0 {
                let count = self.left.min(bytes.len());
                self.left -= count;
                bytes = &bytes[count..];
                continue;
            }
            self.header[self.have] = bytes[0];
            self.have += 1;
            bytes = &bytes[1..];
            if self.have == RECORD_HEADER && !self.begin_record() {
                return false;
            }
        }
        true
    }

    fn begin_record(&mut self) -> bool {
        let [kind, major, minor, high, low] = self.header;
        let version = [major, minor];
        let known = version == RECORD_VERSION || (!self.begun && version == FIRST_RECORD_VERSION);
        let fits = known && (!self.encrypted || kind == APPLICATION_DATA);
        self.have = 0;
        self.left = usize::from(u16::from_be_bytes([high, low]));
        self.begun = true;
        self.encrypted |= kind == APPLICATION_DATA;
        fits
    }
}

/// What a peer says that answers in plain text instead of TLS: the first line of a web server, SSH, SMTP and so on.
pub fn plain_answer(bytes: &[u8]) -> Option<String> {
    // No record begins with a character that can be seen.
    bytes.first().filter(|first| first.is_ascii_graphic())?;
    let line = bytes.split(|byte| *byte == b'\n').next()?;
    let line = String::from_utf8_lossy(&line[..line.len().min(PLAIN_ANSWER_SHOWN)]);
    // It is shown between two of these.
    Some(one_line(&line.trim().replace('`', "'")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, version: [u8; 2], length: u8) -> Vec<u8> {
        let mut bytes = vec![kind, version[0], version[1], 0, length];
        bytes.extend(std::iter::repeat_n(0xff, usize::from(length)));
        bytes
    }

    #[test]
    fn a_header_that_was_changed_does_not_fit_wherever_the_bytes_are_split() {
        let (first, data) = (record(22, [3, 1], 7), record(23, [3, 3], 9));
        for (bytes, fits) in [
            ([first.clone(), record(20, [3, 3], 1), data.clone(), data.clone()].concat(), true),
            ([first.clone(), data.clone(), record(22, [3, 3], 9)].concat(), false),
            ([first.clone(), data.clone(), record(20, [3, 3], 1)].concat(), false),
            ([first.clone(), data.clone(), record(23, [3, 1], 9)].concat(), false),
            ([first, record(22, [3, 1], 7)].concat(), false),
            (record(22, [3, 2], 7), false),
        ] {
            for at in 0..=bytes.len() {
                let mut headers = RecordHeaders::default();
                assert_eq!(headers.fit(&bytes[..at]) && headers.fit(&bytes[at..]), fits, "{bytes:?} at {at}");
            }
            let mut headers = RecordHeaders::default();
            assert_eq!(bytes.iter().all(|byte| headers.fit(&[*byte])), fits, "{bytes:?} one by one");
        }
    }
}
