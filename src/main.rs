//! connect: reach a private service from somewhere else.
#![allow(dead_code)]

mod api;
mod error;
mod hub;
mod model;
mod net;
mod os;
mod state;
mod tunnel;
mod wire;

fn main() {}
