//! The inside of a session: TLS records as they pass by, and frames.

use super::cuts::Cuts;
use crate::model::session_protocol::FrameKind;
use crate::wire::frame::BadFrame;
use crate::wire::frame::DATA_LIMIT;
use crate::wire::frame::FRAME_HEADER;
use crate::wire::frame::FrameHeader;
use crate::wire::frame::addresses_text;
use crate::wire::frame::parse_addresses;
use crate::wire::frame::text;
use crate::wire::tls_record::RecordHeaders;

/// Records and frames have one verdict, wherever the bytes are cut.
pub fn session(bytes: &[u8], cuts: Cuts) {
    let fits = RecordHeaders::default().fit(bytes);
    let frames = walk(&[bytes]);
    for cut in cuts.of(bytes) {
        let (front, rest) = bytes.split_at(cut);
        let mut headers = RecordHeaders::default();
        assert_eq!(headers.fit(front) && headers.fit(rest), fits, "records cut at {cut}");
        assert_eq!(walk(&[front, rest]), frames, "frames cut at {cut}");
    }
    if let (frames, None) = frames {
        let again: Vec<u8> = frames.iter().flat_map(|frame| frame.encode()).collect();
        assert!(frames.iter().all(|frame| frame.length <= DATA_LIMIT));
        assert!(frames.iter().all(|frame| frame.length == 0
            || matches!(frame.kind, FrameKind::Data | FrameKind::Refused | FrameKind::Addresses)));
        let headers = again.chunks(FRAME_HEADER).map(FrameHeader::parse);
        assert!(headers.eq(frames.iter().map(|frame| Ok(Some(*frame)))));
    }
    if let Ok(reason) = str::from_utf8(bytes) {
        let addresses = parse_addresses(reason);
        assert_eq!(parse_addresses(&addresses_text(&addresses)), addresses);
        let frame = text(FrameKind::Refused, reason);
        let header = FrameHeader::parse(&frame).expect("a frame").expect("a whole header");
        assert_eq!((header.kind, header.length), (FrameKind::Refused, frame.len() - FRAME_HEADER));
        assert!(reason.starts_with(str::from_utf8(&frame[FRAME_HEADER..]).expect("cut between characters")));
    }
}

/// All whole headers, as a reader meets them that gets the bytes in these pieces; and what ended it.
fn walk(pieces: &[&[u8]]) -> (Vec<FrameHeader>, Option<BadFrame>) {
    let (mut headers, mut held, mut skip) = (Vec::new(), Vec::new(), 0);
    for mut piece in pieces.iter().copied() {
        while !piece.is_empty() {
            let wanted = if skip > 0 { skip } else { FRAME_HEADER - held.len() };
            let (taken, rest) = piece.split_at(wanted.min(piece.len()));
            piece = rest;
            if skip > 0 {
                skip -= taken.len();
                continue;
            }
            held.extend_from_slice(taken);
            match FrameHeader::parse(&held) {
                Ok(None) => {}
                Ok(Some(header)) => {
                    skip = header.length;
                    headers.push(header);
                    held.clear();
                }
                Err(bad) => return (headers, Some(bad)),
            }
        }
    }
    (headers, None)
}
