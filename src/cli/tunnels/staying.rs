//! A party while it stays: until Ctrl-C, until the command behind `--` ends, or until the right to all this is
//! gone.

use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use super::TUNNEL_POLL;
use super::TunnelSet;
use crate::cli::CommandResult;
use crate::cli::background;
use crate::cli::local_tunnel::LocalTunnel;
use crate::error::Result;
use crate::model::name::Name;
use crate::os::process;
use crate::state::runs::OwnRun;
use crate::tunnel::joiner::JoinerEvent;

/// A command that is asked to end has this long, then it is made to.
const COMMAND_END_TIMEOUT: Duration = Duration::from_secs(5);

pub enum TunnelEvent {
    Service(Name, JoinerEvent),
    /// The command behind `--` has ended.
    CommandEnded(Result<u8>),
    Stopped,
}

/// What the owner of a party does at every turn, like looking whether a file has changed.
pub type EachTurn<'t> = &'t mut dyn FnMut(&mut TunnelSet<'_>) -> Result<()>;

impl TunnelSet<'_> {
    /// Until Ctrl-C, until the command behind `--` ends, or until the right to all this is gone.
    pub fn stay(mut self, each_turn: EachTurn<'_>) -> CommandResult {
        background::ready(self.call)?;
        let code = self.stay_on(each_turn)?;
        self.run.iter_mut().for_each(OwnRun::ends_well);
        Ok(code)
    }

    fn stay_on(&mut self, each_turn: EachTurn<'_>) -> CommandResult {
        let tell = self.tell.clone();
        let woken = self.call.stop.on_stop(move || drop(tell.send(TunnelEvent::Stopped)));
        let command = self.run_command()?;
        // A Ctrl-C that came before has no cut to make.
        if woken.is_none() {
            drop(self.tell.send(TunnelEvent::Stopped));
        }
        self.report();
        loop {
            let told = match self.told.recv_timeout(TUNNEL_POLL) {
                Ok(told) => told,
                Err(RecvTimeoutError::Timeout) => {
                    self.find_ports();
                    self.settle()?;
                    self.report();
                    each_turn(self)?;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => TunnelEvent::Stopped,
            };
            match told {
                TunnelEvent::Service(name, event) => {
                    if let Err(error) = self.tell_user(&name, event) {
                        // What was begun for the sake of the tunnels ends with them.
                        command.into_iter().for_each(|pid| self.end_command(pid));
                        return Err(error);
                    }
                }
                TunnelEvent::CommandEnded(code) => return code,
                // The signal came just before the command did, and the tunnels are gone.
                TunnelEvent::Stopped if command.is_some() => command.into_iter().for_each(process::terminate),
                TunnelEvent::Stopped => return Ok(0),
            }
        }
    }

    /// For `connect status`.
    fn report(&mut self) {
        let open = self.members.iter().filter_map(LocalTunnel::open).collect();
        if let Some(run) = &mut self.run {
            run.report(open);
        }
    }

    /// Starts the command behind `--`, if there is one, in a thread that tells when it ends.
    fn run_command(&self) -> Result<Option<u32>> {
        let (Some(command), Some(signals)) = (self.call.args.run.clone(), self.call.signals.clone()) else {
            return Ok(None);
        };
        self.call.fail_if_stopped()?;
        let (environment, tell) = (self.environment(), self.tell.clone());
        let (started, pid) = mpsc::channel();
        let work = move || {
            let code = signals.run(&command, &environment, |pid| _ = started.send(pid));
            let _ = tell.send(TunnelEvent::CommandEnded(code));
        };
        crate::net::threads::spawn("command", work)?;
        // A command that cannot be started says so by its end.
        Ok(pid.recv().ok())
    }

    fn end_command(&self, pid: u32) {
        process::terminate(pid);
        if !self.command_ends_by(Instant::now() + COMMAND_END_TIMEOUT) {
            process::kill_now(pid);
            self.command_ends_by(Instant::now() + COMMAND_END_TIMEOUT);
        }
    }

    fn command_ends_by(&self, deadline: Instant) -> bool {
        while let Ok(told) = self.told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if matches!(told, TunnelEvent::CommandEnded(_)) {
                return true;
            }
        }
        false
    }

    /// One line each time a service goes or comes; an error when there is nothing left to wait for.
    fn tell_user(&mut self, name: &Name, event: JoinerEvent) -> Result<()> {
        let say = &self.call.say;
        let Some(member) = self.members.iter_mut().find(|member| member.wanted.name == *name) else {
            return Ok(());
        };
        match event {
            JoinerEvent::Up => {
                let seen = member.seen;
                member.trouble = None;
                member.take_port(&self.call.home, &self.right.hub.url);
                match &member.trouble {
                    None => member.say_up(say, if seen { "is back" } else { "is there now" }),
                    Some(error) => say.warn(&format!("{name} → failed: {error}")),
                }
                self.settle()?;
            }
            JoinerEvent::Down(error) => {
                if let Some(final_word) = self.right.the_end(&error) {
                    return Err(final_word);
                }
                // First the hub is away, then it is back without the agent: that is one outage.
                if member.trouble.is_none() {
                    say.event(&json!({ "event": "down", "name": name, "reason": error.to_string() }));
                    say.warn(&format!("{name} is away: {error}"));
                }
                member.trouble = Some(error);
            }
        }
        Ok(())
    }
}
