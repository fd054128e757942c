//! A real etcd of one node, and hubs around it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
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
    pub running: Running,
    pub address: String,
    /// How its nodes know it and each other.
    name: String,
    cluster: String,
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
        let etcd = Self::node("alone", &Ports::claim(), String::new(), certificates);
        etcd.wait();
        Some(etcd)
    }

    /// Three nodes of one etcd.
    pub fn cluster() -> Option<Vec<Self>> {
        if !is_here("etcd", "etcd-server") {
            return None;
        }
        let ports = ["n0", "n1", "n2"].map(|name| (name, Ports::claim()));
        let cluster = ports.each_ref().map(|(name, ports)| member(name, ports)).join(",");
        let nodes: Vec<_> =
            ports.iter().map(|(name, ports)| Self::node(name, ports, cluster.clone(), None)).collect();
        nodes.iter().for_each(Self::wait);
        Some(nodes)
    }

    fn node(name: &str, ports: &Ports, cluster: String, certificates: Option<&Certificates>) -> Self {
        let home = Home::new();
        let ca = certificates.map(|made| {
            for (name, pem) in [("ca", &made.ca), ("crt", &made.leaf), ("key", &made.key)] {
                fs::write(home.file(name), pem).unwrap();
            }
            home.file("ca")
        });
        let address = format!("127.0.0.1:{}", ports.at(97));
        let cluster = if cluster.is_empty() { member(name, ports) } else { cluster };
        let running = run(&home, &address, name, &cluster, ca.is_some());
        Self { home, running, address, name: name.to_owned(), cluster, ca }
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
        self.running = run(&self.home, &self.address, &self.name, &self.cluster, self.ca.is_some());
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

    /// Whether the others follow this node.
    pub fn leads(&self) -> bool {
        let said = self.ctl(&["endpoint", "status", "--write-out=json"]).unwrap_or_default();
        let status: Value = serde_json::from_str(&said).unwrap_or_default();
        let status = &status[0]["Status"];
        status["leader"].is_u64() && status["leader"] == status["header"]["member_id"]
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

    /// Another hub of this one's fleet: it has the fleet's code key.
    pub fn another_hub(&self, first: &Hub) -> Hub {
        start_another(&self.store(), first)
    }
}

fn start_another(store: &str, first: &Hub) -> Hub {
    let code_key = first.home.file("hub/code.key").display().to_string();
    Hub::start_with(&["--tunnel-ports", "off", "--store", store, "--code-key-file", &code_key])
}

/// As `--initial-cluster` wants it.
fn member(name: &str, ports: &Ports) -> String {
    format!("{name}=http://127.0.0.1:{}", ports.at(98))
}

fn run(home: &Home, address: &str, name: &str, cluster: &str, tls: bool) -> Running {
    let client = format!("{}://{address}", if tls { "https" } else { "http" });
    let members = cluster.split(',').filter_map(|member| member.split_once('='));
    let peer = members.into_iter().find(|member| member.0 == name).unwrap().1;
    let data = home.file("etcd").display().to_string();
    let mut command = Command::new("etcd");
    command.args(["--data-dir", &data, "--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--name", name, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]);
    command.args(["--initial-cluster", cluster, "--unsafe-no-fsync"]);
    if tls {
        command.arg("--cert-file").arg(home.file("crt")).arg("--key-file").arg(home.file("key"));
    }
    Running::start(command)
}

/// Hubs that share an etcd; of one node, each by a path of its own that can be cut.
pub struct Fleet {
    pub hubs: Vec<Hub>,
    pub paths: Vec<Path>,
    /// Its nodes.
    pub etcd: Vec<Etcd>,
    /// The first one's.
    pub admin_key: String,
}

impl Fleet {
    pub fn of(count: usize) -> Option<Self> {
        let etcd = Etcd::start()?;
        let paths: Vec<Path> = (0..count).map(|_| Path::to(&etcd.address)).collect();
        let stores: Vec<_> =
            paths.iter().map(|path| format!("etcd=http://127.0.0.1:{}", path.port)).collect();
        Some(Self::with(vec![etcd], paths, &stores))
    }

    /// Three hubs around an etcd of three nodes; each hub asks another node first.
    pub fn on_three_nodes() -> Option<Self> {
        let nodes = Etcd::cluster()?;
        let mut urls: Vec<String> = nodes.iter().map(Etcd::url).collect();
        let stores = (0..3).map(|_| {
            let store = format!("etcd={}", urls.join(","));
            urls.rotate_left(1);
            store
        });
        let stores: Vec<_> = stores.collect();
        Some(Self::with(nodes, Vec::new(), &stores))
    }

    fn with(etcd: Vec<Etcd>, paths: Vec<Path>, stores: &[String]) -> Self {
        // It makes the fleet's CA and code key.
        let first = Hub::start_with(&["--tunnel-ports", "off", "--store", &stores[0]]);
        let others: Vec<Hub> = stores[1..].iter().map(|store| start_another(store, &first)).collect();
        let mut hubs: Vec<Hub> = [first].into_iter().chain(others).collect();
        let admin_key = hubs[0].admin_key.clone();
        hubs.iter_mut().for_each(|hub| hub.admin_key.clone_from(&admin_key));
        let fleet = Self { hubs, paths, etcd, admin_key };
        fleet.wait_for(stores.len());
        fleet
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
