//! One step of a change to the machine: planned first, shown as the command a user would type, then run.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use crate::error::OrSay;
use crate::error::Result;
use crate::os::command;
use crate::os::command::quoted;
use crate::os::files;

#[derive(Debug, PartialEq, Eq)]
pub enum SetupStep {
    /// Copies a file so that every user can read it.
    Copy {
        from: PathBuf,
        to: PathBuf,
    },
    /// Writes a file that every user can read, and makes its folder if needed.
    Write {
        path: PathBuf,
        text: String,
    },
    /// Writes a file that only this user can read.
    WritePrivate {
        path: PathBuf,
        text: String,
    },
    /// Removes a file; a missing one is fine.
    Remove(PathBuf),
    MakeFolder(PathBuf),
    Run(Vec<String>),
    /// Like `Run`, for commands that fail when there is nothing to do.
    RunUnchecked(Vec<String>),
}

impl SetupStep {
    /// What a user would type to do the same.
    pub fn command(&self) -> String {
        let shown = |path: &Path| quoted(&path.display().to_string());
        match self {
            Self::Copy { from, to } => format!("install -m 644 {} {}", shown(from), shown(to)),
            Self::Write { path, .. } | Self::WritePrivate { path, .. } => format!("write {}", shown(path)),
            Self::Remove(path) => format!("rm -f {}", shown(path)),
            Self::MakeFolder(path) => format!("mkdir -p {}", shown(path)),
            Self::Run(line) | Self::RunUnchecked(line) => {
                line.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
            }
        }
    }

    pub fn carry_out(&self) -> Result<()> {
        let failed = || format!("This failed: {}", self.command());
        match self {
            Self::Copy { from, to } => {
                let bytes = fs::read(from).or_say(failed)?;
                write_readable(to, &bytes).or_say(failed)
            }
            Self::Write { path, text } => {
                fs::create_dir_all(path.parent().unwrap_or(path)).or_say(failed)?;
                write_readable(path, text.as_bytes()).or_say(failed)
            }
            Self::WritePrivate { path, text } => files::write(path, text.as_bytes()),
            Self::Remove(path) => match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).or_say(failed),
                _ => Ok(()),
            },
            Self::MakeFolder(path) => fs::create_dir_all(path).or_say(failed),
            Self::Run(line) => command::run(line).map(drop),
            Self::RunUnchecked(line) => {
                let _ = command::run(line);
                Ok(())
            }
        }
    }
}

/// Trust stores and service managers read these files as other users, whatever our umask is.
fn write_readable(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::write(path, bytes)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}
