//! Reads bytes from the front, strictly in order. The first wrong byte decides, so an incomplete head is refused as early,
//! and for the same reason, as the complete one.

use super::bad_message::BadHead;

/// A character of a method or of a field's name (RFC 9110 5.6.2).
pub const TOKEN_CHAR: u8 = 1;
/// A character of a request target. Browsers send `{}|^"` in queries as they are, so every visible ASCII
/// character but `#` is accepted. A fragment is never sent, and readers differ on what to do with one.
pub const TARGET_CHAR: u8 = 2;
/// A character of a field's value or a reason phrase: HTAB, SP, visible ASCII, and every byte above ASCII.
pub const VALUE_CHAR: u8 = 4;

static CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        #[allow(clippy::cast_possible_truncation)] // The loop ends at 255.
        let it = byte as u8;
        if it.is_ascii_alphanumeric()
            || matches!(it, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
        {
            table[byte] |= TOKEN_CHAR;
        }
        if it.is_ascii_graphic() && it != b'#' {
            table[byte] |= TARGET_CHAR;
        }
        if it == b'\t' || it >= b' ' && it != 0x7f {
            table[byte] |= VALUE_CHAR;
        }
        byte += 1;
    }
    table
}

pub fn is(byte: u8, class: u8) -> bool {
    CLASSES[usize::from(byte)] & class != 0
}

/// How many bytes at the front belong to `class`.
pub fn run(bytes: &[u8], class: u8) -> usize {
    bytes.iter().position(|&byte| !is(byte, class)).unwrap_or(bytes.len())
}

/// The value without blanks at either end.
pub fn trim(value: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    &value[start..end]
}

/// Why reading stopped before its end.
#[derive(Debug, PartialEq)]
pub enum ParseStop {
    NotYet,
    Bad(BadHead),
}

impl From<BadHead> for ParseStop {
    fn from(bad: BadHead) -> ParseStop {
        ParseStop::Bad(bad)
    }
}

pub struct Cursor<'b> {
    bytes: &'b [u8],
    pub at: usize,
}

impl<'b> Cursor<'b> {
    pub fn new(bytes: &'b [u8]) -> Cursor<'b> {
        Cursor { bytes, at: 0 }
    }

    pub fn rest(&self) -> &'b [u8] {
        &self.bytes[self.at..]
    }

    pub fn peek(&self) -> Result<u8, ParseStop> {
        self.bytes.get(self.at).copied().ok_or(ParseStop::NotYet)
    }

    /// The bytes at the front that belong to `class`, once the byte after them has arrived.
    pub fn take(&mut self, class: u8) -> Result<&'b [u8], ParseStop> {
        let rest = self.rest();
        let length = run(rest, class);
        if length == rest.len() {
            return Err(ParseStop::NotYet);
        }
        self.at += length;
        Ok(&rest[..length])
    }

    /// Like `take`, but refuses more than `limit` bytes with `too_long`, without waiting for the rest of them.
    pub fn take_text(&mut self, class: u8, limit: usize, too_long: BadHead) -> Result<&'b str, ParseStop> {
        let rest = self.rest();
        let window = &rest[..rest.len().min(limit + 1)];
        let length = run(window, class);
        if length > limit {
            return Err(too_long.into());
        }
        if length == rest.len() {
            return Err(ParseStop::NotYet);
        }
        self.at += length;
        Ok(str::from_utf8(&rest[..length]).map_err(|_| too_long)?)
    }

    pub fn expect(&mut self, wanted: &[u8], bad: BadHead) -> Result<(), ParseStop> {
        for &byte in wanted {
            if self.peek()? != byte {
                return Err(self.refuse(bad));
            }
            self.at += 1;
        }
        Ok(())
    }

    pub fn digit(&mut self, bad: BadHead) -> Result<u8, ParseStop> {
        let byte = self.peek()?;
        if !byte.is_ascii_digit() {
            return Err(self.refuse(bad));
        }
        self.at += 1;
        Ok(byte - b'0')
    }

    /// CR and LF together. A lone CR or LF is refused, because readers disagree on what it means.
    pub fn line_end(&mut self, bad: BadHead) -> Result<(), ParseStop> {
        self.expect(b"\r", bad)?;
        self.expect(b"\n", BadHead::LineEnd)
    }

    /// The refusal for the byte at this position: `bad`, but a line end in the wrong place is always `LineEnd`.
    pub fn refuse(&self, bad: BadHead) -> ParseStop {
        match self.peek() {
            Ok(b'\r' | b'\n') => ParseStop::Bad(BadHead::LineEnd),
            _ => ParseStop::Bad(bad),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_classes_are_those_of_the_grammar() {
        let token = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
        for byte in 0..=255u8 {
            assert_eq!(is(byte, TOKEN_CHAR), token.contains(&byte), "{byte}");
            assert_eq!(is(byte, TARGET_CHAR), (0x21..=0x7e).contains(&byte) && byte != b'#', "{byte}");
            assert_eq!(is(byte, VALUE_CHAR), byte == 9 || (byte >= 32 && byte != 127), "{byte}");
        }
    }

    #[test]
    fn only_the_blanks_around_a_value_go() {
        assert_eq!(trim(b" \t a b \t"), b"a b");
        assert_eq!(trim(b" \t "), b"");
        assert_eq!(trim(b""), b"");
    }
}
