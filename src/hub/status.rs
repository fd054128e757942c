//! What the hub reports: its health, its metrics, and who the caller is.

use std::fmt::Write;

use super::api_call::ApiCall;
use super::api_call::ok;
use super::core::Core;
use super::records::Records;
use super::refusal::Refusal;
use crate::http::reply::Reply;
use crate::model::access::DEFAULT_WORKSPACE;
use crate::model::access::Principal;
use crate::os::clock;
use crate::wire::api::CaCertificate;
use crate::wire::api::Health;
use crate::wire::api::WhoAmI;

pub fn health(core: &Core) -> Result<Reply, Refusal> {
    let store = core.fleet.as_ref().map(|fleet| if fleet.replica.is_away() { "away" } else { "ok" });
    let health = Health {
        status: "ok".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        uptime_seconds: core.started.elapsed().as_secs(),
        store: store.map(str::to_owned),
        time: Some(clock::now()),
    };
    ok(200, &health)
}

/// The certificate of the hub's CA, for programs that take a CA file and no pin.
pub fn ca(core: &Core) -> Result<Reply, Refusal> {
    ok(200, &CaCertificate { certificate: core.ca.certificate_pem() })
}

/// All counters in the text format of Prometheus. They are the whole hub's, so only its operator reads them: the admins
/// of the default workspace, whose first key was made with the hub.
pub fn metrics(core: &Core, call: &ApiCall<'_>) -> Result<Reply, Refusal> {
    if call.workspace() != DEFAULT_WORKSPACE {
        return Err(Refusal::WholeHub);
    }
    let mut text = String::new();
    let mut line = |name: &str, kind: &str, value: u64| {
        let _ = writeln!(text, "# TYPE connect_{name} {kind}\nconnect_{name} {value}");
    };
    line("uptime_seconds", "gauge", core.started.elapsed().as_secs());
    {
        let registry = core.records.registry();
        line("agents", "gauge", registry.channel_count() as u64);
        line("services", "gauge", registry.service_count() as u64);
        line("services_online", "gauge", registry.online().count() as u64);
        if let Some(fleet) = &core.fleet {
            line("hubs", "gauge", registry.hubs().count() as u64);
            line("store_up", "gauge", u64::from(!fleet.replica.is_away()));
        }
    }
    let totals = core.sessions.totals();
    line("sessions_open", "gauge", totals.open);
    line("sessions_total", "counter", totals.opened);
    let _ = writeln!(text, "# TYPE connect_bytes_total counter");
    for (direction, bytes) in [("to_agent", totals.to_agent), ("to_joiner", totals.to_joiner)] {
        let _ = writeln!(text, "connect_bytes_total{{direction=\"{direction}\"}} {bytes}");
    }
    let _ = writeln!(text, "# TYPE connect_refusals_total counter");
    for (code, count) in core.refusals.by_code() {
        let _ = writeln!(text, "connect_refusals_total{{reason=\"{code}\"}} {count}");
    }
    Ok(Reply::text(200, text).field("content-type", "text/plain; version=0.0.4"))
}

pub fn whoami(call: &ApiCall<'_>, records: &Records) -> Result<Reply, Refusal> {
    let role = match &call.principal {
        Principal::Key { role, .. } => Some(*role),
        Principal::Link { .. } | Principal::Local => None,
    };
    let whoami = WhoAmI {
        label: call.principal.label().into(),
        role,
        workspace: call.workspace().into(),
        hubs: records.registry().hub_urls(),
    };
    ok(200, &whoami)
}
