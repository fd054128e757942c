//! State files: private from birth, replaced whole or not at all, one writer at a time, no symlinks, and as with ssh
//! none that another user could have changed.

use std::fs;
use std::fs::DirBuilder;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use nix::fcntl::OFlag;
use nix::sys::statvfs::FsFlags;
use nix::sys::statvfs::statvfs;

use crate::error::Error;
use crate::error::Result;
use crate::model::time::Time;
use crate::os::secret;
use crate::os::user;

/// No state file of ours comes near this size; a larger one is damaged, or not ours.
const STATE_FILE_LIMIT: u64 = 16 * 1024 * 1024;

/// Makes a folder that only its owner can enter, parents included. One that is there must be safe.
pub fn private_dir(path: &Path) -> Result<()> {
    check_dir(path)?;
    make_dir(path)
}

/// Refuses a folder that another user could change, and a link to it that another user made. What cannot be opened, or is
/// no folder, has no state that could be believed; joining by link works without any.
pub fn check_dir(path: &Path) -> Result<()> {
    let Ok(entry) = fs::symlink_metadata(path) else { return Ok(()) };
    if entry.is_symlink() {
        check_owner(path, &entry)?;
    }
    match File::open(path).and_then(|folder| folder.metadata()) {
        Ok(found) if found.is_dir() => check_safe(path, &found),
        _ => Ok(()),
    }
}

fn make_dir(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| {
        Error::new(format!("Cannot make the folder {}", path.display()))
            .because(error)
            .hint("Set CONNECT_HOME to a folder that you can write to")
    })
}

/// `None` when there is no such file.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    read_up_to(path, STATE_FILE_LIMIT)
}

/// For files that may grow larger than a user's state, like a hub's store.
pub fn read_up_to(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let file = match options().read(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(file_error("read", path, error)),
    };
    check_file(path, &file)?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| file_error("read", path, error))?;
    if bytes.len() as u64 > limit {
        let what = format!("{} is larger than {} MiB", path.display(), limit / 1024 / 1024);
        return Err(Error::new(what).hint("It is damaged, or not ours: look at it, then move it away"));
    }
    Ok(Some(bytes))
}

/// The open file is looked at, not the path, which may lead to another one by now. A pipe or a device instead of a state
/// file would block, or never end.
fn check_file(path: &Path, file: &File) -> Result<()> {
    let found = file.metadata().map_err(|error| file_error("read", path, error))?;
    if !found.is_file() {
        return Err(file_error("read", path, io::Error::other("it is not a plain file")));
    }
    check_safe(path, &found)
}

fn check_safe(path: &Path, found: &fs::Metadata) -> Result<()> {
    check_owner(path, found)?;
    if found.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(Error::new(format!("{} can be changed by other users", path.display()))
        .hint(format!("Look at it; if it is as you left it: chmod go-w {}", path.display())))
}

fn check_owner(path: &Path, found: &fs::Metadata) -> Result<()> {
    if user::is_trusted(found.uid()) {
        return Ok(());
    }
    let what = format!("{} belongs to another user (uid {})", path.display(), found.uid());
    let mut hint = format!("If it is meant for you: chown {} {}", user::uid(), path.display());
    if user::is_root() {
        let owner = found.uid().to_string();
        let name = user::named(Some(&owner)).map_or_else(|| format!("'#{owner}'"), |(name, _)| name);
        hint = format!("If it is a service's, do this as its user, with sudo -u {name}. {hint}");
    }
    Err(Error::new(what).hint(hint))
}

pub fn read_text(path: &Path) -> Result<Option<String>> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    let text = String::from_utf8(bytes);
    text.map(Some).map_err(|_| Error::new(format!("{} is not text", path.display())).hint("Move it away"))
}

/// Replaces the file as one step: after a crash there is the old content or the new, nothing between.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, bytes, true)
}

/// Like `write`, but does not wait for the disk: for content that is out of date in a second and worth nothing
/// after a crash of the machine.
pub fn write_unsynced(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, bytes, false)
}

fn replace(path: &Path, bytes: &[u8], sync: bool) -> Result<()> {
    refuse_symlink(path)?;
    // The parent of a bare file name is the empty path, which cannot be opened.
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = parent.unwrap_or(Path::new("."));
    make_dir(folder)?;
    let draft = draft_of(path);
    let written = write_draft(&draft, bytes, sync)
        .and_then(|()| fs::rename(&draft, path))
        .and_then(|()| if sync { File::open(folder)?.sync_all() } else { Ok(()) });
    written.map_err(|error| {
        let _ = fs::remove_file(&draft);
        file_error("write", path, error)
    })
}

/// Writes lines to a file that may be somebody else's. If it holds only `last`, which we wrote, they replace that, else they
/// are added. Mode and owner of a file that exists stay.
pub fn write_lines(path: &Path, last: &str, lines: &str) -> Result<()> {
    if !path.is_file() {
        return write(path, lines.as_bytes());
    }
    let written = fs::read(path).and_then(|found| {
        let is_ours = found == last.as_bytes();
        let separator = if is_ours || found.ends_with(b"\n") { "" } else { "\n" };
        let mut file = OpenOptions::new().write(true).append(!is_ours).truncate(is_ours).open(path)?;
        file.write_all(format!("{separator}{lines}").as_bytes())
    });
    written.map_err(|error| file_error("write", path, error))
}

/// Opens for appending; creates the file if it does not exist.
pub fn append(path: &Path) -> Result<File> {
    let opened = options().read(true).append(true).create(true).mode(0o600).open(path);
    let file = opened.map_err(|error| file_error("write", path, error))?;
    check_file(path, &file)?;
    Ok(file)
}

/// Modification time, size and inode number: different after every write or replacement.
pub type FileStamp = Option<(SystemTime, u64, u64)>;

pub fn stamp(path: &Path) -> FileStamp {
    let found = fs::metadata(path).ok()?;
    Some((found.modified().ok()?, found.len(), found.ino()))
}

/// Whether the path still leads to this open file. After a log rotation it does not.
pub fn is_same(file: &File, path: &Path) -> bool {
    let number = |found: io::Result<fs::Metadata>| found.ok().map(|found| (found.dev(), found.ino()));
    number(file.metadata()) == number(fs::metadata(path))
}

pub fn changed_at(path: &Path) -> Option<Time> {
    let since = fs::metadata(path).ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(Time::from_unix(since.as_secs()))
}

/// Bytes that this user may still write there; 0 where nothing may be written. `None` where the system does not tell.
pub fn free_space(folder: &Path) -> Option<u64> {
    let disk = statvfs(folder).ok()?;
    let is_read_only = disk.flags().contains(FsFlags::ST_RDONLY);
    // On some systems these numbers have other types.
    #[allow(clippy::useless_conversion)]
    let free = u64::from(disk.blocks_available()) * u64::from(disk.fragment_size());
    Some(if is_read_only { 0 } else { free })
}

/// The user ID of the owner.
pub fn owner(path: &Path) -> Option<u32> {
    fs::metadata(path).ok().map(|found| found.uid())
}

/// Whether other users may read or write it, or own it.
pub fn is_open_to_others(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| {
        !user::is_trusted(found.uid()) || (!found.is_symlink() && found.mode() & 0o077 != 0)
    })
}

/// All such files at or below this path; links are not followed.
pub fn open_to_others_below(path: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = is_open_to_others(path).then(|| path.to_owned()).into_iter().collect();
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()) {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        all.extend(entries.flat_map(|entry| open_to_others_below(&entry.path())));
    }
    all
}

/// Takes all rights from the group and from others. To take a file from its owner is left to the user.
pub fn make_private(path: &Path) -> Result<()> {
    let found = fs::metadata(path).map_err(|error| file_error("read", path, error))?;
    check_owner(path, &found)?;
    let tightened = fs::set_permissions(path, fs::Permissions::from_mode(found.mode() & 0o700));
    tightened.map_err(|error| file_error("change", path, error))
}

pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file_error("remove", path, error)),
        _ => Ok(()),
    }
}

/// Holds the lock until it is dropped or the process ends, even by a crash.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

/// Waits for the lock. It needs a file of its own: a lock on a file that is replaced by rename would stay with the
/// old file.
pub fn lock(path: &Path) -> Result<FileLock> {
    let file = append(path)?;
    file.lock().map_err(|error| file_error("lock", path, error))?;
    Ok(FileLock { _file: file })
}

/// `None` when another process holds it.
pub fn try_lock(path: &Path) -> Result<Option<FileLock>> {
    let file = append(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(FileLock { _file: file })),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(file_error("lock", path, error)),
    }
}

/// Whether a process holds the lock. The check takes a shared lock, so two checks do not disturb each other.
pub fn is_locked(path: &Path) -> bool {
    let file = options().read(true).open(path);
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    // Opening a pipe would block before `check_file` can refuse it.
    options.custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits());
    options
}

fn refuse_symlink(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() => Err(Error::new(format!(
            "{} is a symbolic link; state is not written through links",
            path.display()
        ))
        .hint(format!("Look where it points, then: rm {}", path.display()))),
        _ => Ok(()),
    }
}

fn draft_of(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", &secret::secret()[..8]))
}

/// Removes the drafts that a crash during `write` left behind. Only for files with one writer: another
/// writer's draft may be in use.
pub fn remove_drafts(path: &Path) {
    let front = format!(".{}.", path.file_name().unwrap_or_default().to_string_lossy());
    let entries = path.parent().and_then(|folder| fs::read_dir(folder).ok());
    for entry in entries.into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&front) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn write_draft(draft: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    let mut file = options().write(true).create_new(true).mode(0o600).open(draft)?;
    file.write_all(bytes)?;
    if sync { file.sync_all() } else { Ok(()) }
}

fn file_error(verb: &str, path: &Path, error: io::Error) -> Error {
    let hint = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "The disk is full: free some space, then try again".to_owned()
        }
        io::ErrorKind::PermissionDenied => format!("Look at its owner and mode: ls -ld {}", path.display()),
        _ if error.raw_os_error() == Some(nix::libc::ELOOP) => {
            format!("It is a symbolic link; state is not kept behind links: rm {}", path.display())
        }
        _ => format!("Look at it: ls -ld {}", path.display()),
    };
    Error::new(format!("Cannot {verb} {}", path.display())).because(error).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> PathBuf {
        let path = std::env::temp_dir().join(secret::id("connect-files"));
        private_dir(&path).unwrap();
        path
    }

    #[test]
    fn a_file_is_private_and_its_drafts_are_gone() {
        let folder = folder().join("deeper");
        write(&folder.join("a"), b"one").unwrap();
        write(&folder.join("a"), b"two").unwrap();
        assert_eq!(read(&folder.join("a")).unwrap().unwrap(), b"two");
        assert_eq!(fs::metadata(folder.join("a")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn a_symlink_is_neither_read_nor_written_through() {
        let folder = folder();
        fs::write(folder.join("victim"), "untouched").unwrap();
        std::os::unix::fs::symlink(folder.join("victim"), folder.join("state")).unwrap();
        assert!(read(&folder.join("state")).is_err());
        assert!(write(&folder.join("state"), b"x").is_err());
        assert!(append(&folder.join("state")).is_err());
        assert_eq!(fs::read_to_string(folder.join("victim")).unwrap(), "untouched");
    }

    #[test]
    fn a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for() {
        let pipe = folder().join("state");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read(&pipe).is_err() && append(&pipe).is_err() && lock(&pipe).is_err());
    }

    #[test]
    fn a_second_lock_is_refused_while_the_first_is_held() {
        let path = folder().join("lock");
        let held = try_lock(&path).unwrap();
        assert!(held.is_some() && try_lock(&path).unwrap().is_none());
        drop(held);
        assert!(try_lock(&path).unwrap().is_some());
    }
}
