//! Keeps the tunnels and exposures of one command up, and lists the command for `connect status`.
//!
//! `expose`, `share`, `reach`, `join`, `dev` and the daemon work alike. They say what they want to be up, wait until it
//! is, report that to the user, and call `stay`: the one loop that waits for Ctrl-C, for the command after `--`, and for
//! the events of tunnels and agent. Everything that has no event of its own is polled in between: the state of ports
//! and refused exposures here; the expiry of a share, a changed config or project file in the command.

pub mod event;
pub mod exposures;
pub mod local_tunnel;
pub mod tunnels;

use std::sync::Arc;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::Sender;
use std::time::Duration;
use std::time::Instant;

use event::SupervisorEvent;
use exposures::ExposureSet;
use exposures::RegisteredService;
use tunnels::TunnelSet;

use super::background;
use super::call::Call;
use super::call::CommandResult;
use super::health_page::HealthPage;
use crate::api::Hub;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::net::stop::Registration;
use crate::net::threads;
use crate::os::process;
use crate::state::runs;
use crate::state::runs::OpenService;
use crate::state::runs::OwnRun;
use crate::tunnel::agent::Exposure;

/// A changed file or an expired share is noticed this late at most. A poll costs a few system calls.
const SUPERVISOR_POLL: Duration = Duration::from_millis(200);
/// How long `-d` waits for the hub.
const BACKGROUND_START_TIMEOUT: Duration = Duration::from_secs(10);
/// A command that was asked to end has this long before it is killed.
const COMMAND_END_TIMEOUT: Duration = Duration::from_secs(5);

/// Dropped in this order: the tunnels with their routes, the exposures, and last the entry in the list of commands.
pub struct Supervisor<'c> {
    call: &'c Call,
    pub tunnels: TunnelSet<'c>,
    pub exposures: ExposureSet<'c>,
    /// `None` if the state folder cannot be written: then the command works, and is not listed.
    pub run: Option<OwnRun>,
    pub health: Option<HealthPage>,
    /// The running command after `--`.
    command: Option<u32>,
    sender: Sender<SupervisorEvent>,
    receiver: Receiver<SupervisorEvent>,
    next_poll: Instant,
    _wake_on_stop: Option<Registration>,
}

impl<'c> Supervisor<'c> {
    /// `status` shows the command with `kind` and `names`, and `stop` finds it by them.
    pub fn new(call: &'c Call, kind: &str, names: &[String]) -> Self {
        let (sender, receiver) = mpsc::channel();
        let run = runs::register(&call.home, kind, names, call.background_log.clone());
        let run = run.inspect_err(|error| log::info!("this command is not listed: {error}")).ok();
        let wake = sender.clone();
        Self {
            call,
            tunnels: TunnelSet::new(call, sender.clone()),
            exposures: ExposureSet::new(call, sender.clone()),
            run,
            health: None,
            command: None,
            sender,
            receiver,
            next_poll: Instant::now(),
            _wake_on_stop: call.stop.on_stop(move || _ = wake.send(SupervisorEvent::Stopped)),
        }
    }

    /// Exposes these services and returns when the hub knows all of them, or at Ctrl-C those that it knows by then. An
    /// unreachable hub is waited for, in the background for a limited time.
    pub fn expose(&mut self, hub: &Arc<Hub>, exposures: Vec<Exposure>) -> Result<Vec<RegisteredService>> {
        self.exposures.hub = Some(Arc::clone(hub));
        self.exposures.set_desired(exposures);
        // Who starts it in the background waits for the outcome.
        let deadline = self.call.is_background().then(|| Instant::now() + BACKGROUND_START_TIMEOUT);
        self.wait_for_exposures(deadline, ExposureSet::is_registered)?;
        if deadline.is_some() && !self.exposures.is_registered() && !self.call.stop.is_stopped() {
            return Err(Error::new("The hub does not answer, so nothing is exposed")
                .hint("In the foreground it is waited for. With connect expose --keep, the daemon goes on trying")
                .kind(ErrorKind::Unreachable));
        }
        Ok(self.exposures.registered())
    }

    /// Until the exposures are as `is_done` wants them, until the deadline, or until Ctrl-C.
    pub fn wait_for_exposures(
        &mut self,
        deadline: Option<Instant>,
        is_done: impl Fn(&ExposureSet<'c>) -> bool,
    ) -> Result<()> {
        self.exposures.reconcile()?;
        let is_late = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
        while !is_done(&self.exposures) && !is_late() && !self.call.stop.is_stopped() {
            match self.next_event() {
                Some(event) => self.handle(event)?,
                None => self.exposures.reconcile()?,
            }
        }
        Ok(())
    }

    /// Says that the command is ready, starts the command after `--`, and stays until that has ended, until Ctrl-C,
    /// until `poll` says that there is nothing left to stay for, or until an error.
    pub fn stay(&mut self, mut poll: impl FnMut(&mut Self) -> Result<Stay>) -> CommandResult {
        background::ready(self.call)?;
        self.start_command()?;
        let code = self.wait_for_end(&mut poll);
        // A command that still runs was started for the sake of the tunnels, and ends with them.
        self.end_command();
        if let (Ok(_), Some(run)) = (&code, &mut self.run) {
            run.ends_well();
        }
        code
    }

    fn wait_for_end(&mut self, poll: &mut dyn FnMut(&mut Self) -> Result<Stay>) -> CommandResult {
        loop {
            // The first Ctrl-C belongs to the command after `--`, if there is one.
            if self.command.is_none() && self.call.stop.is_stopped() {
                return Ok(0);
            }
            match self.next_event() {
                Some(SupervisorEvent::CommandEnded(code)) => {
                    self.command = None;
                    return code;
                }
                // The signal came just before the command started. The tunnels are already closing.
                Some(SupervisorEvent::Stopped) => {
                    if let Some(pid) = self.command {
                        process::terminate(pid);
                    }
                }
                Some(event) => self.handle(event)?,
                None => {
                    self.tunnels.find_ports();
                    self.tunnels.publish()?;
                    self.exposures.reconcile()?;
                    self.report();
                    if poll(self)? == Stay::Over {
                        return Ok(0);
                    }
                }
            }
        }
    }

    /// The next event; `None` when it is time to poll.
    fn next_event(&mut self) -> Option<SupervisorEvent> {
        let left = self.next_poll.saturating_duration_since(Instant::now());
        let event = self.receiver.recv_timeout(left).ok();
        if event.is_none() {
            self.next_poll = Instant::now() + SUPERVISOR_POLL;
        }
        event
    }

    fn handle(&mut self, event: SupervisorEvent) -> Result<()> {
        match event {
            SupervisorEvent::Tunnel(name, event) => self.tunnels.on_event(&name, event),
            SupervisorEvent::Agent(number, event) => self.exposures.on_event(number, event),
            SupervisorEvent::CommandEnded(_) | SupervisorEvent::Stopped => Ok(()),
        }
    }

    fn report(&mut self) {
        let mut open: Vec<_> = self.tunnels.open_services().collect();
        open.extend(self.exposures.open_services());
        if let Some(health) = &self.health {
            let missing = open.iter().filter(|one| !one.up);
            let why = |one: &OpenService| one.trouble.clone().unwrap_or_else(|| "not up yet".to_owned());
            health.set_missing(missing.map(|one| format!("{}: {}", one.name, why(one))).collect());
        }
        if let Some(run) = &mut self.run {
            run.note_direct(self.exposures.direct_address());
            run.report(open);
        }
    }

    /// Starts the command after `--` in a thread that reports its end.
    fn start_command(&mut self) -> Result<()> {
        let (Some(command), Some(signals)) = (self.call.args.run.clone(), self.call.signals.clone()) else {
            return Ok(());
        };
        self.call.fail_if_stopped()?;
        let environment = self.tunnels.environment();
        let events = self.sender.clone();
        let (started, pid) = mpsc::channel();
        threads::spawn("command", move || {
            let code = signals.run(&command, &environment, |pid| _ = started.send(pid));
            let _ = events.send(SupervisorEvent::CommandEnded(code));
        })?;
        // A command that cannot be started reports that as its end.
        self.command = pid.recv().ok();
        Ok(())
    }

    fn end_command(&mut self) {
        let Some(pid) = self.command.take() else { return };
        process::terminate(pid);
        if !self.command_ends_in_time() {
            process::kill_now(pid);
            self.command_ends_in_time();
        }
    }

    fn command_ends_in_time(&self) -> bool {
        let deadline = Instant::now() + COMMAND_END_TIMEOUT;
        loop {
            match self.receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(SupervisorEvent::CommandEnded(_)) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }
}

/// Whether a command has a reason to stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    On,
    Over,
}
