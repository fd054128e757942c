//! A program that the system starts after every reboot: by systemd, or by launchd on a Mac. As with the trust stores,
//! the plan comes first; the caller shows it and carries it out.

use std::collections::BTreeSet;
use std::env;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::path::PathBuf;

use serde::Serialize;

use crate::os::command::words;
use crate::os::paths;
use crate::os::setup::plist::plist;
use crate::os::setup::step::SetupStep;
use crate::os::user;

/// These filter system calls, so they also work in a user's own manager, which may not make mounts.
///
/// The scheduling that threads ask for (`os/scheduling.rs`) is set in advance, since the call for it is among @resources.
/// `AF_NETLINK` tells which user's connection it is (`os/peer_user.rs`).
const HARDENING: &str = "NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
CPUSchedulingPolicy=batch
UMask=0077
TasksMax=infinity
";
/// What the system's manager can do in addition. Only the state folder stays writable, and the homes are empty.
const SYSTEM_HARDENING: &str = "ProtectSystem=strict
ProtectHome=tmpfs
PrivateTmp=yes
PrivateDevices=yes
PrivateMounts=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
KeyringMode=private
RemoveIPC=yes
LimitNOFILE=65536
";
/// What `ProtectHome=` empties.
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];
/// Below this a port needs a capability.
const UNPRIVILEGED_PORTS: u16 = 1024;
/// Connections that wait while the service restarts: as many as Linux allows by default.
const SOCKET_BACKLOG: u32 = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceManager {
    Systemd,
    Launchd,
}

/// What to start, and for whom.
#[derive(Default)]
pub struct UnitSpec {
    /// `hub`: the unit is `connect-hub.service`.
    pub name: &'static str,
    pub description: &'static str,
    /// The program and its arguments.
    pub command: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// Those that may hold a password, as `HTTPS_PROXY` does: everybody can read a unit.
    pub private_environment: Vec<(String, String)>,
    /// The folder that it writes to.
    pub state: PathBuf,
    /// For the whole machine, as this user; otherwise the user's own.
    pub system: Option<String>,
    /// What comes before the unit is written.
    pub prepare: Vec<SetupStep>,
    /// Where systemd listens for it and keeps the connections that come while it restarts.
    pub socket: Option<SocketAddr>,
    /// For the system's manager: the ports that it may bind itself. Empty for any, with `socket` for none.
    pub ports: Vec<RangeInclusive<u16>>,
    /// The networks that it may speak with. Empty for all.
    pub networks: Vec<String>,
    /// The same for the connections that `socket` takes: the service's own list does not apply to them.
    pub client_networks: Vec<String>,
}

#[derive(Serialize)]
pub struct UnitFile {
    pub file: PathBuf,
    pub text: String,
}

/// The unit files, and the steps that install, remove and start them.
pub struct UnitPlan {
    /// The service's own, the last of `units`.
    pub file: PathBuf,
    pub units: Vec<UnitFile>,
    pub install: Vec<SetupStep>,
    pub uninstall: Vec<SetupStep>,
    pub start: SetupStep,
}

/// The service manager that started this machine.
pub fn manager() -> Option<ServiceManager> {
    if cfg!(target_os = "macos") {
        return Some(ServiceManager::Launchd);
    }
    Path::new("/run/systemd/system").is_dir().then_some(ServiceManager::Systemd)
}

/// The user who called `sudo`, else the current user.
pub fn owner() -> Option<(String, PathBuf)> {
    let called = env::var("SUDO_USER").ok().filter(|_| user::is_root());
    user::named(called.as_deref())
}

pub fn plan(manager: ServiceManager, service: &UnitSpec) -> UnitPlan {
    match manager {
        ServiceManager::Systemd => systemd(service),
        ServiceManager::Launchd => launchd(service),
    }
}

/// The unit file's path.
pub fn file(manager: ServiceManager, name: &str, system: bool) -> PathBuf {
    let home = paths::user_home().unwrap_or_default();
    let folder = match (manager, system) {
        (ServiceManager::Systemd, true) => PathBuf::from("/etc/systemd/system"),
        (ServiceManager::Systemd, false) => {
            let moved = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
            moved.unwrap_or_else(|| home.join(".config")).join("systemd/user")
        }
        (ServiceManager::Launchd, true) => PathBuf::from("/Library/LaunchDaemons"),
        (ServiceManager::Launchd, false) => home.join("Library/LaunchAgents"),
    };
    folder.join(match manager {
        ServiceManager::Systemd => systemd_name(name, "service"),
        ServiceManager::Launchd => format!("{}.plist", launchd_label(name)),
    })
}

/// Ends a user's service by its socket, which would start it again at the next connection. Nothing happens if no such
/// socket is installed.
pub fn stop_socket(name: &str) {
    let socket = file(ServiceManager::Systemd, name, false).with_extension("socket");
    if manager() == Some(ServiceManager::Systemd) && socket.exists() {
        let _ = SetupStep::run("systemctl --user stop", &[&systemd_name(name, "socket")]).carry_out();
    }
}

fn systemd_name(name: &str, kind: &str) -> String {
    format!("connect-{name}.{kind}")
}

fn launchd_label(name: &str) -> String {
    format!("co.privateconnect.{name}")
}

fn systemd(service: &UnitSpec) -> UnitPlan {
    let is_system = service.system.is_some();
    let file = file(ServiceManager::Systemd, service.name, is_system);
    let mut units = vec![UnitFile { file: file.clone(), text: unit(service) }];
    // The socket comes first: as long as it is there, it starts the service again.
    if let Some(address) = service.socket {
        units
            .insert(0, UnitFile { file: file.with_extension("socket"), text: socket_unit(service, address) });
    }
    let names: Vec<&str> = units.iter().filter_map(|unit| unit.file.file_name()?.to_str()).collect();
    let manager = if is_system { "systemctl" } else { "systemctl --user" };
    let control = |verb: &str, names: &[&str]| SetupStep::run(&format!("{manager} {verb}"), names);
    let environment = environment_file(service);
    let files = units.iter().map(|unit| &unit.file).chain([&environment]);
    let files: Vec<String> = files.map(|file| file.display().to_string()).collect();
    // One by one: systemctl disables neither if one of them is not there.
    let disable = |name: &&str| SetupStep::RunUnchecked(words(manager, &["disable", "--now", name]));
    let mut uninstall: Vec<SetupStep> = names.iter().map(disable).collect();
    uninstall.extend([SetupStep::Run([words("rm -f", &[]), files].concat()), control("daemon-reload", &[])]);
    let mut install = service.prepare.clone();
    if !service.private_environment.is_empty() {
        let text = environment_lines(service);
        install.push(SetupStep::Write { path: environment, text, is_private: true });
    }
    for UnitFile { file, text } in &units {
        install.push(SetupStep::Write { path: file.clone(), text: text.clone(), is_private: false });
    }
    install.extend([
        control("daemon-reload", &[]),
        control("enable", &names),
        // Not only started: one that runs has the options of the installation before.
        control("restart", &names),
    ]);
    let start = control("start", &[&systemd_name(service.name, "service")]);
    UnitPlan { file, units, install, uninstall, start }
}

/// The variables that do not stand in the unit.
fn environment_file(service: &UnitSpec) -> PathBuf {
    service.state.join(format!("{}.env", service.name))
}

/// The text of the file with the private environment.
fn environment_lines(service: &UnitSpec) -> String {
    let value = |value: &str| value.replace('\\', r"\\").replace('"', "\\\"");
    let lines = service.private_environment.iter();
    lines.map(|(name, text)| format!("{name}=\"{}\"\n", value(text))).collect()
}

/// The text of the systemd unit.
fn unit(service: &UnitSpec) -> String {
    let command: Vec<String> =
        service.command.iter().map(|word| unit_word(word).replace('$', "$$")).collect();
    let environment: String = service
        .environment
        .iter()
        .map(|(name, value)| format!("Environment={}\n", unit_word(&format!("{name}={value}"))))
        .collect();
    let mut text =
        format!("[Unit]\nDescription=connect: {}\nDocumentation=man:connect(1)\n", service.description);
    // Not network-online.target: it can take minutes where another network is slow, and connect waits for its own.
    if service.system.is_some() {
        text += "After=network.target\n";
    }
    if service.socket.is_some() {
        text += &format!("Requires={0}\nAfter={0}\n", systemd_name(service.name, "socket"));
    }
    text += &format!("\n[Service]\nType=notify\nExecStart={}\n{environment}", command.join(" "));
    if service.socket.is_some() {
        text += "StandardInput=socket\nStandardOutput=journal\n";
    }
    if !service.private_environment.is_empty() {
        // This setting takes a path as it is, without quotes.
        let path = environment_file(service).display().to_string().replace('%', "%%");
        text += &format!("EnvironmentFile={}\n", path.replace(char::is_control, ""));
    }
    text += &format!("Restart=on-failure\nRestartSec=5\n{HARDENING}");
    let mut wanted_by = "default.target";
    if let Some(user) = &service.system {
        wanted_by = "multi-user.target";
        let state = unit_word(&service.state.display().to_string());
        text += &format!("User={user}\n{SYSTEM_HARDENING}ReadWritePaths={state}\n");
        text += &(home_paths(service) + &confinement(service));
    }
    text + &format!("\n[Install]\nWantedBy={wanted_by}\n")
}

/// What it needs of the homes: its state, and the folders of the program and of files that it is told to read. Folders,
/// since a file that is replaced is another one.
fn home_paths(service: &UnitSpec) -> String {
    let in_home = |path: &Path| HOMES.iter().any(|home| path.starts_with(home));
    let line = |name: &str, path: &Path| format!("{name}={}\n", unit_word(&path.display().to_string()));
    let state = Some(line("BindPaths", &service.state)).filter(|_| in_home(&service.state));
    let values = service.environment.iter().chain(&service.private_environment).map(|(_, value)| value);
    let files = service.command.iter().chain(values).map(Path::new);
    let files = files.filter(|file| in_home(file) && !file.starts_with(&service.state));
    let folders: BTreeSet<&Path> = files.filter_map(Path::parent).collect();
    state.into_iter().chain(folders.into_iter().map(|folder| line("BindReadOnlyPaths", folder))).collect()
}

/// What depends on the configuration: capabilities, ports and networks.
fn confinement(service: &UnitSpec) -> String {
    let mut text = String::new();
    let is_privileged = service.ports.iter().any(|ports| (1..UNPRIVILEGED_PORTS).contains(ports.start()));
    // A capability counts for nothing in a user namespace.
    text += if is_privileged {
        "CapabilityBoundingSet=CAP_NET_BIND_SERVICE\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n"
    } else {
        "CapabilityBoundingSet=\nAmbientCapabilities=\nPrivateUsers=yes\n"
    };
    if !service.ports.is_empty() || service.socket.is_some() {
        text += "SocketBindDeny=any\n";
    }
    for ports in &service.ports {
        text += &format!("SocketBindAllow=tcp:{}-{}\n", ports.start(), ports.end());
    }
    text + &network_filter(service, &service.networks)
}

/// A connection to its own address wakes the thread that accepts, so that is always among them.
fn network_filter(service: &UnitSpec, networks: &[String]) -> String {
    if networks.is_empty() {
        return String::new();
    }
    let is_outside = |ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified();
    let own = service.socket.map(|at| at.ip()).filter(is_outside).map(|ip| format!(" {ip}"));
    format!("IPAddressDeny=any\nIPAddressAllow={}{}\n", networks.join(" "), own.unwrap_or_default())
}

/// The text of the unit of its socket. At boot the address may come later than the socket: hence `FreeBind`.
fn socket_unit(service: &UnitSpec, address: SocketAddr) -> String {
    let (description, filter) = (service.description, network_filter(service, &service.client_networks));
    format!(
        "[Unit]
Description=connect: {description}
Documentation=man:connect(1)

[Socket]
ListenStream={address}
Backlog={SOCKET_BACKLOG}
FreeBind=yes
{filter}
[Install]
WantedBy=sockets.target
"
    )
}

/// Quotes any text as one word of a unit file.
fn unit_word(word: &str) -> String {
    let escaped: String = word
        .chars()
        .map(|c| match c {
            '\\' | '"' => format!("\\{c}"),
            '%' => "%%".to_owned(),
            c if c.is_control() => format!("\\x{:02x}", u32::from(c)),
            c => c.to_string(),
        })
        .collect();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-=:,@+%".contains(&b);
    if !escaped.is_empty() && escaped.bytes().all(plain) { escaped } else { format!("\"{escaped}\"") }
}

fn launchd(service: &UnitSpec) -> UnitPlan {
    let file = file(ServiceManager::Launchd, service.name, service.system.is_some());
    let domain = if service.system.is_some() { "system".to_owned() } else { format!("gui/{}", user::uid()) };
    let environment: Vec<&(String, String)> =
        service.environment.iter().chain(&service.private_environment).collect();
    let label = launchd_label(service.name);
    let text = plist(&label, service.system.as_deref(), &service.command, &environment);
    let path = file.display().to_string();
    let target = format!("{domain}/{label}");
    let end = || SetupStep::RunUnchecked(words("launchctl bootout", &[&target]));
    UnitPlan {
        install: vec![
            SetupStep::Write { path: file.clone(), text: text.clone(), is_private: true },
            end(),
            SetupStep::run("launchctl bootstrap", &[&domain, &path]),
        ],
        uninstall: vec![end(), SetupStep::run("rm -f", &[&path])],
        start: SetupStep::run("launchctl kickstart", &[&target]),
        // launchd gives its sockets only to programs that call its library.
        units: vec![UnitFile { file: file.clone(), text }],
        file,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(system: Option<&str>) -> UnitSpec {
        UnitSpec {
            command: vec!["/opt/my tools/connect".into(), "daemon".into(), "50%$x".into()],
            environment: vec![("PRIVATECONNECT_HOME".into(), "/home/a b\n/\"x\"<&>".into())],
            private_environment: vec![("HTTPS_PROXY".into(), "http://ann:a\"\\b@p".into())],
            state: "/home/a b".into(),
            system: system.map(str::to_owned),
            name: "daemon",
            ..UnitSpec::default()
        }
    }

    #[test]
    fn nothing_in_a_path_begins_a_line_or_a_word_of_its_own() {
        let text = unit(&service(Some("ann")));
        assert!(
            text.contains("ExecStart=\"/opt/my tools/connect\" daemon 50%%$$x\n")
                || text.contains("ExecStart=\"/opt/my tools/connect\" daemon \"50%%$$x\"\n"),
            "{text}"
        );
        assert!(text.contains("Environment=\"PRIVATECONNECT_HOME=/home/a b\\x0a/\\\"x\\\"<&>\"\n"), "{text}");
        assert!(text.contains("User=ann\n") && text.contains("ReadWritePaths=\"/home/a b\"\n"), "{text}");
        assert!(text.contains("EnvironmentFile=/home/a b/daemon.env\n") && !text.contains("ann:a"), "{text}");
        let lines = environment_lines(&service(None));
        assert_eq!(lines, "HTTPS_PROXY=\"http://ann:a\\\"\\\\b@p\"\n");
        let text = &launchd(&service(Some("ann"))).units[0].text;
        assert!(text.contains("<string>/home/a b/\"x\"&lt;&amp;&gt;</string>"), "{text}");
        assert!(text.contains("<key>UserName</key><string>ann</string>"), "{text}");
    }

    #[test]
    fn a_users_own_unit_asks_for_nothing_that_only_the_system_may_do() {
        let text = unit(&service(None));
        assert!(
            !text.contains("User=") && !text.contains("Protect") && text.contains("WantedBy=default.target")
        );
    }
}
