//! connect: reach a private service from somewhere else.

fn main() {}
