//! The tunnels of one command: `reach` has one, `join` and `dev` several. Opens them, proves them, tells
//! when they go and come, and runs the user's command beside them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use super::Outcome;
use super::context::Call;
use super::member::Member;
use super::member::Right;
use super::member::Wanted;
use super::member::another_agent;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::name::Name;
use crate::model::record::Protocol;
use crate::os::files;
use crate::os::process;
use crate::state::known;
use crate::state::ports;
use crate::state::routes;
use crate::state::runs;
use crate::state::runs::Open;
use crate::state::runs::OwnRun;
use crate::tunnel::joiner::Event;
use crate::tunnel::joiner::Tunnel;
use crate::tunnel::joiner::everyone;
use crate::tunnel::pool::Approve;
use crate::tunnel::pool::Opener;
use crate::wire::api::AskSession;

/// How often a service without a port looks for one, and a changed file is noticed.
const TURN: Duration = Duration::from_millis(500);
/// With `-- CMD` nobody is there to see what is missing, so it is waited for.
const WAIT_FOR_COMMAND: Duration = Duration::from_mins(1);
/// A command that is asked to end has this long, then it is made to.
const GRACE: Duration = Duration::from_secs(5);

pub struct Party<'c> {
    call: &'c Call,
    right: Arc<Right>,
    members: BTreeMap<Name, Member>,
    order: Vec<Name>,
    /// This command's entry in the list of what runs; a folder that cannot be written costs only that.
    run: Option<OwnRun>,
    /// What `--env-file` holds.
    written: Option<String>,
    tell: Sender<Told>,
    told: Receiver<Told>,
}

enum Told {
    Service(Name, Event),
    /// The command behind `--` has ended.
    Ended(Result<u8>),
    Stopped,
}

/// What the owner of a party does at every turn, like looking whether a file has changed.
pub type EachTurn<'t> = &'t mut dyn FnMut(&mut Party<'_>) -> Result<()>;

impl<'c> Party<'c> {
    /// `kind` and `names` are how `status` shows it and `stop` finds it.
    pub fn new(call: &'c Call, kind: &str, names: &[String], right: Right) -> Self {
        let (tell, told) = mpsc::channel();
        let run = runs::register(&call.home, kind, names);
        let run = run.inspect_err(|error| log::info!("not listed among what runs: {error}")).ok();
        let (members, order) = (BTreeMap::new(), Vec::new());
        Self { call, right: Arc::new(right), members, order, run, written: None, tell, told }
    }

    /// In the order in which they were added.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.order.iter().filter_map(|name| self.members.get(name))
    }

    pub fn active(&self) -> usize {
        self.members().filter(|member| member.trouble.is_none()).count()
    }

    /// What stands in the way of one service, for whoever gives up over it.
    pub fn take_trouble(&mut self, name: &Name) -> Option<Error> {
        self.members.get_mut(name)?.trouble.take()
    }

    /// Adds services and proves them side by side. What goes wrong with one stands in its `trouble`.
    pub fn add(&mut self, wanted: Vec<Wanted>) {
        for one in wanted {
            let member = self.open(one);
            let name = member.wanted.name.clone();
            self.order.retain(|known| *known != name);
            self.order.push(name.clone());
            self.members.insert(name, member);
        }
        self.prove_all();
    }

    pub fn remove(&mut self, name: &Name) {
        self.order.retain(|known| known != name);
        self.members.remove(name);
    }

    /// A tunnel that does not listen yet; one that cannot be had has its trouble instead.
    fn open(&self, wanted: Wanted) -> Member {
        let protocol = Arc::default();
        let opened = self.try_open(&wanted, Arc::clone(&protocol));
        let (tunnel, trouble) = match opened {
            Ok(tunnel) => (Some(tunnel), None),
            Err(error) => (None, Some(error)),
        };
        Member { wanted, tunnel, trouble, seen: false, route: None, protocol }
    }

    fn try_open(&self, wanted: &Wanted, protocol: Arc<OnceLock<Protocol>>) -> Result<Tunnel> {
        let own = AskSession::of(&wanted.service, self.right.identity.fingerprint);
        let ask = AskSession { share: self.right.share.clone(), ..own };
        let approve = self.approve(&wanted.name, protocol);
        let opener = Opener::new(Arc::clone(&self.right.hub), &self.right.identity, ask, approve)?;
        let (tell, name) = (self.tell.clone(), wanted.name.clone());
        let report = Box::new(move |event| drop(tell.send(Told::Service(name.clone(), event))));
        Tunnel::new(opener, everyone, report, &self.call.stop)
    }

    /// Whose agent may answer for this service; notes what it speaks.
    fn approve(&self, name: &Name, protocol: Arc<OnceLock<Protocol>>) -> Approve {
        let (right, home) = (Arc::clone(&self.right), self.call.home.clone());
        let what = format!("{}/{name}", right.known_as);
        Box::new(move |granted| {
            let _ = protocol.set(granted.protocol);
            match right.agent {
                Some(agent) if agent == granted.agent_fingerprint => Ok(()),
                Some(_) => Err(another_agent()),
                None => known::check_or_pin(&home, &what, granted.agent_fingerprint),
            }
        })
    }

    fn prove_all(&mut self) {
        let unproved = self
            .members
            .values_mut()
            .filter(|member| member.tunnel.as_ref().is_some_and(|tunnel| !tunnel.is_up()));
        thread::scope(|scope| {
            for member in unproved {
                scope.spawn(|| {
                    member.trouble = member.tunnel.as_ref().and_then(|tunnel| tunnel.prove().err());
                });
            }
        });
        // In their order, so that of two services with one port the first one gets it.
        for name in &self.order {
            let member = self.members.get_mut(name);
            member.into_iter().for_each(|member| member.take_port(&self.call.home));
        }
    }

    /// Proves until every service answers or the time is up.
    fn wait_for_all(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while self.active() < self.members.len() && Instant::now() < deadline {
            if let Some(final_word) = self
                .members()
                .filter_map(|member| member.trouble.as_ref())
                .find_map(|error| self.right.the_end(error))
            {
                return Err(final_word);
            }
            if self.call.stop.wait_for(TURN.min(deadline.saturating_duration_since(Instant::now()))) {
                return self.call.go_on();
            }
            self.prove_all();
        }
        Ok(())
    }

    /// Services that answer and found no port look again; a port may have become free.
    fn find_ports(&mut self) {
        let without: Vec<Name> =
            self.members().filter(|member| member.port().is_none()).map(|m| m.wanted.name.clone()).collect();
        for name in without {
            let Some(member) = self.members.get_mut(&name) else { continue };
            member.take_port(&self.call.home);
            if member.port().is_some() {
                self.say_up(&name, "is there now");
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

    /// With a command to run, one service that is missing is the end.
    pub fn complete_for_command(&self) -> Result<()> {
        let missing: Vec<&str> = self
            .members()
            .filter(|member| member.trouble.is_some())
            .map(|member| member.wanted.name.as_str())
            .collect();
        if self.call.args.run.is_none() || missing.is_empty() {
            return Ok(());
        }
        Err(Error::new(format!("The command was not started: {} cannot be reached", missing.join(", ")))
            .hint("Give it more time with --wait 5m, or look at the agent: connect status there"))
    }

    /// Lists the tunnels as routes and remembers their ports, before the user hears of them. A state folder
    /// that cannot be written costs the list, not the tunnels.
    pub fn list(&mut self) {
        let home = &self.call.home;
        for member in self.members.values_mut().filter(|member| member.route.is_none()) {
            let Some(port) = member.port() else { continue };
            let name = member.wanted.name.as_str();
            let protocol = member.protocol.get().copied().unwrap_or_default();
            let listed =
                ports::remember(home, name, port).and_then(|()| routes::add(home, name, port, protocol));
            match listed {
                Ok(route) => member.route = Some(route),
                Err(error) => log::info!("{name} is not listed as a route: {error}"),
            }
        }
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
        for member in self.members.values() {
            member.tunnel.iter().for_each(Tunnel::watch);
        }
        Ok(())
    }

    /// `STAGING_DB_HOST`, `STAGING_DB_PORT` and `STAGING_DB_ADDR` for the service `staging-db`.
    pub fn environment(&self) -> Vec<(String, String)> {
        let three = |member: &Member| {
            let (name, port) = (member.wanted.name.for_environment(), member.port()?);
            Some([
                (format!("{name}_HOST"), "127.0.0.1".to_owned()),
                (format!("{name}_PORT"), port.to_string()),
                (format!("{name}_ADDR"), format!("127.0.0.1:{port}")),
            ])
        };
        self.members().filter_map(three).flatten().collect()
    }

    /// Until Ctrl-C, until the command behind `--` ends, or until the right to all this is gone.
    pub fn stay(&mut self, each_turn: EachTurn<'_>) -> Outcome {
        let code = self.stay_on(each_turn)?;
        self.run.iter_mut().for_each(OwnRun::ends_well);
        Ok(code)
    }

    fn stay_on(&mut self, each_turn: EachTurn<'_>) -> Outcome {
        let tell = self.tell.clone();
        let woken = self.call.stop.on_stop(move || drop(tell.send(Told::Stopped)));
        let command = self.run_command()?;
        // A Ctrl-C that came before has no cut to make.
        if woken.is_none() {
            drop(self.tell.send(Told::Stopped));
        }
        self.report();
        loop {
            let told = match self.told.recv_timeout(TURN) {
                Ok(told) => told,
                Err(RecvTimeoutError::Timeout) => {
                    self.find_ports();
                    self.settle()?;
                    self.report();
                    each_turn(self)?;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => Told::Stopped,
            };
            match told {
                Told::Service(name, event) => {
                    if let Err(error) = self.tell_user(&name, event) {
                        // What was begun for the sake of the tunnels ends with them.
                        command.into_iter().for_each(|pid| self.end_command(pid));
                        return Err(error);
                    }
                }
                Told::Ended(code) => return code,
                // The signal came just before the command did, and the tunnels are gone.
                Told::Stopped if command.is_some() => command.into_iter().for_each(process::terminate),
                Told::Stopped => return Ok(0),
            }
        }
    }

    /// For `connect status`.
    fn report(&mut self) {
        let open = |member: &Member| {
            let tunnel = member.tunnel.as_ref()?;
            let traffic = tunnel.traffic();
            let bytes = traffic.up.load(Ordering::Relaxed) + traffic.down.load(Ordering::Relaxed);
            let at = format!("localhost:{}", tunnel.port);
            Some(Open {
                name: member.wanted.name.to_string(),
                at,
                up: member.trouble.is_none(),
                trouble: member.trouble.as_ref().map(ToString::to_string),
                sessions: tunnel.sessions(),
                bytes,
            })
        };
        let open = self.members().filter_map(open).collect();
        if let Some(run) = &mut self.run {
            run.report(open);
        }
    }

    /// Starts the command behind `--`, if there is one, in a thread that tells when it ends.
    fn run_command(&self) -> Result<Option<u32>> {
        let (Some(command), Some(signals)) = (self.call.args.run.clone(), self.call.signals.clone()) else {
            return Ok(None);
        };
        self.call.go_on()?;
        let (environment, tell) = (self.environment(), self.tell.clone());
        let (started, pid) = mpsc::channel();
        let work = move || {
            let code = signals.run(&command, &environment, |pid| _ = started.send(pid));
            let _ = tell.send(Told::Ended(code));
        };
        crate::net::crew::spawn("command", work).or_say(|| "Cannot start a thread")?;
        // A command that cannot be started says so by its end.
        Ok(pid.recv().ok())
    }

    fn end_command(&self, pid: u32) {
        process::terminate(pid);
        if !self.command_ends_by(Instant::now() + GRACE) {
            process::kill_now(pid);
            self.command_ends_by(Instant::now() + GRACE);
        }
    }

    fn command_ends_by(&self, deadline: Instant) -> bool {
        while let Ok(told) = self.told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if matches!(told, Told::Ended(_)) {
                return true;
            }
        }
        false
    }

    /// One line each time a service goes or comes; an error when there is nothing left to wait for.
    fn tell_user(&mut self, name: &Name, event: Event) -> Result<()> {
        let say = &self.call.say;
        let Some(member) = self.members.get_mut(name) else { return Ok(()) };
        match event {
            Event::Up => {
                let seen = member.seen;
                member.trouble = None;
                member.take_port(&self.call.home);
                match &member.trouble {
                    None => self.say_up(name, if seen { "is back" } else { "is there now" }),
                    Some(error) => say.warn(&format!("{name} → failed: {error}")),
                }
                self.settle()?;
            }
            Event::Down(error) => {
                if let Some(final_word) = self.right.the_end(&error) {
                    return Err(final_word);
                }
                // First the hub is away, then it is back without the agent: that is one outage.
                if member.trouble.is_none() {
                    say.event(&json!({ "event": "down", "name": name, "reason": error.to_string() }));
                    say.warn(&format!("{name} is away: {error}"));
                }
                member.trouble = Some(error);
            }
        }
        Ok(())
    }

    fn say_up(&self, name: &Name, how: &str) {
        let Some(member) = self.members.get(name) else { return };
        let event = if how == "is back" { "back" } else { "up" };
        self.call.say.event(&json!({ "event": event, "name": name, "localPort": member.port() }));
        self.call.say.line(&format!("[ok] {name} → {} {how}", member.shown()));
    }
}
