//! What somebody types, pastes or configures: share codes, links, pins, names, targets, times.

use super::cuts::Cuts;
use crate::model::code::Code;
use crate::model::code::Invitation;
use crate::model::fingerprint::Fingerprint;
use crate::model::fingerprint::Pin;
use crate::model::name::Name;
use crate::model::target::Target;
use crate::model::time::Time;
use crate::model::time::parse_duration;

/// What is taken is written and read as the same again, and a cut one is never taken for a weaker one.
pub fn codes(bytes: &[u8], cuts: Cuts) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(code) = Code::parse(text) {
        assert!((6..=32).contains(&code.as_str().len()));
        assert!(code.as_str().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
        assert!(Code::parse(code.as_str()) == Ok(code));
    }
    if let Ok(invitation) = Invitation::parse(text) {
        invited(text.trim(), &invitation, cuts);
    }
    if let Some(pin) = Pin::parse(text) {
        assert_eq!(pin.to_string(), text.to_ascii_lowercase());
    }
    if let Some(fingerprint) = Fingerprint::parse(text) {
        assert_eq!(fingerprint.to_string(), text.to_ascii_lowercase());
        assert_eq!(Pin::parse(&fingerprint.pin().to_string()), Some(fingerprint.pin()));
    }
    words(text);
}

fn invited(text: &str, invitation: &Invitation, cuts: Cuts) {
    let written = invitation.to_string();
    assert!(Invitation::parse(&written).as_ref() == Ok(invitation), "{written}");
    let weaker_from = match &invitation.link {
        Some(_) => text.find("://").map(|at| at + 3),
        None => text.find('-').map(|at| at + 1),
    };
    assert_eq!(invitation.agent.is_some(), weaker_from.is_some());
    for cut in cuts.of(text.as_bytes()).filter(|cut| weaker_from.is_some_and(|from| *cut >= from)) {
        let is_refused = text.get(..cut).is_none_or(|cut| Invitation::parse(cut).is_err());
        assert!(is_refused, "{text} cut at {cut}");
    }
}

fn words(text: &str) {
    match Name::parse(text) {
        Ok(name) => {
            assert_eq!((name.as_str(), Name::nearest(text).as_ref()), (text, Some(&name)));
            assert!((1..=63).contains(&text.len()));
            assert!(name.for_environment().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
        }
        Err(_) => {
            if let Some(near) = Name::nearest(text) {
                assert_eq!(Name::parse(near.as_str()).as_ref(), Ok(&near));
            }
        }
    }
    if let Some(target) = Target::parse(text) {
        assert_eq!(Target::parse(&target.to_string()).as_ref(), Some(&target));
        assert!(target.port > 0 && !target.host.contains(|c: char| c.is_control() || c.is_whitespace()));
    }
    if let Some(time) = Time::parse(text) {
        assert_eq!(Time::parse(&time.to_string()), Some(time));
    }
    if let Some(duration) = parse_duration(text) {
        assert!(text.starts_with(|c: char| c.is_ascii_digit()));
        assert_eq!(
            parse_duration(&format!("{}", duration.as_secs())).map(|d| d.as_secs()),
            Some(duration.as_secs())
        );
    }
}
