//! What the fuzzers have found worth keeping, replayed: whole, and cut at every byte.

#[allow(dead_code)]
#[path = "../src/wire"]
mod wire {
    pub mod body;
    pub mod chunks;
    pub mod forward;
    pub mod head;
    pub mod host;
    mod scan;
}

#[path = "fuzz/properties.rs"]
mod properties;

use std::fs;
use std::path::Path;

fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut count = 0;
    for entry in fs::read_dir(&folder).expect("the target's corpus") {
        let path = entry.expect("an entry").path();
        let bytes = fs::read(&path).expect("a file");
        // Shown only when what follows panics.
        println!("{}", path.display());
        assert!(bytes.len() <= 4096, "longer, and the properties skip some of the cuts");
        check(&bytes);
        count += 1;
    }
    assert!(count >= 10, "{count} files in {}", folder.display());
}

#[test]
fn the_corpus_of_heads_holds() {
    replay("head", properties::head);
}

#[test]
fn the_corpus_of_framings_holds() {
    replay("framing", properties::framing);
}

#[test]
fn the_corpus_of_hosts_holds() {
    replay("host", properties::host);
}

#[test]
fn the_corpus_of_chunks_holds() {
    replay("chunks", properties::chunks);
}
