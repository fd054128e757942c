//! Broken on purpose: a schedule of faults in every place of the path, while clients push data whose every byte is
//! known. A connection may break, visibly; it may not be short, altered or mixed up without a word, hang, or leave
//! anything behind. `CONNECT_CHAOS_SEED=N,M` replays these runs, one after the other in one world, since what breaks a
//! run may be left by the one before; `CONNECT_SOAK_SECONDS=N` goes on for so long. `CONNECT_CHAOS_DIRECT=1` lets joiner
//! and agent connect without the relay.

#[path = "../common/mod.rs"]
mod common;
mod faults;
mod state;
mod transfer;
mod world;

use std::collections::BTreeMap;
use std::panic;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use faults::Case;
use world::World;

/// Paths from client to service that are broken at the same time, each with a hub of its own.
const WORLDS: usize = 3;
/// Runs that a world is used for before another one takes its place.
const RUNS_OF_A_WORLD: usize = 40;
/// A run that fails is replayed behind so many that were before it in its world.
const BEFORE: usize = 3;

/// How long a soak goes on; `None` for the short run that is part of the tests.
fn soak() -> Option<Duration> {
    number("CONNECT_SOAK_SECONDS").map(Duration::from_secs)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// Which runs there are. A run's seed decides everything about it, the fault and its place included.
struct Schedule {
    /// These again, in one world; without any, all from `first` on.
    replayed: Vec<u64>,
    first: u64,
    next: AtomicU64,
    /// `None`: until the time is over.
    count: Option<u64>,
    until: Instant,
}

impl Schedule {
    fn of_environment() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let replayed = std::env::var("CONNECT_CHAOS_SEED").unwrap_or_default();
        let seed =
            |text: &str| text.parse().unwrap_or_else(|_| panic!("CONNECT_CHAOS_SEED: {text} is no seed"));
        let replayed = replayed.split(',').filter(|text| !text.is_empty()).map(seed).collect();
        let (first, count) = (now * Case::COUNT, soak().is_none().then_some(Case::COUNT));
        let until = Instant::now() + soak().unwrap_or(Duration::from_hours(1));
        Self { replayed, first, next: AtomicU64::new(0), count, until }
    }

    fn worlds(&self) -> usize {
        if self.replayed.is_empty() { WORLDS } else { 1 }
    }

    fn next(&self) -> Option<u64> {
        let index = self.next.fetch_add(1, Ordering::SeqCst);
        if !self.replayed.is_empty() {
            return self.replayed.get(usize::try_from(index).unwrap()).copied();
        }
        let goes_on = self.count.is_none_or(|count| index < count) && Instant::now() < self.until;
        goes_on.then_some(self.first + index)
    }
}

#[derive(Default)]
struct Survived {
    runs: BTreeMap<String, usize>,
    whole: usize,
    broken: usize,
}

#[test]
fn whatever_breaks_nothing_is_short_altered_mixed_up_hung_or_left_behind() {
    let schedule = Schedule::of_environment();
    let survived = Mutex::new(Survived::default());
    thread::scope(|scope| {
        for _ in 0..schedule.worlds() {
            scope.spawn(|| while live(&schedule, &survived) {});
        }
    });
    let survived = survived.into_inner().unwrap();
    for (case, runs) in &survived.runs {
        println!("{runs:6} × {case}");
    }
    let Survived { whole, broken, .. } = survived;
    println!(
        "{} transfers: {whole} whole, {broken} visibly broken, none short, altered or mixed up",
        whole + broken
    );
    assert!(whole > 0);
}

/// Builds a world, breaks it for a while, and looks at what is left. False when the schedule is at its end.
fn live(schedule: &Schedule, survived: &Mutex<Survived>) -> bool {
    let Some(mut seed) = schedule.next() else { return false };
    let mut world = World::new();
    let before = world.counts();
    let mut lived = Vec::new();
    for _ in 0..RUNS_OF_A_WORLD {
        let case = Case::of(seed);
        lived.push(seed.to_string());
        let run = panic::catch_unwind(AssertUnwindSafe(|| world.run(&case)));
        let outcome = run.unwrap_or_else(|_| {
            let seeds = lived[lived.len().saturating_sub(BEFORE + 1)..].join(",");
            panic!("{case}. Again: CONNECT_CHAOS_SEED={seeds} cargo test --test chaos")
        });
        if let Some((whole, broken)) = outcome {
            let mut all = survived.lock().unwrap();
            *all.runs.entry(case.to_string()).or_default() += 1;
            all.whole += whole;
            all.broken += broken;
        }
        match schedule.next() {
            Some(next) => seed = next,
            None => {
                world.leaves_nothing(&before);
                return false;
            }
        }
    }
    world.leaves_nothing(&before);
    true
}

#[test]
fn with_64_descriptors_everywhere_nobody_dies_and_all_recover() {
    let mut world = World::where_each_does("ulimit -n 64");
    for _ in 0..3 {
        world.knock(150);
        assert!(world.all_run());
        world.recovers("with 64 descriptors", &Case::of(0));
    }
}
