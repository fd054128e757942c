//! A lock covers memory for a moment. Whoever panicked while holding it left nothing half done that matters.

use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

pub fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
