//! The loopback ports of the hub's machine at which services can be reached. Each port has a tunnel to one service.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::OnceLock;

use crate::error::Result;
use crate::os::files;
use crate::os::lock::locked;

/// Opens a tunnel on a loopback port to one service. The hub's command provides it, since the hub's room does not
/// name the tunnel's. Dropping the returned value closes the tunnel.
pub type TunnelOpener = Box<dyn Fn(&str, u16) -> Result<Box<dyn Send>> + Send + Sync>;

pub const TUNNEL_PORTS_FILE: &str = "tunnel-ports.json";

#[derive(Default)]
pub struct TunnelPorts {
    range: Option<RangeInclusive<u16>>,
    opener: OnceLock<TunnelOpener>,
    by_port: Mutex<BTreeMap<u16, PortTunnel>>,
    /// Where the services of the ports are kept, so that a port leads to the same service after a restart.
    file: PathBuf,
    /// Held while the file is written: the last one to write has the newest state.
    saving: Mutex<()>,
}

struct PortTunnel {
    service: String,
    /// Dropping it closes the tunnel. `None`: the service is offline, and its port is reserved for it.
    open: Option<Box<dyn Send>>,
}

impl TunnelPorts {
    pub fn new(range: Option<RangeInclusive<u16>>, data: &Path) -> Self {
        let file = data.join(TUNNEL_PORTS_FILE);
        let kept = files::read(&file).ok().flatten();
        let kept: Option<BTreeMap<u16, String>> = kept.and_then(|kept| serde_json::from_slice(&kept).ok());
        let is_ours = |port: &u16| range.as_ref().is_some_and(|range| range.contains(port));
        let kept = kept.unwrap_or_default().into_iter().filter(|(port, _)| is_ours(port));
        let by_port = kept.map(|(port, service)| (port, PortTunnel { service, open: None })).collect();
        Self { range, by_port: Mutex::new(by_port), file, ..Self::default() }
    }

    fn save(&self) {
        let _turn = locked(&self.saving);
        let ports: BTreeMap<u16, String> =
            locked(&self.by_port).iter().map(|(port, tunnel)| (*port, tunnel.service.clone())).collect();
        let text = serde_json::to_vec(&ports).unwrap_or_default();
        if let Err(error) = files::write_unsynced(&self.file, &text) {
            log::warn!("after a restart services may get other tunnel ports: {error}");
        }
    }

    /// Until this is set, no service gets a port.
    pub fn set_opener(&self, opener: TunnelOpener) {
        let _ = self.opener.set(opener);
    }

    /// Opens the service's port: the one it had before, else the first free one, else one that is reserved for a service
    /// that is offline. The lock is not held while the tunnel opens.
    pub fn open(&self, service: &str) -> Option<u16> {
        let (range, opener) = (self.range.clone()?, self.opener.get()?);
        let (before, taken, reserved) = {
            let by_port = locked(&self.by_port);
            let before = by_port.iter().find(|(_, tunnel)| tunnel.service == service);
            let before = before.map(|(port, tunnel)| (*port, tunnel.open.is_some()));
            let offline = by_port.iter().filter(|(_, tunnel)| tunnel.open.is_none());
            let reserved: Vec<u16> = offline.map(|(port, _)| *port).collect();
            (before, by_port.keys().copied().collect::<Vec<_>>(), reserved)
        };
        // The agent has reconnected before its tunnel was closed.
        if let Some((port, true)) = before {
            return Some(port);
        }
        let before = before.map(|(port, _)| port);
        let mut candidates =
            before.into_iter().chain(range.filter(|port| !taken.contains(port))).chain(reserved);
        let (port, open) = candidates.find_map(|port| Some((port, opener(service, port).ok()?)))?;
        locked(&self.by_port).insert(port, PortTunnel { service: service.to_owned(), open: Some(open) });
        if before != Some(port) {
            self.save();
        }
        Some(port)
    }

    /// Closes the tunnel of a service that is offline at this hub. With `keep_port` the port stays reserved for it.
    pub fn close(&self, service: &str, keep_port: bool, is_offline: impl FnOnce() -> bool) {
        let closing: Vec<_> = {
            let mut by_port = locked(&self.by_port);
            // Another channel may have brought it online again in the meantime.
            if !is_offline() {
                return;
            }
            let its = |tunnel: &PortTunnel| tunnel.service == service;
            if keep_port {
                by_port.values_mut().filter(|tunnel| its(tunnel)).map(|tunnel| tunnel.open.take()).collect()
            } else {
                by_port.extract_if(.., |_, tunnel| its(tunnel)).map(|(_, tunnel)| tunnel.open).collect()
            }
        };
        if !keep_port && !closing.is_empty() {
            self.save();
        }
        drop(closing);
    }

    /// The open ports by the ids of their services.
    pub fn by_service(&self) -> HashMap<String, u16> {
        let by_port = locked(&self.by_port);
        let open = by_port.iter().filter(|(_, tunnel)| tunnel.open.is_some());
        open.map(|(port, tunnel)| (tunnel.service.clone(), *port)).collect()
    }

    pub fn close_all(&self) {
        let all = std::mem::take(&mut *locked(&self.by_port));
        drop(all);
    }
}
