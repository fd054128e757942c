//! What the hub reports: its health, its metrics, and who the caller is.

use std::fmt::Write;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use super::api_call::ApiCall;
use super::api_call::ok;
use super::core::Core;
use super::key_rotation;
use super::refusal::Refusal;
use crate::http::reply::Reply;
use crate::model::access::DEFAULT_WORKSPACE;
use crate::model::access::Principal;
use crate::os::clock;
use crate::wire::api::DrainHub;
use crate::wire::api::Health;
use crate::wire::api::WhoAmI;
use crate::wire::control::ToAgent;

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

/// Whether sessions can be opened and changes written. A load balancer or an upgrade asks this, and has no key.
pub fn ready(core: &Core) -> Result<Reply, Refusal> {
    let faults = core.readiness.faults();
    let why = faults.iter().map(|fault| (fault.code().to_owned(), fault.reason().into()));
    let answer = json!({ "ready": faults.is_empty(), "why": Value::Object(why.collect()) });
    ok(if faults.is_empty() { 200 } else { 503 }, &answer)
}

/// Takes no new sessions from now on, and ends the hub when it has no other left. Only for its own command line.
pub fn drain(core: &Core, call: &ApiCall<'_>) -> Result<Reply, Refusal> {
    if call.principal != Principal::Local {
        return Err(Refusal::WholeHub);
    }
    let order: DrainHub = call.body()?;
    core.readiness.begin_drain(Duration::from_secs(order.timeout_seconds));
    core.channels.send_all(&ToAgent::Draining);
    Ok(Reply::empty(204))
}

/// The certificate of the hub's CA, for programs that take a CA file and no pin.
pub fn ca(core: &Core) -> Result<Reply, Refusal> {
    ok(200, &core.ca.certificates())
}

/// All counters in the text format of Prometheus. They are the whole hub's, so only its operator reads them: the admins
/// of the default workspace, whose first key was made with the hub.
pub fn metrics(core: &Core, call: &ApiCall<'_>) -> Result<Reply, Refusal> {
    if call.workspace() != DEFAULT_WORKSPACE {
        return Err(Refusal::WholeHub);
    }
    let mut text = MetricsText::default();
    text.figure("uptime_seconds", "gauge", "Seconds since the hub started", core.started.elapsed().as_secs());
    let is_ready = core.readiness.faults().is_empty();
    text.figure("ready", "gauge", "1 if GET /ready says 200", u64::from(is_ready));
    {
        let registry = core.records.registry();
        let online = registry.online().count() as u64;
        text.figure("agents", "gauge", "Agents that are connected", registry.channel_count() as u64);
        text.figure("services", "gauge", "Services, online or not", registry.services().count() as u64);
        text.figure("services_online", "gauge", "Services whose agent is connected", online);
        if let Some(fleet) = &core.fleet {
            text.figure("hubs", "gauge", "Hubs of the fleet", registry.hubs().count() as u64);
            text.figure("store_up", "gauge", "1 if etcd answers", u64::from(!fleet.replica.is_away()));
        }
    }
    let totals = core.sessions.totals();
    text.figure("sessions_open", "gauge", "Sessions that are relayed now", totals.open);
    text.figure("sessions_total", "counter", "Sessions that were opened", totals.opened);
    text.head("bytes_total", "counter", "Bytes relayed");
    text.line("bytes_total{direction=\"to_agent\"}", totals.to_agent);
    text.line("bytes_total{direction=\"to_joiner\"}", totals.to_joiner);
    text.head("refusals_total", "counter", "Requests refused, by the code of the refusal");
    for (code, count) in core.refusals.by_code() {
        text.line(&format!("refusals_total{{reason=\"{code}\"}}"), count);
    }
    Ok(Reply::text(200, text.0).field("content-type", "text/plain; version=0.0.4"))
}

/// Figures as Prometheus reads them: each name with its help and its kind before the first value.
#[derive(Default)]
struct MetricsText(String);

impl MetricsText {
    fn figure(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.head(name, kind, help);
        self.line(name, value);
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP connect_{name} {help}\n# TYPE connect_{name} {kind}");
    }

    fn line(&mut self, name: &str, value: u64) {
        let _ = writeln!(self.0, "connect_{name} {value}");
    }
}

/// The head of this hub's audit log: for the operator, like the metrics.
pub fn audit_head(core: &Core, call: &ApiCall<'_>) -> Result<Reply, Refusal> {
    if call.workspace() != DEFAULT_WORKSPACE {
        return Err(Refusal::WholeHub);
    }
    ok(200, &core.audit.head())
}

pub fn rotate_audit(core: &Core, call: &ApiCall<'_>) -> Result<Reply, Refusal> {
    if call.workspace() != DEFAULT_WORKSPACE {
        return Err(Refusal::WholeHub);
    }
    let closed = core.audit.rotate(call.actor()).map_err(|error| {
        log::warn!("{error}");
        Refusal::StoreFailed
    })?;
    core.keep_audit_head();
    ok(200, &json!({ "segment": closed.path, "lines": closed.head.count, "hash": closed.head.hash }))
}

pub fn whoami(core: &Core, call: &ApiCall<'_>) -> Result<Reply, Refusal> {
    let next_key = key_rotation::offer(core, call);
    let registry = core.records.registry();
    let key = registry.key(call.principal.id()).map(|key| &key.info);
    let whoami = WhoAmI {
        id: call.principal.id().into(),
        limits: key.map(|key| key.limits.clone()).unwrap_or_default(),
        enrolled_by: key.and_then(|key| key.enrolled_by.clone()),
        label: call.principal.label().into(),
        role: key.map(|key| key.role),
        expires_at: key.and_then(|key| key.expires_at),
        workspace: call.workspace().into(),
        hubs: registry.hub_urls(),
        next_key,
    };
    ok(200, &whoami)
}
