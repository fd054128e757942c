//! Which of our processes are alive. Each holds a lock on a file of its own for as long as it lives; a process ID alone
//! proves nothing, since the system reuses it. Next to the lock is the report of the process, which it rewrites after a
//! change, at most once a second. Other processes read that file.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use serde::Deserialize;
use serde::Serialize;

use super::home::Home;
use crate::error::Result;
use crate::model::time::Time;
use crate::os::clock;
use crate::os::files;
use crate::os::files::FileLock;

/// The kind of the daemon's run.
pub const DAEMON_KIND: &str = "daemon";
pub const HUB_KIND: &str = "hub";
/// What the daemon prints, and what others that expose something say of it.
pub const DAEMON_LOG: &str = "agent.log";
const RUN_FOLDER: &str = "run";
/// Traffic figures change with every packet. The file is written no more often than this.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// How many crashed or failed runs are kept for `status`.
const REMEMBERED_FAILURES: usize = 20;

/// What a process says about itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    pub pid: u32,
    /// What it does: `expose`, `reach`, `join`, `hub` …
    pub kind: String,
    /// The services that it is for. `stop` finds it by these names.
    pub names: Vec<String>,
    /// The hub that it uses, where that matters to others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<String>,
    pub started_at: Time,
    /// The path of its log, if it runs in the background.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<PathBuf>,
    /// Where it listens for joiners that come without the relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct: Option<SocketAddr>,
    /// What it had open at its last report.
    #[serde(default)]
    pub open: Vec<OpenService>,
    /// Not in the file: found out when the runs are listed.
    #[serde(default, skip_deserializing)]
    pub state: RunState,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    #[default]
    Running,
    /// It ended with an error, and has reported it.
    Failed,
    /// It was killed, or it panicked.
    Crashed,
}

/// One thing that a process keeps open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenService {
    pub name: String,
    /// `localhost:5433`, or the target of an exposed service.
    pub at: String,
    /// Whether it is a service that this process exposes, and not one that it reaches.
    #[serde(default)]
    pub exposed: bool,
    pub up: bool,
    /// Why it is not up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// How a service that is reached gets here: `relay`, or `direct` and the agent's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    pub sessions: usize,
    pub bytes: u64,
}

/// This process's own entry. Dropping it removes the entry, unless a background process ends without being asked to.
pub struct OwnRun {
    home: Home,
    run: Run,
    lock_path: PathBuf,
    /// When it last reported.
    reported: Option<Instant>,
    ended_well: bool,
    _lock: FileLock,
}

fn lock_name(pid: u32) -> String {
    format!("{RUN_FOLDER}/{pid}.lock")
}

fn file_name(pid: u32) -> String {
    format!("{RUN_FOLDER}/{pid}.json")
}

/// Lists this process. `log` is its log file if it runs in the background.
pub fn register(home: &Home, kind: &str, names: &[String], log: Option<PathBuf>) -> Result<OwnRun> {
    files::private_dir(&home.file(RUN_FOLDER))?;
    let pid = std::process::id();
    let lock_path = home.file(&lock_name(pid));
    let lock = files::lock(&lock_path)?;
    // A new run replaces the entry of an earlier one that has failed.
    all(home)
        .iter()
        .filter(|old| {
            !old.is_alive() && old.kind == kind && old.names.iter().any(|name| names.contains(name))
        })
        .for_each(|old| forget(home, old.pid));
    let run = Run {
        pid,
        kind: kind.to_owned(),
        names: names.to_vec(),
        hub: None,
        started_at: clock::now(),
        log,
        direct: None,
        open: Vec::new(),
        state: RunState::Running,
    };
    home.write(&file_name(pid), &run)?;
    Ok(OwnRun { home: home.clone(), run, lock_path, reported: None, ended_well: false, _lock: lock })
}

impl Run {
    pub fn is_alive(&self) -> bool {
        self.state == RunState::Running
    }

    /// Its name in messages, such as `expose db`.
    pub fn title(&self) -> String {
        match self.names.first() {
            Some(name) if *name != self.kind => format!("{} {name}", self.kind),
            _ => self.kind.clone(),
        }
    }
}

impl OwnRun {
    /// Reports what is open now. A change of the list is written at once, figures at intervals.
    pub fn report(&mut self, open: Vec<OpenService>) {
        let is_due = self.reported.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL);
        let only_figures = |(old, new): (&OpenService, &OpenService)| {
            OpenService { sessions: new.sessions, bytes: new.bytes, ..old.clone() } == *new
        };
        let same = self.run.open.len() == open.len() && self.run.open.iter().zip(&open).all(only_figures);
        if is_due || !same {
            self.reported = Some(Instant::now());
            if self.run.open != open {
                self.run.open = open;
                self.write();
            }
        }
    }

    pub fn note_hub(&mut self, hub: String) {
        self.run.hub = Some(hub);
        self.write();
    }

    pub fn note_direct(&mut self, address: Option<SocketAddr>) {
        if self.run.direct != address {
            self.run.direct = address;
            self.write();
        }
    }

    pub fn rename(&mut self, names: &[String]) {
        self.run.names = names.to_vec();
        self.write();
    }

    /// The process ends because it was asked to, or because its work is done.
    pub fn ends_well(&mut self) {
        self.ended_well = true;
    }

    fn write(&self) {
        if let Err(error) = self.home.write_unsynced(&file_name(self.run.pid), &self.run) {
            log::debug!("the entry of this process is old: {error}");
        }
    }
}

impl Drop for OwnRun {
    fn drop(&mut self) {
        // Before the first report, the starting process was still there and has printed why it failed.
        let is_told = self.run.log.is_none() || self.reported.is_none() || self.ended_well;
        if is_told && !std::thread::panicking() {
            let _ = files::remove(&self.home.file(&file_name(self.run.pid)));
        }
        if !std::thread::panicking() {
            let _ = files::remove(&self.lock_path);
        }
    }
}

/// Removes the files of a process that has ended.
pub fn forget(home: &Home, pid: u32) {
    for name in [file_name(pid), lock_name(pid)] {
        let _ = files::remove(&home.file(&name));
    }
}

/// Whether that process of ours is alive, that is, holds its lock.
pub fn is_alive(home: &Home, pid: u32) -> bool {
    if pid == std::process::id() {
        return true;
    }
    files::is_locked(&home.file(&lock_name(pid)))
}

/// Whether that process was ours and ended without cleaning up: its lock file exists, and nobody holds the lock.
pub fn is_known_dead(home: &Home, pid: u32) -> bool {
    let path = home.file(&lock_name(pid));
    pid != std::process::id() && path.exists() && matches!(files::try_lock(&path), Ok(Some(_)))
}

/// All live processes of ours, and the background processes that failed or crashed. The files of all others are removed.
pub fn all(home: &Home) -> Vec<Run> {
    let mut runs = Vec::new();
    let Ok(entries) = fs::read_dir(home.file(RUN_FOLDER)) else { return runs };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_suffix(".json").and_then(|pid| pid.parse().ok()) else { continue };
        // The lock is checked before the entry is read: a process that ends well removes its entry before its lock.
        let state = match is_alive(home, pid) {
            true => RunState::Running,
            false if home.file(&lock_name(pid)).exists() => RunState::Crashed,
            false => RunState::Failed,
        };
        let Some(run) = home.read::<Run>(&format!("{RUN_FOLDER}/{name}")).ok().flatten() else { continue };
        if state == RunState::Running || run.log.is_some() {
            runs.push(Run { state, ..run });
        } else {
            forget(home, pid);
        }
    }
    // Of runs that began in the same second, the later one usually has the higher process ID.
    runs.sort_by_key(|run| (run.started_at, run.pid));
    let dead: Vec<u32> = runs.iter().filter(|run| !run.is_alive()).map(|run| run.pid).collect();
    for pid in dead.iter().rev().skip(REMEMBERED_FAILURES) {
        forget(home, *pid);
        runs.retain(|run| run.pid != *pid);
    }
    runs
}

/// The live process of this kind.
pub fn running(home: &Home, kind: &str) -> Option<Run> {
    all(home).into_iter().find(|run| run.is_alive() && run.kind == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::secret;

    #[test]
    fn a_run_is_listed_while_it_lives_and_its_leavings_are_removed() {
        let home = Home::at(std::env::temp_dir().join(secret::id("connect-runs")));
        let own = register(&home, "test", &["a".into()], None).unwrap();
        assert_eq!(all(&home).len(), 1);
        drop(own);
        assert!(all(&home).is_empty());
        let dead = Run {
            pid: 4_000_000,
            kind: "test".into(),
            names: Vec::new(),
            hub: None,
            started_at: clock::now(),
            log: None,
            direct: None,
            open: Vec::new(),
            state: RunState::Running,
        };
        home.write("run/4000000.json", &dead).unwrap();
        assert!(all(&home).is_empty());
        assert!(!home.file("run/4000000.json").exists());
    }

    #[test]
    fn of_those_that_fell_in_the_background_the_last_ones_are_remembered() {
        let home = Home::at(std::env::temp_dir().join(secret::id("connect-runs")));
        for pid in 4_000_000..4_000_000 + 30 {
            let entry = format!(
                r#"{{"pid":{pid},"kind":"x","names":[],"startedAt":"2026-01-01T00:00:00Z","log":"/x"}}"#
            );
            files::write(&home.file(&file_name(pid)), entry.as_bytes()).unwrap();
        }
        files::append(&home.file(&lock_name(4_000_029))).unwrap();
        let left = all(&home);
        assert_eq!((left.len(), left[0].pid), (REMEMBERED_FAILURES, 4_000_010));
        assert_eq!(
            (left[0].state, left[REMEMBERED_FAILURES - 1].state),
            (RunState::Failed, RunState::Crashed)
        );
        assert_eq!(fs::read_dir(home.file(RUN_FOLDER)).unwrap().count(), REMEMBERED_FAILURES + 1);
    }
}
