//! The route table: what is on this machine by the routes file, what is elsewhere by the hub. Local wins.
//!
//! A snapshot is replaced whole, so a request sees one state of it; nothing that serves waits for a file
//! or for the hub.

use std::collections::HashMap;
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
use crate::net::stop::Stop;
use crate::net::threads::ThreadGroup;
use crate::os::lock::locked;
use crate::state::home::Home;
use crate::state::routes;
use crate::wire::api::ServiceInfo;
use crate::wire::api::Status;

/// How often the routes file is looked at, so that a change counts within a second.
const LOCAL_POLL: Duration = Duration::from_millis(500);
const HUB_POLL: Duration = Duration::from_secs(10);
/// How long the start waits for the hub; a slow one comes in later.
const HUB_FIRST: Duration = Duration::from_secs(2);
/// What one label can be (RFC 1035); a longer name could never be asked for.
const NAME_LIMIT: usize = 63;

/// Asks the hub for its services.
pub type ServiceLister = Box<dyn Fn() -> Result<Vec<ServiceInfo>> + Send + Sync>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyRoute {
    /// In lower case, as a host names it.
    pub name: String,
    /// On this machine for a local route, beside its agent for the hub's.
    pub port: u16,
    /// Whether the service speaks TLS itself.
    pub secure: bool,
    pub source: RouteSource,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteSource {
    Local,
    Hub { agent: String, online: bool },
}

impl ProxyRoute {
    pub fn is_local(&self) -> bool {
        self.source == RouteSource::Local
    }

    /// As `proxy status` and the page call it.
    pub fn source_word(&self) -> &'static str {
        if self.is_local() { "reach" } else { "hub" }
    }
}

/// One state of the table, local routes first, each kind by name.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Routes {
    list: Vec<Arc<ProxyRoute>>,
    by_name: HashMap<String, usize>,
}

impl Routes {
    pub fn new(local: &[Route], hub: &[ServiceInfo]) -> Self {
        let mut found: HashMap<String, Arc<ProxyRoute>> = HashMap::new();
        // Of two agents that offer one name, the one that is there.
        let mut services: Vec<_> = hub.iter().collect();
        services.sort_by_key(|service| service.status == Status::Online);
        for service in services {
            let source = RouteSource::Hub {
                agent: service.agent_label.clone(),
                online: service.status == Status::Online,
            };
            let (name, secure) = (service.name.to_string(), service.protocol == Protocol::Https);
            found.insert(
                name.clone(),
                Arc::new(ProxyRoute { name, port: service.target_port, secure, source }),
            );
        }
        for route in local.iter().filter(|route| is_label(&route.service_name) && route.local_port != 0) {
            let name = route.service_name.to_ascii_lowercase();
            let secure = route.protocol == Protocol::Https;
            let route =
                ProxyRoute { name: name.clone(), port: route.local_port, secure, source: RouteSource::Local };
            found.insert(name, Arc::new(route));
        }
        let mut list: Vec<_> = found.into_values().collect();
        list.sort_by(|a, b| (!a.is_local(), &a.name).cmp(&(!b.is_local(), &b.name)));
        let by_name = list.iter().enumerate().map(|(at, route)| (route.name.clone(), at)).collect();
        Self { list, by_name }
    }

    /// `name` is in lower case.
    pub fn find(&self, name: &str) -> Option<&Arc<ProxyRoute>> {
        self.by_name.get(name).and_then(|at| self.list.get(*at))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<ProxyRoute>> {
        self.list.iter()
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }
}

fn is_label(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=NAME_LIMIT).contains(&name.len()) && name.bytes().all(plain)
}

/// The table and the threads that keep it true; they end when it is dropped.
pub struct RouteTable {
    shared: Arc<TableState>,
    stop: Stop,
    keepers: ThreadGroup,
}

struct TableState {
    home: Home,
    ask_hub: Option<ServiceLister>,
    changed: Box<dyn Fn(&Routes) + Send + Sync>,
    current: RwLock<Arc<Routes>>,
    known: Mutex<SourceLists>,
}

#[derive(Default)]
struct SourceLists {
    local: SourceList<Route>,
    hub: SourceList<ServiceInfo>,
}

/// What a source said last. Trouble is told when it begins, not as long as it lasts.
struct SourceList<T> {
    last: Vec<T>,
    trouble: bool,
}

impl<T> Default for SourceList<T> {
    fn default() -> Self {
        Self { last: Vec::new(), trouble: false }
    }
}

impl<T> SourceList<T> {
    fn take(&mut self, said: Result<Vec<T>>) {
        match said {
            Ok(last) => *self = Self { last, trouble: false },
            Err(error) if !self.trouble => {
                self.trouble = true;
                log::warn!("{error}. The routes stay as they were");
            }
            Err(_) => {}
        }
    }
}

impl RouteTable {
    /// Has the local routes when this returns, and the hub's unless it takes long. `changed` is called with every new state.
    pub fn start(
        home: &Home,
        ask_hub: Option<ServiceLister>,
        changed: impl Fn(&Routes) + Send + Sync + 'static,
        stop: &Stop,
    ) -> Result<Self> {
        let shared = Arc::new(TableState {
            home: home.clone(),
            ask_hub,
            changed: Box::new(changed),
            current: RwLock::default(),
            known: Mutex::default(),
        });
        let stop = stop.child();
        let table = Self { shared, stop, keepers: ThreadGroup::default() };
        let local = table.keep("proxy-routes", LOCAL_POLL, TableState::look_at_files)?;
        let _ = local.recv_timeout(HUB_POLL);
        if table.shared.ask_hub.is_some() {
            let hub = table.keep("proxy-hub", HUB_POLL, TableState::look_at_hub)?;
            let _ = hub.recv_timeout(HUB_FIRST);
        }
        Ok(table)
    }

    /// Looks at once and then again and again; what is returned says when the first look is done.
    fn keep(&self, name: &str, every: Duration, look: fn(&TableState)) -> Result<Receiver<()>> {
        let (shared, stop) = (Arc::clone(&self.shared), self.stop.clone());
        let (done, first) = mpsc::sync_channel(1);
        self.keepers.spawn(name, move || {
            look(&shared);
            let _ = done.send(());
            while !stop.wait_for(every) {
                look(&shared);
            }
        })?;
        Ok(first)
    }

    pub fn now(&self) -> Arc<Routes> {
        Arc::clone(&self.shared.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn find(&self, name: &str) -> Option<Arc<ProxyRoute>> {
        self.shared.current.read().unwrap_or_else(PoisonError::into_inner).find(name).cloned()
    }
}

impl Drop for RouteTable {
    fn drop(&mut self) {
        self.stop.stop();
        self.keepers.join(|| ());
    }
}

impl TableState {
    /// The file is small; whether its writers live changes without it.
    fn look_at_files(&self) {
        let listed = routes::listed(&self.home);
        self.publish(|known| known.local.take(listed));
    }

    fn look_at_hub(&self) {
        let asked = self.ask_hub.as_ref().map_or_else(|| Ok(Vec::new()), |ask| ask());
        self.publish(|known| known.hub.take(asked));
    }

    fn publish(&self, learn: impl FnOnce(&mut SourceLists)) {
        let mut known = locked(&self.known);
        learn(&mut known);
        let routes = Arc::new(Routes::new(&known.local.last, &known.hub.last));
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *current, Arc::clone(&routes));
        drop((current, known));
        if before != routes {
            (self.changed)(&routes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::name::Name;
    use crate::model::time::Time;

    fn local(name: &str, local_port: u16) -> Route {
        let (service_name, protocol) = (name.to_owned(), Protocol::Tcp);
        Route { service_name, local_port, pid: 1, started_at: Time::from_unix(0), protocol }
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

    #[test]
    fn names_that_no_host_can_spell_are_left_out() {
        let long = "a".repeat(64);
        let routes = Routes::new(
            &[local("a.b", 1), local("", 1), local("<b>", 1), local(&long, 1), local("ok", 0)],
            &[],
        );
        assert_eq!(routes.len(), 0);
    }
}
