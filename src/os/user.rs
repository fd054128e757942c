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

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
