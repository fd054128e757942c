//! The encoding of a session's frames: one byte for the kind, three for the length, then that many bytes.
//! `model/session_protocol.rs` says which frame may come when.

use std::net::SocketAddr;

use crate::model::session_protocol::FrameKind;

pub const FRAME_HEADER: usize = 4;
/// The longest data frame is what TLS encrypts in one write, less the frame's header.
pub const DATA_LIMIT: usize = 256 * 1024 - FRAME_HEADER;
/// The longest text: the reason in REFUSED is one sentence, and ADDRESSES has room for eight of the longest.
const TEXT_LIMIT: usize = 512;
/// Addresses of an agent. A machine with more interfaces has most of them for its own containers.
pub const DIRECT_ADDRESSES: usize = 8;

const FRAME_KINDS: [FrameKind; 9] = [
    FrameKind::Open,
    FrameKind::Opened,
    FrameKind::Refused,
    FrameKind::Data,
    FrameKind::Eof,
    FrameKind::Reset,
    FrameKind::Ping,
    FrameKind::Pong,
    FrameKind::Addresses,
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
        [byte_of(self.kind), a, b, c]
    }

    /// Parses a header. `None`: it is not complete yet.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, BadFrame> {
        let Some(first) = bytes.first() else { return Ok(None) };
        let kind = FRAME_KINDS.into_iter().find(|kind| byte_of(*kind) == *first).ok_or(BadFrame::Kind)?;
        let [_, a, b, c, ..] = bytes else { return Ok(None) };
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let fits = match kind {
            FrameKind::Data => (1..=DATA_LIMIT).contains(&length),
            FrameKind::Refused | FrameKind::Addresses => length <= TEXT_LIMIT,
            _ => length == 0,
        };
        if fits { Ok(Some(Self { kind, length })) } else { Err(BadFrame::Length) }
    }
}

fn byte_of(kind: FrameKind) -> u8 {
    match kind {
        FrameKind::Open => b'o',
        FrameKind::Opened => b'O',
        FrameKind::Refused => b'x',
        FrameKind::Data => b'd',
        FrameKind::Eof => b'e',
        FrameKind::Reset => b'r',
        FrameKind::Ping => b'p',
        FrameKind::Pong => b'P',
        FrameKind::Addresses => b'a',
    }
}

/// A frame without data.
pub fn empty(kind: FrameKind) -> [u8; FRAME_HEADER] {
    FrameHeader { kind, length: 0 }.encode()
}

/// A frame with as much of the text as the limit allows.
pub fn text(kind: FrameKind, text: &str) -> Vec<u8> {
    let end = text.floor_char_boundary(TEXT_LIMIT);
    let mut frame = FrameHeader { kind, length: end }.encode().to_vec();
    frame.extend_from_slice(&text.as_bytes()[..end]);
    frame
}

/// Where an agent can be reached, as ADDRESSES has it.
pub fn addresses_text(addresses: &[SocketAddr]) -> String {
    addresses.iter().take(DIRECT_ADDRESSES).map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// What cannot be an agent's address is left out.
pub fn parse_addresses(text: &str) -> Vec<SocketAddr> {
    let addresses = text.split(' ').take(DIRECT_ADDRESSES).filter_map(|one| one.parse::<SocketAddr>().ok());
    let is_usable =
        |one: &SocketAddr| one.port() != 0 && !one.ip().is_unspecified() && !one.ip().is_multicast();
    addresses.filter(is_usable).collect()
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
        assert_eq!(accepted, 6 + 7 + 5 + 5);
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
        let frame = text(FrameKind::Refused, &"é".repeat(400));
        let header = FrameHeader::parse(&frame).unwrap().unwrap();
        assert_eq!((header.kind, header.length), (FrameKind::Refused, 512));
        assert!(std::str::from_utf8(&frame[FRAME_HEADER..]).is_ok());
    }

    #[test]
    fn at_most_eight_addresses_are_read_and_none_that_cannot_be_one() {
        let many: Vec<SocketAddr> = (1..20).map(|port| SocketAddr::from(([10, 0, 0, 1], port))).collect();
        assert_eq!(parse_addresses(&addresses_text(&many)), many[..DIRECT_ADDRESSES]);
        let longest = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535 ".repeat(DIRECT_ADDRESSES);
        assert!(longest.len() <= TEXT_LIMIT);
        let odd = "[fd00::1]:1 10.0.0.1 0.0.0.0:1 10.0.0.1:0 224.0.0.1:9 host:1 10.0.0.2:2";
        assert_eq!(addresses_text(&parse_addresses(odd)), "[fd00::1]:1 10.0.0.2:2");
    }
}
