//! `connect share`: makes a code that opens some services until it expires; `list` and `revoke`.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use crate::api::Hub;
use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::background;
use crate::cli::call::not_configured;
use crate::cli::commands::discover::NamedService;
use crate::cli::commands::discover::find;
use crate::cli::commands::discover::in_json;
use crate::cli::commands::discover::ports;
use crate::cli::commands::discover::show;
use crate::cli::commands::share_services::ShareSelection;
use crate::cli::commands::share_services::select;
use crate::cli::say::columns;
use crate::cli::say::time;
use crate::cli::share_watch::ShareWatch;
use crate::cli::supervisor::Supervisor;
use crate::discover;
use crate::error::Error;
use crate::error::Result;
use crate::model::code::Code;
use crate::model::code::Invitation;
use crate::model::code::Link;
use crate::model::text::counted;
use crate::model::time::in_words;
use crate::net::stop::Stop;
use crate::os::secret;
use crate::os::user;
use crate::tunnel::agent::Exposure;
use crate::wire::share_api::MakeShare;
use crate::wire::share_api::NewShare;

const DEFAULT_SHARE_LIFE: Duration = Duration::from_hours(24);

/// Exposes what was named, makes the share of it, and stays until the share ends.
///
/// The order matters. The command line is checked first, so that a mistake is reported in the foreground. The services are
/// exposed before the share is made, since the hub shares only what it knows. At the end the share is revoked before
/// the services are withdrawn, so that nobody finds a code that opens nothing.
pub fn run(call: &Call) -> CommandResult {
    let code = call.args.value("code").map(code_of).transpose()?;
    let (max_joins, max_sessions) = (call.args.count("max-joins")?, call.args.count("max-sessions")?);
    let life = call.args.duration("expires")?.unwrap_or(DEFAULT_SHARE_LIFE);
    let found = discovered(call)?;
    let mut selection = select(call, &found)?;
    let name = call.args.value("name").map_or_else(|| format!("{}-env", user::hostname()), str::to_owned);
    // Without services of its own the command ends at once, so there is nothing to detach.
    if !selection.own.is_empty()
        && let Some(code) = background::detach(call, "share", &secret::hash(&name)[..8], None)?
    {
        return Ok(code);
    }
    if !found.is_empty() {
        call.say.event(
            &json!({ "event": "discovered", "services": found.iter().map(in_json).collect::<Vec<_>>() }),
        );
        show(call, &found);
    }
    for exposed in &selection.exposed {
        call.say.line(&format!("[ok] {} is exposed already, as {}", exposed.target, exposed.name));
    }
    let hub = call.hub()?;
    let own = &selection.own;
    // Names the share to the hub before it is made, so that its services belong to it from the start.
    let own_word = (!own.is_empty()).then(secret::secret);
    let exposed = own_word.clone().map(|word| expose_all(call, &hub, &name, own, word)).transpose();
    let supervisor = exposed?;
    let agent = call.config()?.agent_id.clone().ok_or_else(not_configured)?;
    let services = selection.names(call, &hub)?;
    let until = Instant::now().checked_add(life);
    let order = MakeShare {
        name: name.clone(),
        agent,
        services,
        expires_in_seconds: life.as_secs().max(1),
        max_joins,
        max_sessions,
        code: code.map(|code| code.as_str().to_owned()),
        own: own_word,
        link: call.args.flag("link"),
    };
    let made = hub.make_share(&order)?;
    announce(call, &hub, &order, &made, &selection).inspect_err(|_| drop(hub.revoke_share(&made.id)))?;
    let Some(mut supervisor) = supervisor else {
        call.say.line(&format!("\n  To end it: connect share revoke {}", made.code));
        return Ok(0);
    };
    supervisor.run.iter_mut().for_each(|run| run.rename(&[made.code.clone(), name.clone()]));
    background::how_to_end(call, &made.code, "Press Ctrl+C to stop sharing");
    let mut watch = ShareWatch::begin(&hub, made.id, until);
    let stayed = supervisor.stay(|supervisor| watch.poll(supervisor.exposures.is_hub_away(), &call.say));
    let is_closed = !watch.is_revoked && revoke_after_stop(call, &made.code).is_ok();
    drop(supervisor);
    if watch.is_revoked {
        call.say.event(&json!({ "event": "revoked", "code": made.code }));
    }
    call.say.event(&json!({ "event": "closed", "code": made.code }));
    if stayed.is_ok() && !call.stop.is_stopped() {
        call.say.line("[ok] The share has expired; make another: connect share");
    } else if is_closed {
        call.say.line("[ok] Share closed");
    }
    stayed
}

fn expose_all<'c>(
    call: &'c Call,
    hub: &Arc<Hub>,
    name: &str,
    exposures: &[Exposure],
    own_word: String,
) -> Result<Supervisor<'c>> {
    let mut supervisor = Supervisor::new(call, "share", &[name.to_owned()]);
    supervisor.exposures.share = Some(own_word);
    for service in supervisor.expose(hub, exposures.to_vec())? {
        if !service.answers {
            call.say.warn(&format!(
                "Nothing answers at {} yet; {} is shared all the same",
                service.exposure.target, service.exposure.name
            ));
        }
    }
    call.fail_if_stopped()?;
    Ok(supervisor)
}

/// Ctrl-C has cut the calls of the hub that we used so far, so this is another one.
fn revoke_after_stop(call: &Call, code: &str) -> Result<()> {
    call.hub_at(call.hub_urls()?, &Stop::new())?.revoke_share(code)
}

fn code_of(text: &str) -> Result<Code> {
    Code::parse(text).map_err(|bad| {
        Error::usage(format!("`{}` is no share code: {}", text.escape_debug(), bad.reason()))
            .hint("Leave --code out: a code is made that nobody guesses")
    })
}

/// With `--discovered`, what answers on this machine, except connect's own listeners.
fn discovered(call: &Call) -> Result<Vec<NamedService>> {
    if !call.args.flag("discovered") {
        if call.args.value("ports").or(call.args.value("range")).is_some() {
            return Err(Error::usage("--ports and --range say where to look")
                .hint("Write: connect share --discovered --ports 8080,8443, or connect share 8080 8443"));
        }
        return Ok(Vec::new());
    }
    let (mut found, _) = find(call, "localhost", &ports(call)?, discover::PROBE_TIMEOUT)?;
    found.retain(|one| !one.is_ours);
    if found.is_empty() && call.args.positionals.is_empty() && call.args.value("service").is_none() {
        return Err(Error::new("Nothing that could be shared listens at the ports that were looked at")
            .hint("Name its port: connect share 5432, or look elsewhere: connect share --discovered --range 3000-9999"));
    }
    Ok(found)
}

fn announce(
    call: &Call,
    hub: &Hub,
    order: &MakeShare,
    made: &NewShare,
    selection: &ShareSelection,
) -> Result<()> {
    let say = &call.say;
    let (code, agent) = (code_of(&made.code)?, Some(made.agent_fingerprint.pin()));
    let verified = Invitation { code: code.clone(), agent, link: None }.to_string();
    // With `--link`, what needs no login: the hub's address, its pin, and the secret.
    let link = made.secret.clone().map(|secret| {
        let link = Link { hub: hub.url.to_string(), secret, hub_pin: hub.pin() };
        Invitation { code, agent, link: Some(link) }.to_string()
    });
    say.event(
        &json!({ "event": "shared", "id": made.id, "name": order.name, "code": made.code, "verified": verified,
        "link": link, "expiresAt": made.expires_at, "services": made.services, "leftOut": selection.offline }),
    );
    say.line(&format!("[ok] Sharing {}", order.name));
    say.line("");
    say.line(&format!("  Share code: {}", made.code));
    say.line(&format!("  Verified:   {verified}"));
    say.line(&format!("  Expires in {}", in_words(Duration::from_secs(order.expires_in_seconds))));
    say_services(call, made, selection);
    say.line("\n  Your teammate runs:\n");
    // The line to hand on, which `--quiet` prints as well.
    let invitation = link.map_or_else(|| made.code.clone(), |link| format!("'{link}'"));
    say.result(&format!("    connect join {invitation}"));
    say.line(if order.link {
        "\n  The link needs no login. Keep it secret: it opens the share until it expires."
    } else {
        "\n  The code needs a login at this hub (connect up); without one: connect share --link"
    });
    say.line("  The verified code names this machine, too: not even the hub can stand in between.");
    Ok(())
}

fn say_services(call: &Call, made: &NewShare, selection: &ShareSelection) {
    call.say.line("\n  Services:");
    for service in &made.services {
        let exposure = selection.targeted().find(|exposure| exposure.name == service.name);
        let target = exposure.map(|exposure| exposure.target.to_string());
        let target = target.unwrap_or_else(|| format!("port {}", service.target_port));
        call.say.line(&format!("    • {} → {target}", service.name));
    }
    if !selection.offline.is_empty() {
        call.say.line("\n  Left out, offline now:");
    }
    for service in &selection.offline {
        call.say.line(&format!("    • {} → port {}", service.name, service.target_port));
    }
}

pub fn list(call: &Call) -> CommandResult {
    let shares = call.hub()?.shares()?;
    call.say.value(&shares);
    if shares.is_empty() {
        call.say.line("No shares. Make one: connect share 5432 api=8080");
        return Ok(0);
    }
    let rows = shares.iter().map(|share| {
        let services: Vec<&str> = share.services.iter().map(|service| service.name.as_str()).collect();
        let share = &share.info;
        let joins = share
            .max_joins
            .map_or_else(|| share.join_count.to_string(), |max| format!("{}/{max}", share.join_count));
        let sessions =
            share.max_sessions.map(|max| format!(" (at most {} at once)", counted(max, "session")));
        let last = share
            .joins
            .last()
            .map_or_else(|| "-".to_owned(), |join| format!("{} {}", join.who, time(join.at)));
        let [id, name] = [&share.id, &share.name].map(String::clone);
        [id, name, time(share.expires_at), joins, last, services.join(",") + &sessions.unwrap_or_default()]
    });
    let headings = ["ID", "NAME", "EXPIRES", "JOINS", "LAST JOINED", "SERVICES"];
    call.say.result(&columns(&headings, rows));
    Ok(0)
}

pub fn revoke(call: &Call) -> CommandResult {
    let given = call.args.positional(0).unwrap_or_default().trim();
    let list = "List them: connect share list";
    if given.is_empty() {
        return Err(Error::usage("Say which share: its code, its ID or its name").hint(list));
    }
    let hub = call.hub()?;
    hub.revoke_share(given).map_err(|error| if error.is_status(404) { error.hint(list) } else { error })?;
    call.say.value(&json!({ "revoked": given }));
    call.say.line("[ok] Share revoked; its sessions are cut");
    Ok(0)
}
