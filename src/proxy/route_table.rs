//! The route table: services on this machine from the routes file, the others from the hub. A local route wins.
//!
//! Each new state replaces the old one as a whole, so a request sees one state. Nothing that serves a request waits for
//! the file or for the hub.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use crate::error::Result;
use crate::model::route::Route;
use crate::model::service::Protocol;
use crate::model::time::Time;
use crate::net::stop::Stop;
use crate::net::threads::ThreadGroup;
use crate::os::clock;
use crate::os::lock::locked;
use crate::state::home::Home;
use crate::state::routes;
use crate::state::routes::ListedRoutes;
use crate::tls::authority::LEAF_RENEWAL;
use crate::wire::api::ServiceInfo;
use crate::wire::api::Status;

/// How often the routes file is read, so that a change counts within a second.
const ROUTES_FILE_POLL: Duration = Duration::from_millis(500);
/// How often the hub is asked for its services.
const HUB_SERVICES_POLL: Duration = Duration::from_secs(10);
/// The start waits this long for the hub. The services of a slower hub are added later.
const HUB_START_WAIT: Duration = Duration::from_secs(2);

/// Asks the hub for its services; without a login there are none.
pub type ServiceLister = Box<dyn Fn() -> Result<Vec<ServiceInfo>> + Send + Sync>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyRoute {
    /// In lower case, as a host names it.
    pub name: String,
    /// On this machine for a local route, on its agent's machine for one of the hub.
    pub port: u16,
    pub protocol: Protocol,
    pub source: RouteSource,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteSource {
    /// With the name of the share from which it comes.
    Local {
        share: Option<String>,
    },
    Hub {
        agent: String,
        online: bool,
    },
}

impl ProxyRoute {
    fn local(route: &Route) -> Self {
        Self {
            name: route.service_name.to_ascii_lowercase(),
            port: route.local_port,
            protocol: route.protocol(),
            source: RouteSource::Local { share: route.share.clone() },
        }
    }

    fn from_hub(service: &ServiceInfo) -> Self {
        let online = service.status == Status::Online;
        Self {
            name: service.name.to_string(),
            port: service.target_port,
            protocol: service.protocol,
            source: RouteSource::Hub { agent: service.agent_label.clone(), online },
        }
    }

    pub fn is_local(&self) -> bool {
        matches!(self.source, RouteSource::Local { .. })
    }

    /// The command of its own client, where the service is no web service and is known by its port.
    pub fn own_client(&self) -> Option<String> {
        Protocol::Tcp.client_command(self.port, self.port)
    }

    /// What to type for a service that is no web service, and so has no URL here.
    pub fn how_to_connect(&self) -> Option<String> {
        let here = || self.own_client().unwrap_or_else(|| format!("127.0.0.1:{}", self.port));
        let is_here = self.is_local();
        let how = || if is_here { here() } else { format!("connect reach {}", self.name) };
        (self.protocol == Protocol::Tcp).then(how)
    }

    /// As `proxy start` and the page show it.
    pub fn source_word(&self) -> String {
        match &self.source {
            RouteSource::Local { share: Some(share) } => format!("share {share}"),
            RouteSource::Local { share: None } => "reach".to_owned(),
            RouteSource::Hub { .. } => "hub".to_owned(),
        }
    }
}

/// One state of the table, by name.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Routes(BTreeMap<String, Arc<ProxyRoute>>);

impl Routes {
    pub fn new(local: &[Route], hub: &[ServiceInfo]) -> Self {
        // A later route replaces an earlier one of the same name. So a local route wins over the hub's, and of two agents
        // with one name, the one that is online wins.
        let mut services: Vec<_> = hub.iter().collect();
        services.sort_by_key(|service| service.status == Status::Online);
        let all = services.into_iter().map(ProxyRoute::from_hub).chain(local.iter().map(ProxyRoute::local));
        Self(all.map(|route| (route.name.clone(), Arc::new(route))).collect())
    }

    /// `name` is in lower case.
    pub fn find(&self, name: &str) -> Option<&Arc<ProxyRoute>> {
        self.0.get(name)
    }

    /// Local routes first, each kind by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<ProxyRoute>> {
        let of_hub = self.0.values().filter(|route| !route.is_local());
        self.0.values().filter(|route| route.is_local()).chain(of_hub)
    }

    /// Without those whose agent is offline.
    pub fn available(&self) -> impl Iterator<Item = &Arc<ProxyRoute>> {
        self.iter().filter(|route| !matches!(route.source, RouteSource::Hub { online: false, .. }))
    }
}

/// The table and the threads that keep it current; they end when it is dropped.
pub struct RouteTable {
    state: Arc<TableState>,
    stop: Stop,
    pollers: ThreadGroup,
}

struct TableState {
    home: Home,
    hub_services: ServiceLister,
    changed: Box<dyn Fn(&Routes) + Send + Sync>,
    current: RwLock<Arc<Routes>>,
    sources: Mutex<RouteSources>,
}

/// What each source returned last.
#[derive(Default)]
struct RouteSources {
    local: ListedRoutes,
    hub: Vec<ServiceInfo>,
    /// When `changed` was last called.
    told_at: Time,
}

impl RouteTable {
    /// Starts both threads. Returns once the local routes are known, and the hub's unless the hub is slow. Calls `changed`
    /// with every new state, and when the certificate that it writes is due.
    pub fn start(
        home: &Home,
        hub_services: ServiceLister,
        changed: impl Fn(&Routes) + Send + Sync + 'static,
        stop: &Stop,
    ) -> Result<Self> {
        let state = Arc::new(TableState {
            home: home.clone(),
            hub_services,
            changed: Box::new(changed),
            current: RwLock::default(),
            sources: Mutex::default(),
        });
        let table = Self { state, stop: stop.child(), pollers: ThreadGroup::default() };
        let local =
            table.poll("The routes file can be read again", ROUTES_FILE_POLL, TableState::read_file)?;
        let _ = local.recv_timeout(HUB_SERVICES_POLL);
        let hub = table.poll("The hub is back", HUB_SERVICES_POLL, TableState::ask_hub)?;
        let _ = hub.recv_timeout(HUB_START_WAIT);
        Ok(table)
    }

    /// Calls `read` at once and then at each interval. `back` is logged when it succeeds after a failure. The receiver tells when the first call is done.
    fn poll(
        &self,
        back: &'static str,
        interval: Duration,
        read: fn(&TableState) -> Result<()>,
    ) -> Result<Receiver<()>> {
        let state = Arc::clone(&self.state);
        let stop = self.stop.clone();
        let (done, first_done) = mpsc::sync_channel(1);
        self.pollers.spawn("proxy-routes", move || {
            let mut failing = false;
            loop {
                let result = read(&state);
                // A failure is logged when it begins, not as long as it lasts.
                match &result {
                    Err(error) if !failing => log::warn!("{error}. The routes stay as they were"),
                    Ok(()) if failing => log::info!("{back}"),
                    _ => {}
                }
                failing = result.is_err();
                let _ = done.try_send(());
                if stop.wait_for(interval) {
                    return;
                }
            }
        })?;
        Ok(first_done)
    }

    /// At once, out of turn.
    pub fn ask_hub(&self) {
        if let Err(error) = self.state.ask_hub() {
            log::warn!("{error}. The routes stay as they were");
        }
    }

    pub fn now(&self) -> Arc<Routes> {
        Arc::clone(&self.state.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn find(&self, name: &str) -> Option<Arc<ProxyRoute>> {
        self.state.current.read().unwrap_or_else(PoisonError::into_inner).find(name).cloned()
    }
}

impl Drop for RouteTable {
    fn drop(&mut self) {
        self.stop.stop();
        self.pollers.join(|| ());
    }
}

impl TableState {
    /// The file is read even if it is unchanged: it is small, and a process that dies leaves its routes in it.
    fn read_file(&self) -> Result<()> {
        let listed = routes::listed(&self.home)?;
        self.publish(|sources| {
            if sources.local.faults != listed.faults {
                for fault in &listed.faults {
                    log::warn!("{fault}");
                }
            }
            sources.local = listed;
        });
        Ok(())
    }

    fn ask_hub(&self) -> Result<()> {
        let hub = (self.hub_services)()?;
        self.publish(|sources| sources.hub = hub);
        Ok(())
    }

    /// The lock on the sources is held until the new state is in place, so that no older state replaces it.
    fn publish(&self, update: impl FnOnce(&mut RouteSources)) {
        let mut sources = locked(&self.sources);
        update(&mut sources);
        let routes = Arc::new(Routes::new(&sources.local.routes, &sources.hub));
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *current, Arc::clone(&routes));
        drop(current);
        let now = clock::now();
        let is_due = before != routes || now.since(sources.told_at) >= LEAF_RENEWAL;
        if is_due {
            sources.told_at = now;
        }
        drop(sources);
        if is_due {
            (self.changed)(&routes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::name::Name;

    fn local(name: &str, local_port: u16) -> Route {
        Route { service_name: name.to_owned(), local_port, protocol: None, share: None }
    }

    fn hub(name: &str, target_port: u16, status: Status) -> ServiceInfo {
        ServiceInfo {
            id: "svc".into(),
            name: Name::parse(name).unwrap(),
            target_port,
            tunnel_port: None,
            status,
            protocol: Protocol::Http,
            agent_id: "agent".into(),
            agent_label: "box".into(),
            created_at: Time::from_unix(0),
            share: None,
        }
    }

    #[test]
    fn local_routes_come_first_and_win() {
        let routes = Routes::new(
            &[local("Redis", 6380), local("api", 8081)],
            &[hub("api", 8080, Status::Online), hub("billing", 9000, Status::Online)],
        );
        let listed: Vec<_> = routes.iter().map(|route| (route.name.as_str(), route.port)).collect();
        assert_eq!(listed, [("api", 8081), ("redis", 6380), ("billing", 9000)]);
        assert!(routes.find("api").unwrap().is_local() && !routes.find("billing").unwrap().is_local());
        assert!(routes.find("none").is_none());
    }

    #[test]
    fn of_two_agents_with_one_name_the_one_that_is_there_counts() {
        let (up, down) = (hub("api", 1, Status::Online), hub("api", 2, Status::Offline));
        for services in [[up.clone(), down.clone()], [down, up]] {
            assert_eq!(Routes::new(&[], &services).find("api").unwrap().port, 1);
        }
    }
}
