//! Trusting a CA on this machine: which stores there are, what each needs, and doing it.
//!
//! A plan comes first, so that it can be shown; every store stands alone, and one that fails does not
//! stop the rest. Undoing is planned the same way.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

use crate::error::Result;
use crate::os::setup::step::Step;
use crate::os::setup::step::ask;
use crate::os::setup::step::is_installed;
use crate::os::setup::step::words;
use crate::os::user;

/// What the CA is called in stores that have names.
const NICKNAME: &str = "Private Connect local CA";
const FILE: &str = "private-connect-local-ca.crt";
const SYSTEM: &str = "system trust store";
#[cfg(target_os = "macos")]
const KEYCHAIN: &str = "/Library/Keychains/System.keychain";

/// Where Linux systems take roots from, and what makes them count: RHEL, Debian, Arch, SUSE.
const LAYOUTS: [(&str, &str); 4] = [
    ("etc/pki/ca-trust/source/anchors", "update-ca-trust extract"),
    ("usr/local/share/ca-certificates", "update-ca-certificates"),
    ("etc/ca-certificates/trust-source/anchors", "trust extract-compat"),
    ("usr/share/pki/trust/anchors", "update-ca-certificates"),
];
/// Where Chromium keeps its own, in the order of their age.
const CHROMIUM: [&str; 3] = [".pki/nssdb", ".local/share/pki/nssdb", "snap/chromium/current/.pki/nssdb"];
const CHROMIUMS: [&str; 5] =
    ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "brave-browser"];
/// Folders of Firefox, with a folder for each profile.
const FIREFOX: [&str; 4] = [
    ".mozilla/firefox",
    "snap/firefox/common/.mozilla/firefox",
    ".var/app/org.mozilla.firefox/.mozilla/firefox",
    "Library/Application Support/Firefox/Profiles",
];
/// In which package `certutil` comes.
const CERTUTIL_PACKAGE: &str =
    "libnss3-tools (Debian, Ubuntu), nss-tools (Fedora, RHEL), nss (Arch, brew) or mozilla-nss-tools (SUSE)";

#[derive(Debug, PartialEq, Eq)]
pub struct Store {
    /// `system trust store`, as the messages call it.
    pub name: String,
    pub steps: Vec<Step>,
    pub needs_root: bool,
    /// The programme that is missing, and where it comes from.
    pub missing: Option<String>,
}

/// Where to look: `/` and the user's home, elsewhere in tests.
pub struct Machine {
    pub root: PathBuf,
    pub home: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Aim {
    Trust,
    Untrust,
}

/// Every store of this machine in which `ca` has to be, or has to be no more.
pub fn plan(machine: &Machine, ca: &Path, aim: Aim) -> Vec<Store> {
    let mut stores: Vec<Store> = system(machine, ca, aim).into_iter().collect();
    stores.extend(databases(machine, aim).into_iter().map(|(name, folder)| nss(name, &folder, ca, aim)));
    stores
}

/// The stores in which browsers and others look for this very CA and do not find it.
pub fn lacking(machine: &Machine, ca: &Path) -> Vec<String> {
    let ours = fs::read_to_string(ca).unwrap_or_default();
    let system = (!is_in_system(machine, &ours)).then(|| format!("the {SYSTEM}"));
    let databases = databases(machine, Aim::Trust);
    let without = databases.iter().filter(|(_, folder)| !is_in_database(folder, &ours));
    system.into_iter().chain(without.map(|(name, folder)| shown(name, folder))).collect()
}

#[cfg(target_os = "macos")]
fn is_in_system(_: &Machine, ours: &str) -> bool {
    let line = ["security", "find-certificate", "-a", "-p", "-c", NICKNAME, KEYCHAIN];
    // A store may have an older CA of ours, too.
    let found = ask(&line).unwrap_or_default();
    found.split_inclusive("-----END CERTIFICATE-----").any(|one| is_same(one, ours))
}

#[cfg(not(target_os = "macos"))]
fn is_in_system(machine: &Machine, ours: &str) -> bool {
    let mut copies = LAYOUTS.iter().map(|(folder, _)| machine.root.join(folder).join(FILE));
    copies.any(|copy| fs::read_to_string(copy).is_ok_and(|there| there == ours))
}

/// Not, when there is no `certutil` to ask.
fn is_in_database(folder: &Path, ours: &str) -> bool {
    let there = ask(&["certutil", "-L", "-d", &database(folder), "-n", NICKNAME, "-a"]);
    there.is_some_and(|there| is_same(&there, ours))
}

/// However the lines are broken.
fn is_same(one: &str, other: &str) -> bool {
    let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
    letters(one) == letters(other)
}

#[cfg(target_os = "macos")]
fn system(_: &Machine, ca: &Path, aim: Aim) -> Option<Store> {
    let ca = ca.display().to_string();
    let line = match aim {
        Aim::Trust => words("security add-trusted-cert -d -r trustRoot -k", &[KEYCHAIN, &ca]),
        Aim::Untrust => words("security remove-trusted-cert -d", &[&ca]),
    };
    let steps = vec![Step::Run(line)];
    Some(Store { name: "system keychain".into(), steps, needs_root: true, missing: None })
}

#[cfg(windows)]
fn system(_: &Machine, ca: &Path, aim: Aim) -> Option<Store> {
    let ca = ca.display().to_string();
    let line = match aim {
        Aim::Trust => words("certutil -addstore -user Root", &[&ca]),
        Aim::Untrust => words("certutil -delstore -user Root", &[NICKNAME]),
    };
    let steps = vec![Step::Run(line)];
    Some(Store { name: "certificate store".into(), steps, needs_root: false, missing: None })
}

#[cfg(not(any(target_os = "macos", windows)))]
fn system(machine: &Machine, ca: &Path, aim: Aim) -> Option<Store> {
    let (folder, update) = LAYOUTS.iter().find(|(folder, _)| machine.root.join(folder).is_dir())?;
    let copy = machine.root.join(folder).join(FILE);
    let file = match aim {
        Aim::Trust => Step::Copy { from: ca.to_owned(), to: copy },
        Aim::Untrust => Step::Remove(copy),
    };
    // Without it, links that lead nowhere stay behind.
    let fresh = aim == Aim::Untrust && *update == "update-ca-certificates";
    let line = words(update, if fresh { &["--fresh"] } else { &[] });
    let missing = (!is_installed(&line[0])).then(|| format!("{} (package ca-certificates)", line[0]));
    let steps = vec![file, Step::Run(line)];
    Some(Store { name: SYSTEM.into(), steps, needs_root: true, missing })
}

/// The NSS databases there are, and Chromium's when it is installed and has none yet.
fn databases(machine: &Machine, aim: Aim) -> Vec<(&'static str, PathBuf)> {
    let mut found: Vec<(&'static str, PathBuf)> = CHROMIUM
        .iter()
        .map(|place| ("Chromium's store", machine.home.join(place)))
        .filter(|(_, folder)| folder.join("cert9.db").exists())
        .collect();
    if found.is_empty() && aim == Aim::Trust && CHROMIUMS.iter().any(|name| is_installed(name)) {
        found.extend(CHROMIUM[..2].iter().map(|place| ("Chromium's store", machine.home.join(place))));
    }
    for place in FIREFOX {
        let profiles = fs::read_dir(machine.home.join(place)).into_iter().flatten().flatten();
        let used = profiles.map(|profile| profile.path()).filter(|folder| folder.join("cert9.db").exists());
        found.extend(used.map(|folder| ("Firefox's store", folder)));
    }
    found
}

fn nss(name: &str, folder: &Path, ca: &Path, aim: Aim) -> Store {
    let database = database(folder);
    let remove = words("certutil -D -d", &[&database, "-n", NICKNAME]);
    let mut steps = Vec::new();
    if aim == Aim::Trust {
        if !folder.join("cert9.db").exists() {
            steps.push(Step::Folder(folder.to_owned()));
            steps.push(Step::Run(words("certutil -N -d", &[&database, "--empty-password"])));
        }
        let ca = ca.display().to_string();
        // An older CA of ours by the same name would stay in front.
        steps.push(Step::Try(remove));
        let add = ["-d", &database, "-t", "C,,", "-n", NICKNAME, "-i", &ca];
        steps.push(Step::Run(words("certutil -A", &add)));
    } else {
        steps.push(Step::Try(remove));
    }
    let missing = (!is_installed("certutil")).then(|| format!("certutil, from {CERTUTIL_PACKAGE}"));
    Store { name: shown(name, folder), steps, needs_root: false, missing }
}

/// As `certutil` wants it.
fn database(folder: &Path) -> String {
    format!("sql:{}", folder.display())
}

fn shown(name: &str, folder: &Path) -> String {
    format!("{name} ({})", folder.display())
}

impl Store {
    pub fn carry_out(&self) -> Result<()> {
        self.steps.iter().try_for_each(Step::carry_out)
    }

    /// What a user types to do the same.
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

    fn machine() -> Machine {
        let base = env::temp_dir().join(secret::id("connect-trust"));
        Machine { root: base.join("root"), home: base.join("home") }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn each_linux_family_has_its_place_and_its_command() {
        for (folder, update) in LAYOUTS {
            let machine = machine();
            fs::create_dir_all(machine.root.join(folder)).unwrap();
            let ca = machine.root.join("ca.crt");
            let plan = plan(&machine, &ca, Aim::Trust);
            let system = plan.iter().find(|store| store.name == "system trust store").unwrap();
            let copy = machine.root.join(folder).join(FILE);
            assert_eq!(system.steps[0], Step::Copy { from: ca, to: copy.clone() });
            assert_eq!(system.steps[1], Step::Run(words(update, &[])));
            assert!(system.needs_root && system.commands()[0].contains("install -m 644 "));
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_was_copied_is_known_and_is_readable_by_all_and_goes_again() {
        let machine = machine();
        let folder = machine.root.join(LAYOUTS[1].0);
        fs::create_dir_all(&folder).unwrap();
        let ca = machine.root.join("ca.crt");
        fs::write(&ca, "CA").unwrap();
        fs::set_permissions(&ca, fs::Permissions::from_mode(0o600)).unwrap();
        let step = |aim| plan(&machine, &ca, aim).remove(0).steps.remove(0);
        let is_lacking = || lacking(&machine, &ca).iter().any(|store| store.ends_with(SYSTEM));
        assert!(is_lacking());
        step(Aim::Trust).carry_out().unwrap();
        assert!(!is_lacking());
        assert_eq!(fs::metadata(folder.join(FILE)).unwrap().permissions().mode() & 0o777, 0o644);
        fs::write(&ca, "another CA").unwrap();
        assert!(is_lacking());
        step(Aim::Untrust).carry_out().unwrap();
        step(Aim::Untrust).carry_out().unwrap();
        assert!(!folder.join(FILE).exists());
    }

    #[test]
    fn every_browser_profile_is_a_store_of_its_own() {
        let machine = machine();
        for place in [".pki/nssdb", ".mozilla/firefox/a.default", ".mozilla/firefox/b.work"] {
            fs::create_dir_all(machine.home.join(place)).unwrap();
            fs::write(machine.home.join(place).join("cert9.db"), "").unwrap();
        }
        fs::create_dir_all(machine.home.join(".mozilla/firefox/empty")).unwrap();
        let plan = plan(&machine, Path::new("/ca.crt"), Aim::Trust);
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
        let folder = machine.home.join(CHROMIUM[0]);
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        let ca = machine.home.join("ca.crt");
        let listed = || lacking(&machine, &ca) == [format!("the {SYSTEM}")];
        fs::create_dir_all(&machine.home).unwrap();
        fs::write(&ca, params.self_signed(&key).unwrap().pem()).unwrap();
        for _ in 0..2 {
            nss("Chromium", &folder, &ca, Aim::Trust).carry_out().unwrap();
            assert!(listed());
        }
        // A CA of the same name that is another one is not ours.
        let other = machine.home.join("other.crt");
        fs::write(&other, params.self_signed(&key).unwrap().pem().replace('A', "B")).unwrap();
        assert_eq!(lacking(&machine, &other).len(), 2);
        nss("Chromium", &folder, &ca, Aim::Untrust).carry_out().unwrap();
        assert!(!listed());
    }
}
