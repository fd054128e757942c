//! What the daemon does: keeps the exposures of the config up, takes a change of the config as it comes, and
//! never gives up over a hub that is away or a name that is taken for the moment.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use crate::cli::Call;
use crate::cli::exposures::EXPOSURE_POLL;
use crate::cli::exposures::ExposureSet;
use crate::error::Error;
use crate::error::Result;
use crate::model::name::Name;
use crate::os::files::FileStamp;
use crate::state::config;
use crate::state::config::Config;
use crate::state::config::SavedExposure;
use crate::state::runs::OpenService;
use crate::state::runs::OwnRun;
use crate::tunnel::agent::AgentEvent;
use crate::tunnel::agent::Exposure;

/// What was refused is asked for again after this long.
const REFUSED_RETRY: Duration = Duration::from_secs(20);
/// Whoever started the daemon hears within this what came up and what did not.
const FIRST_ANSWERS_TIMEOUT: Duration = Duration::from_secs(5);

pub struct DaemonExposures<'c> {
    call: &'c Call,
    config: Config,
    seen: FileStamp,
    exposing: Option<ExposureSet<'c>>,
    /// What the hub was asked to expose, as it was then.
    offered: BTreeMap<Name, SavedExposure>,
    known: BTreeSet<Name>,
    /// What stands in the way of one exposure, and when it is tried again.
    refused: BTreeMap<Name, (String, Instant)>,
    /// What stands in the way of all of them.
    trouble: Option<(String, Instant)>,
}

impl<'c> DaemonExposures<'c> {
    pub fn new(call: &'c Call) -> Result<Self> {
        // The stamp comes first, so that a change in between is seen as one.
        let seen = config::stamp(&call.home, call.config_file());
        let config = Config::clone(&*call.reload_config()?);
        let (exposing, offered, known, refused, trouble) = Default::default();
        Ok(Self { call, config, seen, exposing, offered, known, refused, trouble })
    }

    /// Until everything has been answered for, one way or the other, or for a while.
    pub fn settle(&mut self, run: &mut OwnRun) {
        let deadline = Instant::now() + FIRST_ANSWERS_TIMEOUT;
        self.turn(run);
        while Instant::now() < deadline && !self.is_settled() && !self.call.stop.wait_for(EXPOSURE_POLL) {
            self.turn(run);
        }
    }

    pub fn keep_up(&mut self, run: &mut OwnRun) {
        while !self.call.stop.wait_for(EXPOSURE_POLL) {
            self.turn(run);
        }
    }

    fn is_settled(&self) -> bool {
        let is_lost = self.exposing.as_ref().is_some_and(ExposureSet::is_lost);
        let answered = |name: &Name| self.known.contains(name) || self.refused.contains_key(name);
        self.trouble.is_some() || is_lost || self.config.exposures.keys().all(answered)
    }

    fn turn(&mut self, run: &mut OwnRun) {
        self.look_at_config();
        self.begin();
        self.withdraw_what_is_gone();
        self.offer_what_is_new();
        self.hear();
        run.report(self.open());
    }

    fn look_at_config(&mut self) {
        let now = config::stamp(&self.call.home, self.call.config_file());
        if now == self.seen {
            return;
        }
        self.seen = now;
        match self.call.reload_config() {
            Ok(config) => {
                let before = std::mem::replace(&mut self.config, Config::clone(&config));
                // Another login is another agent; who only saved an exposure keeps the channel.
                if (Config { exposures: self.config.exposures.clone(), ..before }) != self.config {
                    self.end();
                }
                self.trouble = None;
            }
            Err(error) => self.call.say.warn(&format!("{error}; the exposures stay as they are")),
        }
    }

    fn end(&mut self) {
        self.exposing = None;
        self.offered.clear();
        self.known.clear();
        self.refused.clear();
    }

    /// An agent, as soon as there is something to expose.
    fn begin(&mut self) {
        let may = self.trouble.as_ref().is_none_or(|(_, again)| Instant::now() >= *again);
        if self.exposing.is_some() || self.config.exposures.is_empty() || !may {
            return;
        }
        match self.call.hub().and_then(|hub| ExposureSet::start(self.call, hub, None)) {
            Ok(exposing) => (self.exposing, self.trouble) = (Some(exposing), None),
            Err(error) => self.in_trouble(&error),
        }
    }

    fn in_trouble(&mut self, error: &Error) {
        let text = error.to_string();
        if self.trouble.as_ref().is_none_or(|(known, _)| *known != text) {
            let hint = error.hint.as_ref().map(|hint| format!(". {hint}")).unwrap_or_default();
            self.call.say.warn(&format!("{text}{hint}"));
        }
        self.trouble = Some((text, Instant::now() + REFUSED_RETRY));
    }

    fn withdraw_what_is_gone(&mut self) {
        let now = &self.config.exposures;
        let gone: Vec<Name> = self
            .offered
            .iter()
            .filter(|(name, kept)| now.get(*name) != Some(*kept))
            .map(|(name, _)| name.clone())
            .collect();
        self.refused.retain(|name, _| now.contains_key(name));
        for name in gone {
            self.withdraw(&name);
            self.call.say.line(&format!("[ok] {name} is not exposed any more"));
            self.call.say.event(&json!({ "event": "withdrawn", "name": name }));
        }
    }

    fn withdraw(&mut self, name: &Name) {
        self.offered.remove(name);
        self.known.remove(name);
        self.exposing.iter_mut().for_each(|exposing| exposing.withdraw(name));
    }

    fn offer_what_is_new(&mut self) {
        let Some(exposing) = &mut self.exposing else { return };
        let mut refusals = Vec::new();
        for (name, kept) in &self.config.exposures {
            let later = self.refused.get(name).is_some_and(|(_, again)| Instant::now() < *again);
            if later || self.offered.contains_key(name) {
                continue;
            }
            let SavedExposure { target, protocol } = kept.clone();
            match exposing.offer(&Exposure { name: name.clone(), target, protocol }) {
                Ok(()) => drop(self.offered.insert(name.clone(), kept.clone())),
                Err(error) => refusals.push((name.clone(), error)),
            }
        }
        refusals.iter().for_each(|(name, error)| self.refuse(name, error));
    }

    fn refuse(&mut self, name: &Name, error: &Error) {
        let text = error.to_string();
        if self.refused.get(name).is_none_or(|(known, _)| *known != text) {
            self.call.say.warn(&format!("{name} is not exposed: {text}"));
            self.call.say.event(&json!({ "event": "refused", "name": name, "reason": text }));
        }
        self.refused.insert(name.clone(), (text, Instant::now() + REFUSED_RETRY));
    }

    fn hear(&mut self) {
        let news: Vec<AgentEvent> = self.exposing.iter().flat_map(ExposureSet::news).collect();
        for event in news {
            match event {
                AgentEvent::Exposed { name, .. } => self.exposed(name),
                AgentEvent::Refused { name, error } => {
                    self.withdraw(&name);
                    self.refuse(&name, &error);
                }
                AgentEvent::Lost(error) if error.is_status(401) || error.is_status(403) => {
                    self.end();
                    self.in_trouble(&error);
                }
                event => self.exposing.iter().for_each(|exposing| exposing.tell(&event)),
            }
        }
    }

    fn exposed(&mut self, name: Name) {
        self.refused.remove(&name);
        // After an outage the hub says it again.
        if let Some(kept) = self.offered.get(&name).filter(|_| !self.known.contains(&name)) {
            self.call.say.line(&format!("[ok] {name} exposed from {}", kept.target));
            self.call.say.event(&json!({ "event": "exposed", "name": name, "target": kept.target }));
            self.known.insert(name);
        }
    }

    /// For `connect status`: everything that the config names, exposed or not.
    fn open(&self) -> Vec<OpenService> {
        let standing: BTreeMap<String, OpenService> =
            self.exposing.iter().flat_map(ExposureSet::open).map(|open| (open.name.clone(), open)).collect();
        let one = |(name, kept): (&Name, &SavedExposure)| {
            let missing =
                OpenService { name: name.to_string(), at: kept.target.to_string(), ..OpenService::default() };
            let mut open = standing.get(name.as_str()).cloned().unwrap_or(missing);
            let why = self.refused.get(name).or(self.trouble.as_ref()).map(|(why, _)| why.clone());
            open.trouble = why.or(open.trouble);
            open.up = open.trouble.is_none() && self.known.contains(name);
            open
        };
        self.config.exposures.iter().map(one).collect()
    }
}
