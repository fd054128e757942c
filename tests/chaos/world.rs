//! A service, its agent, a hub, a joiner and its clients, with a path that can be broken between any two.

use std::net::TcpStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use crate::common;
use crate::common::Disk;
use crate::common::Home;
use crate::common::Hub;
use crate::common::Running;
use crate::common::fault;
use crate::common::under;
use crate::faults::Case;
use crate::faults::Place;
use crate::soak;
use crate::transfer::DEADLINE;
use crate::transfer::Gate;
use crate::transfer::Outcome;
use crate::transfer::Seen;
use crate::transfer::transfer;

/// At once, in each run.
const CLIENTS: usize = 3;
const SMALLEST: usize = 64 * 1024;
const LARGEST: usize = 768 * 1024;
const CLOCKS: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
];
/// Sessions that stand from a run to the next have their threads and descriptors; idle ones go after a minute.
const IDLE: Duration = Duration::from_secs(75);
/// Threads that a listener keeps, ready to accept: `SPARE` of `src/net/serve.rs`.
const SPARE: usize = 64;
/// KiB by which a program may have grown over all runs.
const GROWTH: usize = 24 * 1024;

/// One program with a folder on a disk of its own, and a clock.
struct Machine {
    home: Home,
    disk: Option<Disk>,
    clock: Option<PathBuf>,
    /// What a shell says before it starts a program there: limits.
    first: &'static str,
}

pub struct World {
    seen: Arc<Seen>,
    service: u16,
    front: fault::Path,
    joiner: Running,
    user: Machine,
    down: fault::Path,
    agent: Running,
    owner: Machine,
    up: fault::Path,
    hub: Hub,
    hub_machine: Machine,
}

/// Threads, descriptors and KiB of memory of one program.
pub type Counts = [(usize, usize, usize); 3];

impl Machine {
    fn new(first: &'static str) -> Self {
        let home = Home::new();
        let disk = Disk::mount(&home.file("disk"));
        let clock = CLOCKS.iter().any(|library| Path::new(library).exists()).then(|| home.file("clock"));
        if let Some(clock) = &clock {
            std::fs::write(clock, "+0").unwrap();
        }
        Self { home, disk, clock, first }
    }

    fn connect(&self, args: &[&str]) -> Command {
        let mut command = self.home.connect(args);
        command.env("PRIVATECONNECT_HOME", self.home.file("disk"));
        if let (Some(clock), Some(library)) =
            (&self.clock, CLOCKS.iter().find(|path| Path::new(path).exists()))
        {
            command
                .env("LD_PRELOAD", library)
                .env("FAKETIME_TIMESTAMP_FILE", clock)
                .env("FAKETIME_NO_CACHE", "1");
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1");
        }
        under(self.first, &command)
    }

    /// Logged in at the hub by this path.
    fn of(hub: &Hub, path: &fault::Path, first: &'static str) -> Self {
        let machine = Self::new(first);
        let key = hub.key("member");
        common::Said::of(machine.connect(&["up", "--hub", &path.url(), "--api-key", &key])).ok();
        machine
    }
}

impl World {
    pub fn new() -> Self {
        Self::where_each_does("true")
    }

    pub fn where_each_does(first: &'static str) -> Self {
        let hub_machine = Machine::new(first);
        let command =
            hub_machine.connect(&["hub", "--json", "--listen", "127.0.0.1:0", "--tunnel-ports", "off"]);
        let mut command = command;
        command.arg("--first-key-file").arg(hub_machine.home.file("disk/first.key"));
        let hub = Hub::start_by(Home::at(hub_machine.home.file("disk")), command, &[]);
        let (up, down) = (fault::Path::to(&hub.address), fault::Path::to(&hub.address));
        let (owner, user) = (Machine::of(&hub, &up, first), Machine::of(&hub, &down, first));
        let seen = Arc::new(Seen::default());
        let service = seen.serve();
        let agent = exposed(&owner, service);
        let (joiner, port) = reached(&user);
        let front = fault::Path::to(&format!("127.0.0.1:{port}"));
        let world = Self { seen, service, front, joiner, user, down, agent, owner, up, hub, hub_machine };
        world.recovers("at the beginning", &Case::of(0));
        world
    }

    pub fn path(&self, place: Place) -> &fault::Path {
        match place {
            Place::Agent => &self.up,
            Place::Hub => &self.down,
            Place::Joiner => &self.front,
        }
    }

    pub fn program(&mut self, place: Place) -> &mut Running {
        match place {
            Place::Agent => &mut self.agent,
            Place::Hub => &mut self.hub.running,
            Place::Joiner => &mut self.joiner,
        }
    }

    fn machine(&self, place: Place) -> &Machine {
        match place {
            Place::Agent => &self.owner,
            Place::Hub => &self.hub_machine,
            Place::Joiner => &self.user,
        }
    }

    pub fn disk(&self, place: Place) -> Option<&Disk> {
        self.machine(place).disk.as_ref()
    }

    pub fn clock(&self, place: Place) -> Option<&Path> {
        self.machine(place).clock.as_deref()
    }

    pub fn start_again(&mut self, place: Place) {
        match place {
            Place::Agent => self.agent = exposed(&self.owner, self.service),
            Place::Hub => {
                let options = ["hub", "--json", "--listen", &self.hub.address, "--tunnel-ports", "off"];
                let returns = self.agent.events("back");
                self.hub.running = Running::start(self.hub_machine.connect(&options));
                self.hub.running.wait_event("listening");
                if is_direct() {
                    // A hub that does not know the agent's sessions ends them then: that is still this fault.
                    common::eventually("the agent is back", DEADLINE, || self.agent.events("back") > returns);
                }
            }
            Place::Joiner => {
                let (joiner, port) = reached(&self.user);
                self.joiner = joiner;
                self.front.lead_to(&format!("127.0.0.1:{port}"));
            }
        }
    }

    /// Connections that nobody may have a descriptor for.
    pub fn knock(&self, count: usize) {
        let knocking: Vec<_> =
            (0..count).map(|_| TcpStream::connect(("127.0.0.1", self.front.port))).collect();
        thread::sleep(Duration::from_millis(50));
        drop(knocking);
    }

    /// How many transfers came through, and how many broke; `None` where the fault is not to be had here.
    pub fn run(&mut self, case: &Case) -> Option<(usize, usize)> {
        let gate = Arc::new(Gate::default());
        let (seen, port) = (Arc::clone(&self.seen), self.front.port);
        let seeds: Vec<u64> = (0..CLIENTS as u64).map(|client| case.seed * 1000 + client).collect();
        let length = SMALLEST + case.choose(6, LARGEST - SMALLEST);
        let (is_here, outcomes) = thread::scope(|scope| {
            let start = |seed| {
                let (seen, gate) = (&seen, &gate);
                scope.spawn(move || transfer(seen, port, seed, length, gate))
            };
            let clients: Vec<_> = seeds.iter().map(|seed| start(*seed)).collect();
            let arrived = gate.gather(2 * CLIENTS, DEADLINE);
            let is_here = arrived == 2 * CLIENTS && case.inflict(self, || gate.open());
            gate.open();
            let outcomes: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
            let served = || seeds.iter().map(|seed| self.seen.wait_for(*seed)).collect::<Vec<_>>();
            assert_eq!(arrived, 2 * CLIENTS, "before {case}: clients {outcomes:?}, service {:?}", served());
            (is_here, outcomes)
        });
        for (seed, outcome) in seeds.iter().zip(&outcomes) {
            let served = self.seen.wait_for(*seed);
            assert!(
                case.client_may_see(*outcome),
                "{case}: the client saw {outcome:?}, the service {served:?}"
            );
            let fits = served.is_some_and(|served| case.service_may_see(served));
            assert!(fits, "{case}: the service saw {served:?}, the client {outcome:?}");
        }
        self.recovers("afterwards", case);
        let whole = outcomes.iter().filter(|outcome| **outcome == Outcome::Whole).count();
        is_here.then_some((whole, outcomes.len() - whole))
    }

    /// New connections work before long, as many at once as there are clients, without anybody's help.
    pub fn recovers(&self, when: &str, case: &Case) {
        let began = Instant::now();
        for attempt in 0.. {
            let gate = Arc::new(Gate::default());
            let start = |client| {
                let seed = case.seed * 1000 + 100 + (attempt * CLIENTS as u64 + client) % 900;
                transfer(&self.seen, self.front.port, seed, SMALLEST, &gate)
            };
            let outcomes: Vec<Outcome> = thread::scope(|scope| {
                let clients: Vec<_> =
                    (0..CLIENTS as u64).map(|client| scope.spawn(move || start(client))).collect();
                // All have to stand at once, or one session would do.
                gate.gather(2 * CLIENTS, Duration::from_secs(2));
                gate.open();
                clients.into_iter().map(|client| client.join().unwrap()).collect()
            });
            if outcomes.iter().all(|outcome| *outcome == Outcome::Whole) {
                return;
            }
            let altered = outcomes.iter().any(|outcome| matches!(outcome, Outcome::Altered(_)));
            assert!(
                !altered && began.elapsed() < DEADLINE,
                "{case}: {outcomes:?} {when}, for {:?}",
                began.elapsed()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn all_run(&mut self) -> bool {
        [Place::Agent, Place::Hub, Place::Joiner].into_iter().all(|place| self.program(place).is_running())
    }

    pub fn counts(&self) -> Counts {
        [&self.hub.running, &self.agent, &self.joiner].map(|program| {
            let (threads, descriptors) = program.resources();
            (threads, descriptors, memory(program))
        })
    }

    /// What the programs have open is what they had open, and not much more memory.
    pub fn leaves_nothing(&self, before: &Counts) {
        // Only a soak has the time to wait until sessions that knocking and recovering made are idle for a minute.
        let room = if soak().is_some() { 0 } else { 5 };
        let fits = |(now, then): (&(usize, usize, usize), &(usize, usize, usize))| {
            now.0 <= then.0 + 2 * room + SPARE && now.1 <= then.1 + 2 * room && now.2 <= then.2 + GROWTH
        };
        let began = Instant::now();
        while !self.counts().iter().zip(before).all(fits) && began.elapsed() < IDLE {
            thread::sleep(Duration::from_millis(100));
        }
        let after = self.counts();
        let told = format!("threads, descriptors, KiB of hub, agent, joiner: {before:?}, then {after:?}");
        assert!(after.iter().zip(before).all(fits), "left behind: {told}");
        println!("{told}");
    }
}

fn memory(program: &Running) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Whether joiner and agent may meet without the hub.
fn is_direct() -> bool {
    std::env::var_os("CONNECT_CHAOS_DIRECT").is_some()
}

fn exposed(owner: &Machine, service: u16) -> Running {
    // With the direct path the faults between agent, hub and joiner hit the deciding, and kills hit the sessions.
    let direct = is_direct().then_some("--direct=127.0.0.1:0");
    let service = service.to_string();
    let args = ["expose", "--json", "service", &service].into_iter().chain(direct).collect::<Vec<_>>();
    let running = Running::start(owner.connect(&args));
    running.wait_event("exposed");
    running
}

fn reached(user: &Machine) -> (Running, u16) {
    let running = Running::start(user.connect(&["reach", "--json", "service"]));
    let port = running.wait_event("up")["localPort"].as_u64().unwrap();
    (running, u16::try_from(port).unwrap())
}
