//! A hub among others on one etcd: it follows what the others do, and says that it is here by a lease that
//! everything hangs on that is true only while it lives: its address, and the services of its agents.
//!
//! A hub that has been cut off for longer than its lease has lost its agents to the others' eyes. If another
//! hub still has etcd, it lets them go there; if none has, it keeps them and works from memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use rustls::ClientConfig;
use serde_json::json;

use super::ca::Ca;
use super::carry;
use super::carry::CarriedSession;
use super::core::Core;
use super::store::Gateway;
use super::store::Replica;
use super::store::number;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::model::hub_records::Change;
use crate::model::hub_records::FleetHub;
use crate::model::hub_records::Record;
use crate::model::hub_records::Table;
use crate::model::hub_trust::HubTrust;
use crate::model::time::Time;
use crate::net::stop::Stop;
use crate::net::threads;
use crate::net::threads::ThreadGroup;
use crate::os::secret;
use crate::os::user;
use crate::tls::trust;

/// A hub that says nothing for so long is gone to the others.
const LEASE_TTL: Duration = Duration::from_secs(6);
/// How often it says that it is here.
const LEASE_RENEWAL_INTERVAL: Duration = Duration::from_millis(1500);
/// A watch that ended is begun again after this long.
const WATCH_RETRY_DELAY: Duration = Duration::from_millis(200);
/// What is still to be said at the end may take this long.
const LEASE_REVOKE_TIMEOUT: Duration = Duration::from_millis(500);

pub struct Fleet {
    pub replica: Arc<Replica>,
    gateway: Gateway,
    /// How another hub proves that it is one of us.
    pub tls: Arc<ClientConfig>,
    /// Tickets for sessions that are carried on to another hub.
    pub carried: Mutex<HashMap<String, (CarriedSession, Time)>>,
    is_fenced: AtomicBool,
}

impl Fleet {
    pub fn new(replica: Arc<Replica>, gateway: Gateway, ca: &Ca, behind_proxy: bool) -> Result<Self> {
        let trust = if behind_proxy { HubTrust::Public } else { HubTrust::Pin(ca.pin()) };
        let tls = trust::hub_client(&trust)?;
        Ok(Self { replica, gateway, tls, carried: Mutex::default(), is_fenced: AtomicBool::new(false) })
    }

    /// Whether others have what this hub has lost; then it serves nobody but its own machine.
    pub fn is_fenced(&self) -> bool {
        self.is_fenced.load(Ordering::Relaxed)
    }
}

/// The threads of a hub in its fleet; they end when it is dropped.
pub struct FleetMembership {
    stop: Stop,
    threads: ThreadGroup,
}

impl Drop for FleetMembership {
    fn drop(&mut self) {
        self.stop.stop();
        self.threads.join(|| ());
    }
}

/// Joins the fleet as the hub at `url`. A hub with a store of its own has nothing to join.
pub fn join(core: &Arc<Core>, url: &str, stop: &Stop) -> Result<Option<FleetMembership>> {
    let Some(fleet) = &core.fleet else { return Ok(None) };
    let host = user::hostname();
    let instance = secret::derived_id("hub", &[&host, &core.settings.data.to_string_lossy()]);
    let other = core.records.registry().hubs().any(|hub| hub.url == url && hub.instance != instance);
    if other {
        return Err(Error::new(format!("Another hub of this fleet is called {url}")).hint(format!(
            "Give each hub a --name of its own. If that one was killed just now, try again in {} seconds",
            LEASE_TTL.as_secs()
        )));
    }
    fleet.replica.become_hub(url);
    let mut keeper = LeaseKeeper {
        core: Arc::clone(core),
        fleet: Arc::clone(fleet),
        gateway: fleet.gateway.another(),
        myself: FleetHub { url: url.to_owned(), instance },
        last: Instant::now(),
    };
    keeper.beat()?;
    let (mut gateway, fleet) = (fleet.gateway.another(), Arc::clone(fleet));
    let (own, ending) = (stop.clone(), stop.clone());
    let member = FleetMembership { stop: stop.clone(), threads: ThreadGroup::default() };
    let kept = member.threads.spawn("fleet-keep", move || keeper.keep(&own));
    let followed = member.threads.spawn("fleet-follow", move || follow(&fleet, &mut gateway, &ending));
    kept.and(followed)?;
    Ok(Some(member))
}

fn follow(fleet: &Fleet, gateway: &mut Gateway, stop: &Stop) {
    while !stop.is_stopped() {
        let followed = fleet.replica.follow(gateway);
        let ended = match followed {
            Ok(true) => continue,
            Ok(false) => fleet.replica.reload(gateway),
            Err(error) => Err(error),
        };
        ended.unwrap_or_else(|error| log::debug!("{error}"));
        stop.wait_for(WATCH_RETRY_DELAY);
    }
}

struct LeaseKeeper {
    core: Arc<Core>,
    fleet: Arc<Fleet>,
    gateway: Gateway,
    myself: FleetHub,
    /// When etcd last confirmed the lease.
    last: Instant,
}

impl LeaseKeeper {
    fn keep(&mut self, stop: &Stop) {
        while !stop.wait_for(LEASE_RENEWAL_INTERVAL) {
            match self.beat() {
                Ok(()) if self.fleet.is_fenced.swap(false, Ordering::Relaxed) => {
                    log::warn!("this hub is with its fleet again");
                }
                Ok(()) => {}
                Err(error) => {
                    log::debug!("{error}");
                    self.fence_if_alone();
                }
            }
        }
        self.revoke_lease();
    }

    /// Renews the lease, or takes a new one, and sets right what etcd says of this hub.
    fn beat(&mut self) -> Result<()> {
        let fleet = Arc::clone(&self.fleet);
        if let Some(lease) = fleet.replica.lease() {
            let kept = self.call("/v3/lease/keepalive", &json!({ "ID": lease }))?;
            if number(&kept["result"]["TTL"]) == 0 {
                fleet.replica.set_lease(None);
            }
        }
        if fleet.replica.lease().is_none() {
            let granted = self.call("/v3/lease/grant", &json!({ "TTL": LEASE_TTL.as_secs().to_string() }))?;
            fleet.replica.set_lease(granted["ID"].as_str().map(str::to_owned));
        }
        self.last = Instant::now();
        if fleet.replica.set_away(false) {
            log::warn!("etcd answers again");
        }
        self.set_right();
        Ok(())
    }

    fn call(&mut self, path: &str, body: &serde_json::Value) -> Result<serde_json::Value> {
        let called = self.gateway.call(path, body);
        called.inspect_err(|error| {
            if error.kind == ErrorKind::Unreachable && !self.fleet.replica.set_away(true) {
                log::warn!("{error}; until it does, changes are refused and the rest works from memory");
            }
        })
    }

    /// What is here and not in etcd is put there, and the other way round.
    fn set_right(&self) {
        let (missing, surplus) = self.fleet.replica.differences();
        let is_listed = self.fleet.replica.has(Table::Hub, &self.myself.url);
        if is_listed && missing.is_empty() && surplus.is_empty() {
            return;
        }
        let myself = (!is_listed).then(|| Change::Put(Record::Hub(self.myself.clone())));
        // A failure is logged where it happens; the next beat tries again.
        let _ = self.core.records.change(|registry| {
            let still = |id: &str| registry.online_by_id(id).filter(|online| registry.is_here(online));
            let missing = missing.iter().filter_map(|online| still(&online.id)).cloned();
            let surplus = surplus.iter().filter(|id| still(id).is_none());
            let drops = surplus.map(|id| Change::drop(Table::Online, id));
            let puts = missing.map(|online| Change::Put(Record::Online(online)));
            Ok((myself.clone().into_iter().chain(puts).chain(drops).collect(), ()))
        });
    }

    /// etcd is away. If it is for us only, and for longer than the lease, the agents are better off elsewhere.
    fn fence_if_alone(&mut self) {
        if self.last.elapsed() < LEASE_TTL || self.fleet.is_fenced() {
            return;
        }
        let hubs: Vec<FleetHub> = self.core.records.registry().hubs().cloned().collect();
        let mut others = hubs.iter().filter(|hub| hub.url != self.myself.url);
        let Some(other) = others.find(|hub| carry::has_store(&self.core, &hub.url)) else { return };
        // It may have come back to everybody, and the other one was only the first to see it.
        if self.beat().is_ok() {
            return;
        }
        log::warn!("this hub has lost its fleet's etcd and {} has not: agents go there", other.url);
        self.fleet.is_fenced.store(true, Ordering::Relaxed);
        self.core.channels.cut_all();
    }

    /// The others need not wait for the lease to end.
    fn revoke_lease(&mut self) {
        let Some(lease) = self.fleet.replica.lease() else { return };
        self.fleet.replica.set_away(true);
        let last_word = Stop::new();
        let Ok(mut gateway) = self.gateway.until(&last_word) else { return };
        let said = threads::spawn("fleet-farewell", move || {
            let _ = gateway.call("/v3/lease/revoke", &json!({ "ID": lease }));
        });
        let deadline = Instant::now() + LEASE_REVOKE_TIMEOUT;
        let Ok(said) = said else { return };
        while !said.is_finished() && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        last_word.stop();
        let _ = said.join();
    }
}
