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
use crate::model::name::Name;
use crate::model::target::Target;
use crate::net::address::HubUrl;
use crate::os::command::quoted;
use crate::os::files;
use crate::os::terminal;
use crate::os::user;
use crate::state::confirmed;
use crate::state::confirmed::ExposeList;
use crate::wire::pconnect;
use crate::wire::pconnect::Project;

pub const PROJECT_FILES: [&str; 3] = ["pconnect.yml", "pconnect.yaml", "pconnect.json"];

/// The project's file, and when it was last read.
///
/// The file may be somebody else's, and programs can write to it. So what it exposes is exposed only after the user has
/// confirmed it: once for each list, and at each start if the list names other machines.
pub struct ProjectFile {
    pub path: PathBuf,
    pub project: Project,
    seen: files::FileStamp,
    confirmed: ExposeList,
}

impl ProjectFile {
    pub fn open(path: PathBuf) -> Result<Self> {
        let seen = files::stamp(&path);
        Ok(Self { project: read(&path)?, path, seen, confirmed: ExposeList::new() })
    }

    /// Asks the user, unless the list is known. The process that starts one in the background has asked for it.
    pub fn confirm(&self, call: &Call) -> Result<()> {
        let list = &self.project.expose;
        let is_known = self.is_local() && confirmed::contains(&call.home, &self.path, list);
        if list.is_empty() || is_known || call.is_background() {
            return Ok(());
        }
        if !call.args.flag("yes") {
            self.ask(call)?;
        }
        confirmed::add(&call.home, &self.path, list)
    }

    fn ask(&self, call: &Call) -> Result<()> {
        let names = self.project.expose.iter();
        if call.say.json || !terminal::is_terminal_in() {
            let names = names.map(|(name, target)| format!("{name} → {target}")).collect::<Vec<_>>();
            let what = format!("{} exposes {}", shown(&self.path), names.join(", "));
            let confirm = if call.args.flag("confirm") { "--confirm --yes" } else { "--yes" };
            return Err(Error::new(format!("{what}, which nobody has confirmed"))
                .hint(format!("If that is meant: {}", command(call, confirm))));
        }
        call.say.result(&format!("{} exposes while it runs:\n", shown(&self.path)));
        for (name, target) in names {
            let place = if target.is_loopback() { "" } else { " (another machine)" };
            call.say.result(&format!("    {name} → {target}{place}"));
        }
        if call.is_confirmed("\nMay others reach that?") {
            return Ok(());
        }
        Err(Error::new("Nothing was exposed").hint(format!("Edit {} first", shown(&self.path))))
    }

    fn is_local(&self) -> bool {
        self.project.expose.values().all(Target::is_loopback)
    }

    /// Whether all that the file exposes now is confirmed. For other machines a confirmation counts once.
    pub fn is_confirmed(&mut self, call: &Call) -> Result<bool> {
        if self.exposed().count() == self.project.expose.len() {
            return Ok(true);
        }
        let is_confirmed = confirmed::contains(&call.home, &self.path, &self.project.expose);
        if is_confirmed {
            self.confirmed.clone_from(&self.project.expose);
            if !self.is_local() {
                confirmed::remove(&call.home, &self.path)?;
            }
        }
        Ok(is_confirmed)
    }

    /// The confirmed part of what the file exposes.
    pub fn exposed(&self) -> impl Iterator<Item = (&Name, &Target)> {
        self.project.expose.iter().filter(|(name, target)| self.confirmed.get(name) == Some(target))
    }

    /// What it said before, if it says something else now or is confirmed only now. A faulty file is reported once.
    pub fn changed(&mut self, call: &Call) -> Result<Option<Project>> {
        let now = files::stamp(&self.path);
        // An editor replaces a file in two steps; between them there is none.
        if now == self.seen || now.is_none() {
            let waits = self.exposed().count() < self.project.expose.len();
            return Ok((waits && self.is_confirmed(call)?).then(|| self.project.clone()));
        }
        self.seen = now;
        let project = read(&self.path)?;
        if project == self.project {
            return Ok(None);
        }
        let before = std::mem::replace(&mut self.project, project);
        if !self.is_confirmed(call)? {
            let new =
                self.project.expose.iter().filter(|(name, target)| self.confirmed.get(name) != Some(target));
            let new = new.map(|(name, target)| format!("{name} → {target}")).collect::<Vec<_>>().join(", ");
            let confirm = command(call, "--confirm");
            call.say.warn(&format!("{new} is not exposed until you confirm it: {confirm}"));
        }
        Ok(Some(before))
    }
}

/// `connect dev` with this option, for the same file.
fn command(call: &Call, option: &str) -> String {
    let file = call.args.value("file").map(|file| format!("--file {} ", quoted(file)));
    format!("connect dev {}{option}", file.unwrap_or_default())
}

fn read(path: &Path) -> Result<Project> {
    let cannot = || format!("Cannot read {}", path.display());
    let read = text_of(path).or_say(cannot);
    let text = read.map_err(|error| error.hint("Look at the path, or write the file: connect dev --init"))?;
    let faulty = |reason: String| {
        Error::new(format!("{}: {reason}", shown(path)))
            .hint("Fix it; connect dev --init in an empty folder writes an example")
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
    let is_trusted = files::owner(&found).is_some_and(user::is_trusted);
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
