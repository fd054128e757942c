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
use crate::os::daemon;
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
    /// Where its log is, when it runs in the background.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<PathBuf>,
    /// What it has open, as of a moment ago.
    #[serde(default)]
    pub open: Vec<Open>,
}

/// One thing that a process keeps open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Open {
    pub name: String,
    /// `localhost:5433`, or the target of what is exposed.
    pub at: String,
    pub up: bool,
    pub sessions: usize,
    pub bytes: u64,
}

/// This process's own entry; gone when dropped.
pub struct OwnRun {
    home: Home,
    run: Run,
    lock_path: PathBuf,
    _lock: Lock,
}

fn lock_name(pid: u32) -> String {
    format!("{FOLDER}/{pid}.lock")
}

fn file_name(pid: u32) -> String {
    format!("{FOLDER}/{pid}.json")
}

pub fn register(home: &Home, kind: &str, names: &[String]) -> Result<OwnRun> {
    files::private_dir(&home.file(FOLDER))?;
    let pid = std::process::id();
    let lock_path = home.file(&lock_name(pid));
    let lock = files::lock(&lock_path)?;
    let (kind, names, log) = (kind.to_owned(), names.to_vec(), daemon::own_log());
    let run = Run { pid, kind, names, started_at: clock::now(), log, open: Vec::new() };
    home.write(&file_name(pid), &run)?;
    Ok(OwnRun { home: home.clone(), run, lock_path, _lock: lock })
}

impl OwnRun {
    /// Says what is open now; written only when it is something else than before.
    pub fn report(&mut self, open: Vec<Open>) {
        if self.run.open != open {
            self.run.open = open;
            self.write();
        }
    }

    pub fn called(&mut self, names: &[String]) {
        self.run.names = names.to_vec();
        self.write();
    }

    fn write(&self) {
        if let Err(error) = self.home.write(&file_name(self.run.pid), &self.run) {
            log::debug!("the entry of this process is old: {error}");
        }
    }
}

impl Drop for OwnRun {
    fn drop(&mut self) {
        let _ = files::remove(&self.home.file(&file_name(self.run.pid)));
        let _ = files::remove(&self.lock_path);
    }
}

/// Whether that process of ours lives: it holds its lock.
pub fn is_alive(home: &Home, pid: u32) -> bool {
    if pid == std::process::id() {
        return true;
    }
    files::is_locked(&home.file(&lock_name(pid)))
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
pub fn all(home: &Home) -> Vec<Run> {
    let mut runs = Vec::new();
    let Ok(entries) = fs::read_dir(home.file(FOLDER)) else { return runs };
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
    // Of those that began in one second, the later one has the higher number.
    runs.sort_by_key(|run| (run.started_at, run.pid));
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::secret;

    #[test]
    fn a_run_is_listed_while_it_lives_and_its_leavings_are_removed() {
        let home = Home::at(std::env::temp_dir().join(secret::id("connect-runs")));
        let own = register(&home, "test", &["a".into()]).unwrap();
        assert_eq!(all(&home).len(), 1);
        drop(own);
        assert!(all(&home).is_empty());
        let dead = Run {
            pid: 4_000_000,
            kind: "test".into(),
            names: Vec::new(),
            started_at: clock::now(),
            log: None,
            open: Vec::new(),
        };
        home.write("run/4000000.json", &dead).unwrap();
        assert!(all(&home).is_empty());
        assert!(!home.file("run/4000000.json").exists());
    }
}
