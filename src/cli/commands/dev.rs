//! `connect dev`: brings the services here that a project's `pconnect.yml` needs, and exposes those that it offers.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::background;
use crate::cli::project_file::PROJECT_FILES;
use crate::cli::project_file::ProjectFile;
use crate::cli::project_file::find;
use crate::cli::project_file::project_name;
use crate::cli::project_file::shown;
use crate::cli::project_hub::project_hub;
use crate::cli::supervisor::Stay;
use crate::cli::supervisor::Supervisor;
use crate::cli::supervisor::local_tunnel::LocalTunnel;
use crate::cli::supervisor::local_tunnel::TunnelSpec;
use crate::cli::supervisor::tunnels::TunnelSet;
use crate::cli::supervisor::tunnels::wait_for_hub;
use crate::cli::tunnel_access::TunnelAccess;
use crate::cli::tunnel_access::peer_check;
use crate::error::Error;
use crate::error::Result;
use crate::model::service::Protocol;
use crate::model::suggest;
use crate::net::address::HubUrl;
use crate::os::files;
use crate::tunnel::agent::Exposure;
use crate::wire::api::ServiceInfo;
use crate::wire::pconnect::NeededService;
use crate::wire::pconnect::Project;

/// For a service that names no port and that the hub does not know yet.
const FALLBACK_PORT: u16 = 10_000;

/// Exposes what the project's file offers, opens a tunnel for each service that it needs, and follows the file.
///
/// The order matters. What the file exposes comes first, since a project may need a service of its own. While the
/// command starts, a name that cannot be exposed is an error. Once others use the services it is a warning, and the
/// name is tried again, as the daemon does.
pub fn run(call: &Call) -> CommandResult {
    if call.args.flag("init") {
        return init(call);
    }
    let wait = call.args.duration("wait")?;
    let mut file = ProjectFile::open(find(call)?)?;
    file.confirm(call)?;
    if call.args.flag("confirm") {
        call.say.line(&format!("[ok] What {} exposes is confirmed", shown(&file.path)));
        return Ok(0);
    }
    let name = project_name(&file.path);
    if let Some(code) = background::detach(call, "dev", &name, None)? {
        return Ok(code);
    }
    let peer_check = peer_check(call)?;
    let hub = project_hub(call, file.project.hub.as_deref())?;
    if !file.is_confirmed(call)? {
        return Err(Error::new(format!("{} has changed meanwhile", shown(&file.path))).hint("Try again"));
    }
    let say = &call.say;
    say.line("🚀 Private Connect Dev Mode\n");
    say.line(&format!("  Config: {}", shown(&file.path)));
    say.line(&format!("  Hub:    {}\n", hub.url));
    say.line("  Connecting to services...\n");
    let mut supervisor = Supervisor::new(call, "dev", std::slice::from_ref(&name));
    let wait = wait_for_hub(call, &hub, wait)?;
    for service in supervisor.expose(&hub, exposures(&file))? {
        let exposure = &service.exposure;
        say.line(&format!("  [ok] {} exposed from {}", exposure.name, exposure.target));
        say.event(&json!({ "event": "exposed", "name": exposure.name, "id": service.registration.service }));
    }
    supervisor.exposures.retries = true;
    let access = Arc::new(TunnelAccess::own(call, hub, peer_check)?);
    let services = access.hub.workspace_services()?;
    for needed in &file.project.services {
        say_if_misspelt(call, needed, &services);
    }
    supervisor.tunnels.reconcile(&access, tunnel_specs(call, &file.project, &services))?;
    supervisor.tunnels.wait_until_up(wait)?;
    // The routes are listed before the user reads of them; changes are reported only after that.
    supervisor.tunnels.list_routes();
    report(call, &supervisor.tunnels, &name)?;
    supervisor.tunnels.publish()?;
    let code = supervisor.stay(|supervisor| {
        let changed = match file.changed(call) {
            Ok(Some(before)) => follow(call, &access, supervisor, &before, &file),
            Ok(None) => Ok(()),
            Err(error) => Err(Error::new(format!("{error}; the services stay as they are"))),
        };
        // A change that fails is no reason to end what others use.
        if let Err(error) = changed {
            call.fail_if_stopped()?;
            say.warn(&error.to_string());
        }
        Ok(Stay::On)
    })?;
    drop(supervisor);
    say.event(&json!({ "event": "closed" }));
    Ok(code)
}

fn exposures(file: &ProjectFile) -> Vec<Exposure> {
    let exposure = file.exposed().map(|(name, target)| Exposure {
        name: name.clone(),
        target: target.clone(),
        protocol: Protocol::usual_at(target.port),
    });
    exposure.collect()
}

/// One for each service that the project needs.
fn tunnel_specs(call: &Call, project: &Project, services: &[ServiceInfo]) -> Vec<TunnelSpec> {
    let spec = |needed: &NeededService| {
        let own = services.iter().find(|service| service.name == needed.name);
        let own = own.map(|service| service.target_port);
        TunnelSpec {
            name: needed.name.clone(),
            service: needed.name.to_string(),
            asked: needed.port,
            original: needed.port.or(own).unwrap_or(FALLBACK_PORT),
            strict: call.args.flag("strict-ports"),
        }
    };
    project.services.iter().map(spec).collect()
}

/// An unknown service may still be exposed, so dev waits for it; a misspelt one never will be, so dev warns about it.
fn say_if_misspelt(call: &Call, needed: &NeededService, services: &[ServiceInfo]) {
    let known = || services.iter().map(|service| service.name.as_str());
    if known().any(|name| name == needed.name.as_str()) {
        return;
    }
    if let Some(near) = suggest::nearest(needed.name.as_str(), known()) {
        call.say.warn(&format!("There is no service {} yet. Did you mean: {near}", needed.name));
    }
}

fn report(call: &Call, tunnels: &TunnelSet<'_>, name: &str) -> Result<()> {
    let say = &call.say;
    let services = tunnels.all().iter().map(|tunnel| {
        json!({ "name": tunnel.spec.name, "localPort": tunnel.port(), "ok": tunnel.trouble.is_none(),
            "error": tunnel.reason() })
    });
    say.event(&json!({ "event": "connected", "services": services.collect::<Vec<_>>() }));
    if !tunnels.all().is_empty() {
        let active = tunnels.active().count();
        let mark = if active == 0 { "[!]" } else { "[ok]" };
        say.result(&format!("  {mark} {active} service(s) connected:"));
        say.line("");
    }
    for tunnel in tunnels.active() {
        say.result(&format!("    {} {}", tunnel.spec.name, tunnel.shown_address()));
    }
    for tunnel in tunnels.all() {
        if let Some(error) = &tunnel.trouble {
            say.result(&format!("    [!] {} → failed: {error}", tunnel.spec.name));
        }
    }
    tunnels.require_all_for_command()?;
    if call.args.run.is_none() {
        background::how_to_end(call, name, "Press Ctrl+C to disconnect all services");
    }
    Ok(())
}

/// The file has changed: new services join and others leave; what is the same in both is not touched.
fn follow(
    call: &Call,
    access: &Arc<TunnelAccess>,
    supervisor: &mut Supervisor<'_>,
    before: &Project,
    file: &ProjectFile,
) -> Result<()> {
    let now = &file.project;
    if before.hub != now.hub {
        call.say.warn("Another hub is used only after a new start: Ctrl+C, then connect dev");
    }
    supervisor.exposures.set_desired(exposures(file));
    supervisor.exposures.reconcile()?;
    // Without the hub the services are as unknown as if they did not exist yet.
    let services = access.hub.workspace_services().unwrap_or_default();
    let changes = supervisor.tunnels.reconcile(access, tunnel_specs(call, now, &services))?;
    for name in changes.left {
        call.say.line(&format!("[ok] {name} left"));
    }
    for needed in now.services.iter().filter(|needed| changes.joined.contains(&needed.name)) {
        say_if_misspelt(call, needed, &services);
    }
    for tunnel in supervisor.tunnels.all().iter().filter(|tunnel| changes.joined.contains(&tunnel.spec.name))
    {
        say_joined(call, tunnel);
    }
    supervisor.tunnels.publish()
}

fn say_joined(call: &Call, tunnel: &LocalTunnel) {
    let name = &tunnel.spec.name;
    match &tunnel.trouble {
        None => call.say.line(&format!("[ok] {name} {} joined", tunnel.shown_address())),
        Some(error) => call.say.warn(&format!("{name} → failed: {error}")),
    }
    call.say.event(&json!({ "event": "added", "name": name, "localPort": tunnel.port(), "ok": tunnel.trouble.is_none() }));
}

/// Writes a commented file from what is known; overwrites nothing.
fn init(call: &Call) -> CommandResult {
    let path = call.args.value("file").map_or_else(|| PathBuf::from(PROJECT_FILES[0]), PathBuf::from);
    if let Some(there) = std::iter::once(path.clone())
        .chain(PROJECT_FILES.iter().map(PathBuf::from))
        .find(|path| path.exists())
    {
        return Err(Error::new(format!("{} already exists", there.display()))
            .hint("Edit it; --init overwrites nothing"));
    }
    let services = call.hub().and_then(|hub| hub.workspace_services()).unwrap_or_else(|error| {
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
    text.push_str("\n# Services of this machine that others may reach while connect dev runs.\n# expose:\n#   my-api: 3000\n");
    text
}
