//! What the fuzzers have found worth keeping, replayed: whole, and cut at every byte.

// Each property takes a part of the rooms.
#[allow(dead_code)]
#[path = "../src/discover"]
mod discover {
    pub mod probe;
    pub mod web_page;
}
#[allow(dead_code)]
#[path = "../src/http/mod.rs"]
mod http;
#[allow(dead_code)]
#[path = "../src/model/mod.rs"]
mod model;
#[path = "fuzz/properties/mod.rs"]
mod properties;
#[allow(dead_code)]
#[path = "../src/tls"]
mod tls {
    pub mod unbuffered;
}
#[allow(dead_code)]
#[path = "../src/wire/mod.rs"]
mod wire;

use std::fs;
use std::path::Path;

use properties::TARGETS;
use properties::cuts::Cuts;

#[test]
fn the_corpus_of_every_target_holds() {
    for (target, check) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
        let mut count = 0;
        for entry in fs::read_dir(&folder).expect("the target's corpus") {
            let path = entry.expect("an entry").path();
            let bytes = fs::read(&path).expect("a file");
            // Shown only when what follows panics.
            println!("{}", path.display());
            check(&bytes, Cuts::Every);
            count += 1;
        }
        assert!(count >= 10, "{count} files in {}", folder.display());
    }
}

/// A property that lets everything pass would not be noticed otherwise.
#[test]
fn the_corpora_hold_what_is_taken_and_what_is_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let taken = |target: &str, fits: &dyn Fn(&str) -> bool| {
        let entries = fs::read_dir(folder.join(target)).unwrap();
        let files: Vec<_> = entries.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
        let count = files.iter().filter(|bytes| str::from_utf8(bytes).is_ok_and(fits)).count();
        assert!(count > 0 && count < files.len(), "{target}: {count} of {}", files.len());
    };
    taken("codes", &|text| model::code::Invitation::parse(text).is_ok_and(|it| it.link.is_some()));
    taken("pconnect", &|text| wire::pconnect::parse(text).is_ok());
    taken("state", &|text| {
        model::route::entries(text)
            .is_some_and(|entries| entries.iter().all(|entry| model::route::Route::read(entry).is_ok()))
    });
    taken("control", &|text| serde_json::from_str::<wire::control::ToAgent>(text).is_ok());
}
