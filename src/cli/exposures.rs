//! The agent of one command, and what it tells the user: `expose` has one service, `share` and `dev` several.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;
use std::time::Instant;

use super::call::Call;
use super::call::not_configured;
use crate::api::Hub;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::model::name::Name;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::connect::dial;
use crate::os::files;
use crate::state::runs::OpenService;
use crate::state::runs::OwnRun;
use crate::tunnel::agent::AgentEvent;
use crate::tunnel::agent::AgentProfile;
use crate::tunnel::agent::Exposure;
use crate::tunnel::agent::RunningAgent;
use crate::tunnel::traffic::TrafficCounters;

/// How long a target has to answer before the user is told that it does not.
const TARGET_TIMEOUT: Duration = Duration::from_secs(2);
/// How often news are looked for.
pub const EXPOSURE_POLL: Duration = Duration::from_millis(200);

pub struct ExposureSet<'c> {
    call: &'c Call,
    agent: RunningAgent,
    told: Receiver<AgentEvent>,
    /// One lock for each name, so that two processes of this machine do not take it from each other.
    locks: BTreeMap<Name, files::FileLock>,
    /// This command's entry in the list of what runs, unless it has another.
    run: Option<OwnRun>,
    /// Why, while the hub is away or does not want this machine.
    lost: RefCell<Option<String>>,
}

/// A service as the hub knows it now.
pub struct RegisteredService {
    pub exposure: Exposure,
    pub service: String,
    pub tunnel_port: Option<u16>,
    pub answers: bool,
}

impl<'c> ExposureSet<'c> {
    /// With `run`, this command's own entry in the list of what runs tells what is exposed.
    pub fn start(call: &'c Call, hub: Arc<Hub>, run: Option<OwnRun>) -> Result<Self> {
        let config = call.config()?;
        let id = config.agent_id.clone().ok_or_else(not_configured)?;
        let profile = AgentProfile {
            id: id.clone(),
            label: config.label.clone().unwrap_or_default(),
            identity: call.identity()?,
        };
        let (tell, told) = mpsc::channel();
        let agent =
            RunningAgent::start(hub, &profile, Box::new(move |event| drop(tell.send(event))), &call.stop)?;
        Ok(Self { call, agent, told, locks: BTreeMap::new(), run, lost: RefCell::default() })
    }

    /// Exposes these, and returns when the hub knows all of them, or at Ctrl-C those that it knows by then. A
    /// hub that cannot be reached is waited for.
    pub fn expose(&mut self, exposures: Vec<Exposure>) -> Result<Vec<RegisteredService>> {
        exposures.iter().try_for_each(|exposure| self.offer(exposure))?;
        let mut known = BTreeMap::new();
        while known.len() < exposures.len() && !self.call.stop.is_stopped() {
            match self.next(Instant::now() + TARGET_TIMEOUT) {
                Some(AgentEvent::Exposed { name, service, tunnel_port }) => {
                    drop(known.insert(name, (service, tunnel_port)));
                }
                Some(AgentEvent::Refused { error, .. }) => return Err(error),
                Some(AgentEvent::Lost(error)) if error.kind != ErrorKind::Unreachable => return Err(error),
                Some(event) => self.tell(&event),
                None => {}
            }
        }
        let found = exposures.into_iter().filter_map(|exposure| {
            let (service, tunnel_port) = known.remove(&exposure.name)?;
            let answers = dial(
                &exposure.target.host,
                exposure.target.port,
                Instant::now() + TARGET_TIMEOUT.min(NETWORK_TIMEOUT),
                &self.call.stop,
            )
            .is_ok();
            Some(RegisteredService { exposure, service, tunnel_port, answers })
        });
        Ok(found.collect())
    }

    /// Offers it to the hub, and does not wait for its word.
    pub fn offer(&mut self, exposure: &Exposure) -> Result<()> {
        let lock = self.alone(&exposure.name)?;
        self.locks.insert(exposure.name.clone(), lock);
        self.agent.expose(exposure.clone());
        Ok(())
    }

    /// The names by which `status` shows this command and `stop` finds it, when they are known only now.
    pub fn called(&mut self, names: &[String]) {
        self.run.iter_mut().for_each(|run| run.called(names));
    }

    pub fn withdraw(&mut self, name: &Name) {
        self.agent.withdraw(name);
        self.locks.remove(name);
    }

    /// Until Ctrl-C, or until there is nothing left to stay for, as `is_over` says when it is asked at every turn.
    pub fn stay(&mut self, mut is_over: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        loop {
            self.tell_news()?;
            self.report();
            let is_over = is_over(self)?;
            if self.call.stop.wait_for(EXPOSURE_POLL) || is_over {
                self.run.iter_mut().for_each(OwnRun::ends_well);
                return Ok(());
            }
        }
    }

    pub fn is_lost(&self) -> bool {
        self.lost.borrow().is_some()
    }

    /// What is exposed, for `connect status`.
    pub fn open(&self) -> Vec<OpenService> {
        let open = |(exposure, traffic): (Exposure, Arc<TrafficCounters>)| OpenService {
            name: exposure.name.to_string(),
            at: exposure.target.to_string(),
            up: !self.is_lost(),
            trouble: self.lost.borrow().clone(),
            sessions: usize::try_from(traffic.sessions.load(Ordering::Relaxed)).unwrap_or_default(),
            bytes: traffic.bytes.load(Ordering::Relaxed),
        };
        self.agent.traffic().into_iter().map(open).collect()
    }

    fn report(&mut self) {
        let open = self.open();
        if let Some(run) = &mut self.run {
            run.report(open);
        }
    }

    /// What has happened since the last time.
    pub fn news(&self) -> impl Iterator<Item = AgentEvent> {
        self.told.try_iter()
    }

    /// Tells what has happened since the last time.
    pub fn tell_news(&self) -> Result<()> {
        for event in self.news() {
            match event {
                AgentEvent::Refused { error, .. } => return Err(error),
                AgentEvent::Lost(error) if error.is_status(401) || error.is_status(403) => return Err(error),
                event => self.tell(&event),
            }
        }
        Ok(())
    }

    fn next(&self, deadline: Instant) -> Option<AgentEvent> {
        while !self.call.stop.is_stopped() {
            let left = deadline.saturating_duration_since(Instant::now()).min(Duration::from_millis(100));
            match self.told.recv_timeout(left) {
                Ok(event) => return Some(event),
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(_) => return None,
            }
        }
        None
    }

    pub fn tell(&self, event: &AgentEvent) {
        let say = &self.call.say;
        match event {
            AgentEvent::Lost(error) => {
                let why = if error.may_pass() { "the hub is away".to_owned() } else { error.to_string() };
                self.lost.replace(Some(why));
                say.lost(error);
            }
            AgentEvent::Back => {
                self.lost.replace(None);
                say.back();
            }
            AgentEvent::Refused { name, error } => say.warn(&format!("{name}: {error}")),
            AgentEvent::Exposed { .. } => {}
        }
    }

    fn alone(&self, name: &Name) -> Result<files::FileLock> {
        let home = &self.call.home;
        files::private_dir(&home.file("run"))?;
        files::try_lock(&home.file(&format!("run/expose-{name}.lock")))?.ok_or_else(|| {
            Error::new(format!("{name} is already exposed by another process of this machine"))
                .hint("End that one first, or choose another name")
        })
    }
}
