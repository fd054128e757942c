//! Every sequence of nasty fragments up to some length, through the rooms that read HTTP.

// Each test takes a part of the room.
#[allow(dead_code)]
#[path = "../src/http"]
mod http {
    pub mod bad_message;
    pub mod body;
    pub mod chunks;
    mod cursor;
    pub mod forward;
    pub mod head;
    pub mod host;
}
#[allow(dead_code)]
#[path = "../src/model/mod.rs"]
mod model;

#[path = "fuzz/properties"]
mod properties {
    pub mod cuts;
    pub mod http;
}

use properties::cuts::Cuts;
use properties::http as properties_of;

/// Calls `check` with every sequence of up to `most` of the words.
fn every_sequence(words: &[&[u8]], most: usize, check: &mut impl FnMut(&[u8])) {
    fn extend(bytes: &mut Vec<u8>, words: &[&[u8]], most: usize, check: &mut impl FnMut(&[u8])) {
        check(bytes);
        if most > 0 {
            for word in words {
                let length = bytes.len();
                bytes.extend_from_slice(word);
                extend(bytes, words, most - 1, check);
                bytes.truncate(length);
            }
        }
    }
    extend(&mut Vec::new(), words, most, check);
}

#[test]
fn any_start_of_a_head_has_one_verdict() {
    let words: &[&[u8]] = &[
        b"GET",
        b" ",
        b"/",
        b" HTTP/1.1",
        b" HTTP/1.0\r\n",
        b"HTTP/1.1",
        b"200",
        b"\r\n",
        b"\r",
        b"\n",
        b"\t",
        b"\0",
        b":",
        b"#",
        b"\x80",
    ];
    let mut accepted = 0;
    every_sequence(words, 5, &mut |bytes| {
        properties_of::head(bytes, Cuts::Every);
        accepted += usize::from(http::head::parse_request(bytes).is_ok_and(|head| head.is_some()));
    });
    assert!(accepted > 50, "the words do not reach the end of a head: {accepted}");
}

#[test]
fn any_fields_have_one_verdict() {
    let words: &[&[u8]] = &[
        b"a",
        b":",
        b" ",
        b"\t",
        b"\r\n",
        b"\r",
        b"\n",
        b"b: c\r\n",
        b"\0",
        b"\x7f",
        b"\xff",
        b",",
        b"\r\n\r\n",
    ];
    for line in [b"GET / HTTP/1.1\r\n".as_slice(), b"HTTP/1.1 200 OK\r\n"] {
        every_sequence(words, 4, &mut |bytes| properties_of::head(&[line, bytes].concat(), Cuts::Every));
    }
}

#[test]
fn any_framing_fields_have_one_reading() {
    let words: &[&[u8]] = &[
        b"Content-Length: 3\r\n",
        b"content-length: 3\r\n",
        b"Content-Length: +3\r\n",
        b"Content-Length: 3, 3\r\n",
        b"Content_Length: 4\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"transfer-encoding: gzip, chunked\r\n",
        b"Transfer-Encoding:\r\n",
        b"Transfer_Encoding: chunked\r\n",
        b"Connection: content-length, transfer-encoding, host, via\r\n",
        b"Connection: upgrade\r\n",
        b"Upgrade: x\r\n",
        b"Host: a.localhost\r\n",
        b"Expect: 100-continue\r\n",
        b"TE: trailers\r\n",
    ];
    let lines: [&[u8]; 8] = [
        b"POST / HTTP/1.1\r\nHost: a.localhost\r\n",
        b"POST / HTTP/1.0\r\n",
        b"GET http://b.localhost HTTP/1.1\r\nHost: a\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.0 200\r\n",
        b"HTTP/1.1 204 None\r\n",
        b"HTTP/1.1 101 Switching\r\n",
    ];
    for line in lines {
        every_sequence(words, 3, &mut |fields| {
            properties_of::framing(&[line, fields, b"\r\n3\r\nabc\r\n0\r\n\r\nGET"].concat(), Cuts::Every);
        });
    }
}

#[test]
fn any_chunks_have_one_reading() {
    let words: &[&[u8]] = &[
        b"0",
        b"3",
        b"A",
        b"+",
        b"x",
        b" ",
        b";",
        b"=\"",
        b"\r\n",
        b"\r",
        b"\n",
        b"abc\r\n",
        b"a: b\r\n",
        b"\0",
        b"fffffffffffffff",
        b"0\r\n\r\n",
    ];
    every_sequence(words, 4, &mut |bytes| properties_of::chunks(bytes, Cuts::Every));
}

#[test]
fn any_host_has_one_place() {
    let words: &[&[u8]] = &[
        b"localhost",
        b"A",
        b".",
        b":",
        b"1",
        b"127.0.0.1",
        b"[",
        b"]",
        b"::1",
        b"@",
        b"%",
        b"/",
        b"0x",
        b"-",
        b"_",
        b" ",
        b"\0",
        b"\xc3\xa4",
        b"+",
    ];
    every_sequence(words, 4, &mut |bytes| properties_of::host(bytes, Cuts::Every));
}
