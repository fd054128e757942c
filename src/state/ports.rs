//! `ports.json`: the port each service had last time, so that it is the same tomorrow.

use std::collections::BTreeMap;

use super::home::Home;
use crate::error::Result;

const FILE: &str = "ports.json";
/// More services than one user reaches; the file does not grow beyond.
const REMEMBERED: usize = 1000;

type Ports = BTreeMap<String, u16>;

pub fn last_time(home: &Home, what: &str) -> Option<u16> {
    home.read::<Ports>(FILE).ok().flatten()?.get(what).copied()
}

pub fn remember(home: &Home, what: &str, port: u16) -> Result<()> {
    if last_time(home, what) == Some(port) {
        return Ok(());
    }
    home.update(FILE, |ports: &mut Ports| {
        if ports.len() >= REMEMBERED {
            ports.clear();
        }
        ports.insert(what.to_owned(), port);
    })
}
