//! What is done to the path, and where.

use std::fmt;
use std::fs;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::common::fault::Way;
use crate::common::noise;
use crate::transfer::Outcome;
use crate::world::World;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Every connection is closed in the middle.
    Cut,
    /// One direction of every connection ends.
    Halve,
    /// Each piece comes late.
    Delay,
    /// Pieces come as a few bytes at a time.
    Split,
    /// Nothing arrives for a while.
    Stall,
    /// What is sent is lost, and the connections end later: as for a network that went away.
    Silence,
    /// `kill -9`, then started again.
    Kill,
    /// Asked to end in the middle, then started again.
    Restart,
    /// SIGSTOP for a while.
    Pause,
    /// No descriptor is left.
    Starve,
    /// The clock jumps by an hour, and back.
    Clock,
    /// The disk with its state is full.
    Disk,
}

/// A connection of the path, and the program at its near end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Agent and hub; the agent.
    Agent,
    /// Hub and joiner; the hub.
    Hub,
    /// Joiner and client; the joiner.
    Joiner,
}

const KINDS: [Kind; 12] = [
    Kind::Cut,
    Kind::Halve,
    Kind::Delay,
    Kind::Split,
    Kind::Stall,
    Kind::Silence,
    Kind::Kill,
    Kind::Restart,
    Kind::Pause,
    Kind::Starve,
    Kind::Clock,
    Kind::Disk,
];
const PLACES: [Place; 3] = [Place::Agent, Place::Hub, Place::Joiner];

/// One run: everything in it follows from its seed.
pub struct Case {
    pub seed: u64,
    pub kind: Kind,
    pub place: Place,
    random: Vec<u8>,
}

impl Case {
    pub const COUNT: u64 = (KINDS.len() * PLACES.len()) as u64;

    pub fn of(seed: u64) -> Self {
        let index = usize::try_from(seed % Self::COUNT).unwrap();
        let (kind, place) = (KINDS[index % KINDS.len()], PLACES[index / KINDS.len()]);
        Self { seed, kind, place, random: noise(seed, 16) }
    }

    /// A number below `limit`, the same for the same seed and place in the run.
    pub fn choose(&self, which: usize, limit: usize) -> usize {
        (usize::from(self.random[which]) << 8 | usize::from(self.random[which + 1])) % limit
    }

    fn moment(&self) -> Duration {
        Duration::from_millis(50 + self.choose(2, 400) as u64)
    }

    /// What a client may see. Faults that lose nothing have to pass unnoticed. An early end without an error is in
    /// order only where the fault itself makes one on the client's own connection: there, the machine says it.
    pub fn client_may_see(&self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Whole => true,
            Outcome::Broken(_) => self.loses(),
            Outcome::Short(_) => {
                self.place == Place::Joiner
                    && matches!(self.kind, Kind::Cut | Kind::Halve | Kind::Silence | Kind::Kill)
            }
            Outcome::Altered(_) | Outcome::Hung(_) => false,
        }
    }

    /// The same for the service, whose own connection is the agent's. An end that the client's side makes is passed on.
    pub fn service_may_see(&self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Short(_) => match self.place {
                Place::Agent => self.kind == Kind::Kill,
                Place::Hub => false,
                Place::Joiner => matches!(self.kind, Kind::Cut | Kind::Halve | Kind::Silence),
            },
            other => self.client_may_see(other),
        }
    }

    fn loses(&self) -> bool {
        matches!(self.kind, Kind::Cut | Kind::Halve | Kind::Silence | Kind::Kill | Kind::Restart)
    }

    /// Breaks something, calls `go` in the middle of it, and mends it. False where this machine cannot do it.
    pub fn inflict(&self, world: &mut World, go: impl FnOnce()) -> bool {
        match self.kind {
            Kind::Cut | Kind::Halve | Kind::Delay | Kind::Split | Kind::Stall | Kind::Silence => {
                self.disturb(world, go);
            }
            Kind::Kill | Kind::Restart => self.replace(world, go),
            Kind::Pause => {
                world.program(self.place).signal(Signal::SIGSTOP);
                go();
                thread::sleep(self.moment());
                world.program(self.place).signal(Signal::SIGCONT);
            }
            Kind::Starve => {
                let program = world.program(self.place);
                let full = program.limit_descriptors(program.resources().1);
                go();
                world.knock(4);
                thread::sleep(self.moment());
                world.program(self.place).limit_descriptors(full);
            }
            Kind::Clock => {
                let Some(clock) = world.clock(self.place) else { return false };
                let jump = if self.choose(4, 2) == 0 { "+3600" } else { "-3600" };
                fs::write(clock, jump).unwrap();
                go();
                world.recovers("while the clock is wrong", self);
                fs::write(world.clock(self.place).unwrap(), "+0").unwrap();
            }
            Kind::Disk => {
                let Some(disk) = world.disk(self.place) else { return false };
                disk.fill();
                go();
                world.recovers("while the disk is full", self);
                world.disk(self.place).unwrap().free();
            }
        }
        true
    }

    fn disturb(&self, world: &World, go: impl FnOnce()) {
        let path = world.path(self.place);
        match self.kind {
            Kind::Cut => path.cut_everything(),
            Kind::Halve => path.halve(if self.choose(4, 2) == 0 { Way::Up } else { Way::Down }),
            Kind::Delay => path.delay(self.moment() / 8),
            Kind::Split => path.split(1 + self.choose(4, 90)),
            Kind::Stall => path.hold(true),
            _ => path.fall_silent(),
        }
        go();
        thread::sleep(self.moment());
        match self.kind {
            Kind::Delay => path.delay(Duration::ZERO),
            Kind::Split => path.split(0),
            Kind::Stall => path.hold(false),
            Kind::Silence => {
                path.recover();
                path.cut_silent();
            }
            _ => {}
        }
    }

    fn replace(&self, world: &mut World, go: impl FnOnce()) {
        let program = world.program(self.place);
        if self.kind == Kind::Kill {
            program.kill();
        } else {
            program.signal(Signal::SIGTERM);
            let status = program.wait();
            assert_eq!(status.code(), Some(0), "{self}: {}", program.err());
        }
        go();
        world.start_again(self.place);
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:?}", self.kind, self.place)
    }
}
