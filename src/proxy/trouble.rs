//! Why a service gave no usable response, and what helps. It is found out after the failure, so a request that succeeds
//! pays nothing for it.

use std::io;

use super::route_table::ProxyRoute;
use crate::error::Error;

const NOT_RESPONDING: &str = "Bad Gateway: the service is not responding.";
const TOO_LATE: &str = "Gateway Timeout: the service took too long to answer.";

/// The answer to the client: the status, its sentence, the reason and what to do about it.
#[derive(Debug)]
pub struct Trouble {
    pub status: u16,
    pub error: &'static str,
    pub reason: String,
    pub hint: String,
}

impl Trouble {
    fn new(reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status: 502, error: NOT_RESPONDING, reason: reason.into(), hint: hint.into() }
    }

    pub fn of_error(error: Error) -> Self {
        let reason = error.to_string();
        Self::new(reason, error.hint.unwrap_or_default())
    }

    pub fn offline(route: &ProxyRoute, agent: &str) -> Self {
        let ProxyRoute { name, port, .. } = route;
        Self::new(
            format!("The agent {agent} is offline"),
            format!("Start it there: connect expose {name} {port}"),
        )
    }

    pub fn not_connected(route: &ProxyRoute, error: &io::Error) -> Self {
        if error.kind() != io::ErrorKind::ConnectionRefused {
            return Self::new(format!("localhost:{} does not answer: {error}", route.port), "");
        }
        Self::new(
            format!("Nothing is listening at localhost:{}", route.port),
            "Start the service; it needs nothing else",
        )
    }

    pub fn not_http(route: &ProxyRoute) -> Self {
        let first =
            if route.is_local() { String::new() } else { format!("connect reach {}, then: ", route.name) };
        let client =
            route.own_client().unwrap_or_else(|| format!("its own client, with localhost:{}", route.port));
        Self::new(format!("{} does not speak HTTP", route.name), format!("Use {first}{client}"))
    }

    pub fn no_tls(route: &ProxyRoute) -> Self {
        let hint =
            format!("Expose it without --protocol https: connect expose {} {}", route.name, route.port);
        Self::new(format!("{} is exposed with --protocol https, and does not speak TLS", route.name), hint)
    }

    pub fn speaks_tls(route: &ProxyRoute) -> Self {
        let hint = format!("Expose it so: connect expose {} {} --protocol https", route.name, route.port);
        Self::new(format!("{} speaks TLS", route.name), hint)
    }

    pub fn invalid(why: &str) -> Self {
        Self::new(format!("The answer is not valid: {why}"), "Its own log may tell more")
    }

    pub fn too_late() -> Self {
        let late = Self::new("It accepted the request and sent nothing", "Its own log may tell more");
        Self { status: 504, error: TOO_LATE, ..late }
    }

    /// A service of another protocol, too, may take our request for nonsense and hang up.
    pub fn closed(route: &ProxyRoute) -> Self {
        let reason = format!("{} closed the connection without an answer", route.name);
        Self { reason, ..Self::not_http(route) }
    }
}
