//! What strangers' services say when they are asked what they are.

use super::cuts::Cuts;
use crate::discover::probe::PROBES;
use crate::discover::probe::Probe;
use crate::discover::probe::recognise;
use crate::discover::probe::shown;
use crate::discover::web_page;

/// The first byte says what was asked. What is recognised stays so, whatever more is said, and fits on a line.
pub fn probe(bytes: &[u8], cuts: Cuts) {
    let Some((asked, said)) = bytes.split_first() else { return };
    let probe = PROBES[usize::from(*asked) % PROBES.len()].probe;
    let whole = recognise(probe, said);
    is_a_line(&shown(said));
    if let Some((_, note)) = &whole {
        is_a_line(note);
    }
    // Postgres answers with one letter and no more; an echo shows only when it is whole.
    let is_final = probe != Probe::SslRequest && !said.starts_with(probe.bytes());
    for cut in cuts.of(said).filter(|_| is_final || probe.bytes().is_empty()) {
        if let Some((kind, _)) = recognise(probe, &said[..cut]) {
            assert_eq!(whole.as_ref().map(|whole| whole.0), Some(kind), "cut at {cut}");
        }
    }
}

/// A page that is whole is not changed by what follows it; all that is told of it fits on a line.
pub fn page(bytes: &[u8], cuts: Cuts) {
    let whole = web_page::read(bytes);
    for cut in cuts.of(bytes) {
        if let Some(early) = web_page::read(&bytes[..cut])
            && early.is_whole
        {
            assert_eq!(whole.as_ref(), Some(&early), "cut at {cut}");
        }
    }
    if let Some(page) = whole {
        let told = [&page.title, &page.server, &page.framework, &page.version];
        told.into_iter().flatten().for_each(|text| is_a_line(text));
        let location = page.location.unwrap_or_default();
        assert!(!location.contains(char::is_control), "{location:?}");
    }
}

fn is_a_line(text: &str) {
    assert!(text.chars().count() <= 80 && !text.contains(char::is_control), "{text:?}");
}
