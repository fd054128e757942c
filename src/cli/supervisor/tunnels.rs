//! The tunnels of one command: `reach` has one, `join` and `dev` several.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use super::event::SupervisorEvent;
use super::local_tunnel::LocalTunnel;
use super::local_tunnel::TunnelSpec;
use crate::api::Hub;
use crate::cli::call::Call;
use crate::cli::say::Say;
use crate::cli::tunnel_access::TunnelAccess;
use crate::error::Error;
use crate::error::Result;
use crate::model::name::Name;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::os::files;
use crate::state::runs::OpenService;
use crate::tunnel::joiner::JoinerEvent;

/// While a command waits for services, it checks the missing ones this often.
const MISSING_SERVICE_POLL: Duration = Duration::from_millis(500);
/// `-- CMD` waits this long for its services without `--wait`, since nobody is there to read which one is missing.
const COMMAND_START_TIMEOUT: Duration = Duration::from_mins(1);

/// Waiting for longer is shown on a terminal.
const PROGRESS_DELAY: Duration = Duration::from_secs(2);
/// Somebody who reads a job's log sees this often that it is not stuck, and where it waits.
const WAIT_NOTICE_INTERVAL: Duration = Duration::from_secs(10);

pub struct TunnelSet<'c> {
    call: &'c Call,
    events: Sender<SupervisorEvent>,
    /// In the order in which they were opened.
    all: Vec<LocalTunnel>,
    /// How long a service may take to prove that it answers.
    pub check_timeout: Duration,
    /// The lines that `--env-file` got last.
    env_file: String,
}

/// What a reconciliation changed.
pub struct TunnelChanges {
    pub left: Vec<Name>,
    pub joined: Vec<Name>,
}

impl<'c> TunnelSet<'c> {
    pub fn new(call: &'c Call, events: Sender<SupervisorEvent>) -> Self {
        Self { call, events, all: Vec::new(), check_timeout: NETWORK_TIMEOUT, env_file: String::new() }
    }

    pub fn all(&self) -> &[LocalTunnel] {
        &self.all
    }

    /// Those that can be used now.
    pub fn active(&self) -> impl Iterator<Item = &LocalTunnel> {
        self.all.iter().filter(|tunnel| tunnel.trouble.is_none())
    }

    /// Closes the tunnels that are not desired any more, opens those that are new, and checks all that are not up. The
    /// others are not touched. What is wrong with a service is in its tunnel's `trouble`.
    pub fn reconcile(
        &mut self,
        access: &Arc<TunnelAccess>,
        desired: Vec<TunnelSpec>,
    ) -> Result<TunnelChanges> {
        let is_desired = |tunnel: &LocalTunnel| desired.iter().any(|spec| spec.is_met_by(&tunnel.spec));
        let gone = self.all.extract_if(.., |tunnel| !is_desired(tunnel));
        let left = gone.map(|tunnel| tunnel.spec.name.clone()).collect();
        let mut joined = Vec::new();
        for spec in desired {
            if self.all.iter().all(|tunnel| tunnel.spec.name != spec.name) {
                joined.push(spec.name.clone());
                self.all.push(LocalTunnel::new(self.call, access, spec, &self.events)?);
            }
        }
        self.check_missing();
        Ok(TunnelChanges { left, joined })
    }

    /// Checks at the same time all services that do not answer yet. Each check takes up to `check_timeout`.
    fn check_missing(&mut self) {
        let timeout = self.check_timeout;
        thread::scope(|scope| {
            for tunnel in self.all.iter_mut().filter(|tunnel| !tunnel.is_up()) {
                scope.spawn(move || tunnel.check(timeout));
            }
        });
        // In their order: if two services want one port, the first gets it.
        for tunnel in &mut self.all {
            tunnel.take_port();
        }
    }

    /// The services that are missing, with the reasons.
    fn missing(&self) -> String {
        let missing = self.all.iter().filter_map(|tunnel| Some((&tunnel.spec.name, tunnel.reason()?)));
        missing.map(|(name, why)| format!("{name} ({why})")).collect::<Vec<_>>().join(", ")
    }

    /// Checks until every service answers or the time is up. `asked` is what `--wait` says.
    pub fn wait_until_up(&mut self, asked: Option<Duration>) -> Result<()> {
        let default = self.call.args.run.as_ref().map(|_| COMMAND_START_TIMEOUT);
        let deadline = Instant::now() + asked.or(default).unwrap_or_default();
        let began = Instant::now();
        let mut next_notice = began + WAIT_NOTICE_INTERVAL;
        loop {
            if began.elapsed() >= PROGRESS_DELAY {
                self.call.say.progress("");
            }
            self.call.fail_if_stopped()?;
            self.fail_without_typed_port()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.active().count() == self.all.len() {
                return Ok(());
            }
            if let Some(error) = self.all.iter().find_map(LocalTunnel::final_error) {
                return Err(error);
            }
            say_waiting(&self.call.say, &mut next_notice, || self.missing());
            if began.elapsed() >= PROGRESS_DELAY {
                self.call.say.progress(&format!("  Waiting for {}", self.missing()));
            }
            if !self.call.stop.wait_for(MISSING_SERVICE_POLL.min(left)) {
                self.check_missing();
            }
        }
    }

    /// A port that was typed is had, or the command fails.
    fn fail_without_typed_port(&mut self) -> Result<()> {
        let is_refused = |tunnel: &&mut LocalTunnel| {
            tunnel.spec.strict && tunnel.spec.asked.is_some() && tunnel.is_up() && tunnel.port().is_none()
        };
        let refused = self.all.iter_mut().find(is_refused).and_then(|tunnel| tunnel.trouble.take());
        refused.map_or(Ok(()), Err)
    }

    /// The reason why one service is missing, for a command that ends over it.
    pub fn take_trouble(&mut self, name: &Name) -> Option<Error> {
        self.all.iter_mut().find(|tunnel| tunnel.spec.name == *name)?.trouble.take()
    }

    /// An error if a command is to run and one of its services is missing.
    pub fn require_all_for_command(&self) -> Result<()> {
        let missing: Vec<&LocalTunnel> = self.all.iter().filter(|tunnel| tunnel.trouble.is_some()).collect();
        if self.call.args.run.is_none() || missing.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = missing.iter().map(|tunnel| tunnel.spec.name.as_str()).collect();
        let error =
            Error::new(format!("The command was not started: {} cannot be reached", names.join(", ")));
        // If retrying cannot help, show that error's own hint instead of `--wait`.
        let mut troubles = missing.iter().filter_map(|tunnel| tunnel.trouble.as_ref());
        Err(match troubles.find(|trouble| !trouble.may_pass()) {
            Some(trouble) => {
                error.because(trouble.to_string()).hint(trouble.hint.clone().unwrap_or_default())
            }
            None => error.hint(
                "Give it more time with --wait 5m, or run connect status on the machine that offers it",
            ),
        })
    }

    /// Lists the tunnels as routes, in the order of their names. Before the user reads that they are there, so that a
    /// script which waits for that line finds them.
    pub fn list_routes(&mut self) {
        let mut by_name: Vec<&mut LocalTunnel> = self.all.iter_mut().collect();
        by_name.sort_by(|one, other| one.spec.name.cmp(&other.spec.name));
        for tunnel in by_name {
            tunnel.list_route();
        }
    }

    /// Lists the routes, writes `--env-file`, and has every tunnel report its changes from now on.
    pub fn publish(&mut self) -> Result<()> {
        self.list_routes();
        self.write_env_file()?;
        for tunnel in &self.all {
            tunnel.report_changes();
        }
        Ok(())
    }

    fn write_env_file(&mut self) -> Result<()> {
        let Some(path) = self.call.args.value("env-file") else { return Ok(()) };
        let lines: String =
            self.environment().iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        if self.env_file != lines {
            files::write_lines(Path::new(path), &self.env_file, &lines)?;
            self.env_file = lines;
        }
        Ok(())
    }

    /// Services that answer but found no port try again; a port may have become free.
    pub fn find_ports(&mut self) {
        for tunnel in self.all.iter_mut().filter(|tunnel| tunnel.port().is_none()) {
            tunnel.take_port();
            if tunnel.port().is_some() {
                tunnel.say_up(&self.call.say, false);
            }
        }
    }

    /// Says each time that a service goes or comes. An error ends the command: there is nothing left to wait for.
    pub fn on_event(&mut self, name: &Name, event: JoinerEvent) -> Result<()> {
        let reason = if let JoinerEvent::Down(error) = &event { Some(error.to_string()) } else { None };
        // One line for a hub that is lost, not one for each of its services.
        let is_told = self.all.iter().any(|tunnel| reason.is_some() && tunnel.reason() == reason);
        let Some(tunnel) = self.all.iter_mut().find(|tunnel| tunnel.spec.name == *name) else {
            return Ok(());
        };
        match event {
            JoinerEvent::Up => {
                tunnel.came_up(&self.call.say);
                self.publish()
            }
            JoinerEvent::Down(error) => tunnel.went_down(&self.call.say, error, is_told),
        }
    }

    /// The variables for the command after `--` and for `--env-file`.
    pub fn environment(&self) -> Vec<(String, String)> {
        self.all.iter().flat_map(LocalTunnel::environment).collect()
    }

    pub fn open_services(&self) -> impl Iterator<Item = OpenService> {
        self.all.iter().map(LocalTunnel::open_service)
    }
}

/// `--wait` covers an unreachable hub as well. Returns the time that is left for the services.
pub fn wait_for_hub(call: &Call, hub: &Hub, asked: Option<Duration>) -> Result<Option<Duration>> {
    let Some(timeout) = asked else { return Ok(None) };
    let deadline = Instant::now() + timeout;
    let mut next_notice = Instant::now() + WAIT_NOTICE_INTERVAL;
    while let Err(error) = hub.health() {
        say_waiting(&call.say, &mut next_notice, || format!("the hub ({error})"));
        if !error.may_pass() || Instant::now() >= deadline {
            return Err(error);
        }
        call.stop.wait_for(MISSING_SERVICE_POLL);
        call.fail_if_stopped()?;
    }
    Ok(Some(deadline.saturating_duration_since(Instant::now())))
}

/// Says at intervals what a command waits for.
fn say_waiting(say: &Say, next: &mut Instant, what: impl FnOnce() -> String) {
    if Instant::now() >= *next {
        *next += WAIT_NOTICE_INTERVAL;
        let what = what();
        say.event(&json!({ "event": "waiting", "for": what }));
        say.line(&format!("  Waiting for {what}"));
    }
}
