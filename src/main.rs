//! connect: reach a private service from somewhere else.

// Until the hub and the proxy call it.
#[allow(dead_code)]
mod wire;

fn main() {}
#[allow(dead_code)]
mod error;
#[allow(dead_code)]
mod model;
