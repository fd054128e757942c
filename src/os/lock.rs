//! Mutexes without poisoning. A lock covers memory for a moment and no I/O, so a panic under it leaves nothing half
//! done that matters.

use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

/// For waits that end only when another thread changes the state.
pub const FOREVER: Duration = Duration::MAX;

pub fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Releases the lock and waits while `waiting` holds, for at most `limit`.
pub fn wait_while<'m, T>(
    changed: &Condvar,
    guard: MutexGuard<'m, T>,
    limit: Duration,
    waiting: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'m, T> {
    changed.wait_timeout_while(guard, limit, waiting).unwrap_or_else(PoisonError::into_inner).0
}
