//! What changes the machine: trust stores and service units, as steps that are shown before they run.

#[cfg(any(feature = "hub", feature = "agent", feature = "proxy"))]
mod plist;
pub mod step;
#[cfg(feature = "proxy")]
pub mod trust_store;
#[cfg(any(feature = "hub", feature = "agent", feature = "proxy"))]
pub mod unit;
