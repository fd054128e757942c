//! The pure rooms stay pure: they are compiled here without any other room, so an import of one does not
//! compile.
#![allow(dead_code)]

#[path = "../src/discover"]
mod discover {
    pub mod probe;
    pub mod web_page;
}
#[path = "../src/http/mod.rs"]
mod http;
#[path = "../src/model/mod.rs"]
mod model;
#[path = "../src/wire/mod.rs"]
mod wire;

/// What only the world can give; a pure room is given it.
const WORLDLY: [&str; 8] = [
    "std::net::Tcp",
    "std::fs",
    "std::env",
    "std::thread",
    "std::process",
    "SystemTime",
    "Instant",
    "use aws_lc_rs::",
];

#[test]
fn pure_rooms_touch_nothing_of_the_world() {
    let src = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let folders = ["http", "model", "wire"].map(|room| std::fs::read_dir(src.join(room)).unwrap());
    let files = folders.into_iter().flatten().map(|entry| entry.unwrap().path());
    let pure_parts = ["model/registry/sweep.rs", "discover/probe.rs", "discover/web_page.rs"];
    for path in files.filter(|path| path.is_file()).chain(pure_parts.map(|file| src.join(file))) {
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        for worldly in WORLDLY {
            assert!(!code.contains(worldly), "{} names {worldly}", path.display());
        }
    }
}
