//! A real etcd of one node, and hubs around it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::Home;
use super::Hub;
use super::PATIENCE;
use super::Running;
use super::eventually;
use super::fake_hub::Certificates;
use super::fault::Path;
use super::is_here;
use super::team::Ports;

pub struct Etcd {
    home: Home,
    running: Running,
    pub address: String,
    peer: String,
    /// The CA of an etcd that speaks TLS.
    ca: Option<PathBuf>,
}

impl Etcd {
    /// `None`, loudly, where there is no etcd.
    pub fn start() -> Option<Self> {
        Self::start_with(None)
    }

    /// By TLS, with a certificate of a CA that only `ca` knows.
    pub fn start_tls() -> Option<Self> {
        Self::start_with(Some(&Certificates::make()))
    }

    fn start_with(certificates: Option<&Certificates>) -> Option<Self> {
        if !is_here("etcd", "etcd-server") {
            return None;
        }
        let (home, ports) = (Home::new(), Ports::claim());
        let [address, peer] = [97, 98].map(|offset| format!("127.0.0.1:{}", ports.at(offset)));
        let ca = certificates.map(|made| {
            for (name, pem) in [("ca", &made.ca), ("crt", &made.leaf), ("key", &made.key)] {
                fs::write(home.file(name), pem).unwrap();
            }
            home.file("ca")
        });
        let running = run(&home, &address, &peer, ca.is_some());
        let etcd = Self { home, running, address, peer, ca };
        etcd.wait();
        Some(etcd)
    }

    fn wait(&self) {
        eventually("etcd answers", PATIENCE, || {
            self.ctl(&["endpoint", "health", "--command-timeout=1s"]).is_some()
        });
    }

    pub fn kill(&mut self) {
        self.running.kill();
    }

    pub fn restart(&mut self) {
        self.restart_with_auth();
        self.wait();
    }

    /// The same, where only logged in users may ask.
    pub fn restart_with_auth(&mut self) {
        self.running.kill();
        self.running = run(&self.home, &self.address, &self.peer, self.ca.is_some());
    }

    /// What `etcdctl` says; `None` when it fails.
    pub fn ctl(&self, args: &[&str]) -> Option<String> {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.url()]).args(args);
        if let Some(ca) = &self.ca {
            command.arg("--cacert").arg(ca);
        }
        let done = command.output().ok().filter(|done| done.status.success())?;
        Some(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    fn url(&self) -> String {
        format!("{}://{}", if self.ca.is_some() { "https" } else { "http" }, self.address)
    }

    pub fn store(&self) -> String {
        format!("etcd={}", self.url())
    }

    pub fn ca(&self) -> &str {
        self.ca.as_ref().unwrap().to_str().unwrap()
    }

    pub fn hub(&self) -> Hub {
        Hub::start_with(&["--tunnel-ports", "off", "--store", &self.store()])
    }
}

fn run(home: &Home, address: &str, peer: &str, tls: bool) -> Running {
    let (client, peer) =
        (format!("{}://{address}", if tls { "https" } else { "http" }), format!("http://{peer}"));
    let data = home.file("etcd").display().to_string();
    let mut command = Command::new("etcd");
    command.args(["--data-dir", &data, "--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("default={peer}"), "--unsafe-no-fsync"]);
    if tls {
        command.arg("--cert-file").arg(home.file("crt")).arg("--key-file").arg(home.file("key"));
    }
    Running::start(command)
}

/// Hubs that share an etcd, each by a path of its own that can be cut.
pub struct Fleet {
    pub hubs: Vec<Hub>,
    pub paths: Vec<Path>,
    pub etcd: Etcd,
    /// The first one's.
    pub admin_key: String,
}

impl Fleet {
    pub fn of(count: usize) -> Option<Self> {
        let etcd = Etcd::start()?;
        let paths: Vec<Path> = (0..count).map(|_| Path::to(&etcd.address)).collect();
        let start = |path: &Path| {
            let store = format!("etcd=http://127.0.0.1:{}", path.port);
            Hub::start_with(&["--tunnel-ports", "off", "--store", &store])
        };
        let mut hubs: Vec<Hub> = paths.iter().map(start).collect();
        let admin_key = hubs[0].admin_key.clone();
        hubs.iter_mut().for_each(|hub| hub.admin_key.clone_from(&admin_key));
        let fleet = Self { hubs, paths, etcd, admin_key };
        fleet.wait_for(count);
        Some(fleet)
    }

    /// Until every hub that runs knows of `count` hubs.
    pub fn wait_for(&self, count: usize) {
        for hub in &self.hubs {
            eventually("the hubs know each other", PATIENCE, || {
                let whoami = hub.ask("GET /v1/whoami", &self.admin_key, "").json();
                whoami["hubs"].as_array().is_some_and(|hubs| hubs.len() == count)
            });
        }
    }

    /// A key that every hub knows.
    pub fn key(&self, role: &str) -> String {
        let made = self.hubs[0].ask("POST /v1/keys", &self.admin_key, &json!({ "role": role }).to_string());
        let key = made.text("key");
        for hub in &self.hubs {
            eventually("a key is known", Duration::from_secs(5), || {
                hub.ask("GET /v1/whoami", &key, "").status == 200
            });
        }
        key
    }

    /// A machine that comes to this hub first.
    pub fn machine(&self, hub: usize) -> Home {
        let home = Home::new();
        home.run(&["up", "--hub", &self.hubs[hub].url, "--api-key", &self.key("member")]).ok();
        home
    }
}
