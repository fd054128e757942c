//! The import rules: which room may name which, and that no files import each other in a circle.
//!
//! `main → cli → { hub, tunnel, proxy, discover } → { api, state } → tls → net → os → error`. Every room may name
//! `wire`, `http`, `model` and `error`; `wire` and `http` name `model`, which names nothing. The rooms in the middle
//! row do not name each other.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

/// Rooms without I/O, which every other room may name. Among themselves the table decides.
const PURE: [&str; 4] = ["model", "wire", "http", "error"];

/// Each room, and the rooms it may name; for those with I/O besides the pure ones.
const MAY_NAME: [(&str, &[&str]); 15] = [
    ("main", &["cli"]),
    ("cli", &["hub", "tunnel", "proxy", "discover", "api", "state", "tls", "net", "os", "cli"]),
    ("hub", &["api", "state", "tls", "net", "os", "hub"]),
    ("tunnel", &["api", "state", "tls", "net", "os", "tunnel"]),
    ("proxy", &["api", "state", "tls", "net", "os", "proxy"]),
    ("discover", &["tls", "net", "os", "discover"]),
    ("api", &["tls", "net", "os"]),
    ("state", &["tls", "net", "os", "state"]),
    ("tls", &["net", "os", "tls"]),
    ("net", &["os", "net"]),
    ("os", &["os"]),
    ("wire", &["model", "wire"]),
    ("http", &["model", "http"]),
    ("model", &["model"]),
    ("error", &["error"]),
];

/// One file of `src` and its code: without comments and unit tests.
struct Source {
    /// As in `hub/core.rs`.
    file: String,
    /// As in `hub::core`; a folder's `mod.rs` has the folder's path, `main.rs` the empty one.
    module: String,
    code: String,
}

fn sources() -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    find_sources(&src, &mut paths);
    paths
        .into_iter()
        .map(|path| {
            let file = path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
            let module = file.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::");
            let module = if module == "main" { String::new() } else { module };
            Source { file, module, code: code_of(&fs::read_to_string(&path).unwrap()) }
        })
        .collect()
}

fn find_sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find_sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// Unit tests are last in a file, and may import what they like.
fn code_of(text: &str) -> String {
    let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// The first part of a file's path below `src`.
fn room_of(file: &str) -> &str {
    file.split('/').next().unwrap_or_default().trim_end_matches(".rs")
}

#[test]
fn no_room_names_another_that_it_may_not() {
    let mut faults = Vec::new();
    for source in sources() {
        let room = room_of(&source.file);
        let Some((_, allowed)) = MAY_NAME.iter().find(|(name, _)| *name == room) else {
            panic!("{} is in a room that the table does not have", source.file);
        };
        for path in paths_after(&source.code, "crate::") {
            let other = path[0];
            let is_pure = PURE.contains(&other) && !PURE.contains(&room);
            if !is_pure && !allowed.contains(&other) {
                faults.push(format!("{} names crate::{other}", source.file));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn only_os_knows_the_system_and_only_cli_prints() {
    for source in sources() {
        if room_of(&source.file) != "os" {
            assert!(!source.code.contains("target_os"), "{} knows the system", source.file);
        }
        let is_unsafe = source.code.contains("unsafe ");
        let may_be = ["os/memory.rs", "os/scheduling.rs"].contains(&source.file.as_str());
        assert!(!is_unsafe || may_be, "{} is unsafe", source.file);
        let prints = ["println!", "eprintln!", "print!("].iter().any(|word| source.code.contains(word));
        assert!(!prints || room_of(&source.file) == "cli", "{} prints", source.file);
    }
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let imports = Imports::of(&sources());
    let mut faults = String::new();
    for circle in imports.circles() {
        faults.push_str(&imports.describe(&circle));
    }
    assert!(faults.is_empty(), "these files import each other in a circle:\n{faults}");
}

#[test]
fn a_circle_is_found_and_printed_with_the_names_that_tie_it() {
    let source = |file: &str, code: &str| Source {
        file: file.to_owned(),
        module: file.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::"),
        code: code_of(code),
    };
    let imports = Imports::of(&[
        source("room/mod.rs", "mod a;\nmod b;\nmod c;\npub use a::First;\nfn f() { c::third() }"),
        source("room/a.rs", "use crate::room::b::Second;\n// use crate::room::c;"),
        source("room/b.rs", "use super::First;\nstruct Second(First);"),
        source("room/c.rs", "use crate::room::b::Second;\n\n#[cfg(test)]\nmod tests { use crate::room; }"),
    ]);
    let circles = imports.circles();
    assert_eq!(circles, [["room/a.rs".to_owned(), "room/b.rs".to_owned()]]);
    assert_eq!(
        imports.describe(&circles[0]),
        "  room/a.rs names Second of room/b.rs\n  room/b.rs names First of room/a.rs\n"
    );
}

/// For each file the files it names, and what it names there.
#[derive(Default)]
struct Imports(BTreeMap<String, BTreeMap<String, BTreeSet<String>>>);

impl Imports {
    fn of(sources: &[Source]) -> Self {
        let modules: BTreeMap<&str, &Source> =
            sources.iter().map(|source| (source.module.as_str(), source)).collect();
        let mut imports = Self::default();
        for source in sources {
            for path in named_paths(source, &modules) {
                let (module, name) = definition(&path, &modules);
                let file = &modules[module.as_str()].file;
                if *file != source.file {
                    let names = imports.0.entry(source.file.clone()).or_default();
                    names.entry(file.clone()).or_default().insert(name);
                }
            }
        }
        imports
    }

    /// All files that can be reached from `start` by one import or more.
    fn reached_from<'a>(&'a self, start: &'a str) -> BTreeSet<&'a str> {
        let mut reached = BTreeSet::new();
        let mut waiting = vec![start];
        while let Some(file) = waiting.pop() {
            for next in self.0.get(file).into_iter().flat_map(BTreeMap::keys) {
                if reached.insert(next.as_str()) {
                    waiting.push(next);
                }
            }
        }
        reached
    }

    /// Each group of files in which every file reaches every other one.
    fn circles(&self) -> Vec<Vec<String>> {
        let reached: BTreeMap<&str, BTreeSet<&str>> =
            self.0.keys().map(|file| (file.as_str(), self.reached_from(file))).collect();
        let mut circles = BTreeSet::new();
        for (file, targets) in &reached {
            if targets.contains(file) {
                let members = targets
                    .iter()
                    .filter(|other| reached.get(**other).is_some_and(|back| back.contains(file)));
                circles.insert(members.map(|member| (*member).to_owned()).collect());
            }
        }
        circles.into_iter().collect()
    }

    fn describe(&self, circle: &[String]) -> String {
        let mut lines = String::new();
        for file in circle {
            for (other, names) in self.0[file].iter().filter(|(other, _)| circle.contains(other)) {
                let names = names.iter().cloned().collect::<Vec<_>>().join(", ");
                lines.push_str(&format!("  {file} names {names} of {other}\n"));
            }
        }
        lines
    }
}

/// Every path of our own crate that the file names, from the crate's root. A `pub use` counts where the name is
/// used, and not for the file that hands it on.
fn named_paths(source: &Source, modules: &BTreeMap<&str, &Source>) -> Vec<String> {
    let lines = source.code.lines().filter(|line| !line.starts_with("pub use "));
    let code: String = lines.map(|line| format!("{line}\n")).collect();
    let parent = source.module.rsplit_once("::").map_or("", |(parent, _)| parent);
    let mut found: Vec<String> = Vec::new();
    found.extend(paths_after(&code, "crate::").iter().map(|path| path.join("::")));
    found.extend(paths_after(&code, "super::").iter().map(|path| below(parent, &path.join("::"))));
    // A module names its children without a prefix.
    for child in children(&source.module, modules) {
        let paths = paths_after(&code, &format!("{child}::"));
        found.extend(paths.iter().map(|path| below(&below(&source.module, child), &path.join("::"))));
    }
    found
}

/// What follows each `prefix` at the beginning of a path, as the path's parts.
fn paths_after<'a>(code: &'a str, prefix: &str) -> Vec<Vec<&'a str>> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let starts = code.match_indices(prefix).filter(|(start, _)| {
        let before = code[..*start].chars().next_back();
        !before.is_some_and(|c| is_word(c) || c == ':')
    });
    starts
        .map(|(start, _)| {
            let rest = &code[start + prefix.len()..];
            let end = rest.find(|c| !is_word(c) && c != ':').unwrap_or(rest.len());
            rest[..end].split("::").filter(|part| !part.is_empty()).collect()
        })
        .filter(|path: &Vec<&str>| !path.is_empty())
        .collect()
}

fn children<'a>(module: &'a str, modules: &'a BTreeMap<&str, &Source>) -> impl Iterator<Item = &'a str> {
    modules.keys().filter_map(move |other| {
        let name = if module.is_empty() { *other } else { other.strip_prefix(module)?.strip_prefix("::")? };
        (!name.is_empty() && !name.contains("::")).then_some(name)
    })
}

fn below(module: &str, rest: &str) -> String {
    if module.is_empty() { rest.to_owned() } else { format!("{module}::{rest}") }
}

/// The module in which a path's item is defined, and the item's name: the longest part of the path that is a
/// module, unless that one has the name from elsewhere by `use`.
fn definition(path: &str, modules: &BTreeMap<&str, &Source>) -> (String, String) {
    let mut module = path;
    while !modules.contains_key(module) {
        module = module.rsplit_once("::").map_or("", |(parent, _)| parent);
    }
    let rest = path[module.len()..].trim_start_matches("::");
    let Some(name) = rest.split("::").next().filter(|name| !name.is_empty()) else {
        return (module.to_owned(), path.rsplit("::").next().unwrap_or_default().to_owned());
    };
    for line in modules[module].code.lines() {
        let Some(import) = line.trim_start_matches("pub ").strip_prefix("use ") else { continue };
        let import = import.trim_end_matches(';');
        if import.rsplit("::").next() == Some(name) {
            let first = import.split("::").next().unwrap_or_default();
            if let Some(from_root) = import.strip_prefix("crate::") {
                return definition(from_root, modules);
            }
            if children(module, modules).any(|child| child == first) {
                return definition(&below(module, import), modules);
            }
        }
    }
    (module.to_owned(), name.to_owned())
}
