//! `install` and `uninstall` of `connect hub`, `connect daemon` and `connect proxy`: both show the plan before they carry it
//! out. The hub gets a user of its own; daemon and proxy run as the user who asks.

use std::env;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::path::absolute;

use serde_json::json;

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::args::DEFAULT_LISTEN;
use crate::cli::args::listen_address;
use crate::cli::args::tunnel_ports;
use crate::cli::background;
use crate::cli::call::variable;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::address_block::AddressBlock;
use crate::os::command::words;
use crate::os::detach;
use crate::os::setup::step::SetupStep;
use crate::os::setup::unit;
use crate::os::setup::unit::ServiceManager;
use crate::os::setup::unit::UnitPlan;
use crate::os::setup::unit::UnitSpec;
use crate::os::user;
use crate::state::proxy::LOCAL_PROXY_PORT;
use crate::state::proxy::PROXY_KIND;
use crate::state::proxy::PROXY_LOG;
use crate::state::runs;
use crate::state::runs::DAEMON_KIND;
use crate::state::runs::DAEMON_LOG;
use crate::state::runs::HUB_KIND;

const HUB_USER: &str = "connect-hub";
const HUB_HOME: &str = "/var/lib/connect-hub";
/// Variables of this shell that the service manager does not know. The unit gets them from a file of its own.
const UNIT_VARIABLES: [&str; 4] = ["CONNECT_HUB_URL", "PRIVATECONNECT_CA", "HTTPS_PROXY", "NO_PROXY"];
/// Options of the installation itself, and of what this one call prints. The unit repeats all others.
const NOT_REPEATED: [&str; 8] = ["dry-run", "system", "allow", "data", "replace", "json", "quiet", "verbose"];
/// A service manager starts the program in another folder.
const FILE_OPTIONS: [&str; 7] =
    ["config", "cert", "key", "etcd-ca", "etcd-password-file", "code-key-file", "first-key-file"];

pub fn install(call: &Call) -> CommandResult {
    let (service, plan) = planned(call)?;
    for unit in &plan.units {
        call.say.line(&format!("{}:\n", unit.file.display()));
        unit.text.lines().for_each(|line| call.say.line(format!("    {line}").trim_end()));
        call.say.line("");
    }
    if !call.args.flag("dry-run") {
        must_be_possible(call, &service)?;
        // One that was started by hand holds the lock or the port that the unit's needs.
        if let Some(run) = runs::running(&call.home, service.name).filter(|_| service.name != HUB_KIND) {
            unit::stop_socket(service.name);
            background::end(call, &format!("The {}", service.name), run.pid)?;
        }
    }
    carry_out(call, &plan, &plan.install)?;
    if call.args.flag("dry-run") {
        return Ok(0);
    }
    call.say.line(&format!("[ok] Installed; the {} runs, and comes back after every reboot", service.name));
    if service.name == HUB_KIND {
        let key = format!("connect hub key create --role admin --label NAME --data {}", service.command[3]);
        call.say.line(&format!("  Make the first key: sudo -u {HUB_USER} {key}"));
        return Ok(0);
    }
    if service.system.is_none() && unit::manager() == Some(ServiceManager::Systemd) {
        call.say.line("  It runs while you are logged in. From boot on: loginctl enable-linger");
    }
    call.say.line(&format!("  Look at it: connect {} status", service.name));
    Ok(0)
}

pub fn uninstall(call: &Call) -> CommandResult {
    let (service, plan) = planned(call)?;
    if !call.args.flag("dry-run") {
        if !plan.file.exists() {
            return Err(Error::new(format!("There is no {}", plan.file.display()))
                .hint("Nothing is installed; with --system it is the whole machine's"));
        }
        must_be_root(&service)?;
    }
    carry_out(call, &plan, &plan.uninstall)?;
    if !call.args.flag("dry-run") {
        call.say.line("[ok] Uninstalled");
    }
    Ok(0)
}

fn planned(call: &Call) -> Result<(UnitSpec, UnitPlan)> {
    let service = match call.args.words.first().map(String::as_str) {
        Some("hub") => hub_unit(call)?,
        Some("proxy") => proxy_unit(call)?,
        _ => daemon_unit(call)?,
    };
    let manager = match unit::manager() {
        Some(manager) => manager,
        // A dry run can show the unit on any machine.
        None if call.args.flag("dry-run") => ServiceManager::Systemd,
        None => {
            let (start, line) = (service.command[1..].join(" "), service.command.join(" "));
            return Err(Error::new("This machine has no systemd").hint(format!(
                "Start it now: connect {start}. After every reboot, by a line in crontab -e:\n    @reboot {line}"
            )));
        }
    };
    let plan = unit::plan(manager, &service);
    Ok((service, plan))
}

fn must_be_possible(call: &Call, service: &UnitSpec) -> Result<()> {
    must_be_root(service)?;
    let has_login = call.args.value("config").is_some() || service.state.join("config.json").exists();
    if service.name == DAEMON_KIND && !has_login {
        return Err(Error::new(format!("No login found in {}", service.state.display()))
            .hint("Run connect up first to authenticate."));
    }
    Ok(())
}

fn must_be_root(service: &UnitSpec) -> Result<()> {
    if service.system.is_none() || user::is_root() {
        return Ok(());
    }
    Err(Error::new("The whole machine's services belong to root").hint("Run the same command with sudo"))
}

fn carry_out(call: &Call, plan: &UnitPlan, steps: &[SetupStep]) -> Result<()> {
    let commands: Vec<String> = steps.iter().map(SetupStep::command).collect();
    commands.iter().for_each(|command| call.say.line(&format!("  {command}")));
    call.say.line("");
    let dry = call.args.flag("dry-run");
    if !dry {
        steps.iter().try_for_each(SetupStep::carry_out)?;
    }
    call.say.value(&json!({ "file": plan.file, "units": plan.units, "commands": commands, "done": !dry }));
    Ok(())
}

fn hub_unit(call: &Call) -> Result<UnitSpec> {
    let (host, port) = listen_address("listen", call.args.value("listen").unwrap_or(DEFAULT_LISTEN))?;
    let given = call.args.value("data").map_or_else(|| Path::new(HUB_HOME).join("data"), PathBuf::from);
    let folder = absolute(&given).or_say(|| format!("Cannot use {}", given.display()))?;
    let data = folder.display().to_string();
    // systemd wants an address, and a port that it can name in advance.
    let socket = host.parse::<IpAddr>().ok().filter(|_| port != 0).map(|ip| SocketAddr::new(ip, port));
    let mut client_networks = networks(call)?;
    if client_networks.is_empty() && socket.is_some_and(|at| at.ip().is_loopback()) {
        client_networks.push("localhost".to_owned());
    }
    // etcd and the hubs of its fleet, or a collector of audit events. Otherwise it connects to nobody else.
    let begins = |option, text| call.args.value(option).is_some_and(|value| value.starts_with(text));
    let dials_others = begins("store", "etcd=") || begins("audit-to", "tcp:");
    let mut networks = client_networks.clone();
    if networks.is_empty() && socket.is_some() && !dials_others {
        networks.push("localhost".to_owned());
    }
    let tunnel_ports = tunnel_ports(&call.args)?;
    let new_user = "useradd --system --create-home --shell /usr/sbin/nologin --home-dir";
    Ok(UnitSpec {
        name: HUB_KIND,
        description: "the meeting point that relays what it cannot read",
        command: command(call, &["hub", "--data", &data])?,
        state: if folder.starts_with(HUB_HOME) { HUB_HOME.into() } else { folder },
        system: Some(HUB_USER.to_owned()),
        prepare: vec![
            // The user may be there already.
            SetupStep::RunUnchecked(words(new_user, &[HUB_HOME, HUB_USER])),
            SetupStep::run("install -d -m 700", &["-o", HUB_USER, "-g", HUB_USER, &data]),
        ],
        ports: [socket.is_none().then_some(port..=port), tunnel_ports].into_iter().flatten().collect(),
        socket,
        networks,
        client_networks,
        ..UnitSpec::default()
    })
}

/// The proxy itself listens on `::1` as well. There it is away while it restarts, and clients try 127.0.0.1.
fn proxy_unit(call: &Call) -> Result<UnitSpec> {
    let port = call.args.port("port")?.unwrap_or(LOCAL_PROXY_PORT);
    let socket = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let description = "local names for services";
    Ok(UnitSpec { description, socket, ..user_unit(call, PROXY_KIND, PROXY_LOG)? })
}

fn daemon_unit(call: &Call) -> Result<UnitSpec> {
    let networks = networks(call)?;
    if !networks.is_empty() && !call.args.flag("system") {
        return Err(Error::usage("Only the system's service manager can limit networks")
            .hint("Add --system, or leave out --allow"));
    }
    let unit = user_unit(call, DAEMON_KIND, DAEMON_LOG)?;
    Ok(UnitSpec { description: "keeps services of this machine exposed", networks, ..unit })
}

/// The networks of `--allow`, and this machine. None without the option: then the unit may speak with all.
fn networks(call: &Call) -> Result<Vec<String>> {
    let read = |text: &str| match AddressBlock::parse(text) {
        Some(_) => Ok(text.to_owned()),
        None => {
            Err(Error::misread(text, "is not a block of addresses").hint("Write it like --allow 10.0.0.0/8"))
        }
    };
    let mut networks: Vec<String> = call.args.values("allow").map(read).collect::<Result<_>>()?;
    if !networks.is_empty() {
        networks.push("localhost".to_owned());
    }
    Ok(networks)
}

/// The unit of `connect NAME start`, for the user who calls it. It writes its log into the state folder.
fn user_unit(call: &Call, name: &'static str, log: &str) -> Result<UnitSpec> {
    let (owner, home) = unit::owner().ok_or_else(|| Error::new("This user has no name on this machine"))?;
    let system = call.args.flag("system");
    // Under sudo, the state folder is that of the user who called sudo.
    let moved = variable("PRIVATECONNECT_HOME").is_some() || !system;
    let state = if moved { call.home.file("") } else { home.join(".privateconnect") };
    let state = absolute(state).or_say(|| "Cannot tell the state folder")?.components().collect::<PathBuf>();
    let text = |path: &Path| path.display().to_string();
    let private = UNIT_VARIABLES.iter().filter_map(|name| Some(((*name).to_owned(), variable(name)?)));
    Ok(UnitSpec {
        name,
        command: command(call, &[name, "start"])?,
        environment: vec![
            ("PRIVATECONNECT_HOME".to_owned(), text(&state)),
            (detach::LOG_VARIABLE.to_owned(), text(&state.join(log))),
        ],
        private_environment: private.collect(),
        state,
        system: system.then_some(owner),
        ..UnitSpec::default()
    })
}

/// This program with these words, and with the options of this call that are not about the installation.
fn command(call: &Call, words: &[&str]) -> Result<Vec<String>> {
    let program = env::current_exe().or_say(|| "Cannot find this program's own file")?;
    let mut command = vec![program.display().to_string()];
    command.extend(words.iter().map(|word| (*word).to_owned()));
    for (name, value) in call.args.given().filter(|(name, _)| !NOT_REPEATED.contains(name)) {
        command.push(format!("--{name}"));
        if FILE_OPTIONS.contains(&name) {
            let path = absolute(value).or_say(|| format!("Cannot use {value}"))?;
            command.push(path.display().to_string());
        } else if !value.is_empty() {
            command.push(value.to_owned());
        }
    }
    Ok(command)
}
