//! Who runs this process, and on what machine.

use std::path::PathBuf;
use std::sync::LazyLock;

use crate::os::command::output_of;

pub fn uid() -> u32 {
    nix::unistd::getuid().as_raw()
}

/// The user who ran this process by `sudo`.
pub fn by_sudo() -> Option<u32> {
    static BY_SUDO: LazyLock<Option<u32>> = LazyLock::new(|| std::env::var("SUDO_UID").ok()?.parse().ok());
    if is_root() { *BY_SUDO } else { None }
}

/// Whether a file of this owner is as good as the user's own.
pub fn is_trusted(owner: u32) -> bool {
    owner == 0 || owner == uid() || by_sudo() == Some(owner)
}

/// The machine's own name, cut to what a label may hold.
pub fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = name.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    let clean: String = name.trim().chars().filter(char::is_ascii_graphic).take(64).collect();
    if clean.is_empty() { "machine".to_owned() } else { clean }
}

/// Name and home folder of a user; without a name, of the user who runs this process.
pub fn named(name: Option<&str>) -> Option<(String, PathBuf)> {
    let wanted = name.map_or_else(|| uid().to_string(), str::to_owned);
    listed(&wanted).or_else(|| in_directory(&wanted))
}

/// From `/etc/passwd` itself. For a user who is not in it the C library would load the modules of the system's
/// directory, and a static binary that does so crashes.
#[cfg(not(target_os = "macos"))]
pub fn listed(wanted: &str) -> Option<(String, PathBuf)> {
    line_of(&std::fs::read_to_string("/etc/passwd").ok()?, wanted)
}

#[cfg(target_os = "macos")]
pub fn listed(wanted: &str) -> Option<(String, PathBuf)> {
    use nix::unistd::User;
    let by_id = wanted.parse().ok().and_then(|id| User::from_uid(nix::unistd::Uid::from_raw(id)).ok());
    let found = by_id.or_else(|| User::from_name(wanted).ok());
    found.flatten().map(|user| (user.name, user.dir))
}

/// For users in LDAP and the like: `getent` is another program, which may load the modules that we cannot.
fn in_directory(wanted: &str) -> Option<(String, PathBuf)> {
    line_of(&output_of(&["getent", "passwd", wanted])?, wanted)
}

/// The user of this name or number among lines like `ann:x:1000:1000:Ann:/home/ann:/bin/sh`.
fn line_of(table: &str, wanted: &str) -> Option<(String, PathBuf)> {
    let lines = table.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.filter(|parts| parts.len() >= 6).find_map(|parts| {
        let is_wanted = parts[0] == wanted || parts[2] == wanted;
        is_wanted.then(|| (parts[0].to_owned(), PathBuf::from(parts[5])))
    })
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str =
        "root:x:0:0:root:/root:/bin/bash\nshort:x:7\nann:x:1000:1000:Ann,,,:/home/ann:/bin/sh\n";

    #[test]
    fn a_user_is_found_by_name_and_by_number() {
        let ann = Some(("ann".to_owned(), PathBuf::from("/home/ann")));
        assert_eq!(line_of(TABLE, "ann"), ann);
        assert_eq!(line_of(TABLE, "1000"), ann);
        for unknown in ["1001", "short", "7", "an", ""] {
            assert_eq!(line_of(TABLE, unknown), None, "{unknown}");
        }
    }
}
