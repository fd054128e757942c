//! The frames of a session: one byte of type, three of length, then so many bytes.
//!
//! A session carries one connection after another. The joiner begins each with OPEN and may send data at
//! once; the agent answers OPENED or REFUSED. Each direction ends with EOF (no more data, the other
//! direction goes on) or RESET (this connection is broken); after both have ended, the session is idle.
//!
//! A RESET may still follow an EOF of the same direction, when a half-closed connection breaks. If the
//! other end has meanwhile ended its direction too, it meets the RESET while idle, or between its own
//! OPEN and the answer to it: in both places a RESET speaks of the connection before and is ignored.
//!
//! PING is answered with PONG, by an idle end only.

pub const FRAME_HEADER: usize = 4;
/// A data frame's most: what one write encrypts, less its header.
pub const DATA_LIMIT: usize = 64 * 1024 - FRAME_HEADER;
/// Reasons are sentences.
const REASON_LIMIT: usize = 512;

/// By the byte that stands for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    Open = b'o',
    Opened = b'O',
    Refused = b'x',
    Data = b'd',
    Eof = b'e',
    Reset = b'r',
    Ping = b'p',
    Pong = b'P',
}

const FRAME_KINDS: [FrameKind; 8] = [
    FrameKind::Open,
    FrameKind::Opened,
    FrameKind::Refused,
    FrameKind::Data,
    FrameKind::Eof,
    FrameKind::Reset,
    FrameKind::Ping,
    FrameKind::Pong,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    pub kind: FrameKind,
    pub length: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadFrame {
    Kind,
    Length,
}

impl FrameHeader {
    pub fn encode(self) -> [u8; FRAME_HEADER] {
        let [.., a, b, c] = self.length.to_be_bytes();
        [self.kind as u8, a, b, c]
    }

    /// `None`: not yet.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, BadFrame> {
        let Some(first) = bytes.first() else { return Ok(None) };
        let kind = FRAME_KINDS.into_iter().find(|kind| *kind as u8 == *first).ok_or(BadFrame::Kind)?;
        let [_, a, b, c, ..] = bytes else { return Ok(None) };
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let fits = match kind {
            FrameKind::Data => (1..=DATA_LIMIT).contains(&length),
            FrameKind::Refused => length <= REASON_LIMIT,
            _ => length == 0,
        };
        if fits { Ok(Some(Self { kind, length })) } else { Err(BadFrame::Length) }
    }
}

/// A frame without data.
pub fn empty(kind: FrameKind) -> [u8; FRAME_HEADER] {
    FrameHeader { kind, length: 0 }.encode()
}

pub fn refused(reason: &str) -> Vec<u8> {
    let end = reason.floor_char_boundary(REASON_LIMIT);
    let mut frame = FrameHeader { kind: FrameKind::Refused, length: end }.encode().to_vec();
    frame.extend_from_slice(&reason.as_bytes()[..end]);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_they_were_written_and_no_other_four_bytes_are_headers() {
        let mut accepted = 0;
        for kind in 0..=255_u8 {
            for length in [0, 1, 2, 511, 512, 513, DATA_LIMIT - 1, DATA_LIMIT, DATA_LIMIT + 1, 0xff_ffff] {
                let [.., a, b, c] = length.to_be_bytes();
                if let Ok(Some(header)) = FrameHeader::parse(&[kind, a, b, c]) {
                    assert_eq!(header.encode(), [kind, a, b, c]);
                    accepted += 1;
                }
            }
        }
        assert_eq!(accepted, 6 + 7 + 5);
    }

    #[test]
    fn a_bad_kind_is_refused_at_its_first_byte_and_half_a_header_is_waited_for() {
        assert_eq!(FrameHeader::parse(b"?"), Err(BadFrame::Kind));
        for end in 0..FRAME_HEADER {
            assert_eq!(FrameHeader::parse(&empty(FrameKind::Open)[..end]), Ok(None));
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_two_characters() {
        let frame = refused(&"é".repeat(400));
        let header = FrameHeader::parse(&frame).unwrap().unwrap();
        assert_eq!((header.kind, header.length), (FrameKind::Refused, 512));
        assert!(std::str::from_utf8(&frame[FRAME_HEADER..]).is_ok());
    }
}
