//! `connect doctor`: one check after the other, each with its verdict and the command that mends it.

use std::sync::Arc;

use serde_json::json;

use super::doctor_checks::CHECKS;
use crate::api::Hub;
use crate::cli::Call;
use crate::cli::CommandResult;
use crate::error::Error;
use crate::error::Result;
use crate::state::config::Config;

/// Who is examined, and what earlier checks have found out.
pub struct Exam<'c> {
    pub call: &'c Call,
    pub config: Config,
    /// The hub, for as long as nothing on the way to it is amiss.
    pub hub: Option<Arc<Hub>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Ok,
    /// Good to know; it works all the same.
    Warn,
    Fail,
}

pub type Fix = fn(&Exam<'_>) -> Result<()>;

pub struct Verdict {
    pub level: Level,
    pub said: String,
    /// What to type.
    pub mend: Option<String>,
    /// Does it for the user, when that is safe.
    pub fix: Option<Fix>,
}

#[allow(clippy::unnecessary_wraps)] // Checks end with them.
impl Verdict {
    pub fn ok(said: impl Into<String>) -> Option<Self> {
        Some(Self { level: Level::Ok, said: said.into(), mend: None, fix: None })
    }

    pub fn warn(said: impl Into<String>, mend: impl Into<String>) -> Option<Self> {
        Some(Self { level: Level::Warn, said: said.into(), mend: Some(mend.into()), fix: None })
    }

    pub fn fail(error: &Error) -> Option<Self> {
        Some(Self { level: Level::Fail, said: error.to_string(), mend: error.hint.clone(), fix: None })
    }

    pub fn with(self, fix: Fix) -> Self {
        Self { fix: Some(fix), ..self }
    }
}

/// `None` when there is nothing to look at, or when an earlier check has failed that it stands on.
pub type Check = fn(&mut Exam<'_>) -> Option<Verdict>;

pub fn run(call: &Call) -> CommandResult {
    let mut exam = Exam { call, config: Config::default(), hub: None };
    let (mut found, mut failed, mut warned) = (Vec::new(), 0, 0);
    for (name, check) in CHECKS {
        let Some(mut verdict) = check(&mut exam) else { continue };
        call.fail_if_stopped()?;
        let is_fixed = call.args.flag("fix") && mend(&exam, &mut verdict);
        tell(call, name, &verdict, is_fixed);
        failed += usize::from(verdict.level == Level::Fail);
        warned += usize::from(verdict.level == Level::Warn);
        let word = [("ok", Level::Ok), ("warn", Level::Warn), ("fail", Level::Fail)]
            .into_iter()
            .find_map(|(word, level)| (level == verdict.level).then_some(word));
        found.push(json!({ "check": name, "verdict": word, "said": verdict.said, "mend": verdict.mend, "fixed": is_fixed }));
    }
    call.say.value(&found);
    call.say.line("");
    call.say.result(&match (failed, warned) {
        (0, 0) => "[ok] All is well".to_owned(),
        (0, _) => format!("[ok] It works; {warned} thing(s) to know"),
        _ => format!("[x] {failed} thing(s) to mend"),
    });
    Ok(u8::from(failed > 0))
}

fn mend(exam: &Exam<'_>, verdict: &mut Verdict) -> bool {
    let Some(fix) = verdict.fix else { return false };
    match fix(exam) {
        Ok(()) => {
            (verdict.level, verdict.mend) = (Level::Ok, None);
            true
        }
        Err(error) => {
            verdict.mend = Some(format!("{error}. {}", error.hint.clone().unwrap_or_default()));
            false
        }
    }
}

fn tell(call: &Call, name: &str, verdict: &Verdict, is_fixed: bool) {
    let mark = match verdict.level {
        Level::Ok => "[ok]",
        Level::Warn => "[!] ",
        Level::Fail => "[x] ",
    };
    let fixed = if is_fixed { "; mended" } else { "" };
    let line = format!("{mark} {name:<16} {}{fixed}", verdict.said);
    if verdict.level == Level::Ok {
        call.say.line(&line);
    } else {
        call.say.result(&line);
    }
    verdict.mend.iter().for_each(|mend| call.say.result(&format!("{:22}{mend}", "")));
}
