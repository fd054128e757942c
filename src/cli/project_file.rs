//! The project's file of `connect dev`: which one it is, what it says, and when it says something else.

use std::env;
use std::fs;
use std::io;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;

use crate::cli::Call;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::net::address::HubUrl;
use crate::os::files;
use crate::os::user;
use crate::wire::pconnect;
use crate::wire::pconnect::Project;

pub const PROJECT_FILES: [&str; 3] = ["pconnect.yml", "pconnect.yaml", "pconnect.json"];

/// The project's file, and when it was last read.
pub struct ProjectFile {
    pub path: PathBuf,
    pub project: Project,
    seen: files::FileStamp,
}

impl ProjectFile {
    pub fn open(path: PathBuf) -> Result<Self> {
        let seen = files::stamp(&path);
        Ok(Self { project: read(&path)?, path, seen })
    }

    /// What it said before, when it says something else now. A faulty file is said once, and kept out.
    pub fn changed(&mut self) -> Result<Option<Project>> {
        let now = files::stamp(&self.path);
        // An editor replaces a file in two steps; between them there is none.
        if now == self.seen || now.is_none() {
            return Ok(None);
        }
        self.seen = now;
        let project = read(&self.path)?;
        if project == self.project {
            return Ok(None);
        }
        Ok(Some(std::mem::replace(&mut self.project, project)))
    }
}

fn read(path: &Path) -> Result<Project> {
    let cannot = || format!("Cannot read {}", path.display());
    let read = text_of(path).or_say(cannot);
    let text = read.map_err(|error| error.hint("Look at the path, or write the file: connect dev --init"))?;
    let faulty = |reason: String| {
        Error::new(format!("{}: {reason}", shown(path)))
            .hint("Mend the file; connect dev --init in an empty folder shows how one looks")
    };
    let project = pconnect::parse(&text).map_err(faulty)?;
    project.hub.as_deref().map(HubUrl::parse).transpose().map_err(|error| faulty(format!("hub: {error}")))?;
    Ok(project)
}

/// No more than a project's file may hold, and of a device without an end the same.
fn text_of(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(pconnect::PROJECT_FILE_LIMIT as u64 + 1).read_to_end(&mut bytes)?;
    // What is too large is refused for that, even where the limit cuts a letter.
    if bytes.len() > pconnect::PROJECT_FILE_LIMIT {
        return Ok(String::from_utf8_lossy(&bytes).into_owned());
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("it is not text"))
}

/// From `--file`, else from here upwards.
pub fn find(call: &Call) -> Result<PathBuf> {
    if let Some(given) = call.args.value("file") {
        return Ok(PathBuf::from(given));
    }
    let here = env::current_dir().or_say(|| "Cannot tell the current folder")?;
    let candidates = here.ancestors().flat_map(|folder| PROJECT_FILES.iter().map(|name| folder.join(name)));
    let found = candidates.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        Error::new("There is no pconnect.yml here or above").hint("Write one: connect dev --init")
    })?;
    // Above it may be a folder that everybody writes to, and the file says what of this machine is exposed.
    let is_trusted = [0, user::uid()].map(Some).contains(&files::owner(&found));
    if is_trusted || found.parent() == Some(here.as_path()) || files::owner(&found) == files::owner(&here) {
        return Ok(found);
    }
    Err(Error::new(format!("{} belongs to another user", found.display()))
        .hint(format!("Look at it; if it is meant: connect dev --file {}", found.display())))
}

/// As the user thinks of it: relative where it lies below.
pub fn shown(path: &Path) -> String {
    let here = env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}

/// What the project is called where it is listed: its folder.
pub fn project_name(path: &Path) -> String {
    let whole = std::path::absolute(path).unwrap_or_default();
    let folder = whole.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    folder.unwrap_or_else(|| "project".to_owned())
}
