//! The proxy's way to the hub: this machine's login, which may come or change while the proxy runs, and a tunnel for each
//! service that was asked for.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use super::call::Call;
use super::call::not_configured;
use super::tunnel_access::TunnelAccess;
use super::tunnel_access::TunnelObserver;
use crate::error::Error;
use crate::error::Result;
use crate::model::name::Name;
use crate::net::serve::BoundPort;
use crate::net::stop::Stop;
use crate::os::files::FileStamp;
use crate::os::lock::locked;
use crate::proxy::context::HubTunnels;
use crate::proxy::route_table::RouteTable;
use crate::proxy::route_table::ServiceLister;
use crate::state::config;
use crate::state::config::Config;
use crate::tunnel::joiner::PeerCheck;
use crate::tunnel::joiner::Tunnel;

/// How often the config is looked at: a login counts within a second.
const LOGIN_POLL: Duration = Duration::from_millis(500);
/// The hub and an agent that are there answer far sooner.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

pub struct HubLogin {
    peer_check: PeerCheck,
    stop: Stop,
    state: Mutex<LoginState>,
}

#[derive(Default)]
struct LoginState {
    access: Option<Arc<TunnelAccess>>,
    /// Each is opened at the first request for its service, and kept.
    tunnels: HashMap<String, Arc<Tunnel>>,
}

impl HubLogin {
    pub fn new(call: &Call, peer_check: PeerCheck) -> Arc<Self> {
        let login = Self { peer_check, stop: call.stop.clone(), state: Mutex::default() };
        login.take(call);
        Arc::new(login)
    }

    /// Takes the login of the config, if there is one. Tunnels of another login end.
    fn take(&self, call: &Call) {
        let access = call.hub().and_then(|hub| TunnelAccess::own(call, hub, self.peer_check));
        let access = access.ok().map(Arc::new);
        let before =
            std::mem::replace(&mut *locked(&self.state), LoginState { access, tunnels: HashMap::new() });
        // Without the lock: that joins the tunnels' threads.
        drop(before);
    }

    /// Until the stop: follows another login in the config.
    pub fn follow(&self, call: &Call, table: &RouteTable) -> Result<()> {
        let stamp = || -> FileStamp { config::stamp(&call.home, call.config_file()) };
        let (mut seen, mut known): (FileStamp, Rc<Config>) = (stamp(), call.config()?);
        while !call.stop.wait_for(LOGIN_POLL) {
            let now = stamp();
            if now == seen {
                continue;
            }
            seen = now;
            match call.reload_config() {
                Ok(config) => {
                    if !config.is_same_login(&known) {
                        self.take(call);
                    }
                    table.ask_hub();
                    known = config;
                }
                Err(error) => call.say.warn(&format!("{error}; the login stays as it is")),
            }
        }
        Ok(())
    }

    pub fn lister(self: &Arc<Self>) -> ServiceLister {
        let own = Arc::clone(self);
        Box::new(move || {
            let access = locked(&own.state).access.clone();
            access.map_or_else(|| Ok(Vec::new()), |access| access.hub.workspace_services())
        })
    }

    pub fn tunnels(self: &Arc<Self>) -> HubTunnels {
        let (own, checked) = (Arc::clone(self), Arc::clone(self));
        HubTunnels {
            port: Box::new(move |service| Ok(own.tunnel(service)?.port)),
            check: Box::new(move |service| checked.tunnel(service)?.check_target(CHECK_TIMEOUT).map(drop)),
        }
    }

    fn tunnel(&self, service: &str) -> Result<Arc<Tunnel>> {
        let access = {
            let state = locked(&self.state);
            if let Some(known) = state.tunnels.get(service) {
                return Ok(Arc::clone(known));
            }
            state.access.clone().ok_or_else(not_configured)?
        };
        // It listens at once and dials nobody before its first connection, so two requests that come here at
        // the same time cost one port for a moment.
        let name = Name::parse(service).map_err(|_| Error::new("This is not the name of a service"))?;
        let mut tunnel = access.tunnel_to(service, Some(&name), TunnelObserver::default(), &self.stop)?;
        let port = BoundPort::first_free([0]).ok_or_else(|| Error::new("No port is free for a tunnel"))?;
        tunnel.listen(port)?;
        let mut state = locked(&self.state);
        Ok(Arc::clone(state.tunnels.entry(service.to_owned()).or_insert(Arc::new(tunnel))))
    }
}
