//! Who runs this process, and on what machine.

pub fn uid() -> u32 {
    nix::unistd::getuid().as_raw()
}

/// The machine's own name, cut to what a label may hold.
pub fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = name.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    let clean: String = name.trim().chars().filter(char::is_ascii_graphic).take(64).collect();
    if clean.is_empty() { "machine".to_owned() } else { clean }
}

/// The name and home folder of a user, of this process's own without a name.
pub fn named(name: Option<&str>) -> Option<(String, std::path::PathBuf)> {
    let found = match name {
        Some(name) => nix::unistd::User::from_name(name),
        None => nix::unistd::User::from_uid(nix::unistd::getuid()),
    };
    found.ok().flatten().map(|user| (user.name, user.dir))
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
