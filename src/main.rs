//! connect: reach a private service from somewhere else.

fn main() {}
#[allow(dead_code)]
mod error;
#[allow(dead_code)]
mod model;
