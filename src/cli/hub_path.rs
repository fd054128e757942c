//! The path to the hub, one step at a time: its name, a connection, its certificate, the relay. `reach` shows the first
//! steps and `doctor` all of them.
//!
//! A step that fails says why, and the steps after it would fail for the same reason. Nothing here prints.

use std::time::Duration;
use std::time::Instant;

use super::call::Call;
use crate::api::Hub;
use crate::api::hub_client::share_of_time;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::model::host_port::HostPort;
use crate::net::address::HubUrl;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::connect::resolve;
use crate::net::forward_proxy::dial_by_environment;
use crate::net::forward_proxy::proxy_for;
use crate::os::secret;

/// A step that succeeded.
pub struct PathStep {
    pub name: &'static str,
    pub found: String,
    pub took: Duration,
    /// The key exchange and the cipher suite, where it is a TLS connection.
    pub tls: Option<String>,
}

/// Takes a step and measures it.
pub fn measure(name: &'static str, step: impl FnOnce() -> Result<String>) -> Result<PathStep> {
    let began = Instant::now();
    let found = step()?;
    Ok(PathStep { name, found, took: began.elapsed(), tls: None })
}

/// The steps of a command that uses the hub anyway: to the first hub of the fleet that can be reached. The login shows
/// the certificate as well, so it is not dialled a second time only to look at that.
pub fn walk(call: &Call, hub: &Hub, deadline: Instant) -> Result<Vec<PathStep>> {
    let mut steps = connect_somewhere(call, &hub.known_hubs(), deadline)?;
    let hub = hub.until(deadline);
    let proved = measure("TLS", || hub.whoami().map(|_| "the hub proved who it is".to_owned()))?;
    steps.push(PathStep { tls: Some(hub.negotiated()), ..proved });
    Ok(steps)
}

fn connect_somewhere(call: &Call, urls: &[HubUrl], deadline: Instant) -> Result<Vec<PathStep>> {
    let mut failure = Error::new("There is no hub");
    for (step, url) in urls.iter().enumerate() {
        let deadline = Instant::now() + share_of_time(deadline, urls.len() - step);
        let steps = measure("DNS", || dns(call, url, deadline))
            .and_then(|dns| Ok(vec![dns, measure("TCP", || tcp(call, url, deadline))?]));
        match steps {
            Ok(steps) => return Ok(steps),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Looks up the name that we dial: the hub's, or that of the HTTP proxy on the way to it.
pub fn dns(call: &Call, url: &HubUrl, deadline: Instant) -> Result<String> {
    let proxy = proxy_for(&url.host_port())?;
    let by = if proxy.is_some() { ", which HTTPS_PROXY names" } else { "" };
    let HostPort { host, port } = proxy.map_or(url.host_port(), |proxy| proxy.at);
    let addresses = resolve(&host, port, deadline, &call.stop)?;
    let first = addresses.first().map(|address| address.ip().to_string()).unwrap_or_default();
    Ok(format!("{host}{by} → {first}"))
}

pub fn tcp(call: &Call, url: &HubUrl, deadline: Instant) -> Result<String> {
    drop(dial_by_environment(&url.host_port(), deadline, &call.stop)?);
    let proxy = proxy_for(&url.host_port())?;
    let through = proxy.map(|proxy| format!(" through {}", proxy.at));
    Ok(format!("port {}{}", url.port, through.unwrap_or_default()))
}

/// Shows the relay a ticket that nobody made. The hub itself must refuse it: a box in between that does not
/// understand the upgrade answers something else.
pub fn relay(hub: &Hub) -> Result<&'static str> {
    let mut failure = Error::new("Sessions cannot be relayed").hint(format!(
            "Something between here and the hub alters non-TLS traffic on port {}; use another network, or put the hub behind TLS: connect hub --behind-proxy",
            hub.url.port
        ));
    for (relay, found) in [("https://hub", "usable, by https"), ("http://hub", "usable")] {
        let deadline = Instant::now() + NETWORK_TIMEOUT;
        failure = match hub.show_ticket(&hub.url, relay, &secret::secret(), deadline) {
            Err(error) if error.kind == ErrorKind::Refused(403) => return Ok(found),
            Err(error) => failure.because(error),
            Ok(_) => failure.because("the relay accepted an invalid ticket"),
        };
    }
    Err(failure)
}
