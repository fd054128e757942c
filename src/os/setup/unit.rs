//! A program that the system starts after every reboot: by systemd, or by launchd on a Mac. As with the trust stores,
//! the plan comes first; the caller shows it and carries it out.

use std::env;
use std::ops::RangeInclusive;
use std::path::Path;
use std::path::PathBuf;

use crate::os::command::words;
use crate::os::paths;
use crate::os::setup::step::SetupStep;
use crate::os::user;

/// These filter system calls, so they also work in a user's own manager, which may not make mounts.
///
/// The threads that carry bytes ask for another way of scheduling (`os/scheduling.rs`), whose call is among @resources.
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
SystemCallFilter=sched_setscheduler
SystemCallErrorNumber=EPERM
UMask=0077
TasksMax=infinity
";
/// What the system's manager can do in addition. Only the state folder stays writable.
const SYSTEM_HARDENING: &str = "ProtectSystem=strict
ProtectHome=read-only
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
/// Below this a port needs a capability.
const UNPRIVILEGED_PORTS: u16 = 1024;

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
    /// For the system's manager: the ports that it may bind. Empty for any.
    pub ports: Vec<RangeInclusive<u16>>,
    /// The networks that it may speak with. Empty for all.
    pub networks: Vec<String>,
}

/// The unit file, and the steps that install, remove and start it.
pub struct UnitPlan {
    pub file: PathBuf,
    pub text: String,
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
        ServiceManager::Systemd => systemd_name(name),
        ServiceManager::Launchd => format!("{}.plist", launchd_label(name)),
    })
}

fn systemd_name(name: &str) -> String {
    format!("connect-{name}.service")
}

fn launchd_label(name: &str) -> String {
    format!("co.privateconnect.{name}")
}

fn systemd(service: &UnitSpec) -> UnitPlan {
    let system = service.system.is_some();
    let (file, unit_name) = (file(ServiceManager::Systemd, service.name, system), systemd_name(service.name));
    let text = unit(service);
    let control = |rest: &[&str]| words(if system { "systemctl" } else { "systemctl --user" }, rest);
    let reload = || SetupStep::Run(control(&["daemon-reload"]));
    let environment = environment_file(service);
    let (unit_path, environment_path) = (file.display().to_string(), environment.display().to_string());
    let mut install = service.prepare.clone();
    if !service.private_environment.is_empty() {
        let text = environment_lines(service);
        install.push(SetupStep::Write { path: environment, text, is_private: true });
    }
    install.extend([
        SetupStep::Write { path: file.clone(), text: text.clone(), is_private: false },
        reload(),
        SetupStep::Run(control(&["enable", "--now", &unit_name])),
    ]);
    UnitPlan {
        install,
        uninstall: vec![
            SetupStep::RunUnchecked(control(&["disable", "--now", &unit_name])),
            SetupStep::run("rm -f", &[&unit_path, &environment_path]),
            reload(),
        ],
        start: SetupStep::Run(control(&["start", &unit_name])),
        file,
        text,
    }
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
    if service.system.is_some() {
        text += "Wants=network-online.target\nAfter=network-online.target\n";
    }
    text += &format!("\n[Service]\nType=notify\nExecStart={}\n{environment}", command.join(" "));
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
        text += &format!("User={user}\n{SYSTEM_HARDENING}ReadWritePaths={state}\n{}", confinement(service));
    }
    text + &format!("\n[Install]\nWantedBy={wanted_by}\n")
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
    if !service.ports.is_empty() {
        text += "SocketBindDeny=any\n";
    }
    for ports in &service.ports {
        text += &format!("SocketBindAllow=tcp:{}-{}\n", ports.start(), ports.end());
    }
    if !service.networks.is_empty() {
        text += &format!("IPAddressDeny=any\nIPAddressAllow={}\n", service.networks.join(" "));
    }
    text
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
    let (text, path) = (plist(service), file.display().to_string());
    let target = format!("{domain}/{}", launchd_label(service.name));
    let end = || SetupStep::RunUnchecked(words("launchctl bootout", &[&target]));
    UnitPlan {
        install: vec![
            SetupStep::Write { path: file.clone(), text: text.clone(), is_private: true },
            end(),
            SetupStep::run("launchctl bootstrap", &[&domain, &path]),
        ],
        uninstall: vec![end(), SetupStep::run("rm -f", &[&path])],
        start: SetupStep::run("launchctl kickstart", &[&target]),
        file,
        text,
    }
}

/// The text of the launchd property list.
fn plist(service: &UnitSpec) -> String {
    let command: String =
        service.command.iter().map(|word| format!("    <string>{}</string>\n", xml(word))).collect();
    let environment: String = service
        .environment
        .iter()
        .chain(&service.private_environment)
        .map(|(name, value)| format!("    <key>{}</key><string>{}</string>\n", xml(name), xml(value)))
        .collect();
    let user = service
        .system
        .as_ref()
        .map_or(String::new(), |user| format!("  <key>UserName</key><string>{}</string>\n", xml(user)));
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>
<!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">
<plist version=\"1.0\">
<dict>
  <key>Label</key><string>{}</string>
{user}  <key>ProgramArguments</key>
  <array>
{command}  </array>
  <key>EnvironmentVariables</key>
  <dict>
{environment}  </dict>
  <key>RunAtLoad</key><true/>
  <key>KeepAlive</key><dict><key>SuccessfulExit</key><false/></dict>
  <key>Umask</key><integer>63</integer>
</dict>
</plist>
",
        launchd_label(service.name)
    )
}

fn xml(text: &str) -> String {
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    escaped.chars().filter(|c| !c.is_control()).collect()
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
        let text = plist(&service(Some("ann")));
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
