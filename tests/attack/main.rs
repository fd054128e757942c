//! `make attack`: hostile peers against a real hub, agent, joiner and proxy. Each attack prints what it achieved beside the
//! bound that must hold; a broken bound ends the run with 1. Loopback only, bounded in count and time.
#![allow(clippy::cast_precision_loss)] // Figures for people.

#[path = "../common/mod.rs"]
mod common;

mod links;
mod member;
mod strangers;

use std::process::ExitCode;
use std::time::Instant;

use common::measure::quantile;

type Attack = fn(&mut Report);

/// Every attack, by the name that selects it on the command line.
const ATTACKS: [(&str, Attack); 3] =
    [("strangers", strangers::attack), ("links", links::attack), ("member", member::attack)];

/// What the attacks achieved, a line each.
#[derive(Default)]
pub struct Report {
    broken: usize,
}

impl Report {
    /// A figure that must not exceed its bound.
    pub fn at_most(&mut self, what: &str, figure: f64, bound: f64, unit: &str) {
        self.line(what, &format!("{figure:.0} {unit}"), &format!("at most {bound:.0}"), figure <= bound);
    }

    /// The 99th percentile of some times in milliseconds.
    pub fn p99_at_most(&mut self, what: &str, milliseconds: &mut [f64], bound: f64) {
        let p99 = if milliseconds.is_empty() { f64::INFINITY } else { quantile(milliseconds, 0.99) };
        self.at_most(&format!("{what} (p99 of {})", milliseconds.len()), p99, bound, "ms");
    }

    pub fn must(&mut self, what: &str, found: &str, holds: bool) {
        self.line(what, found, "", holds);
    }

    fn line(&mut self, what: &str, figure: &str, bound: &str, holds: bool) {
        self.broken += usize::from(!holds);
        println!("{} {what:<62} {figure:<14} {bound}", if holds { "ok    " } else { "BROKEN" });
    }
}

fn main() -> ExitCode {
    let selected = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let mut report = Report::default();
    for (name, attack) in ATTACKS.iter().filter(|(name, _)| name.contains(&selected)) {
        let began = Instant::now();
        println!("\n{name}");
        attack(&mut report);
        println!("       took {} s", began.elapsed().as_secs());
    }
    println!("\n{} bound(s) broken", report.broken);
    ExitCode::from(u8::from(report.broken > 0))
}
