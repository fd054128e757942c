//! The checks of `connect doctor` that follow the way to the hub, step by step.

use std::time::Duration;
use std::time::Instant;

use super::doctor::Exam;
use super::doctor::Verdict;
use super::doctor_checks::verdict;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::model::access::Action;
use crate::model::time::in_words;
use crate::net::address::proxy_for;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::connect::dial_hub;
use crate::net::connect::resolve;
use crate::os::clock;
use crate::os::secret;

/// More than this and times in lists and logs mislead.
const SKEW: Duration = Duration::from_secs(30);

/// A step on the way to the hub. When it fails, what lies behind it is not looked at.
fn on_the_way(
    exam: &mut Exam<'_>,
    step: impl FnOnce(&Exam<'_>, &crate::api::Hub) -> Result<String>,
) -> Option<Verdict> {
    let hub = exam.hub.clone()?;
    let began = Instant::now();
    let taken = step(exam, &hub).map(|said| format!("{said} ({} ms)", began.elapsed().as_millis()));
    if taken.is_err() {
        exam.hub = None;
    }
    verdict(taken)
}

pub fn hub_dns(exam: &mut Exam<'_>) -> Option<Verdict> {
    on_the_way(exam, |exam, hub| {
        let (host, port) = (hub.url.host.clone(), hub.url.port);
        let proxy = proxy_for(&host, port)?;
        let by = proxy.as_ref().map_or(String::new(), |_| ", which HTTPS_PROXY names".to_owned());
        let (host, port) = proxy.map_or((host, port), |proxy| (proxy.host, proxy.port));
        let found = resolve(&host, port, Instant::now() + NETWORK_TIMEOUT, &exam.call.stop)?;
        let first = found.first().map(|address| address.ip().to_string()).unwrap_or_default();
        Ok(format!("{host}{by} → {first}"))
    })
}

pub fn hub_tcp(exam: &mut Exam<'_>) -> Option<Verdict> {
    on_the_way(exam, |exam, hub| {
        let (host, port) = (&hub.url.host, hub.url.port);
        drop(dial_hub(host, port, Instant::now() + NETWORK_TIMEOUT, &exam.call.stop).map_err(|error| {
            let hint = format!(
                "See on the hub's machine that it runs: connect hub status. A firewall may drop port {port}"
            );
            if error.hint.is_some() { error } else { error.hint(hint) }
        })?);
        let through = proxy_for(host, port)?.map(|proxy| format!(" through {}:{}", proxy.host, proxy.port));
        Ok(format!("port {port}{}", through.unwrap_or_default()))
    })
}

pub fn hub_tls(exam: &mut Exam<'_>) -> Option<Verdict> {
    on_the_way(exam, |_, hub| hub.check_identity().map(|()| "the hub proved who it is".to_owned()))
}

pub fn hub_http(exam: &mut Exam<'_>) -> Option<Verdict> {
    on_the_way(exam, |_, hub| hub.health().map(|health| format!("connect {}", health.version)))
}

pub fn clock_skew(exam: &mut Exam<'_>) -> Option<Verdict> {
    let (theirs, ours) = (exam.hub.as_ref()?.health().ok()?.time?, clock::now());
    let (ahead, behind) = (ours.since(theirs), theirs.since(ours));
    let mend = "Set the clock that is wrong: timedatectl set-ntp true";
    match (ahead > SKEW, behind > SKEW) {
        (true, _) => Verdict::warn(format!("this machine is {} ahead of the hub", in_words(ahead)), mend),
        (_, true) => Verdict::warn(format!("this machine is {} behind the hub", in_words(behind)), mend),
        _ => Verdict::ok("as the hub's"),
    }
}

pub fn login(exam: &mut Exam<'_>) -> Option<Verdict> {
    on_the_way(exam, |_, hub| {
        let whoami = hub.whoami()?;
        Ok(format!("{}, workspace {}", whoami.role_word(), whoami.workspace))
    })
}

pub fn control_channel(exam: &mut Exam<'_>) -> Option<Verdict> {
    let role = exam.hub.as_ref()?.whoami().ok()?.role;
    if role.is_some_and(|role| !role.may(Action::Expose)) {
        return Verdict::ok("not for this key: it may not expose");
    }
    verdict(exam.hub.as_ref()?.control().map(|_| "an agent can stand here".to_owned()))
}

/// A ticket that nobody made must come back as just that, from the hub and not from a box in between.
pub fn relay(exam: &mut Exam<'_>) -> Option<Verdict> {
    let hub = exam.hub.clone()?;
    let asked = |scheme: &str| {
        hub.relay(&hub.url, &format!("{scheme}://hub"), &secret::secret(), Instant::now() + NETWORK_TIMEOUT)
    };
    let is_there =
        |outcome: &Result<_>| matches!(outcome, Err(error) if error.kind == ErrorKind::Refused(403));
    let plain = asked("http");
    if is_there(&plain) {
        return Verdict::ok("usable");
    }
    if is_there(&asked("https")) {
        return Verdict::ok("usable, by https");
    }
    let why =
        plain.err().map_or_else(|| "it took a ticket that is none".to_owned(), |error| error.to_string());
    let port = hub.url.port;
    Verdict::fail(&Error::new("Sessions cannot be relayed").because(why).hint(format!(
        "Something between here and the hub changes what is no TLS on port {port}; use another network, or put the hub behind TLS: connect hub --behind-proxy"
    )))
}
