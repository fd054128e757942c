//! This hub's membership in its fleet. A lease in etcd says that the hub is up; its address and the services of its
//! agents hang on that lease, so that they are gone for the others as soon as it ends.
//!
//! While no hub has etcd, each one keeps its agents and works from memory. If only this hub has lost it for longer
//! than the lease, it is fenced: it sends its agents to the others, which count it as gone.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;
use serde_json::json;

use super::ca_rotation;
use super::carry;
use super::core::Core;
use super::fleet::Fleet;
use super::store::Gateway;
use super::store::number;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::model::hub_records::Change;
use crate::model::hub_records::FleetHub;
use crate::model::hub_records::Record;
use crate::model::hub_records::Table;
use crate::net::stop::Stop;
use crate::net::threads;
use crate::net::threads::ThreadGroup;
use crate::os::secret;
use crate::os::user;

/// A hub that has not renewed its lease for this long is gone for the others.
const LEASE_TTL: Duration = Duration::from_secs(6);
/// Four renewals fit into a lease, so that three may fail.
const LEASE_RENEWAL_INTERVAL: Duration = Duration::from_millis(1500);
/// A hub that ends gives its lease back, but waits no longer than this for etcd's answer.
const LEASE_REVOKE_TIMEOUT: Duration = Duration::from_millis(500);

/// The thread that keeps the lease; it ends when this is dropped.
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

/// Joins the fleet as the hub at `url`, which other hubs reach at `direct`. A hub with a store of its own has nothing to
/// join.
pub fn join(core: &Arc<Core>, url: &str, direct: &str, stop: &Stop) -> Result<Option<FleetMembership>> {
    let Some(fleet) = &core.fleet else { return Ok(None) };
    let data = core.settings.data.to_string_lossy();
    let instance = secret::derived_id("hub", &[&user::hostname(), &data]);
    // The entry of an earlier run on the same data folder may still be there; any other is another hub's.
    let is_taken = core.records.registry().hubs().any(|hub| hub.url == url && hub.instance != instance);
    if is_taken {
        return Err(Error::new(format!("Another hub of this fleet is called {url}")).hint(format!(
            "Give each hub a --name of its own. If that one was killed just now, try again in {} seconds",
            LEASE_TTL.as_secs()
        )));
    }
    fleet.replica.become_hub(url);
    let mut lease = HubLease {
        core: Arc::clone(core),
        fleet: Arc::clone(fleet),
        gateway: fleet.gateway.another(),
        this_hub: FleetHub { url: url.to_owned(), direct: direct.to_owned(), instance },
        renewed: Instant::now(),
    };
    // A hub that cannot get a lease does not start.
    lease.renew()?;
    let membership = FleetMembership { stop: stop.clone(), threads: ThreadGroup::default() };
    let own = stop.clone();
    membership.threads.spawn("fleet-lease", move || lease.keep(&own))?;
    Ok(Some(membership))
}

struct HubLease {
    core: Arc<Core>,
    fleet: Arc<Fleet>,
    gateway: Gateway,
    this_hub: FleetHub,
    /// When etcd last confirmed the lease.
    renewed: Instant,
}

impl HubLease {
    fn keep(&mut self, stop: &Stop) {
        while !stop.wait_for(LEASE_RENEWAL_INTERVAL) {
            match self.renew() {
                Ok(()) => {
                    ca_rotation::follow(&self.core);
                    if self.fleet.set_fenced(false) {
                        log::warn!("this hub is with its fleet again");
                    }
                }
                Err(error) => {
                    log::debug!("{error}");
                    self.fence_if_alone();
                }
            }
        }
        self.revoke();
    }

    /// Renews the lease, or takes a new one, and corrects what etcd has of this hub.
    fn renew(&mut self) -> Result<()> {
        if let Some(lease) = self.fleet.replica.lease() {
            let renewed = self.call("/v3/lease/keepalive", &json!({ "ID": lease }))?;
            if number(&renewed["result"]["TTL"]) == 0 {
                self.fleet.replica.set_lease(None);
            }
        }
        if self.fleet.replica.lease().is_none() {
            let granted = self.call("/v3/lease/grant", &json!({ "TTL": LEASE_TTL.as_secs().to_string() }))?;
            self.fleet.replica.set_lease(granted["ID"].as_str().map(str::to_owned));
        }
        self.renewed = Instant::now();
        if self.fleet.replica.set_away(false) {
            log::warn!("etcd answers again");
        }
        self.correct_presence();
        Ok(())
    }

    fn call(&mut self, path: &str, body: &Value) -> Result<Value> {
        let called = self.gateway.call(path, body);
        called.inspect_err(|error| {
            if error.kind == ErrorKind::Unreachable && !self.fleet.replica.set_away(true) {
                log::warn!("{error}; until it does, changes are refused and the rest works from memory");
            }
        })
    }

    /// Puts into etcd which services are here, and this hub itself, and drops those that are not here any more.
    fn correct_presence(&self) {
        let (missing, surplus) = self.fleet.replica.differences();
        let is_listed = self.fleet.replica.has(Table::Hub, &self.this_hub.url);
        if is_listed && missing.is_empty() && surplus.is_empty() {
            return;
        }
        // A failure is logged where it happens; the next renewal tries again.
        let _ = self.core.records.change(|registry| {
            let here =
                |id: &str| registry.online_by_id(id).filter(|online| registry.is_here(online)).cloned();
            let mut changes = Vec::new();
            if !is_listed {
                changes.push(Change::Put(Record::Hub(self.this_hub.clone())));
            }
            // Agents may have come and gone since the two were compared.
            let still_here = missing.iter().filter_map(|online| here(&online.id));
            changes.extend(still_here.map(|online| Change::Put(Record::Online(online))));
            let still_away = surplus.iter().filter(|id| here(id).is_none());
            changes.extend(still_away.map(|id| Change::drop(Table::Online, id)));
            Ok((changes, ()))
        });
    }

    /// If only this hub has lost etcd, for longer than the lease, sends its agents away.
    fn fence_if_alone(&mut self) {
        if self.renewed.elapsed() < LEASE_TTL || self.fleet.is_fenced() {
            return;
        }
        let hubs: Vec<FleetHub> = self.core.records.registry().hubs().cloned().collect();
        let mut others = hubs.iter().filter(|hub| hub.url != self.this_hub.url);
        let Some(other) = others.find(|hub| carry::has_store(&self.core, &hub.url)) else { return };
        // etcd may be back for all, and the other hub has only noticed sooner.
        if self.renew().is_ok() {
            return;
        }
        log::warn!("this hub has lost its fleet's etcd and {} has not: agents go there", other.url);
        self.fleet.set_fenced(true);
        self.core.channels.cut_all();
    }

    /// Ends the lease now, so that the others need not wait until it does. The hub's own stop has cut every
    /// connection, so this call has one of its own.
    fn revoke(&self) {
        let Some(lease) = self.fleet.replica.lease() else { return };
        self.fleet.replica.set_away(true);
        let last_stop = Stop::new();
        let Ok(mut gateway) = self.gateway.until(&last_stop) else { return };
        let (tell, answered) = mpsc::sync_channel(1);
        let revoking = threads::spawn("fleet-revoke", move || {
            let _ = gateway.call("/v3/lease/revoke", &json!({ "ID": lease }));
            let _ = tell.send(());
        });
        let Ok(revoking) = revoking else { return };
        let _ = answered.recv_timeout(LEASE_REVOKE_TIMEOUT);
        last_stop.stop();
        let _ = revoking.join();
    }
}
