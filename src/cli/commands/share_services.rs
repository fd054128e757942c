//! Which services a share opens: the targets given, what was found beside them, and what this machine exposes already.

use std::collections::BTreeSet;

use crate::api::Hub;
use crate::cli::Call;
use crate::cli::args::name_of;
use crate::cli::call::not_configured;
use crate::cli::commands::discover::NamedService;
use crate::cli::commands::expose::target_of;
use crate::discover;
use crate::discover::probe::ServiceKind;
use crate::error::Error;
use crate::error::Result;
use crate::model::name::Name;
use crate::model::target::Target;
use crate::state::runs;
use crate::state::runs::Run;
use crate::tunnel::agent::Exposure;
use crate::wire::api::ServiceInfo;
use crate::wire::api::Status;

#[derive(Default)]
pub struct ShareSelection {
    /// What the command exposes itself.
    pub own: Vec<Exposure>,
    /// What was asked for by its target, and another process of this machine exposes.
    pub exposed: Vec<Exposure>,
    /// What a share of everything leaves out.
    pub offline: Vec<ServiceInfo>,
}

/// The targets on the command line, `5432`, `api=8080`, `db2=10.0.0.5:5432`, and what was found beside them.
pub fn select(call: &Call, found: &[NamedService]) -> Result<ShareSelection> {
    let mut selection = ShareSelection::default();
    let here = exposed_here(call);
    // A name that was typed is wanted as it is, if need be as one more service for the same target.
    let exposed_as = |target: &Target, typed: Option<&Name>| {
        here.iter().find(|one| one.target == *target && typed.is_none_or(|name| one.name == *name)).cloned()
    };
    let mut taken = call.args.values("service").map(name_of).collect::<Result<BTreeSet<Name>>>()?;
    for text in &call.args.positionals {
        let (name, target) = match text.split_once('=') {
            Some((name, target)) => (Some(name_of(name)?), target_of(target)?),
            None => (None, target_of(text)?),
        };
        if let Some(exposed) = exposed_as(&target, name.as_ref()) {
            taken.insert(exposed.name.clone());
            selection.exposed.push(exposed);
            continue;
        }
        let service = discover::identify(&target, &call.stop);
        let kind = service.as_ref().map_or(ServiceKind::Tcp, |service| service.kind);
        let protocol = discover::protocol_of(service.as_ref(), target.port);
        let is_typed = name.is_some();
        let mut name = name.map_or_else(|| name_of(&kind.name_at(target.port)), Ok)?;
        if !is_typed && taken.contains(&name) {
            name = name_of(&format!("{name}-{}", target.port))?;
        }
        if !taken.insert(name.clone()) {
            return Err(Error::usage(format!("Two services are called {name}"))
                .hint(format!("Name one of them: OTHER={target}")));
        }
        selection.own.push(Exposure { name, target, protocol });
    }
    for NamedService { name, target, service, .. } in found {
        if selection.targeted().any(|exposure| exposure.target == *target) {
            continue;
        }
        if let Some(exposed) = exposed_as(target, None) {
            selection.exposed.push(exposed);
        } else if taken.insert(name.clone()) {
            let (name, target) = (name.clone(), target.clone());
            let protocol = discover::protocol_of(Some(service), target.port);
            selection.own.push(Exposure { name, target, protocol });
        }
    }
    Ok(selection)
}

/// What other processes of this machine say that they expose, and the hub has online. Without the hub it is nothing: the
/// command then waits for the hub.
fn exposed_here(call: &Call) -> Vec<Exposure> {
    // What another share has registered for itself ends with it.
    let is_other = |run: &Run| run.is_alive() && run.kind != "share";
    let open = runs::all(&call.home).into_iter().filter(is_other).flat_map(|run| run.open);
    let open: Vec<_> = open.filter(|open| open.exposed && open.up).collect();
    if open.is_empty() {
        return Vec::new();
    }
    let known = call.hub().and_then(|hub| own_services(call, &hub)).unwrap_or_default();
    let exposure = |ServiceInfo { name, protocol, .. }: ServiceInfo| {
        let target = Target::parse(&open.iter().find(|open| open.name == name.as_str())?.at)?;
        Some(Exposure { name, target, protocol })
    };
    known.into_iter().filter(is_online).filter_map(exposure).collect()
}

fn own_services(call: &Call, hub: &Hub) -> Result<Vec<ServiceInfo>> {
    let agent = call.config()?.agent_id.clone().ok_or_else(not_configured)?;
    Ok(hub.workspace_services()?.into_iter().filter(|service| service.agent_id == agent).collect())
}

fn is_online(service: &ServiceInfo) -> bool {
    service.status == Status::Online
}

impl ShareSelection {
    pub fn targeted(&self) -> impl Iterator<Item = &Exposure> {
        self.own.iter().chain(&self.exposed)
    }

    /// What is shared: the targets given and `--service`; without either, all that this machine has online.
    pub fn names(&mut self, call: &Call, hub: &Hub) -> Result<Vec<Name>> {
        let mut names: Vec<Name> = self.targeted().map(|exposure| exposure.name.clone()).collect();
        for name in call.args.values("service") {
            names.push(name_of(name)?);
        }
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        if !names.is_empty() {
            return Ok(names);
        }
        let (online, offline): (Vec<_>, _) = own_services(call, hub)?.into_iter().partition(is_online);
        self.offline = offline;
        if online.is_empty() {
            return Err(Error::new("There is nothing to share: this machine has no service online").hint(
                "Share ports directly: connect share 5432 api=8080, or expose first: connect expose NAME PORT",
            ));
        }
        Ok(online.into_iter().map(|service| service.name).collect())
    }
}
