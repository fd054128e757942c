//! Memory that the C library keeps after it was freed.

/// Gives free memory back to the system, wherever in the heap it lies.
///
/// glibc has a heap for every few threads and returns only the end of each, so after a burst of connections it would keep
/// most of what they had used. musl returns free memory by itself.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn give_back() {
    // SAFETY: the call takes no pointer, moves nothing that is in use, and may be made by any thread at any time.
    #[expect(unsafe_code, reason = "no crate of the tree has this call")]
    let _ = unsafe { nix::libc::malloc_trim(0) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn give_back() {}
