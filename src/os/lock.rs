//! A lock covers memory for a moment. Whoever panicked while holding it left nothing half done that matters.

use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

/// For waits that only the one who changes something ends.
pub const FOREVER: Duration = Duration::MAX;

pub fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets go of the lock for as long as there is nothing but to wait, and for `limit` at most.
pub fn wait_while<'m, T>(
    changed: &Condvar,
    guard: MutexGuard<'m, T>,
    limit: Duration,
    waiting: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'m, T> {
    changed.wait_timeout_while(guard, limit, waiting).unwrap_or_else(PoisonError::into_inner).0
}
