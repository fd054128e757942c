//! Who may name whom. `main → cli → { hub, tunnel, proxy, discover } → { api, state, tls, net } → os → error`; all may
//! name `wire`, `http`, `model` and `error`; `wire` and `http` name `model`, which names nothing. The rooms in the middle
//! row do not name each other.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

/// What every room may name, except these rooms themselves: they name what their own row says.
const PURE: [&str; 4] = ["model", "wire", "http", "error"];

const MAY_NAME: [(&str, &[&str]); 15] = [
    ("main", &["cli"]),
    ("cli", &["hub", "tunnel", "proxy", "discover", "api", "state", "tls", "net", "os", "cli"]),
    ("hub", &["api", "tls", "net", "os", "hub"]),
    ("tunnel", &["api", "tls", "net", "os", "tunnel"]),
    ("proxy", &["api", "state", "tls", "net", "os", "proxy"]),
    ("discover", &["tls", "net", "os", "discover"]),
    ("api", &["tls", "net", "os"]),
    ("state", &["tls", "net", "os", "state"]),
    ("tls", &["net", "os", "tls"]),
    ("net", &["tls", "os", "net"]),
    ("os", &["os"]),
    ("wire", &["model", "wire"]),
    ("http", &["model", "http"]),
    ("model", &["model"]),
    ("error", &["error"]),
];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found
}

/// The room a file is in: the first part of its path below `src`.
fn room_of(path: &Path, src: &Path) -> String {
    let first = path.strip_prefix(src).unwrap().components().next().unwrap();
    first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// Every room named as `crate::room`.
fn named(text: &str) -> Vec<String> {
    let rest = text.split("crate::").skip(1);
    rest.map(|rest| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()).collect()
}

#[test]
fn no_room_names_another_that_it_may_not() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut faults = Vec::new();
    for path in sources(&src) {
        let room = room_of(&path, &src);
        let Some((_, allowed)) = MAY_NAME.iter().find(|(name, _)| *name == room) else {
            panic!("{} is in a room that the table does not have", path.display());
        };
        let text = fs::read_to_string(&path).unwrap();
        for other in named(&text) {
            let pure = PURE.contains(&other.as_str()) && !PURE.contains(&room.as_str());
            if !pure && !allowed.contains(&other.as_str()) {
                faults.push(format!("{} names crate::{other}", path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn only_the_room_of_the_machine_knows_which_system_it_is() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for path in sources(&src) {
        let text = fs::read_to_string(&path).unwrap();
        if room_of(&path, &src) != "os" {
            assert!(!text.contains("target_os"), "{} knows the system", path.display());
        }
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        assert!(!code.contains("unsafe "), "{} is unsafe", path.display());
        let prints = ["println!", "eprintln!", "print!("].iter().any(|word| code.contains(word));
        assert!(!prints || room_of(&path, &src) == "cli", "{} prints", path.display());
    }
}
