//! What changes the machine: trust stores and service units, as steps that are shown before they run.

pub mod step;
pub mod trust_store;
pub mod unit;
