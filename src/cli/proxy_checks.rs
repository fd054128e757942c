//! The checks of `connect doctor` on the local proxy: names, its port, and the trust in its certificates.

#![allow(clippy::unnecessary_wraps)] // Every check has the type `Check`.

use std::net::Ipv4Addr;
use std::net::TcpStream;
use std::time::Duration;
use std::time::Instant;

use super::checkup::CheckResult;
use super::checkup::Checkup;
use super::local_ca;
use crate::error::Error;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::connect::resolve;
use crate::os::command;
use crate::os::process;
use crate::os::setup::trust_store;
use crate::proxy::certificates::Certificates;
use crate::state::proxy;
use crate::state::proxy::LOCAL_PROXY_PORT;

/// A proxy on this machine accepts at once.
const PROXY_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

pub fn dot_localhost(checkup: &mut Checkup<'_>) -> Option<CheckResult> {
    let name = "connect-doctor.localhost";
    let by_system = command::output_of(&["getent", "ahosts", name])
        .map(|printed| printed.starts_with("127.") || printed.starts_with("::1"));
    let is_known = by_system.unwrap_or_else(|| {
        let deadline = Instant::now() + NETWORK_TIMEOUT;
        let found = resolve(name, LOCAL_PROXY_PORT, deadline, &checkup.call.stop);
        found.is_ok_and(|found| found.iter().all(|address| address.ip().is_loopback()))
    });
    if is_known {
        return Some(CheckResult::ok("the system knows that it is this machine"));
    }
    Some(CheckResult::warn(
        "browsers and curl know NAME.localhost, other programs of this system do not",
        "Install nss-myhostname (package libnss-myhostname), or write the name into /etc/hosts",
    ))
}

pub fn local_proxy(checkup: &mut Checkup<'_>) -> Option<CheckResult> {
    let state = proxy::running(&checkup.call.home);
    let port = state.as_ref().map_or(LOCAL_PROXY_PORT, |state| state.port);
    let answer = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), PROXY_CONNECT_TIMEOUT);
    Some(match (state, answer) {
        (Some(state), Ok(_)) => CheckResult::ok(format!("runs on port {} (PID {})", state.port, state.pid)),
        (Some(_), Err(error)) => CheckResult::fail(
            &Error::new(format!("it runs, but does not answer on port {port}"))
                .because(error)
                .hint("connect proxy start --replace"),
        ),
        (None, Ok(_)) => {
            let holder = process::listener_on(port)
                .map_or_else(String::new, |(pid, name)| format!(": {name} (PID {pid})"));
            CheckResult::warn(
                format!("not running, and its port {port} is taken{holder}"),
                format!("connect proxy start --port {}", port + 1),
            )
        }
        (None, Err(_)) => CheckResult::ok("not running; connect proxy start"),
    })
}

pub fn certificates(checkup: &mut Checkup<'_>) -> Option<CheckResult> {
    let ca = local_ca::ca_file(checkup.call);
    if !ca.exists() {
        return None;
    }
    if let Err(error) = Certificates::of_folder(&local_ca::folder(checkup.call)) {
        return Some(CheckResult::fail(&error));
    }
    let lacking = local_ca::machine().map(|machine| trust_store::stores_without(&machine, &ca));
    let lacking = lacking.unwrap_or_else(|_| vec!["any store".to_owned()]);
    if lacking.is_empty() {
        return Some(CheckResult::ok("the local CA is trusted, by the system and by browsers"));
    }
    let found = format!("the local CA is not in {}", lacking.join(" and "));
    Some(CheckResult::warn(found, "connect proxy trust"))
}
