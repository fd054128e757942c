//! The chunked framing (RFC 9112 7.1) as a state machine. The verdict does not depend on how the input is split.

use super::bad_message::BadBody;
use super::cursor;
use super::head::Fields;
use super::head::TRAILERS_LIMIT;
use super::head::parse_trailers;
use std::io::Write;
use std::ops::Range;

/// 15 hexadecimal digits fit a signed 64-bit number, in our program and in the next reader's.
const SIZE_DIGITS_LIMIT: u8 = 15;
/// All chunk extensions of one body together, in bytes. Nobody uses them, and with one-byte chunks a sender could make us
/// read hundreds of bytes for each byte of content.
pub const EXTENSIONS_LIMIT: usize = 4 * 1024;

/// What one step has read of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyStep {
    /// Bytes of the slice that belong to this body. The rest is for the next step, or the next message.
    pub used: usize,
    /// The part of those bytes that is content. It ends at `used` unless it is empty.
    pub payload: Range<usize>,
}

pub struct ChunkWalker {
    at: ChunkState,
    extensions: usize,
    /// The trailer section so far. Not filled if the section is empty and arrives in one piece.
    trailers: Vec<u8>,
}

#[derive(Clone, Copy)]
enum ChunkState {
    Size { size: u64, digits: u8 },
    Extension { size: u64 },
    SizeEnd { size: u64 },
    Data { left: u64 },
    DataEnd,
    DataEndLineFeed,
    Trailers,
    End,
}

const NEXT_SIZE: ChunkState = ChunkState::Size { size: 0, digits: 0 };

impl ChunkWalker {
    pub fn new() -> ChunkWalker {
        ChunkWalker { at: NEXT_SIZE, extensions: 0, trailers: Vec::new() }
    }

    /// Reads up to the end of the next piece of content, of the slice, or of the body, whichever comes first.
    ///
    /// A caller that forwards the body takes the payload and, at the end, the trailers, and writes its own framing. So
    /// extensions and unusual spellings of a size are not forwarded.
    pub fn step(&mut self, bytes: &[u8]) -> Result<BodyStep, BadBody> {
        let mut used = 0;
        while let Some(&byte) = bytes.get(used) {
            self.at = match self.at {
                ChunkState::Data { left } => {
                    let rest = bytes.len() - used;
                    let count = usize::try_from(left).map_or(rest, |left| left.min(rest));
                    self.pass(count as u64);
                    return Ok(BodyStep { used: used + count, payload: used..used + count });
                }
                ChunkState::Trailers => {
                    used += self.take_trailers(&bytes[used..])?;
                    continue;
                }
                ChunkState::End => break,
                at => self.framing(at, byte)?,
            };
            used += 1;
        }
        Ok(BodyStep { used, payload: used..used })
    }

    pub fn ended(&self) -> bool {
        matches!(self.at, ChunkState::End)
    }

    /// How many bytes of the current chunk are left.
    pub fn ahead(&self) -> u64 {
        match self.at {
            ChunkState::Data { left } => left,
            _ => 0,
        }
    }

    /// Counts `count` bytes of what was `ahead` that were moved without `step`.
    pub fn pass(&mut self, count: u64) {
        if let ChunkState::Data { left } = self.at {
            self.at =
                if left > count { ChunkState::Data { left: left - count } } else { ChunkState::DataEnd };
        }
    }

    /// The fields after the last chunk. Empty before the end.
    pub fn trailers(&self) -> Fields<'_> {
        match parse_trailers(&self.trailers) {
            Ok(Some((fields, _))) => fields,
            _ => Fields::default(),
        }
    }

    /// Reads one byte of a size line, or of the line end after a chunk's data.
    fn framing(&mut self, at: ChunkState, byte: u8) -> Result<ChunkState, BadBody> {
        match (at, byte) {
            (ChunkState::Size { digits: SIZE_DIGITS_LIMIT, .. }, _) if byte.is_ascii_hexdigit() => {
                Err(BadBody::ChunkSize)
            }
            (ChunkState::Size { size, digits }, _) if let Some(digit) = char::from(byte).to_digit(16) => {
                Ok(ChunkState::Size { size: size << 4 | u64::from(digit), digits: digits + 1 })
            }
            (ChunkState::Size { size, digits: 1.. } | ChunkState::Extension { size }, b'\r') => {
                Ok(ChunkState::SizeEnd { size })
            }
            (ChunkState::Size { size, digits: 1.. }, b';') => self.extension(size),
            (ChunkState::Extension { size }, _) if cursor::is(byte, cursor::VALUE_CHAR) => {
                self.extension(size)
            }
            (ChunkState::Extension { .. }, _) => Err(BadBody::Extensions),
            (ChunkState::SizeEnd { size: 0 }, b'\n') => Ok(ChunkState::Trailers),
            (ChunkState::SizeEnd { size: left }, b'\n') => Ok(ChunkState::Data { left }),
            (ChunkState::Size { .. } | ChunkState::SizeEnd { .. }, _) => Err(BadBody::ChunkSize),
            (ChunkState::DataEnd, b'\r') => Ok(ChunkState::DataEndLineFeed),
            (ChunkState::DataEndLineFeed, b'\n') => Ok(NEXT_SIZE),
            _ => Err(BadBody::ChunkEnd),
        }
    }

    fn extension(&mut self, size: u64) -> Result<ChunkState, BadBody> {
        self.extensions += 1;
        if self.extensions > EXTENSIONS_LIMIT {
            Err(BadBody::Extensions)
        } else {
            Ok(ChunkState::Extension { size })
        }
    }

    /// Reads the trailer section. It is nearly always empty: just two bytes, which are not stored.
    fn take_trailers(&mut self, bytes: &[u8]) -> Result<usize, BadBody> {
        if self.trailers.is_empty() && bytes.starts_with(b"\r\n") {
            self.at = ChunkState::End;
            return Ok(2);
        }
        let held = self.trailers.len();
        // An unfinished section as long as the limit has been refused, so there is room.
        let room = TRAILERS_LIMIT - held;
        self.trailers.extend_from_slice(&bytes[..bytes.len().min(room)]);
        let Some((_, length)) = parse_trailers(&self.trailers).map_err(BadBody::Trailers)? else {
            return Ok(self.trailers.len() - held);
        };
        self.trailers.truncate(length);
        self.at = ChunkState::End;
        Ok(length - held)
    }
}

/// Appends one chunk. Without content it appends nothing, because an empty chunk would end the body.
pub fn write_chunk(content: &[u8], out: &mut Vec<u8>) {
    if !content.is_empty() {
        // Writing to a Vec cannot fail.
        let _ = write!(out, "{:x}\r\n", content.len());
        out.extend_from_slice(content);
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::super::bad_message::BadHead;
    use super::*;

    #[derive(Debug, Default, PartialEq)]
    struct Walked {
        content: Vec<u8>,
        used: usize,
        ended: bool,
        trailers: Vec<(String, Vec<u8>)>,
    }

    fn walk(slices: &[&[u8]]) -> Result<Walked, BadBody> {
        let (mut chunks, mut walked) = (ChunkWalker::new(), Walked::default());
        for slice in slices {
            let mut at = 0;
            while at < slice.len() && !chunks.ended() {
                let step = chunks.step(&slice[at..])?;
                assert!(step.used > 0, "no progress");
                walked.content.extend_from_slice(&slice[at..][step.payload]);
                at += step.used;
            }
            walked.used += at;
        }
        walked.ended = chunks.ended();
        walked.trailers = chunks.trailers().iter().map(|(name, value)| (name.into(), value.into())).collect();
        Ok(walked)
    }

    /// The verdict, which has to be the same whole, byte by byte and for any cut in two.
    fn verdict(bytes: &[u8]) -> Result<Walked, BadBody> {
        let whole = walk(&[bytes]);
        let single: Vec<_> = bytes.chunks(1).collect();
        assert_eq!(walk(&single), whole, "byte by byte: {}", bytes.escape_ascii());
        for cut in 0..bytes.len() {
            assert_eq!(walk(&[&bytes[..cut], &bytes[cut..]]), whole, "{cut}: {}", bytes.escape_ascii());
        }
        whole
    }

    #[test]
    fn chunks_give_their_content_and_leave_what_follows() {
        let bytes = b"5\r\nhello\r\n00A;x=\"y\";z\r\n, world!!!\r\n0;last\r\n\r\nGET /";
        let walked = verdict(bytes).expect("valid");
        assert_eq!(walked.content, b"hello, world!!!");
        assert!(walked.ended);
        assert_eq!(&bytes[walked.used..], b"GET /");
        assert_eq!(walked.trailers, []);
    }

    #[test]
    fn content_may_look_like_framing() {
        let walked = verdict(b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n").expect("valid");
        assert_eq!((walked.content.as_slice(), walked.ended), (b"\r\n0\r\n\r\n".as_slice(), true));
    }

    #[test]
    fn trailers_come_out_with_the_end() {
        let walked = verdict(b"1\r\na\r\n0\r\nX-Sum: 1\r\nEmpty:\r\n\r\n\r\n").expect("valid");
        assert_eq!(walked.trailers, [("X-Sum".into(), b"1".to_vec()), ("Empty".into(), b"".to_vec())]);
        assert_eq!((walked.used, walked.ended), (29, true));
        assert_eq!(verdict(b"0\r\nX: 1\r\n").expect("valid"), Walked { used: 9, ..Walked::default() });
    }

    #[test]
    fn what_is_not_plainly_a_chunk_is_refused() {
        let cases: &[(&[u8], BadBody)] = &[
            (b"\r\n", BadBody::ChunkSize),
            (b";a\r\n", BadBody::ChunkSize),
            (b"+3\r\nabc\r\n", BadBody::ChunkSize),
            (b"-3\r\nabc\r\n", BadBody::ChunkSize),
            (b"0x3\r\nabc\r\n", BadBody::ChunkSize),
            (b" 3\r\nabc\r\n", BadBody::ChunkSize),
            (b"3 \r\nabc\r\n", BadBody::ChunkSize),
            (b"3 ;a\r\nabc\r\n", BadBody::ChunkSize),
            (b"3\nabc\r\n", BadBody::ChunkSize),
            (b"3\rabc", BadBody::ChunkSize),
            (b"3_0\r\n", BadBody::ChunkSize),
            (b"g\r\n", BadBody::ChunkSize),
            (b"1000000000000000\r\n", BadBody::ChunkSize),
            (b"0000000000000001\r\n", BadBody::ChunkSize),
            (b"fffffffffffffffff\r\n", BadBody::ChunkSize),
            (b"3;a\nabc\r\n", BadBody::Extensions),
            (b"3;a\0\r\nabc\r\n", BadBody::Extensions),
            (b"3;a\rb\r\nabc\r\n", BadBody::ChunkSize),
            (b"3\r\nabcd\r\n", BadBody::ChunkEnd),
            (b"3\r\nabc\n", BadBody::ChunkEnd),
            (b"3\r\nabc\r0", BadBody::ChunkEnd),
            (b"3\r\nabc0\r\n\r\n", BadBody::ChunkEnd),
            (b"0\r\n\n", BadBody::Trailers(BadHead::LineEnd)),
            (b"0\r\nGET / HTTP/1.1\r\n", BadBody::Trailers(BadHead::FieldName)),
            (b"0\r\na: b\r\n c\r\n\r\n", BadBody::Trailers(BadHead::Folded)),
            (b"0\r\n\r0", BadBody::Trailers(BadHead::LineEnd)),
        ];
        for (bytes, bad) in cases {
            assert_eq!(verdict(bytes), Err(*bad), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn the_largest_size_is_still_a_size() {
        let walked = verdict(b"fffffffffffffff\r\nabc").expect("valid");
        assert_eq!((walked.content.as_slice(), walked.ended), (b"abc".as_slice(), false));
    }

    #[test]
    fn what_is_written_in_chunks_is_read_back() {
        let mut out = Vec::new();
        for content in [b"hello".as_slice(), b"", &[b'x'; 300]] {
            write_chunk(content, &mut out);
        }
        assert!(out.starts_with(b"5\r\nhello\r\n12c\r\nxxx"));
        let walked = verdict(&out).expect("valid");
        assert_eq!((walked.content.len(), walked.ended), (305, false));
    }

    #[test]
    fn extensions_are_bounded_over_the_whole_body() {
        let chunk = |extension: usize| format!("1;{}\r\na\r\n", "x".repeat(extension - 1));
        assert!(walk(&[chunk(EXTENSIONS_LIMIT).as_bytes()]).is_ok());
        assert_eq!(walk(&[chunk(EXTENSIONS_LIMIT + 1).as_bytes()]), Err(BadBody::Extensions));
        let many = chunk(EXTENSIONS_LIMIT / 4).repeat(4);
        assert!(walk(&[many.as_bytes()]).is_ok());
        assert_eq!(walk(&[many.as_bytes(), b"1;"]), Err(BadBody::Extensions));
    }

    #[test]
    fn trailers_are_bounded_however_they_come() {
        let mut bytes = b"0\r\n".to_vec();
        bytes.extend(b"a: b\r\n".repeat(99));
        bytes.extend_from_slice(b"c: ");
        bytes.resize(3 + TRAILERS_LIMIT + 100, b'd');
        let large = Err(BadBody::Trailers(BadHead::TooLarge));
        assert_eq!(walk(&[&bytes]), large);
        let single: Vec<_> = bytes.chunks(1).collect();
        assert_eq!(walk(&single), large);
        bytes.truncate(3 + TRAILERS_LIMIT - 4);
        bytes.extend_from_slice(b"\r\n\r\n");
        assert!(walk(&[&bytes]).is_ok_and(|walked| walked.ended));
    }
}
