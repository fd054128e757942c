//! Trusting a CA on this machine: which stores there are, what each needs, and doing it.
//!
//! The plan comes first, so that it can be shown. Each store is independent, and one that fails does not stop the
//! others. Removing the CA is planned the same way.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

use crate::error::Result;
use crate::os::command::is_installed;
use crate::os::command::output_of;
use crate::os::command::words;
use crate::os::setup::step::SetupStep;
use crate::os::user;

/// The CA's name, in stores that have names.
const CA_NICKNAME: &str = "Private Connect local CA";
const SYSTEM_COPY: &str = "private-connect-local-ca.crt";
const SYSTEM_STORE: &str = "system trust store";
#[cfg(target_os = "macos")]
const SYSTEM_KEYCHAIN: &str = "/Library/Keychains/System.keychain";

/// The folders of the system's roots on RHEL, Debian, Arch and SUSE, each with the command that activates a change.
const LINUX_STORES: [(&str, &str); 4] = [
    ("etc/pki/ca-trust/source/anchors", "update-ca-trust extract"),
    ("usr/local/share/ca-certificates", "update-ca-certificates"),
    ("etc/ca-certificates/trust-source/anchors", "trust extract-compat"),
    ("usr/share/pki/trust/anchors", "update-ca-certificates"),
];
/// Chromium's own databases, oldest place first.
const CHROMIUM_DATABASES: [&str; 3] =
    [".pki/nssdb", ".local/share/pki/nssdb", "snap/chromium/current/.pki/nssdb"];
const CHROMIUM_PROGRAMS: [&str; 5] =
    ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "brave-browser"];
/// Folders of Firefox, with a folder for each profile.
const FIREFOX_PROFILES: [&str; 4] = [
    ".mozilla/firefox",
    "snap/firefox/common/.mozilla/firefox",
    ".var/app/org.mozilla.firefox/.mozilla/firefox",
    "Library/Application Support/Firefox/Profiles",
];
/// The packages that contain `certutil`.
const CERTUTIL_PACKAGE: &str =
    "libnss3-tools (Debian, Ubuntu), nss-tools (Fedora, RHEL), nss (Arch, brew) or mozilla-nss-tools (SUSE)";

#[derive(Debug, PartialEq, Eq)]
pub struct TrustStore {
    /// `system trust store`, as the messages call it.
    pub name: String,
    pub steps: Vec<SetupStep>,
    pub needs_root: bool,
    /// The program that is missing, and the package that contains it.
    pub missing: Option<String>,
}

/// Where to look: `/` and the user's home folder, or other folders in tests.
pub struct MachinePaths {
    pub root: PathBuf,
    pub home: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TrustChange {
    Trust,
    Untrust,
}

/// Every store of this machine that `ca` is to be added to or removed from.
pub fn plan(machine: &MachinePaths, ca: &Path, change: TrustChange) -> Vec<TrustStore> {
    let ca = ca.display().to_string();
    let databases = databases(machine, change).into_iter();
    system(machine, &ca, change)
        .into_iter()
        .chain(databases.map(|(name, folder)| nss(name, &folder, &ca, change)))
        .collect()
}

/// The stores that browsers and other programs use and that do not hold exactly this CA.
pub fn stores_without(machine: &MachinePaths, ca: &Path) -> Vec<String> {
    let ours = fs::read_to_string(ca).unwrap_or_default();
    let system = (!is_in_system(machine, &ours)).then(|| format!("the {SYSTEM_STORE}"));
    let databases = databases(machine, TrustChange::Trust);
    let without = databases.iter().filter(|(_, folder)| !is_in_database(folder, &ours));
    system.into_iter().chain(without.map(|(name, folder)| shown(name, folder))).collect()
}

#[cfg(target_os = "macos")]
fn is_in_system(_: &MachinePaths, ours: &str) -> bool {
    let line = ["security", "find-certificate", "-a", "-p", "-c", CA_NICKNAME, SYSTEM_KEYCHAIN];
    // The keychain may also hold an older CA of ours.
    let found = output_of(&line).unwrap_or_default();
    found.split_inclusive("-----END CERTIFICATE-----").any(|one| is_same(one, ours))
}

/// Whether a file in one of the system's folders is exactly our CA.
#[cfg(not(target_os = "macos"))]
fn is_in_system(machine: &MachinePaths, ours: &str) -> bool {
    let mut copies = LINUX_STORES.iter().map(|(folder, _)| machine.root.join(folder).join(SYSTEM_COPY));
    copies.any(|copy| fs::read_to_string(copy).is_ok_and(|there| there == ours))
}

/// False if there is no `certutil` to ask.
fn is_in_database(folder: &Path, ours: &str) -> bool {
    let there = output_of(&["certutil", "-L", "-d", &database(folder), "-n", CA_NICKNAME, "-a"]);
    there.is_some_and(|there| is_same(&there, ours))
}

/// Compares PEM texts without regard to their line breaks.
fn is_same(one: &str, other: &str) -> bool {
    let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
    letters(one) == letters(other)
}

#[cfg(target_os = "macos")]
fn system(_: &MachinePaths, ca: &str, change: TrustChange) -> Option<TrustStore> {
    let step = match change {
        TrustChange::Trust => {
            SetupStep::run("security add-trusted-cert -d -r trustRoot -k", &[SYSTEM_KEYCHAIN, ca])
        }
        TrustChange::Untrust => SetupStep::run("security remove-trusted-cert -d", &[ca]),
    };
    Some(TrustStore { name: "system keychain".into(), steps: vec![step], needs_root: true, missing: None })
}

#[cfg(not(target_os = "macos"))]
fn system(machine: &MachinePaths, ca: &str, change: TrustChange) -> Option<TrustStore> {
    let (folder, update) = LINUX_STORES.iter().find(|(folder, _)| machine.root.join(folder).is_dir())?;
    let copy = machine.root.join(folder).join(SYSTEM_COPY).display().to_string();
    let file = match change {
        TrustChange::Trust => SetupStep::run("install -m 644", &[ca, &copy]),
        TrustChange::Untrust => SetupStep::run("rm -f", &[&copy]),
    };
    // Without `--fresh`, the link to the removed CA would remain.
    let fresh = change == TrustChange::Untrust && *update == "update-ca-certificates";
    let line = words(update, if fresh { &["--fresh"] } else { &[] });
    let missing = (!is_installed(&line[0])).then(|| format!("{} (package ca-certificates)", line[0]));
    let steps = vec![file, SetupStep::Run(line)];
    Some(TrustStore { name: SYSTEM_STORE.into(), steps, needs_root: true, missing })
}

/// The NSS databases that exist, and Chromium's if it is installed and has none yet.
fn databases(machine: &MachinePaths, change: TrustChange) -> Vec<(&'static str, PathBuf)> {
    let of_chromium = CHROMIUM_DATABASES.map(|place| ("Chromium's store", machine.home.join(place)));
    let exists = |(_, folder): &(&str, PathBuf)| folder.join("cert9.db").exists();
    let mut found: Vec<_> = of_chromium.iter().filter(|database| exists(database)).cloned().collect();
    let is_installed = || CHROMIUM_PROGRAMS.iter().any(|name| is_installed(name));
    if found.is_empty() && change == TrustChange::Trust && is_installed() {
        found.extend_from_slice(&of_chromium[..2]);
    }
    for place in FIREFOX_PROFILES {
        let profiles = fs::read_dir(machine.home.join(place)).into_iter().flatten().flatten();
        found.extend(profiles.map(|profile| ("Firefox's store", profile.path())).filter(exists));
    }
    found
}

/// The steps for one NSS database. Our CA has a fixed name there.
fn nss(name: &str, folder: &Path, ca: &str, change: TrustChange) -> TrustStore {
    let database = database(folder);
    let mut steps = if folder.join("cert9.db").exists() {
        // An older CA of ours with the same name would be found first.
        vec![SetupStep::RunUnchecked(words("certutil -D -d", &[&database, "-n", CA_NICKNAME]))]
    } else {
        let folder = folder.display().to_string();
        let create = SetupStep::run("certutil -N -d", &[&database, "--empty-password"]);
        vec![SetupStep::run("mkdir -p", &[&folder]), create]
    };
    if change == TrustChange::Trust {
        steps.push(SetupStep::run("certutil -A -d", &[&database, "-t", "C,,", "-n", CA_NICKNAME, "-i", ca]));
    }
    let missing = (!is_installed("certutil")).then(|| format!("certutil, from {CERTUTIL_PACKAGE}"));
    TrustStore { name: shown(name, folder), steps, needs_root: false, missing }
}

/// The database's name as `certutil` needs it.
fn database(folder: &Path) -> String {
    format!("sql:{}", folder.display())
}

fn shown(name: &str, folder: &Path) -> String {
    format!("{name} ({})", folder.display())
}

impl TrustStore {
    pub fn carry_out(&self) -> Result<()> {
        self.steps.iter().try_for_each(SetupStep::carry_out)
    }

    /// What a user would type to do the same.
    pub fn commands(&self) -> Vec<String> {
        let sudo = if self.needs_root && !user::is_root() { "sudo " } else { "" };
        self.steps.iter().map(|step| format!("{sudo}{}", step.command())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::env;
    use std::os::unix::fs::PermissionsExt;

    use crate::os::secret;

    fn machine() -> MachinePaths {
        let base = env::temp_dir().join(secret::id("connect-trust"));
        MachinePaths { root: base.join("root"), home: base.join("home") }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn each_linux_family_has_its_place_and_its_command() {
        for (folder, update) in LINUX_STORES {
            let machine = machine();
            fs::create_dir_all(machine.root.join(folder)).unwrap();
            let ca = machine.root.join("ca.crt");
            let plan = plan(&machine, &ca, TrustChange::Trust);
            let system = plan.iter().find(|store| store.name == "system trust store").unwrap();
            let copy = machine.root.join(folder).join(SYSTEM_COPY);
            let [ca, copy] = [&ca, &copy].map(|path| path.display().to_string());
            assert_eq!(system.steps[0], SetupStep::run("install -m 644", &[&ca, &copy]));
            assert_eq!(system.steps[1], SetupStep::run(update, &[]));
            assert!(system.needs_root && system.commands()[0].contains("install -m 644 "));
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_was_copied_is_known_and_is_readable_by_all_and_goes_again() {
        let machine = machine();
        let folder = machine.root.join(LINUX_STORES[1].0);
        fs::create_dir_all(&folder).unwrap();
        let ca = machine.root.join("ca.crt");
        fs::write(&ca, "CA").unwrap();
        fs::set_permissions(&ca, fs::Permissions::from_mode(0o600)).unwrap();
        let step = |change| plan(&machine, &ca, change).remove(0).steps.remove(0);
        let is_lacking = || stores_without(&machine, &ca).iter().any(|store| store.ends_with(SYSTEM_STORE));
        assert!(is_lacking());
        step(TrustChange::Trust).carry_out().unwrap();
        assert!(!is_lacking());
        assert_eq!(fs::metadata(folder.join(SYSTEM_COPY)).unwrap().permissions().mode() & 0o777, 0o644);
        fs::write(&ca, "another CA").unwrap();
        assert!(is_lacking());
        step(TrustChange::Untrust).carry_out().unwrap();
        step(TrustChange::Untrust).carry_out().unwrap();
        assert!(!folder.join(SYSTEM_COPY).exists());
    }

    #[test]
    fn every_browser_profile_is_a_store_of_its_own() {
        let machine = machine();
        for place in [".pki/nssdb", ".mozilla/firefox/a.default", ".mozilla/firefox/b.work"] {
            fs::create_dir_all(machine.home.join(place)).unwrap();
            fs::write(machine.home.join(place).join("cert9.db"), "").unwrap();
        }
        fs::create_dir_all(machine.home.join(".mozilla/firefox/empty")).unwrap();
        let plan = plan(&machine, Path::new("/ca.crt"), TrustChange::Trust);
        let names: Vec<_> = plan.iter().map(|store| store.name.split(' ').next().unwrap()).collect();
        assert_eq!(names, ["Chromium's", "Firefox's", "Firefox's"]);
        let commands = plan[0].commands();
        assert!(commands[1].ends_with("-t C,, -n 'Private Connect local CA' -i /ca.crt"), "{commands:?}");
    }

    #[test]
    fn certutil_adds_the_ca_and_takes_it_out_again() {
        if !is_installed("certutil") {
            return; // Where it is, the browser's tests prove the same with the browser.
        }
        let machine = machine();
        let folder = machine.home.join(CHROMIUM_DATABASES[0]);
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        let ca = machine.home.join("ca.crt");
        let listed = || stores_without(&machine, &ca) == [format!("the {SYSTEM_STORE}")];
        fs::create_dir_all(&machine.home).unwrap();
        fs::write(&ca, params.self_signed(&key).unwrap().pem()).unwrap();
        for _ in 0..2 {
            nss("Chromium", &folder, ca.to_str().unwrap(), TrustChange::Trust).carry_out().unwrap();
            assert!(listed());
        }
        // A CA of the same name that is another one is not ours.
        let other = machine.home.join("other.crt");
        fs::write(&other, params.self_signed(&key).unwrap().pem().replace('A', "B")).unwrap();
        assert_eq!(stores_without(&machine, &other).len(), 2);
        nss("Chromium", &folder, ca.to_str().unwrap(), TrustChange::Untrust).carry_out().unwrap();
        assert!(!listed());
    }
}
