//! What `connect doctor` looks at. Each check is one small function that returns its verdict.

use std::net::Ipv4Addr;
use std::net::TcpStream;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use super::daemon;
use super::doctor::Check;
use super::doctor::Exam;
use super::doctor::Verdict;
use super::doctor_way;
use super::proxy::PORT;
use super::proxy_parts::CERTIFICATES;
use super::proxy_trust;
use crate::cli::call::not_configured;
use crate::error::Error;
use crate::error::Result;
use crate::model::hub_trust::HubTrust;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::connect::resolve;
use crate::os::command;
use crate::os::files;
use crate::os::limits;
use crate::os::paths;
use crate::os::process;
use crate::os::setup::trust_store;
use crate::proxy::certificates::Certificates;
use crate::state::config::Config;
use crate::state::config::pin_of;
use crate::state::home::Home;
use crate::state::proxy;
use crate::state::routes;
use crate::state::runs;
use crate::state::runs::Run;
use crate::tls::identity::Identity;

pub const CHECKS: [(&str, Check); 19] = [
    ("state folder", state_folder),
    ("file modes", file_modes),
    ("config", config),
    ("key", key),
    ("identity", identity),
    ("exposures", exposures),
    ("stale entries", stale_entries),
    ("open files", open_files),
    ("hub: DNS", doctor_way::hub_dns),
    ("hub: TCP", doctor_way::hub_tcp),
    ("hub: TLS", doctor_way::hub_tls),
    ("hub: HTTP", doctor_way::hub_http),
    ("clock", doctor_way::clock_skew),
    ("login", doctor_way::login),
    ("control channel", doctor_way::control_channel),
    ("relay", doctor_way::relay),
    (".localhost", dot_localhost),
    ("proxy", local_proxy),
    ("certificates", certificates),
];

/// Our own files and folders in the state folder.
const OWN: [&str; 12] = [
    "config.json",
    "identity.pem",
    "known_agents.json",
    "active-routes.json",
    "proxy-state.json",
    "ports.json",
    "services.json",
    "agent.log",
    "proxy.log",
    "run",
    "logs",
    "certs",
];
/// A tunnelled connection takes two.
const DESCRIPTORS: usize = 1024;

pub fn verdict(outcome: Result<String>) -> Option<Verdict> {
    outcome.map_or_else(|error| Verdict::fail(&error), Verdict::ok)
}

fn state_folder(exam: &mut Exam<'_>) -> Option<Verdict> {
    let home = &exam.call.home;
    let probe = home.file(".doctor");
    let written =
        home.lock().and_then(|_lock| files::write(&probe, b"x")).and_then(|()| files::remove(&probe));
    verdict(written.map(|()| format!("{} can be written", paths::shown(&home.file("")))))
}

/// The state folder may be any folder of the user's, so only what is ours in it counts.
fn loose(home: &Home) -> Vec<PathBuf> {
    let folder = home.file("");
    let is_open = |path: &Path| files::is_open_to_others(path).then(|| path.to_owned());
    let ours = OWN.iter().flat_map(|name| files::open_to_others_below(&home.file(name)));
    is_open(&folder).into_iter().chain(ours).collect()
}

fn file_modes(exam: &mut Exam<'_>) -> Option<Verdict> {
    let loose_ones = loose(&exam.call.home);
    let Some(first) = loose_ones.first() else { return Verdict::ok("nobody else can look in") };
    let what = format!("{} file(s) are open to other users, like {}", loose_ones.len(), paths::shown(first));
    let error = Error::new(what).hint("connect doctor --fix");
    Some(
        Verdict::fail(&error)?
            .with(|exam| loose(&exam.call.home).iter().try_for_each(|path| files::make_private(path))),
    )
}

fn config(exam: &mut Exam<'_>) -> Option<Verdict> {
    let read = exam.call.config().and_then(|config| {
        let url = exam.call.hub_urls()?.remove(0);
        exam.config = Config::clone(&config);
        exam.call.api_key()?.ok_or_else(|| not_configured().hint("connect up --hub URL --api-key KEY"))?;
        exam.hub = Some(exam.call.hub()?);
        Ok(format!("hub {url}, this machine is {}", exam.config.label.as_deref().unwrap_or("not registered")))
    });
    verdict(read)
}

fn key(exam: &mut Exam<'_>) -> Option<Verdict> {
    exam.hub.as_ref()?;
    let key = exam.call.api_key().ok()??;
    Verdict::ok(match exam.call.trust(&exam.config, Some(&key)) {
        Ok(HubTrust::Pin(pin)) if pin_of(&key) == Some(pin) => format!("it carries the hub's pin {pin}"),
        Ok(HubTrust::Pin(pin)) => format!("the hub is recognised by the pin {pin}"),
        Ok(HubTrust::Roots(_)) => "the hub is recognised by your CA file".to_owned(),
        Ok(HubTrust::Public) => "the hub is recognised by public certificates".to_owned(),
        Err(error) => return Verdict::fail(&error),
    })
}

fn identity(exam: &mut Exam<'_>) -> Option<Verdict> {
    let path = exam.call.home.file("identity.pem");
    let pem = match files::read(&path) {
        Ok(Some(pem)) => pem,
        Ok(None) => return Verdict::ok("none yet; it is made when first needed"),
        Err(error) => return Verdict::fail(&error),
    };
    let damaged = |error: Error| error.hint(format!("mv {0} {0}.old", path.display()));
    verdict(
        Identity::parse(&pem)
            .map_err(damaged)
            .map(|identity| format!("fingerprint {}", identity.fingerprint.pin())),
    )
}

fn exposures(exam: &mut Exam<'_>) -> Option<Verdict> {
    let kept = exam.config.exposures.len();
    let open = match runs::running(&exam.call.home, daemon::DAEMON_KIND) {
        _ if kept == 0 => return None,
        None => {
            let error = Error::new(format!("{kept} saved, but no daemon runs that would keep them up"));
            return Verdict::fail(&error.hint("connect daemon start"));
        }
        Some(run) => run.open,
    };
    match open.iter().find(|open| !open.up) {
        None => Verdict::ok(format!("the daemon keeps {kept} up")),
        Some(open) => {
            let why = open.trouble.as_deref().unwrap_or("the hub has not answered yet");
            Verdict::fail(&Error::new(format!("{}: {why}", open.name)).hint("connect daemon logs"))
        }
    }
}

fn stale_entries(exam: &mut Exam<'_>) -> Option<Verdict> {
    let home = &exam.call.home;
    let dead = runs::all(home).iter().filter(|run| !run.is_alive()).map(Run::title).collect::<Vec<_>>();
    let routes = routes::dead(home);
    let state = home.file(proxy::PROXY_STATE_FILE).exists() && proxy::running(home).is_none();
    if dead.is_empty() && routes == 0 && !state {
        return Verdict::ok("none");
    }
    let said = match dead.as_slice() {
        [] => "a process that was killed left entries behind".to_owned(),
        names => format!("ended by themselves: {}", names.join(", ")),
    };
    Some(Verdict::warn(said, "See why: connect status. Clear them: connect doctor --fix")?.with(|exam| {
        let home = &exam.call.home;
        runs::all(home).iter().filter(|run| !run.is_alive()).for_each(|run| runs::forget(home, run.pid));
        if proxy::running(home).is_none() {
            files::remove(&home.file(proxy::PROXY_STATE_FILE))?;
        }
        routes::tidy(home)
    }))
}

fn open_files(_: &mut Exam<'_>) -> Option<Verdict> {
    match limits::open_files() {
        few if few < DESCRIPTORS => Verdict::warn(
            format!("only {few}; each connection through a tunnel takes two"),
            "ulimit -n 65536, for good in /etc/security/limits.conf",
        ),
        many => Verdict::ok(format!("{many} allowed")),
    }
}

fn dot_localhost(exam: &mut Exam<'_>) -> Option<Verdict> {
    let name = "connect-doctor.localhost";
    let by_system = command::output_of(&["getent", "ahosts", name])
        .map(|said| said.starts_with("127.") || said.starts_with("::1"));
    let known = by_system.unwrap_or_else(|| {
        let found = resolve(name, PORT, Instant::now() + NETWORK_TIMEOUT, &exam.call.stop);
        found.is_ok_and(|found| found.iter().all(|address| address.ip().is_loopback()))
    });
    if known {
        return Verdict::ok("the system knows that it is this machine");
    }
    Verdict::warn(
        "browsers and curl know NAME.localhost, other programs of this system do not",
        "Install nss-myhostname (package libnss-myhostname), or write the name into /etc/hosts",
    )
}

fn local_proxy(exam: &mut Exam<'_>) -> Option<Verdict> {
    let state = proxy::running(&exam.call.home);
    let port = state.as_ref().map_or(PORT, |state| state.port);
    let answers = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), Duration::from_secs(1));
    match (state, answers) {
        (Some(state), Ok(_)) => Verdict::ok(format!("runs on port {} (PID {})", state.port, state.pid)),
        (Some(_), Err(error)) => Verdict::fail(
            &Error::new(format!("it runs, and does not answer on port {port}"))
                .because(error)
                .hint("connect proxy start --replace"),
        ),
        (None, Ok(_)) => {
            let holder = process::listener_on(port)
                .map_or_else(String::new, |(pid, name)| format!(": {name} (PID {pid})"));
            Verdict::warn(
                format!("not running, and its port {port} is taken{holder}"),
                format!("connect proxy start --port {}", port + 1),
            )
        }
        (None, Err(_)) => Verdict::ok("not running; connect proxy start"),
    }
}

fn certificates(exam: &mut Exam<'_>) -> Option<Verdict> {
    let ca = proxy_trust::ca_file(exam.call);
    if !ca.exists() {
        return None;
    }
    if let Err(error) = Certificates::of_folder(&exam.call.home.file(CERTIFICATES)) {
        return Verdict::fail(&error);
    }
    let lacking = proxy_trust::machine().map(|machine| trust_store::stores_without(&machine, &ca));
    let lacking = lacking.unwrap_or_else(|_| vec!["any store".to_owned()]);
    if lacking.is_empty() {
        return Verdict::ok("the local CA is trusted, by the system and by browsers");
    }
    let what = format!("the local CA is not in {}", lacking.join(" and "));
    Verdict::warn(what, "connect proxy trust")
}
