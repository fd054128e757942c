//! What changes the machine: trust stores and service units, as steps that are shown before they run.

pub mod step;
#[cfg(feature = "proxy")]
pub mod trust_store;
#[cfg(feature = "agent")]
pub mod unit;
