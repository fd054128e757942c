//! Which of our processes are alive: each holds a lock on a file of its own for as long as it lives. That,
//! not a bare pid, is how the others know.

use std::fs;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use super::home::Home;
use crate::error::Result;
use crate::model::time::Time;
use crate::os::clock;
use crate::os::files;
use crate::os::files::Lock;

const FOLDER: &str = "run";

/// What a process says about itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    pub pid: u32,
    /// What it does: `expose`, `reach`, `join`, `hub` …
    pub kind: String,
    /// What it does it to; names by which `stop` finds it.
    pub names: Vec<String>,
    pub started_at: Time,
}

/// This process's own entry; gone when dropped.
pub struct OwnRun {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: Lock,
}

fn lock_name(pid: u32) -> String {
    format!("{FOLDER}/{pid}.lock")
}

pub fn register(home: &Home, kind: &str, names: &[String]) -> Result<OwnRun> {
    files::private_dir(&home.file(FOLDER))?;
    let pid = std::process::id();
    let lock_path = home.file(&lock_name(pid));
    let lock = files::lock(&lock_path)?;
    let run = Run { pid, kind: kind.to_owned(), names: names.to_vec(), started_at: clock::now() };
    home.write(&format!("{FOLDER}/{pid}.json"), &run)?;
    Ok(OwnRun { path: home.file(&format!("{FOLDER}/{pid}.json")), lock_path, _lock: lock })
}

impl Drop for OwnRun {
    fn drop(&mut self) {
        let _ = files::remove(&self.path);
        let _ = files::remove(&self.lock_path);
    }
}

/// Whether that process of ours lives: it holds its lock.
pub fn is_alive(home: &Home, pid: u32) -> bool {
    if pid == std::process::id() {
        return true;
    }
    let path = home.file(&lock_name(pid));
    path.exists() && matches!(files::try_lock(&path), Ok(None))
}

/// Whether that process was ours and ended without tidying up: its lock is there, and free.
pub fn is_known_dead(home: &Home, pid: u32) -> bool {
    let path = home.file(&lock_name(pid));
    pid != std::process::id() && path.exists() && matches!(files::try_lock(&path), Ok(Some(_)))
}

pub fn kind_of(home: &Home, pid: u32) -> Option<String> {
    home.read::<Run>(&format!("{FOLDER}/{pid}.json")).ok().flatten().map(|run| run.kind)
}

/// Every live process of ours; what dead ones left behind is removed.
pub fn all(home: &Home) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    let Ok(entries) = fs::read_dir(home.file(FOLDER)) else { return Ok(runs) };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_suffix(".json").and_then(|pid| pid.parse().ok()) else { continue };
        if is_alive(home, pid) {
            runs.extend(home.read::<Run>(&format!("{FOLDER}/{name}")).ok().flatten());
        } else {
            let _ = files::remove(&entry.path());
            let _ = files::remove(&home.file(&lock_name(pid)));
        }
    }
    runs.sort_by_key(|run| run.started_at);
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::secret;

    #[test]
    fn a_run_is_listed_while_it_lives_and_its_leavings_are_removed() {
        let home = Home::at(std::env::temp_dir().join(secret::id("connect-runs")));
        let own = register(&home, "test", &["a".into()]).unwrap();
        assert_eq!(all(&home).unwrap().len(), 1);
        drop(own);
        assert!(all(&home).unwrap().is_empty());
        let dead = Run { pid: 4_000_000, kind: "test".into(), names: Vec::new(), started_at: clock::now() };
        home.write("run/4000000.json", &dead).unwrap();
        assert!(all(&home).unwrap().is_empty());
        assert!(!home.file("run/4000000.json").exists());
    }
}
