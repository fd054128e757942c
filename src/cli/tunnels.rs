//! The tunnels of one command: `reach` has one, `join` and `dev` several. Opens them, proves them, tells
//! when they go and come, and runs the user's command beside them.

mod staying;

use std::path::Path;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use staying::TunnelEvent;

use super::call::Call;
use super::local_tunnel::LocalTunnel;
use super::local_tunnel::TunnelAccess;
use super::local_tunnel::TunnelSpec;
use super::local_tunnel::another_agent;
use crate::api::Hub;
use crate::error::Error;
use crate::error::Result;
use crate::model::name::Name;
use crate::model::service::Protocol;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::os::files;
use crate::state::agent_pins;
use crate::state::runs;
use crate::state::runs::OwnRun;
use crate::tunnel::joiner::Tunnel;
use crate::tunnel::joiner::any_user;
use crate::tunnel::pool::AgentCheck;
use crate::tunnel::pool::SessionOpener;
use crate::wire::api::AskSession;

/// How often a service without a port looks for one, and a changed file is noticed.
const TUNNEL_POLL: Duration = Duration::from_millis(500);
/// With `-- CMD` nobody is there to see what is missing, so it is waited for.
const WAIT_FOR_COMMAND: Duration = Duration::from_mins(1);

pub struct TunnelSet<'c> {
    call: &'c Call,
    right: Arc<TunnelAccess>,
    /// In the order in which they were added.
    members: Vec<LocalTunnel>,
    /// This command's entry in the list of what runs; a folder that cannot be written costs only that.
    run: Option<OwnRun>,
    /// How long a service may take to prove that it answers.
    pub patience: Duration,
    /// What `--env-file` holds.
    written: Option<String>,
    tell: Sender<TunnelEvent>,
    told: Receiver<TunnelEvent>,
}

impl<'c> TunnelSet<'c> {
    /// `kind` and `names` are how `status` shows it and `stop` finds it.
    pub fn new(call: &'c Call, kind: &str, names: &[String], right: TunnelAccess) -> Self {
        let (tell, told) = mpsc::channel();
        let run = runs::register(&call.home, kind, names);
        let run = run.inspect_err(|error| log::info!("not listed among what runs: {error}")).ok();
        Self {
            call,
            right: Arc::new(right),
            members: Vec::new(),
            run,
            patience: NETWORK_TIMEOUT,
            written: None,
            tell,
            told,
        }
    }

    pub fn members(&self) -> &[LocalTunnel] {
        &self.members
    }

    fn member(&mut self, name: &Name) -> Option<&mut LocalTunnel> {
        self.members.iter_mut().find(|member| member.wanted.name == *name)
    }

    pub fn active(&self) -> usize {
        self.members.iter().filter(|member| member.trouble.is_none()).count()
    }

    /// What stands in the way of one service, for whoever gives up over it.
    pub fn take_trouble(&mut self, name: &Name) -> Option<Error> {
        self.member(name)?.trouble.take()
    }

    /// Adds services and proves them side by side. What goes wrong with one stands in its `trouble`.
    pub fn add(&mut self, wanted: Vec<TunnelSpec>) {
        for one in wanted {
            let member = self.open(one);
            self.remove(&member.wanted.name);
            self.members.push(member);
        }
        self.prove_all();
    }

    pub fn remove(&mut self, name: &Name) {
        self.members.retain(|member| member.wanted.name != *name);
    }

    /// A tunnel that does not listen yet; one that cannot be had has its trouble instead.
    fn open(&self, wanted: TunnelSpec) -> LocalTunnel {
        let protocol = Arc::default();
        let opened = self.try_open(&wanted, Arc::clone(&protocol));
        let (tunnel, trouble) = match opened {
            Ok(tunnel) => (Some(tunnel), None),
            Err(error) => (None, Some(error)),
        };
        LocalTunnel { wanted, tunnel, trouble, seen: false, route: None, protocol }
    }

    fn try_open(&self, wanted: &TunnelSpec, protocol: Arc<OnceLock<Protocol>>) -> Result<Tunnel> {
        let own = AskSession::of(&wanted.service, self.right.identity.fingerprint);
        let ask = AskSession { share: self.right.share.clone(), ..own };
        let approve = self.approve(&wanted.name, protocol);
        let opener = SessionOpener::new(Arc::clone(&self.right.hub), &self.right.identity, ask, approve)?
            .expected(&wanted.name);
        let (tell, name) = (self.tell.clone(), wanted.name.clone());
        let report = Box::new(move |event| drop(tell.send(TunnelEvent::Service(name.clone(), event))));
        Tunnel::new(opener, any_user, report, &self.call.stop)
    }

    /// Whose agent may answer for this service; notes what it speaks.
    fn approve(&self, name: &Name, protocol: Arc<OnceLock<Protocol>>) -> AgentCheck {
        let (right, home) = (Arc::clone(&self.right), self.call.home.clone());
        let what = format!("{}/{name}", right.known_as);
        Box::new(move |granted| {
            let _ = protocol.set(granted.protocol);
            match right.agent {
                Some(agent) if agent == granted.agent_fingerprint => Ok(()),
                Some(_) => Err(another_agent()),
                None => agent_pins::check_or_pin(&home, &what, granted.agent_fingerprint),
            }
        })
    }

    fn prove_all(&mut self) {
        let is_down =
            |member: &&mut LocalTunnel| member.tunnel.as_ref().is_some_and(|tunnel| !tunnel.is_up());
        let (unproved, patience) = (self.members.iter_mut().filter(is_down), self.patience);
        thread::scope(|scope| {
            for member in unproved {
                scope.spawn(|| {
                    member.trouble =
                        member.tunnel.as_ref().and_then(|tunnel| tunnel.check_target(patience).err());
                });
            }
        });
        // In their order, so that of two services with one port the first one gets it.
        let hub = &self.right.hub.url;
        self.members.iter_mut().for_each(|member| member.take_port(&self.call.home, hub));
    }

    /// Proves until every service answers or the time is up.
    fn wait_for_all(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while self.active() < self.members.len() && Instant::now() < deadline {
            let mut troubles = self.members.iter().filter_map(|member| member.trouble.as_ref());
            if let Some(final_word) = troubles.find_map(|error| self.right.the_end(error)) {
                return Err(final_word);
            }
            if self.call.stop.wait_for(TUNNEL_POLL.min(deadline.saturating_duration_since(Instant::now()))) {
                return self.call.fail_if_stopped();
            }
            self.prove_all();
        }
        Ok(())
    }

    /// Services that answer and found no port look again; a port may have become free.
    fn find_ports(&mut self) {
        for member in self.members.iter_mut().filter(|member| member.port().is_none()) {
            member.take_port(&self.call.home, &self.right.hub.url);
            if member.port().is_some() {
                member.say_up(&self.call.say, "is there now");
            }
        }
    }

    /// Waits until every service answers: for as long as was asked, else a while when a command is to run,
    /// since nobody is there to see what is missing.
    pub fn wait_as_asked(&mut self, asked: Option<Duration>) -> Result<()> {
        match asked.or(self.call.args.run.as_ref().map(|_| WAIT_FOR_COMMAND)) {
            Some(patience) => self.wait_for_all(patience),
            None => Ok(()),
        }
    }

    /// Who waits for services waits for a hub that is away, too. What is left of the time.
    pub fn wait_for_hub(call: &Call, hub: &Hub, asked: Option<Duration>) -> Result<Option<Duration>> {
        let Some(patience) = asked else { return Ok(None) };
        let deadline = Instant::now() + patience;
        while let Err(error) = hub.health() {
            if !error.may_pass() || Instant::now() >= deadline {
                return Err(error);
            }
            call.stop.wait_for(TUNNEL_POLL);
            call.fail_if_stopped()?;
        }
        Ok(Some(deadline.saturating_duration_since(Instant::now())))
    }

    /// With a command to run, one service that is missing is the end.
    pub fn complete_for_command(&self) -> Result<()> {
        let troubles: Vec<_> =
            self.members.iter().filter_map(|one| Some((&one.wanted.name, one.trouble.as_ref()?))).collect();
        if self.call.args.run.is_none() || troubles.is_empty() {
            return Ok(());
        }
        let missing: Vec<&str> = troubles.iter().map(|(name, _)| name.as_str()).collect();
        let not_started =
            Error::new(format!("The command was not started: {} cannot be reached", missing.join(", ")));
        // What no waiting mends has its own way out.
        Err(match troubles.iter().find(|(_, error)| !error.may_pass()) {
            Some((_, error)) => {
                not_started.because(error.to_string()).hint(error.hint.clone().unwrap_or_default())
            }
            None => not_started
                .hint("Give it more time with --wait 5m, or look at the agent: connect status there"),
        })
    }

    /// Lists the tunnels as routes and remembers their ports, before the user hears of them. A state folder
    /// that cannot be written costs the list, not the tunnels.
    pub fn list(&mut self) {
        let mut by_name: Vec<&mut LocalTunnel> = self.members.iter_mut().collect();
        by_name.sort_by(|one, other| one.wanted.name.cmp(&other.wanted.name));
        by_name.into_iter().for_each(|member| member.list(&self.call.home, &self.right.hub.url));
    }

    /// Writes the file that was asked for, and begins to watch.
    pub fn settle(&mut self) -> Result<()> {
        self.list();
        if let Some(path) = self.call.args.value("env-file") {
            let lines: String =
                self.environment().iter().map(|(name, value)| format!("{name}={value}\n")).collect();
            if self.written.as_ref() != Some(&lines) {
                files::write(Path::new(path), lines.as_bytes())?;
                self.written = Some(lines);
            }
        }
        self.members.iter().flat_map(|member| &member.tunnel).for_each(Tunnel::report_changes);
        Ok(())
    }

    /// `STAGING_DB_HOST`, `STAGING_DB_PORT` and `STAGING_DB_ADDR` for the service `staging-db`.
    pub fn environment(&self) -> Vec<(String, String)> {
        self.members.iter().flat_map(LocalTunnel::environment).collect()
    }
}
