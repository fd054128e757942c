//! One step of a change to the machine: planned first, shown as the command a user would type, then run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::error::OrSay;
use crate::error::Result;
use crate::os::command;
use crate::os::command::quoted;
use crate::os::command::words;
use crate::os::files;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetupStep {
    /// Writes a file, and makes its folder if needed.
    Write {
        path: PathBuf,
        text: String,
        /// Only this user can read it. Otherwise every user can, whatever our umask is.
        is_private: bool,
    },
    Run(Vec<String>),
    /// Like `Run`, for commands that fail when there is nothing to do.
    RunUnchecked(Vec<String>),
}

impl SetupStep {
    /// `line` is split at blanks, the words in `more` may contain some.
    pub fn run(line: &str, more: &[&str]) -> Self {
        Self::Run(words(line, more))
    }

    /// What a user would type to do the same.
    pub fn command(&self) -> String {
        match self {
            Self::Write { path, .. } => format!("write {}", quoted(&path.display().to_string())),
            Self::Run(line) | Self::RunUnchecked(line) => {
                line.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
            }
        }
    }

    pub fn carry_out(&self) -> Result<()> {
        match self {
            Self::Write { path, text, is_private: true } => files::write(path, text.as_bytes()),
            Self::Write { path, text, is_private: false } => {
                let written = fs::create_dir_all(path.parent().unwrap_or(path))
                    .and_then(|()| fs::write(path, text))
                    .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o644)));
                written.or_say(|| format!("This failed: {}", self.command()))
            }
            Self::Run(line) => command::run(line).map(drop),
            Self::RunUnchecked(line) => {
                let _ = command::run(line);
                Ok(())
            }
        }
    }
}
