//! `connect discover`: what listens on this machine or another one, and the command that comes next.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::args::name_of;
use crate::cli::args::port_of;
use crate::cli::args::range_of;
use crate::discover;
use crate::discover::FoundService;
use crate::discover::Scanner;
use crate::error::Error;
use crate::error::Result;
use crate::model::name::Name;
use crate::model::service::Protocol;
use crate::model::target::Target;
use crate::os::process;
use crate::state::proxy;
use crate::state::runs;

const THIS_MACHINE: &str = "localhost";

pub struct NamedService {
    pub name: Name,
    pub target: Target,
    pub service: FoundService,
    /// A listener of connect itself, which nobody wants to share.
    pub is_ours: bool,
}

pub fn run(call: &Call) -> CommandResult {
    let host = call.args.value("host").map_or(Ok(THIS_MACHINE.to_owned()), host_of)?;
    let timeout = call.args.duration("timeout")?.unwrap_or(discover::PROBE_TIMEOUT);
    let ports = ports(call)?;
    let (found, is_up) = find(call, &host, &ports, timeout)?;
    call.say.value(&found.iter().map(in_json).collect::<Vec<_>>());
    if found.is_empty() {
        nothing(call, &host, ports.len(), is_up);
        return Ok(0);
    }
    show(call, &found);
    // The next command, ready to be typed, for the first service that is worth it.
    if let Some(first) = found.iter().find(|found| !found.is_ours) {
        let target =
            if host == THIS_MACHINE { first.target.port.to_string() } else { first.target.to_string() };
        let protocol = match discover::protocol_of(Some(&first.service), first.target.port) {
            Protocol::Https => " --protocol https",
            Protocol::Http | Protocol::Tcp => "",
        };
        call.say.line(&format!("  Make one reachable:  connect expose {} {target}{protocol}", first.name));
        if host == THIS_MACHINE {
            call.say.line(&format!("  Share all by a code: connect share --discovered{}", asked_ports(call)));
        }
    }
    Ok(0)
}

/// Scans the ports. Also says whether the host is up: a refusal shows that as well as an answer.
pub fn find(call: &Call, host: &str, ports: &[u16], timeout: Duration) -> Result<(Vec<NamedService>, bool)> {
    let told = |seen| call.say.progress(&format!("  {seen} of {} ports", ports.len()));
    let report = Scanner::new(host, timeout, &call.stop).and_then(|scanner| scanner.scan(ports, told));
    call.say.progress("");
    let report = report?;
    call.fail_if_stopped()?;
    let is_up = report.refused || !report.found.is_empty();
    let found = report.found.into_iter().map(|(port, service)| {
        let is_ours = is_ours(call, host, port, &service);
        let target = Target { host: host.to_owned(), port };
        Ok(NamedService { name: name_of(&service.kind.name_at(port))?, target, service, is_ours })
    });
    Ok((found.collect::<Result<_>>()?, is_up))
}

/// The ports that `--ports` and `--range` name, or the usual ones.
pub fn ports(call: &Call) -> Result<Vec<u16>> {
    let mut ports = Vec::new();
    for list in call.args.values("ports") {
        for port in list.split(',') {
            ports.push(
                port_of(port.trim()).map_err(|error| error.hint("Write it like --ports 8080,8443,9000"))?,
            );
        }
    }
    for range in call.args.values("range") {
        ports.extend(range_of(range)?);
    }
    // Ranges may overlap, and no port is scanned twice.
    ports.sort_unstable();
    ports.dedup();
    Ok(if ports.is_empty() { discover::usual_ports() } else { ports })
}

/// The options again, so that the command we suggest means the same ports.
fn asked_ports(call: &Call) -> String {
    let asked =
        ["ports", "range"].map(|name| call.args.values(name).map(move |value| format!(" --{name} {value}")));
    asked.into_iter().flatten().collect()
}

/// A name or an address without a port; an IPv6 address may be in brackets.
fn host_of(text: &str) -> Result<String> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if bare.parse::<IpAddr>().is_ok() {
        return Ok(bare.to_owned());
    }
    Target::parse(&format!("{text}:1")).map(|target| target.host).ok_or_else(|| {
        Error::misread(text, "is neither a name nor an address of a host")
            .hint("Write it like --host 192.168.1.50; ports go with --ports or --range")
    })
}

/// Recognised by what it answers, by our list of running commands, or by the process that listens.
fn is_ours(call: &Call, host: &str, port: u16, service: &FoundService) -> bool {
    let said = [&service.page.title, &service.page.framework];
    if said.into_iter().flatten().any(|said| said == "connect proxy" || said == "connect hub") {
        return true;
    }
    if host != THIS_MACHINE {
        return false;
    }
    let at = format!("localhost:{port}");
    let mut tunnels =
        runs::all(&call.home).into_iter().filter(|run| !["expose", "share"].contains(&run.kind.as_str()));
    proxy::running(&call.home).is_some_and(|proxy| proxy.port == port)
        || tunnels.any(|run| run.open.iter().any(|open| open.at == at))
        || process::listener_on(port).is_some_and(|(_, name)| name == "connect")
}

fn label(found: &NamedService) -> Option<&str> {
    if found.is_ours { Some("connect itself") } else { found.service.label() }
}

/// Prints the list in the form that the users' documents show.
pub fn show(call: &Call, found: &[NamedService]) {
    call.say.line(&format!("🔍 Discovered {} service(s):\n", found.len()));
    for one in found {
        let more = label(one).map_or(String::new(), |label| format!(" ({label})"));
        let kind = one.service.kind.spec();
        call.say.result(&format!("  {} {}", kind.icon, one.service.kind.listed_at(one.target.port)));
        call.say.result(&format!("     {} {}{more}", one.target, kind.name));
        call.say.line("");
    }
}

pub fn in_json(found: &NamedService) -> Value {
    let FoundService { kind, page, .. } = &found.service;
    json!({ "name": found.name, "host": found.target.host, "port": found.target.port, "type": kind.spec().name,
        "protocol": discover::protocol_of(Some(&found.service), found.target.port), "label": label(found), "title": page.title, "server": page.server,
        "framework": page.framework, "own": found.is_ours })
}

fn nothing(call: &Call, host: &str, count: usize, is_up: bool) {
    let which = match count {
        1 => "the port that was scanned".to_owned(),
        _ => format!("any of the {count} ports that were scanned"),
    };
    call.say.line(&format!("Nothing listens on {host} at {which}"));
    if is_up {
        call.say.line("  Scan others: connect discover --ports 8080,8443, or --range 3000-3010");
    } else {
        call.say.line(
            "  There was not even a refusal: the host is down, behind a firewall, or slow (--timeout 2s)",
        );
    }
}
