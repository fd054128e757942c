//! `connect join`: a teammate's services on this machine, by a code or a link.
//!
//! What happens between `connect join CODE` and the open port:
//!
//! 1. `main.rs` hands argv to `cli/mod.rs::main`. `cli/args.rs::parse` reads it by the table of commands, `Call::new`
//!    (`cli/call.rs`) takes the signals, and `run` below is called.
//! 2. `invitation` takes the code from the argument, stdin or `CONNECT_JOIN`. `model/code.rs` parses it: a bare code, a
//!    verified code, which names the agent, or a link, which also names the hub, its pin and a secret.
//! 3. With `-d`, `background::detach` starts this same command again without a terminal (`os/detach.rs`), repeats what
//!    that one says until it is ready, and ends. The steps below happen in the new process.
//! 4. `hub` finds whom to ask: with a code the hub of the config, with this machine's key; with a link the hub that it
//!    names, with the link's secret as the key and an identity made for this call.
//! 5. `Hub::join_share` (`api.rs`) posts the code. The hub (`hub/share_join.rs`) limits guesses, finds the share,
//!    counts the join, and answers with the services, the agent's fingerprint and a token.
//! 6. `access_to` binds all that into a `TunnelAccess` (`cli/tunnel_access.rs`). An agent that the code names must be
//!    the one that answers; otherwise the first is pinned in `known_agents.json` (`state/agent_pins.rs`).
//! 7. `Supervisor::new` lists the command for `connect status`. `TunnelSet::reconcile` (`cli/supervisor/tunnels.rs`)
//!    makes a `LocalTunnel` for each service; `TunnelAccess::tunnel_to` builds the tunnel under it
//!    (`tunnel/joiner.rs`).
//! 8. Each tunnel is checked in a thread of its own. `Tunnel::check_target` has `SessionOpener::open`
//!    (`tunnel/session_opener.rs`) ask the hub for a session, connect to the relay with the ticket, and make the TLS
//!    handshake with the agent, whose fingerprint and service name must be the expected ones. Then the agent reaches its
//!    target.
//! 9. A service that answers gets its port, in `LocalTunnel::take_port`: the one asked for, the service's own, the
//!    alternative of last time, or the next free one (`model/port_choice.rs`). `Tunnel::listen` opens it on the loopback.
//! 10. `list_routes` writes the ports to `active-routes.json`, and `report` tells the user.
//! 11. `Supervisor::stay` starts the command after `--`, if there is one, and waits. A connection to the port is now
//!     carried as the comment of `main.rs` tells.

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
use crate::cli::health_page::HealthPage;
use crate::cli::saved_login;
use crate::cli::supervisor::Stay;
use crate::cli::supervisor::Supervisor;
use crate::cli::supervisor::local_tunnel::TunnelSpec;
use crate::cli::supervisor::tunnels::TunnelSet;
use crate::cli::supervisor::tunnels::wait_for_hub;
use crate::cli::tunnel_access::AcceptedAgents;
use crate::cli::tunnel_access::TunnelAccess;
use crate::cli::tunnel_access::another_agent;
use crate::cli::tunnel_access::peer_check;
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
use crate::state::identity;
use crate::tls::identity::Identity;
use crate::tls::succession::replaced_by;
use crate::wire::api::BAD_KEY_CODE;
use crate::wire::api::Membership;
use crate::wire::api::SHARE_NOT_FOUND_CODE;
use crate::wire::share_api::JoinableService;
use crate::wire::share_api::SHARED_SERVICES;
use crate::wire::share_api::SharePreview;

/// A line on stdin is at most this long; the longest link has a few hundred bytes.
const CODE_LINE_LIMIT: usize = 4096;

pub fn run(call: &Call) -> CommandResult {
    let invitation = invitation(call)?;
    let ports = chosen_ports(call)?;
    let wait = call.args.duration("wait")?;
    let text = invitation.to_string();
    // The code is handed over, since stdin is read already.
    let secret = Some(("CONNECT_JOIN", text.as_str()));
    if let Some(code) = background::detach(call, "join", &secret::hash(&text)[..8], secret)? {
        return Ok(code);
    }
    let health = HealthPage::start(call)?;
    let say = &call.say;
    say.line(&format!("🔗 Joining environment share: {}\n", invitation.code.as_str()));
    let (hub, identity) = hub(call, &invitation)?;
    let wait = wait_for_hub(call, &hub, wait)?;
    let share =
        hub.join_share(&invitation.code).map_err(|error| explain(error, invitation.link.is_some()))?;
    check_share(&invitation, &share)?;
    // A wrong --port ends the command before anything is opened.
    let specs = tunnel_specs(call, &share, ports)?;
    say.result("[ok] Connected to shared environment!");
    say.line(&format!("\n  Name: {}", share.name));
    say.line(&format!("  Expires in {}\n", in_words(Duration::from_secs(share.expires_in_seconds))));
    say.line("  Establishing tunnels...\n");
    let access = Arc::new(access_to(call, &invitation, &share, hub, identity)?);
    let code = invitation.code.as_str();
    let mut supervisor = Supervisor::new(call, "join", &[code.to_owned(), share.name.clone()]);
    supervisor.health = health;
    let tunnels = &mut supervisor.tunnels;
    tunnels.reconcile(&access, specs)?;
    tunnels.wait_until_up(wait)?;
    // The routes are listed before the user reads of them; changes are reported only after that.
    tunnels.list_routes();
    report(call, &share, code, tunnels)?;
    tunnels.publish()?;
    let exit_code = supervisor.stay(|_| Ok(Stay::On))?;
    drop(supervisor);
    say.event(&json!({ "event": "closed" }));
    Ok(exit_code)
}

/// The hub is not trusted with more than it should say: the agent must be the one that the code names, and the services
/// no more than a share can have.
fn check_share(invitation: &Invitation, share: &SharePreview) -> Result<()> {
    let mut known = replaced_by(share.agent_fingerprint, &share.agent_chain);
    known.push(share.agent_fingerprint);
    if invitation.agent.is_some_and(|pin| known.iter().all(|known| known.pin() != pin)) {
        return Err(another_agent());
    }
    if share.services.len() > SHARED_SERVICES {
        let what = format!("The hub names {} services in this share", share.services.len());
        return Err(Error::new(what)
            .hint(format!("There are never more than {SHARED_SERVICES}; ask the hub's admin")));
    }
    Ok(())
}

/// What the share allows. A link or a verified code names the agent; the agent of a bare code is pinned when it is first
/// seen.
fn access_to(
    call: &Call,
    invitation: &Invitation,
    share: &SharePreview,
    hub: Arc<Hub>,
    identity: Identity,
) -> Result<TunnelAccess> {
    let code = invitation.code.as_str();
    let agents = match invitation.agent {
        Some(_) => AcceptedAgents::Only(share.agent_fingerprint),
        None => AcceptedAgents::FirstSeen(call.agent_pins()?, call.say.clone()),
    };
    let membership = Membership { code: code.to_owned(), token: share.token.clone().unwrap_or_default() };
    Ok(TunnelAccess {
        hub,
        identity,
        share: Some(membership),
        share_name: Some(share.name.clone()),
        by_link: invitation.link.is_some(),
        agents,
        peer_check: peer_check(call)?,
        may_be_direct: !call.args.flag("no-direct"),
    })
}

/// From the argument, from stdin for `-`, or from `CONNECT_JOIN`, which keeps it out of the process list.
fn invitation(call: &Call) -> Result<Invitation> {
    let is_from_stdin = call.args.positional(0) == Some("-");
    let given = call.args.positional(0).filter(|_| !is_from_stdin).map(str::to_owned);
    let passed = std::env::var("CONNECT_JOIN").unwrap_or_else(|_| "unset".to_owned());
    // GitLab leaves the name of a variable that does not exist as it is.
    if given.is_none() && (passed.trim().is_empty() || passed.starts_with('$')) {
        let state = if passed.starts_with('$') { "only names a variable" } else { "is empty" };
        return Err(Error::new(format!("CONNECT_JOIN {state}: the secret is not passed to this job")).hint(
            "Protected branches and forks often get no secrets; look at the job's settings, or unset it",
        ));
    }
    let handed_on = variable("CONNECT_JOIN").filter(|_| call.is_background());
    let text = match handed_on.or(given).or_else(|| variable("CONNECT_JOIN")) {
        Some(text) => text,
        None if is_from_stdin => {
            terminal::read_line(CODE_LINE_LIMIT).or_say(|| "Cannot read the code from stdin")?
        }
        None => String::new(),
    };
    if text.trim().is_empty() {
        let hint = "Usage: connect join CODE, or set CONNECT_JOIN, or give it on stdin: connect join -";
        // An empty stdin is no fault of the command line.
        let missing = if is_from_stdin { Error::new } else { Error::usage };
        return Err(missing("There is no share code").hint(hint));
    }
    Invitation::parse(&text).map_err(|bad| match bad {
        BadCode::Link => Error::new("This is not a whole share link")
            .hint("Copy it again, from https:// to its end, in quotes"),
        BadCode::Fingerprint | BadCode::Length | BadCode::Character => {
            not_found(&format!("\n  It is not a share code: {}", bad.reason()))
        }
    })
}

/// Whom to ask, and as whom. A link brings everything; a code needs a machine that is logged in.
fn hub(call: &Call, invitation: &Invitation) -> Result<(Arc<Hub>, Identity)> {
    let Some(link) = &invitation.link else {
        if call.api_key()?.is_none() {
            return Err(not_configured());
        }
        return Ok((call.hub()?, identity::load_or_temporary(&call.home)?));
    };
    let trust = match link.hub_pin {
        Some(pin) => HubTrust::Pin(pin),
        None => call.trust(&*call.config()?, None)?,
    };
    let key = format!("pl_{}", link.secret);
    // --hub may name another hub of the fleet, or another address: it must prove the same pin.
    let mut urls = parse_hub_urls(call.args.values("hub"))?;
    if urls.is_empty() {
        urls.push(HubUrl::parse(&link.hub)?);
    }
    let hub =
        Hub::new(urls, &trust, Some(key), &call.stop)?.with_saved(saved_login::given(&call.say, "This link"));
    Ok((Arc::new(hub), identity::temporary()?))
}

/// A link's secret is its only credential: when the share is gone, the hub does not know that key either. Any other key that
/// the hub does not know is this machine's own.
fn explain(error: Error, by_link: bool) -> Error {
    let is_unknown = error.code() == SHARE_NOT_FOUND_CODE || by_link && error.code() == BAD_KEY_CODE;
    if is_unknown { not_found("") } else { error }
}

fn not_found(more: &str) -> Error {
    Error::new("Share not found or expired")
        .hint(format!("Check the code and try again.{more}"))
        .with_code(SHARE_NOT_FOUND_CODE)
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

/// One for each service of the share, at its own port unless `--port NAME=PORT` names another.
fn tunnel_specs(
    call: &Call,
    share: &SharePreview,
    mut ports: BTreeMap<Name, u16>,
) -> Result<Vec<TunnelSpec>> {
    let specs = share.services.iter().map(|JoinableService { service, .. }| {
        let asked = ports.remove(&service.name);
        TunnelSpec {
            name: service.name.clone(),
            service: service.id.clone(),
            asked,
            original: service.target_port,
            strict: asked.is_some() || call.args.flag("strict-ports"),
        }
    });
    let specs: Vec<TunnelSpec> = specs.collect();
    let Some(stray) = ports.into_keys().next() else { return Ok(specs) };
    let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    let error = Error::usage(format!("There is no {stray} in this share"));
    Err(match suggest::nearest(stray.as_str(), names.iter().copied()) {
        Some(near) => error.hint(format!("Did you mean: --port {near}=PORT")),
        None => error.hint(format!("It has: {}", names.join(", "))),
    })
}

/// Says how each service came out. With a command to run, one that is missing is the end.
fn report(call: &Call, share: &SharePreview, code: &str, tunnels: &TunnelSet<'_>) -> Result<()> {
    let say = &call.say;
    for tunnel in tunnels.all() {
        match &tunnel.trouble {
            None => say.result(&format!("    [ok] {} → {}", tunnel.spec.name, tunnel.shown_address())),
            Some(error) => say.result(&format!("    [!] {} → failed: {error}", tunnel.spec.name)),
        }
    }
    let services = tunnels.all().iter().map(|tunnel| {
        json!({ "name": tunnel.spec.name, "localPort": tunnel.port(), "originalPort": tunnel.spec.original,
            "ok": tunnel.trouble.is_none(), "error": tunnel.reason() })
    });
    say.event(&json!({ "event": "joined", "name": share.name, "expiresAt": share.expires_at,
        "services": services.collect::<Vec<_>>() }));
    say.line("");
    tunnels.require_all_for_command()?;
    let active = tunnels.active().count();
    if active == 0 {
        return Err(Error::new("No tunnels could be established.")
            .hint("The share creator's agent may be offline, no longer exposing services, or behind a restrictive firewall"));
    }
    say.result(&format!("[ok] {active} tunnel(s) active"));
    say.line("");
    let missing = tunnels.all().len() - active;
    if missing > 0 {
        say.line(&format!("  [!] {missing} service(s) could not connect (may be offline)\n"));
    }
    if call.args.run.is_some() {
        return Ok(());
    }
    say.line("  Example connections:");
    for tunnel in tunnels.active() {
        let port = tunnel.port().unwrap_or_default();
        say.line(&format!("    • {}: localhost:{port}", tunnel.spec.name));
    }
    background::how_to_end(call, code, "Press Ctrl+C to disconnect all tunnels");
    Ok(())
}
