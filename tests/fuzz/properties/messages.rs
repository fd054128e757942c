//! What agents, joiners and hub say to each other in words: control lines, and the request for the relay.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::cuts::Cuts;
use crate::http::head::parse_request;
use crate::http::message::ErrorBody;
use crate::http::message::Request;
use crate::wire::api::AskSession;
use crate::wire::api::SessionGrant;
use crate::wire::control::RELAY_UPGRADE;
use crate::wire::control::ToAgent;
use crate::wire::control::ToHub;
use crate::wire::share_api::SharePreview;

/// A line that is a message says the same when it is written again; half a line is none.
pub fn control(line: &[u8], cuts: Cuts) {
    message::<ToHub>(line, cuts);
    message::<ToAgent>(line, cuts);
    body::<AskSession>(line);
    body::<SessionGrant>(line);
    body::<SharePreview>(line);
    let ErrorBody { error, hint, code } = ErrorBody::read(line);
    for shown in [error, hint, code] {
        assert!(!shown.contains('\n') && shown.chars().count() <= 500);
    }
}

fn message<M: Serialize + DeserializeOwned + Debug + PartialEq>(line: &[u8], cuts: Cuts) {
    let Ok(message) = serde_json::from_slice::<M>(line) else { return };
    let written = serde_json::to_vec(&message).expect("a message can be written");
    assert!(!written.contains(&b'\n'), "a message is a line");
    assert_eq!(serde_json::from_slice::<M>(&written).expect("valid again"), message);
    for cut in cuts.of(line) {
        let is_whole = line[cut..].iter().all(u8::is_ascii_whitespace);
        assert!(is_whole || serde_json::from_slice::<M>(&line[..cut]).is_err(), "cut at {cut}");
    }
}

fn body<M: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<M>(bytes) else { return };
    let written = serde_json::to_vec(&value).expect("a body can be written");
    let again: M = serde_json::from_slice(&written).expect("valid again");
    assert_eq!(serde_json::to_vec(&again).expect("a body can be written"), written);
}

/// A request that is taken names its path and query plainly, however they are spelt.
pub fn relay(bytes: &[u8], _: Cuts) {
    let Ok(Some(head)) = parse_request(bytes) else { return };
    let Some(request) = Request::from_head(&head) else { return };
    assert!(request.path.starts_with('/'));
    let words = request.query.iter().flat_map(|(name, value)| [name, value]).chain([&request.path]);
    words.for_each(|word| assert!(!word.chars().any(char::is_control), "{word:?}"));
    let encoded = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
    let query = request.query.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value)));
    let target = format!("/{}?{}", encoded(&request.path[1..]), query.collect::<Vec<_>>().join("&"));
    let again = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
    // Spelt at its longest, a target may pass what a head may have.
    if let Ok(Some(head)) = parse_request(again.as_bytes()) {
        let second = Request::from_head(&head).expect("valid again");
        let is_named = |(name, value): &&(String, String)| !(name.is_empty() && value.is_empty());
        assert_eq!(second.path, request.path);
        assert!(second.query.iter().filter(is_named).eq(request.query.iter().filter(is_named)));
    }
    let asked = request.upgrades_to(RELAY_UPGRADE);
    let says = |name: &str, word: &str| {
        let field = request.fields.iter().find(|(known, _)| known.to_lowercase() == name);
        field.is_some_and(|(_, list)| list.to_lowercase().split(',').any(|one| one.trim() == word))
    };
    assert_eq!(asked, says("connection", "upgrade") && says("upgrade", RELAY_UPGRADE));
}
