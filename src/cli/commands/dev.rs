//! `connect dev`: everything that a project's `pconnect.yml` asks for, brought here and offered there.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use crate::api::Hub;
use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::background;
use crate::cli::exposures::ExposureSet;
use crate::cli::local_tunnel::TunnelAccess;
use crate::cli::local_tunnel::TunnelSpec;
use crate::cli::project_file::PROJECT_FILES;
use crate::cli::project_file::ProjectFile;
use crate::cli::project_file::find;
use crate::cli::project_file::project_name;
use crate::cli::project_file::shown;
use crate::cli::project_hub::project_hub;
use crate::cli::tunnels::TunnelSet;
use crate::error::Error;
use crate::error::Result;
use crate::model::name::Name;
use crate::model::service::Protocol;
use crate::model::suggest;
use crate::model::target::Target;
use crate::net::address::HubUrl;
use crate::os::files;
use crate::tunnel::agent::Exposure;
use crate::wire::api::ServiceInfo;
use crate::wire::pconnect::NeededService;
use crate::wire::pconnect::Project;

pub fn run(call: &Call) -> CommandResult {
    if call.args.flag("init") {
        return init(call);
    }
    let path = find(call)?;
    let wait = call.args.duration("wait")?;
    let mut file = ProjectFile::open(path)?;
    if let Some(code) = background::detach(call, "dev", &project_name(&file.path), &[])? {
        return Ok(code);
    }
    let hub = project_hub(call, file.project.hub.as_deref())?;
    let say = &call.say;
    say.line("🚀 Private Connect Dev Mode\n");
    say.line(&format!("  Config: {}", shown(&file.path)));
    say.line(&format!("  Hub:    {}\n", hub.url));
    say.line("  Connecting to services...\n");
    let wait = TunnelSet::wait_for_hub(call, &hub, wait)?;
    let mut exposing = None;
    offer(call, &hub, &mut exposing, &BTreeMap::new(), &file.project.expose)?;
    let services = hub.services()?;
    file.project.services.iter().for_each(|needed| say_if_unknown(call, needed, &services));
    let right = TunnelAccess::own(call, Arc::clone(&hub))?;
    let name = project_name(&file.path);
    let mut party = TunnelSet::new(call, "dev", std::slice::from_ref(&name), right);
    party.add(file.project.services.iter().map(|needed| wanted(needed, &services)).collect());
    party.wait_as_asked(wait)?;
    call.fail_if_stopped()?;
    party.list();
    report(call, &party, &name)?;
    party.settle()?;
    let code = party.stay(&mut |party| {
        if let Some(exposing) = &exposing {
            exposing.tell_news()?;
        }
        match file.changed() {
            Ok(Some(before)) => {
                take_up(call, &hub, party, &before, &file.project)?;
                let offered = offer(call, &hub, &mut exposing, &before.expose, &file.project.expose);
                // What cannot be offered is no reason to end what others use.
                offered.or_else(|error| call.fail_if_stopped().map(|()| say.warn(&error.to_string())))
            }
            Ok(None) => Ok(()),
            Err(error) => {
                say.warn(&format!("{error}; the services stay as they are"));
                Ok(())
            }
        }
    })?;
    drop(exposing);
    say.event(&json!({ "event": "closed" }));
    Ok(code)
}

fn wanted(needed: &NeededService, services: &[ServiceInfo]) -> TunnelSpec {
    let own = services.iter().find(|service| service.name == needed.name).map(|service| service.target_port);
    TunnelSpec {
        name: needed.name.clone(),
        service: needed.name.to_string(),
        port: needed.port.or(own).unwrap_or(FALLBACK_PORT),
        // What the file says comes before the port of last time.
        chosen: needed.port.is_some(),
        strict: false,
    }
}

/// It may still come, so it is waited for; one that is misspelt never does.
fn say_if_unknown(call: &Call, needed: &NeededService, services: &[ServiceInfo]) {
    let known = || services.iter().map(|service| service.name.as_str());
    if known().any(|name| name == needed.name.as_str()) {
        return;
    }
    if let Some(near) = suggest::nearest(needed.name.as_str(), known()) {
        call.say.warn(&format!("There is no service {} yet. Did you mean: {near}", needed.name));
    }
}

/// For a service that names no port and that the hub does not know yet.
const FALLBACK_PORT: u16 = 10_000;

fn report(call: &Call, party: &TunnelSet<'_>, name: &str) -> Result<()> {
    let say = &call.say;
    let members = party.members();
    let up: Vec<_> = members.iter().filter(|member| member.trouble.is_none()).collect();
    let services: Vec<_> = members
        .iter()
        .map(|member| {
            json!({ "name": member.wanted.name, "localPort": member.port(), "ok": member.trouble.is_none(),
                "error": member.why() })
        })
        .collect();
    say.event(&json!({ "event": "connected", "services": services }));
    if !members.is_empty() {
        let mark = if up.is_empty() { "[!]" } else { "[ok]" };
        say.result(&format!("  {mark} {} service(s) connected:", up.len()));
        say.line("");
    }
    for member in &up {
        say.result(&format!("    {} {}", member.wanted.name, member.shown()));
    }
    for (member, why) in members.iter().filter_map(|member| Some((member, member.why()?))) {
        say.result(&format!("    [!] {} → failed: {why}", member.wanted.name));
    }
    party.complete_for_command()?;
    if call.args.run.is_none() {
        background::how_to_end(call, name, "Press Ctrl+C to disconnect all services");
    }
    Ok(())
}

/// The file has changed: new services join, removed ones leave, the others are not touched.
fn take_up(call: &Call, hub: &Hub, party: &mut TunnelSet<'_>, before: &Project, now: &Project) -> Result<()> {
    if before.hub != now.hub {
        call.say.warn("Another hub is used only after a new start: Ctrl+C, then connect dev");
    }
    let gone = before.services.iter().filter(|old| !now.services.contains(old));
    for old in gone {
        party.remove(&old.name);
        call.say.line(&format!("[ok] {} left", old.name));
    }
    let new: Vec<&NeededService> =
        now.services.iter().filter(|needed| !before.services.contains(needed)).collect();
    if new.is_empty() {
        return Ok(());
    }
    let services = hub.services().unwrap_or_default();
    new.iter().for_each(|needed| say_if_unknown(call, needed, &services));
    party.add(new.iter().map(|needed| wanted(needed, &services)).collect());
    for member in
        party.members().iter().filter(|member| new.iter().any(|needed| needed.name == member.wanted.name))
    {
        match &member.trouble {
            None => call.say.line(&format!("[ok] {} {} joined", member.wanted.name, member.shown())),
            Some(error) => call.say.warn(&format!("{} → failed: {error}", member.wanted.name)),
        }
        call.say.event(&json!({ "event": "added", "name": member.wanted.name, "localPort": member.port(), "ok": member.trouble.is_none() }));
    }
    party.settle()
}

/// Exposes what the file offers now and did not before, and takes back what it no longer offers.
fn offer<'c>(
    call: &'c Call,
    hub: &Arc<Hub>,
    exposing: &mut Option<ExposureSet<'c>>,
    before: &BTreeMap<Name, Target>,
    now: &BTreeMap<Name, Target>,
) -> Result<()> {
    if let Some(exposing) = exposing.as_mut() {
        let gone = before.iter().filter(|(name, target)| now.get(*name) != Some(*target));
        gone.for_each(|(name, _)| exposing.withdraw(name));
    }
    let new = now.iter().filter(|(name, target)| before.get(*name) != Some(*target));
    let exposure = |(name, target): (&Name, &Target)| Exposure {
        name: name.clone(),
        target: target.clone(),
        protocol: Protocol::Tcp,
    };
    let new: Vec<Exposure> = new.map(exposure).collect();
    if new.is_empty() {
        return Ok(());
    }
    let begun = match exposing.take() {
        Some(begun) => begun,
        None => ExposureSet::start(call, Arc::clone(hub), None)?,
    };
    let exposing = exposing.insert(begun);
    let names: Vec<Name> = new.iter().map(|one| one.name.clone()).collect();
    let exposed = exposing.expose(new);
    if exposed.is_err() {
        names.iter().for_each(|name| exposing.withdraw(name));
    }
    for one in exposed? {
        call.say.line(&format!("  [ok] {} exposed from {}", one.exposure.name, one.exposure.target));
        call.say.event(&json!({ "event": "exposed", "name": one.exposure.name, "id": one.service }));
    }
    Ok(())
}

/// Writes a commented file from what is known; overwrites nothing.
fn init(call: &Call) -> CommandResult {
    let path = call.args.value("file").map_or_else(|| PathBuf::from(PROJECT_FILES[0]), PathBuf::from);
    if let Some(there) = std::iter::once(path.clone())
        .chain(PROJECT_FILES.iter().map(PathBuf::from))
        .find(|path| path.exists())
    {
        return Err(Error::new(format!("{} is there already", there.display()))
            .hint("Edit it; --init overwrites nothing"));
    }
    let services = call.hub().and_then(|hub| hub.services()).unwrap_or_else(|error| {
        call.say.warn(&format!("No services are in it: {error}"));
        Vec::new()
    });
    let hub = call.hub_urls()?.remove(0);
    files::write(&path, template(&hub, &services).as_bytes())?;
    call.say.value(&json!({ "written": path, "services": services.len() }));
    call.say.result(&format!("[ok] Wrote {}", path.display()));
    call.say.line("  Choose what you need in it, then: connect dev");
    Ok(0)
}

fn template(hub: &HubUrl, services: &[ServiceInfo]) -> String {
    let mut text = format!(
        "# What this project needs, for: connect dev\n#\n# hub: {hub}\n\n# Services that are brought to ports of this machine.\nservices:\n"
    );
    for service in services {
        let _ = writeln!(text, "  - name: {}\n    port: {}", service.name, service.target_port);
    }
    if services.is_empty() {
        text = text.replace("services:\n", "services: []\n#  - name: staging-db\n#    port: 5432\n");
    }
    text.push_str("\n# Services beside this machine that others may reach while connect dev runs.\n# expose:\n#   my-api: 3000\n");
    text
}
