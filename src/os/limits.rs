//! How many files and threads the system lets this process have.

use std::path::Path;

use nix::sys::resource::Resource;
use nix::sys::resource::getrlimit;
use nix::sys::resource::setrlimit;

/// Raises the soft limit to the hard one; each tunnelled connection needs two descriptors.
pub fn raise_open_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        log::debug!("the open-file limit stays at {soft}: {error}");
    }
}

/// How many descriptors this process may have.
pub fn open_files() -> usize {
    getrlimit(Resource::RLIMIT_NOFILE)
        .map_or(usize::MAX, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX))
}

/// How many threads this process may have, as far as every cgroup on the path to its own tells.
pub fn tasks() -> usize {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    // `0::/path` in the unified hierarchy, `8:pids:/path` in the older one.
    let folders = groups.lines().filter_map(|line| match line.split_once(':')?.1.split_once(':')? {
        ("", path) => Some(format!("/sys/fs/cgroup{path}")),
        ("pids", path) => Some(format!("/sys/fs/cgroup/pids{path}")),
        _ => None,
    });
    let limit = |folder: &Path| std::fs::read_to_string(folder.join("pids.max")).ok()?.trim().parse().ok();
    let least = folders.filter_map(|folder| Path::new(&folder).ancestors().filter_map(limit).min()).min();
    least.unwrap_or(usize::MAX)
}
