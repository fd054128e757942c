//! `connect join`: a teammate's services on this machine, by a code or a link.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::api::Hub;
use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::args::name_of;
use crate::cli::args::port_of;
use crate::cli::background;
use crate::cli::call::not_configured;
use crate::cli::call::parse_hub_urls;
use crate::cli::call::variable;
use crate::cli::local_tunnel::TunnelAccess;
use crate::cli::local_tunnel::TunnelSpec;
use crate::cli::local_tunnel::another_agent;
use crate::cli::tunnels::TunnelSet;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::code::BadCode;
use crate::model::code::Invitation;
use crate::model::hub_trust::HubTrust;
use crate::model::name::Name;
use crate::model::suggest;
use crate::model::time::in_words;
use crate::net::address::HubUrl;
use crate::os::secret;
use crate::os::terminal;
use crate::tls::identity::Identity;
use crate::wire::api::BAD_KEY_CODE;
use crate::wire::api::JoinableService;
use crate::wire::api::Membership;
use crate::wire::api::SHARE_NOT_FOUND_CODE;
use crate::wire::api::SHARED_SERVICES;
use crate::wire::api::SharePreview;

/// What stdin may hold before its line ends.
const CODE_LINE_LIMIT: usize = 4096;

pub fn run(call: &Call) -> CommandResult {
    let invitation = invitation(call)?;
    let ports = chosen_ports(call)?;
    let wait = call.args.duration("wait")?;
    let text = invitation.to_string();
    // Not by its arguments, which everybody on the machine can read; and stdin has been read already.
    if let Some(code) =
        background::detach(call, "join", &secret::hash(&text)[..8], &[("CONNECT_JOIN", &text)])?
    {
        return Ok(code);
    }
    let say = &call.say;
    say.line(&format!("🔗 Joining environment share: {}\n", invitation.code.as_str()));
    let (hub, identity) = hub(call, &invitation)?;
    let wait = TunnelSet::wait_for_hub(call, &hub, wait)?;
    let share = hub.join_share(&invitation.code).map_err(explain)?;
    if invitation.agent.is_some_and(|pin| pin != share.agent_fingerprint.pin()) {
        return Err(another_agent());
    }
    if share.services.len() > SHARED_SERVICES {
        let what = format!("The hub names {} services in this share", share.services.len());
        return Err(
            Error::new(what).hint(format!("There are never more than {SHARED_SERVICES}; ask who runs it"))
        );
    }
    let wanted = wanted(call, &share, ports)?;
    say.result("[ok] Connected to shared environment!");
    say.line(&format!("\n  Name: {}", share.name));
    say.line(&format!("  Expires in {}\n", in_words(Duration::from_secs(share.expires_in_seconds))));
    say.line("  Establishing tunnels...\n");
    let membership = Membership {
        code: invitation.code.as_str().to_owned(),
        token: share.token.clone().unwrap_or_default(),
    };
    let right = TunnelAccess {
        known_as: format!("{}#{}", hub.url, &secret::hash(invitation.code.as_str())[..16]),
        hub,
        identity,
        share: Some(membership),
        by_link: invitation.link.is_some(),
        // A link or a verified code names the agent; a bare code's agent is pinned when it is first seen.
        agent: invitation.agent.map(|_| share.agent_fingerprint),
    };
    let names = [invitation.code.as_str().to_owned(), share.name.clone()];
    let mut party = TunnelSet::new(call, "join", &names, right);
    party.add(wanted);
    party.wait_as_asked(wait)?;
    call.fail_if_stopped()?;
    party.list();
    report(call, &share, invitation.code.as_str(), &party)?;
    party.settle()?;
    let code = party.stay(&mut |_| Ok(()))?;
    say.event(&json!({ "event": "closed" }));
    Ok(code)
}

/// From the argument, from stdin for `-`, or from `CONNECT_JOIN`, which keeps it out of the process list.
fn invitation(call: &Call) -> Result<Invitation> {
    let given = call.args.positional(0).filter(|given| *given != "-").map(str::to_owned);
    let handed_on = variable("CONNECT_JOIN").filter(|_| call.is_background());
    let text = match handed_on.or(given).or_else(|| variable("CONNECT_JOIN")) {
        Some(text) => text,
        None if call.args.positional(0) == Some("-") => {
            terminal::read_line(CODE_LINE_LIMIT).or_say(|| "Cannot read the code from stdin")?
        }
        None => {
            return Err(
                Error::usage("There is no share code").hint("Usage: connect join CODE, or set CONNECT_JOIN")
            );
        }
    };
    Invitation::parse(&text).map_err(|bad| match bad {
        BadCode::Link => Error::new("This is not a whole share link")
            .hint("Copy it again, from https:// to its end, in quotes"),
        BadCode::Fingerprint | BadCode::Length | BadCode::Character => {
            not_found(&format!("\n  This one cannot be: {}", bad.reason()))
        }
    })
}

/// A link brings everything; a code needs a machine that is logged in.
fn hub(call: &Call, invitation: &Invitation) -> Result<(Arc<Hub>, Identity)> {
    let Some(link) = &invitation.link else {
        if call.api_key()?.is_none() {
            return Err(not_configured());
        }
        return Ok((call.hub()?, call.identity()?));
    };
    let trust = match link.hub_pin {
        Some(pin) => HubTrust::Pin(pin),
        None => call.trust(&*call.config()?, None)?,
    };
    let key = format!("pl_{}", link.secret);
    // Another one of its fleet, or another way to it: it proves the same pin.
    let mut urls = parse_hub_urls(call.args.values("hub"))?;
    if urls.is_empty() {
        urls.push(HubUrl::parse(&link.hub)?);
    }
    let hub = Hub::new(urls, &trust, Some(key), &call.stop)?;
    // A container's state folder may not be there to write to, and nobody knows this identity anyway.
    let identity = Identity::parse(Identity::generate()?.as_bytes())?;
    Ok((Arc::new(hub), identity))
}

fn explain(error: Error) -> Error {
    // A link's secret is the only credential: when the share is gone, so is that.
    match error.code() {
        SHARE_NOT_FOUND_CODE | BAD_KEY_CODE => not_found(""),
        _ => error,
    }
}

fn not_found(more: &str) -> Error {
    Error::new("Share not found or expired").hint(format!("Check the code and try again.{more}"))
}

fn chosen_ports(call: &Call) -> Result<BTreeMap<Name, u16>> {
    let chosen = call.args.values("port").map(|text| {
        let (name, port) = text.split_once('=').ok_or_else(|| {
            Error::misread(text, "is not NAME=PORT").hint("Write it like --port postgres=6000")
        })?;
        Ok((name_of(name)?, port_of(port)?))
    });
    chosen.collect()
}

fn wanted(call: &Call, share: &SharePreview, mut ports: BTreeMap<Name, u16>) -> Result<Vec<TunnelSpec>> {
    let strict = call.args.flag("strict-ports");
    let wanted = share.services.iter().map(|JoinableService { service, .. }| {
        let chosen = ports.remove(&service.name);
        let port = chosen.unwrap_or(service.target_port);
        TunnelSpec {
            name: service.name.clone(),
            service: service.id.clone(),
            port,
            chosen: chosen.is_some(),
            strict,
        }
    });
    let wanted: Vec<TunnelSpec> = wanted.collect();
    let Some(stray) = ports.into_keys().next() else { return Ok(wanted) };
    let error = Error::usage(format!("There is no {stray} in this share"));
    Err(match suggest::nearest(stray.as_str(), wanted.iter().map(|one| one.name.as_str())) {
        Some(near) => error.hint(format!("Did you mean: --port {near}=PORT")),
        None => error.hint(format!(
            "It has: {}",
            wanted.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ")
        )),
    })
}

/// Says how each service came out. With a command to run, one that is missing is the end.
fn report(call: &Call, share: &SharePreview, code: &str, party: &TunnelSet<'_>) -> Result<()> {
    let say = &call.say;
    for member in party.members() {
        match &member.trouble {
            None => say.result(&format!("    [ok] {} → {}", member.wanted.name, member.shown())),
            Some(error) => say.result(&format!("    [!] {} → failed: {error}", member.wanted.name)),
        }
    }
    let (active, all) = (party.active(), party.members().len());
    let services: Vec<_> = party.members().iter().map(|member| {
            json!({ "name": member.wanted.name, "localPort": member.port(), "originalPort": member.wanted.port,
                "ok": member.trouble.is_none(), "error": member.why() })
        })
        .collect();
    say.event(&json!({ "event": "joined", "name": share.name, "expiresAt": share.expires_at, "services": services }));
    say.line("");
    party.complete_for_command()?;
    if active == 0 {
        return Err(Error::new("No tunnels could be established.")
            .hint("The share creator's agent may be offline, no longer exposing services, or behind a restrictive firewall"));
    }
    say.result(&format!("[ok] {active} tunnel(s) active"));
    say.line("");
    if active < all {
        say.line(&format!("  [!] {} service(s) could not connect (may be offline)\n", all - active));
    }
    if call.args.run.is_some() {
        return Ok(());
    }
    say.line("  Example connections:");
    for member in party.members().iter().filter(|member| member.trouble.is_none()) {
        let port = member.port().unwrap_or_default();
        say.line(&format!("    • {}: localhost:{port}", member.wanted.name));
    }
    background::how_to_end(call, code, "Press Ctrl+C to disconnect all tunnels");
    Ok(())
}
