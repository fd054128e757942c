//! How the kernel schedules our threads.

/// Tells the scheduler that this thread carries bytes: when it is woken, it does not interrupt the thread that runs.
///
/// Every message through a tunnel wakes a thread in each of three processes. Without this, each wake-up preempts the
/// sender in the middle of its work. Threads and programs that this thread starts inherit it.
#[cfg(target_os = "linux")]
pub fn prefer_throughput() {
    use nix::libc;
    let priority: libc::c_int = 0;
    // SAFETY: the kernel reads one integer, which outlives the call, and changes only how this thread is scheduled. The
    // functions of the C library are not used because musl's do nothing.
    #[expect(unsafe_code, reason = "no crate of the tree has this call")]
    let _ = unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_BATCH, &raw const priority) };
}

#[cfg(not(target_os = "linux"))]
pub fn prefer_throughput() {}
