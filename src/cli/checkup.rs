//! What the checks of `connect doctor` have in common: what they may use, and what they return.

use std::sync::Arc;

use super::call::Call;
use crate::api::Hub;
use crate::error::Error;
use crate::error::Result;
use crate::state::home::Home;

pub struct Checkup<'c> {
    pub call: &'c Call,
    /// The hub, until a step on the path to it fails: the checks after that would only repeat the failure.
    pub hub: Option<Arc<Hub>>,
}

/// `None` if there is nothing to check.
pub type Check = fn(&mut Checkup<'_>) -> Option<CheckResult>;

/// Repairs without asking what is safe to repair.
pub type Fix = fn(&Home) -> Result<()>;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Ok,
    /// Good to know, but everything works.
    Warn,
    Fail,
}

pub struct CheckResult {
    pub severity: Severity,
    pub found: String,
    /// What to type.
    pub hint: Option<String>,
    pub fix: Option<Fix>,
}

impl CheckResult {
    pub fn ok(found: impl Into<String>) -> Self {
        Self { severity: Severity::Ok, found: found.into(), hint: None, fix: None }
    }

    pub fn warn(found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { severity: Severity::Warn, found: found.into(), hint: Some(hint.into()), fix: None }
    }

    pub fn fail(error: &Error) -> Self {
        Self { severity: Severity::Fail, found: error.to_string(), hint: error.hint.clone(), fix: None }
    }

    pub fn of(outcome: Result<String>) -> Self {
        outcome.map_or_else(|error| Self::fail(&error), Self::ok)
    }

    /// A machine that never logged in may join by link, for which it needs neither a login nor a state folder.
    pub fn unless_by_link_only(mut self, call: &Call) -> Self {
        let is_new = call.config().is_ok_and(|config| config.hub_url.is_none() && config.api_key.is_none());
        if self.severity == Severity::Fail && is_new && matches!(call.api_key(), Ok(None)) {
            self.severity = Severity::Warn;
            self.found += "; enough to join by link";
        }
        self
    }

    pub fn with_fix(self, fix: Fix) -> Self {
        Self { fix: Some(fix), ..self }
    }
}
