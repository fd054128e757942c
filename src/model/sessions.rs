//! The sessions of a hub, and how each goes from one state to the next: granted, waiting, open. `hub_session.rs` has one
//! session with its state.
//!
//! A session is granted with two tickets, one for each side. A ticket works once, for its session, for fifteen
//! seconds. The side that comes first waits; the second one opens the session, which then lives until both of
//! its directions have ended. If the agent declines, the joiner is sent away, at once or as soon as it comes, and may ask
//! for the reason. If the agent is at another hub, the joiner's ticket leads there.
//!
//! A direct session has no tickets: its joiner connects to the agent itself, and the agent reports when it begins and
//! when it is over. If the agent's channel ends, the session stays known for a minute, in which the agent may come back.
//!
//! `E` is one end of a session: the hub's handle of the connection that came with a ticket.

use std::collections::HashMap;

use super::access::Principal;
use super::hub_records::ChannelId;
use super::hub_session::AgentSide;
use super::hub_session::DirectSession;
use super::hub_session::HubSession;
use super::hub_session::HubSessionState;
use super::hub_session::RemoteSession;
use super::hub_session::SessionEntry;
use super::registry::Registry;
use super::time::Time;

/// Sessions of a hub at once, open or coming; a session takes two connections and two threads. A workspace gets at most
/// half of what the others leave, so that there is always room for another one.
const HUB_SESSIONS: usize = 10_000;
/// Sessions of one key and all links that were made with it: as many as one tunnel may have.
const KEY_SESSIONS: usize = 4096;
/// Of them, those that are granted or waiting. An agent has a thread for each, so a caller that asks but never connects
/// must leave room for others.
const KEY_COMING_SESSIONS: usize = 1000;
/// Sessions of one link. It may have leaked, so it gets what a job needs.
const LINK_SESSIONS: usize = 256;

/// Longer than the names of any key exchange and cipher suite.
const TLS_NAME_LIMIT: usize = 80;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionSide {
    Joiner,
    Agent,
}

/// The result of presenting a ticket.
#[derive(Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // Taken apart at once.
pub enum Redemption<E> {
    /// The ticket was never made, is used up, or is too old, or the agent has declined.
    Unknown,
    /// The other side has not come yet.
    Waiting {
        session: HubSession,
    },
    Open {
        session: HubSession,
        joiner: E,
        agent: E,
    },
}

/// What a session's caller may learn about one that did not come about.
#[derive(Debug, PartialEq, Eq)]
pub enum SessionOutcome {
    /// Nothing is known against it, or it is not the caller's.
    Unknown,
    /// The agent has declined, for this reason.
    Declined(String),
    /// The other hub knows.
    Elsewhere(RemoteSession),
}

/// An agent that reports direct sessions, and where it is now.
pub struct ReportingAgent<'a> {
    pub id: &'a str,
    pub side: AgentSide,
}

/// What follows from an agent's report of a direct session.
#[derive(Debug, PartialEq, Eq)]
pub enum ReportOutcome {
    /// It is none of this agent's, or must not go on: the agent must end it.
    Unknown,
    Opened(Box<HubSession>),
    Confirmed,
}

/// A session that its agent has declined.
pub struct DeclinedSession<E> {
    pub session: HubSession,
    /// The end that waits for it; the caller must send it away.
    pub waiting: Option<E>,
}

/// What `revoke` found.
#[derive(Debug, PartialEq, Eq)]
pub struct RevokedSessions<E> {
    /// The ends of sessions through the relay; the caller must cut them.
    pub ends: Vec<E>,
    /// Direct sessions; the caller must tell their agents.
    pub direct: Vec<DirectSession>,
    /// Direct sessions whose agent did not come back.
    pub lost: Vec<HubSession>,
    /// Sessions that were granted, and neither side has come.
    pub unused: Vec<HubSession>,
}

#[derive(Debug)]
struct SessionTicket {
    session: String,
    side: SessionSide,
}

#[derive(Debug)]
pub struct SessionTable<E> {
    sessions: HashMap<String, SessionEntry<E>>,
    /// The tickets that have not been used yet.
    tickets: HashMap<String, SessionTicket>,
}

impl<E> Default for SessionTable<E> {
    fn default() -> Self {
        Self { sessions: HashMap::new(), tickets: HashMap::new() }
    }
}

impl<E: Clone> SessionTable<E> {
    /// Adds a session and its tickets. An error says who has too many sessions.
    pub fn grant(
        &mut self,
        session: HubSession,
        tickets: &[(SessionSide, &str)],
        now: Time,
    ) -> Result<(), &'static str> {
        self.check_room(&session, now)?;
        for (side, ticket) in tickets {
            let session = session.id.clone();
            self.tickets.insert((*ticket).to_owned(), SessionTicket { session, side: *side });
        }
        let state = HubSessionState::Granted;
        self.sessions.insert(session.id.clone(), SessionEntry { session, granted_at: now, state });
        Ok(())
    }

    /// Every limit on the sessions that a caller may ask for is checked here.
    fn check_room(&self, session: &HubSession, now: Time) -> Result<(), &'static str> {
        let new = &session.caller;
        let mut of_share = 0;
        let (mut all, mut workspace, mut key, mut key_coming, mut link) = (0, 0, 0, 0, 0);
        for entry in self.sessions.values().filter(|entry| entry.is_open() || !entry.is_old(now)) {
            let caller = &entry.session.caller;
            let is_same_key = caller.liable_key() == new.liable_key();
            all += 1;
            of_share += u32::from(session.share.is_some() && entry.session.share == session.share);
            workspace += usize::from(caller.workspace() == new.workspace());
            key += usize::from(is_same_key);
            key_coming += usize::from(is_same_key && !entry.is_open());
            link += usize::from(caller.id() == new.id());
        }
        match new {
            _ if session.max_of_share.is_some_and(|max| of_share >= max) => Err("share"),
            Principal::Link { .. } if link >= LINK_SESSIONS => Err("link"),
            _ if key >= KEY_SESSIONS || key_coming >= KEY_COMING_SESSIONS => Err("key"),
            _ if workspace + all >= HUB_SESSIONS => Err("workspace"),
            _ => Ok(()),
        }
    }

    /// Uses up a ticket of a session whose agent is at another hub. Any other ticket stays valid. Returns the session's id,
    /// for `carried`.
    pub fn redeem_elsewhere(&mut self, ticket: &str, now: Time) -> Option<(String, RemoteSession)> {
        let entry = self.sessions.get(&self.tickets.get(ticket)?.session)?;
        let AgentSide::Elsewhere(remote) = entry.session.agent.clone() else { return None };
        let (id, is_old) = (entry.session.id.clone(), entry.is_old(now));
        self.tickets.remove(ticket);
        (!is_old).then_some((id, remote))
    }

    /// The session is carried to the other hub from now on, until `remove`. One that cannot be is kept as it is: its joiner
    /// may ask why.
    pub fn carried(&mut self, id: &str) {
        if let Some(entry) = self.sessions.get_mut(id) {
            entry.state = HubSessionState::Carried;
        }
    }

    /// What became of a session, for the caller that asked for it.
    pub fn outcome(&self, id: &str, caller: &str) -> SessionOutcome {
        let entry = self.sessions.get(id).filter(|entry| entry.session.caller.id() == caller);
        match entry.map(|entry| (&entry.state, &entry.session.agent)) {
            Some((HubSessionState::Declined(reason), _)) => SessionOutcome::Declined(reason.clone()),
            Some((_, AgentSide::Elsewhere(remote))) => SessionOutcome::Elsewhere(remote.clone()),
            _ => SessionOutcome::Unknown,
        }
    }

    /// Uses up a ticket for the connection that came with it.
    pub fn redeem(&mut self, ticket: &str, end: E, now: Time) -> Redemption<E> {
        let Some(SessionTicket { session: id, side }) = self.tickets.remove(ticket) else {
            return Redemption::Unknown;
        };
        let Some(entry) = self.sessions.get_mut(&id).filter(|entry| !entry.is_old(now)) else {
            return Redemption::Unknown;
        };
        match std::mem::replace(&mut entry.state, HubSessionState::Granted) {
            HubSessionState::Granted => {
                entry.state = HubSessionState::Waiting(end);
                Redemption::Waiting { session: entry.session.clone() }
            }
            HubSessionState::Waiting(first) => {
                let (joiner, agent) = if side == SessionSide::Joiner { (end, first) } else { (first, end) };
                entry.state = HubSessionState::Open {
                    joiner: joiner.clone(),
                    agent: agent.clone(),
                    running_directions: 2,
                };
                Redemption::Open { session: entry.session.clone(), joiner, agent }
            }
            // All tickets of such a session are used up.
            other => {
                entry.state = other;
                Redemption::Unknown
            }
        }
    }

    /// The agent declines a session that it was asked for over this channel. The reason stays for as long as a ticket lives.
    pub fn decline(&mut self, id: &str, channel: ChannelId, reason: &str) -> Option<DeclinedSession<E>> {
        let entry = self.sessions.get_mut(id).filter(|entry| entry.is_of(channel) && entry.is_coming())?;
        let before = std::mem::replace(&mut entry.state, HubSessionState::Declined(reason.to_owned()));
        self.tickets.retain(|_, ticket| ticket.session != id);
        let waiting = match before {
            HubSessionState::Waiting(end) => Some(end),
            _ => None,
        };
        Some(DeclinedSession { session: entry.session.clone(), waiting })
    }

    /// What both ends of a session agreed on, from the agent that was asked for it over this channel.
    pub fn secured(&mut self, id: &str, channel: ChannelId, tls: &str) {
        if let Some(entry) = self.sessions.get_mut(id).filter(|entry| entry.is_of(channel)) {
            entry.session.tls = tls.chars().take(TLS_NAME_LIMIT).collect();
        }
    }

    /// An agent carries a direct session, or still carries it and has a new channel.
    pub fn report(
        &mut self,
        id: &str,
        by: &ReportingAgent<'_>,
        registry: &Registry,
        now: Time,
    ) -> ReportOutcome {
        let is_its = |entry: &&mut SessionEntry<E>| entry.session.agent_id == by.id;
        let Some(entry) = self.sessions.get_mut(id).filter(is_its) else { return ReportOutcome::Unknown };
        let is_new = matches!(entry.state, HubSessionState::Granted);
        let may_go_on = match entry.state {
            HubSessionState::Granted => entry.session.is_direct && !entry.is_old(now),
            HubSessionState::Direct { .. } => true,
            _ => false,
        };
        if !may_go_on {
            return ReportOutcome::Unknown;
        }
        entry.state = HubSessionState::Direct { lost_at: None };
        entry.session.agent = by.side.clone();
        match is_new {
            _ if entry.session.is_revoked(registry, now) => ReportOutcome::Unknown,
            true => ReportOutcome::Opened(Box::new(entry.session.clone())),
            false => ReportOutcome::Confirmed,
        }
    }

    /// A direct session is over, as its agent says.
    pub fn end_direct(&mut self, id: &str, agent_id: &str) -> Option<HubSession> {
        let is_meant = |entry: &&SessionEntry<E>| entry.is_direct() && entry.session.agent_id == agent_id;
        self.sessions.get(id).filter(is_meant)?;
        self.sessions.remove(id).map(|entry| entry.session)
    }

    /// An agent's channel has ended. Declines all sessions that the agent was asked for over it.
    pub fn decline_all(&mut self, channel: ChannelId, reason: &str, now: Time) -> Vec<DeclinedSession<E>> {
        for entry in self.sessions.values_mut().filter(|entry| entry.is_of(channel)) {
            if let HubSessionState::Direct { lost_at } = &mut entry.state {
                *lost_at = Some(now);
            }
        }
        let its = self.sessions.values().filter(|entry| entry.is_of(channel) && entry.is_coming());
        let ids: Vec<String> = its.map(|entry| entry.session.id.clone()).collect();
        ids.iter().filter_map(|id| self.decline(id, channel, reason)).collect()
    }

    /// Ends the wait for the other side. False if the other side has come in the meantime.
    pub fn give_up(&mut self, id: &str) -> bool {
        let is_open = self.sessions.get(id).is_some_and(SessionEntry::is_open);
        if !is_open {
            self.remove(id);
        }
        !is_open
    }

    /// One direction has ended. After the last one the session is over, and comes back with its ends.
    pub fn end_direction(&mut self, id: &str) -> Option<(HubSession, E, E)> {
        let entry = self.sessions.get_mut(id)?;
        let HubSessionState::Open { running_directions, .. } = &mut entry.state else { return None };
        *running_directions -= 1;
        if *running_directions > 0 {
            return None;
        }
        // Its tickets are used up, so the entry is all that is left of it.
        let entry = self.sessions.remove(id)?;
        match entry.state {
            HubSessionState::Open { joiner, agent, .. } => Some((entry.session, joiner, agent)),
            _ => None,
        }
    }

    /// Forgets the sessions that are too old, or whose key or share is no longer valid. An end that waits gives up itself.
    pub fn revoke(&mut self, registry: &Registry, now: Time) -> RevokedSessions<E> {
        let lost =
            self.sessions.extract_if(|_, entry| entry.is_forgotten(now)).map(|(_, entry)| entry.session);
        let lost = lost.collect();
        let before = self.sessions.len();
        let dead = self.sessions.extract_if(|_, entry| {
            let is_old = entry.is_old(now) && !matches!(entry.state, HubSessionState::Waiting(_));
            !entry.is_open() && (is_old || entry.session.is_revoked(registry, now))
        });
        let unused = dead.filter(|(_, entry)| matches!(entry.state, HubSessionState::Granted));
        let unused = unused.map(|(_, entry)| entry.session).collect();
        if self.sessions.len() < before {
            self.tickets.retain(|_, ticket| self.sessions.contains_key(&ticket.session));
        }
        let revoked = || self.sessions.values().filter(|entry| entry.session.is_revoked(registry, now));
        RevokedSessions {
            ends: revoked().filter_map(SessionEntry::ends).flatten().cloned().collect(),
            direct: revoked().filter_map(SessionEntry::direct).collect(),
            lost,
            unused,
        }
    }

    /// The ends of every open session, the joiner's first.
    pub fn open_sessions(&self) -> impl Iterator<Item = [&E; 2]> {
        self.sessions.values().filter_map(SessionEntry::ends)
    }

    /// Whether no session is granted, waiting or open.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    pub fn count_direct(&self) -> usize {
        self.sessions.values().filter(|entry| entry.is_direct()).count()
    }

    pub fn remove(&mut self, id: &str) {
        self.tickets.retain(|_, ticket| ticket.session != id);
        self.sessions.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::access::KeyLimits;
    use crate::model::access::Role;
    use crate::model::fingerprint::Fingerprint;
    use crate::model::hub_records::Change;
    use crate::model::hub_records::Key;
    use crate::model::hub_records::KeyInfo;
    use crate::model::hub_records::Record;
    use crate::model::hub_records::Table;
    use crate::model::hub_session::FORGET_SECONDS;
    use std::net::IpAddr;

    const CHANNEL: ChannelId = ChannelId(1);

    fn at(second: u64) -> Time {
        Time::from_unix(1000 + second)
    }

    fn key(id: &str, workspace: &str) -> Principal {
        let (role, workspace, limits) = (Role::Member, workspace.into(), KeyLimits::default());
        Principal::Key { id: id.into(), label: String::new(), role, workspace, limits }
    }

    fn agent_at(channel: ChannelId) -> AgentSide {
        AgentSide::Here { channel, key: "key_agent".into() }
    }

    fn by(id: &str, channel: ChannelId) -> ReportingAgent<'_> {
        ReportingAgent { id, side: agent_at(channel) }
    }

    fn session(id: &str, caller: &str) -> HubSession {
        HubSession {
            id: id.into(),
            service: "svc".into(),
            agent_id: "agent_1".into(),
            caller: key(caller, "w"),
            address: IpAddr::from([192, 0, 2, 1]),
            peer: Fingerprint::new([0; 32]),
            share: None,
            max_of_share: None,
            agent: agent_at(CHANNEL),
            is_direct: false,
            tls: String::new(),
        }
    }

    /// Tickets are named after the session: `s-joiner`, `s-agent`.
    fn grant(table: &mut SessionTable<u8>, id: &str, caller: &str, now: Time) -> bool {
        let (joiner, agent) = (format!("{id}-joiner"), format!("{id}-agent"));
        let tickets = [(SessionSide::Joiner, joiner.as_str()), (SessionSide::Agent, agent.as_str())];
        table.grant(session(id, caller), &tickets, now).is_ok()
    }

    fn granted(ids: &[&str]) -> SessionTable<u8> {
        let mut table = SessionTable::default();
        for id in ids {
            assert!(grant(&mut table, id, "key_joiner", at(0)));
        }
        table
    }

    fn waiting(id: &str) -> Redemption<u8> {
        Redemption::Waiting { session: session(id, "key_joiner") }
    }

    /// The end that waits for a session that was declined.
    fn declined(declined: Option<DeclinedSession<u8>>) -> Option<u8> {
        declined.and_then(|declined| declined.waiting)
    }

    fn open(id: &str, joiner: u8, agent: u8) -> Redemption<u8> {
        Redemption::Open { session: session(id, "key_joiner"), joiner, agent }
    }

    #[test]
    fn whichever_side_comes_first_waits_and_the_other_one_opens_the_session() {
        let mut table = granted(&["s", "t"]);
        assert_eq!(table.redeem("s-joiner", 1, at(1)), waiting("s"));
        assert_eq!(table.redeem("s-agent", 2, at(14)), open("s", 1, 2));
        assert_eq!(table.redeem("t-agent", 2, at(1)), waiting("t"));
        assert_eq!(table.redeem("t-joiner", 1, at(14)), open("t", 1, 2));
        assert_eq!(table.open_sessions().count(), 2);
    }

    #[test]
    fn a_ticket_works_once_in_every_state() {
        let mut table = granted(&["s"]);
        assert_eq!(table.redeem("other", 9, at(0)), Redemption::Unknown);
        table.redeem("s-joiner", 1, at(0));
        assert_eq!(table.redeem("s-joiner", 9, at(0)), Redemption::Unknown);
        assert_eq!(table.redeem("s-agent", 2, at(0)), open("s", 1, 2));
        for ticket in ["s-joiner", "s-agent"] {
            assert_eq!(table.redeem(ticket, 9, at(0)), Redemption::Unknown);
        }
        assert_eq!(table.open_sessions().collect::<Vec<_>>(), [[&1, &2]]);
    }

    #[test]
    fn tickets_of_two_sessions_never_meet() {
        let mut table = granted(&["s", "t"]);
        assert_eq!(table.redeem("s-joiner", 1, at(1)), waiting("s"));
        assert_eq!(table.redeem("t-joiner", 2, at(1)), waiting("t"));
        assert_eq!(table.redeem("t-agent", 3, at(1)), open("t", 2, 3));
    }

    #[test]
    fn after_fifteen_seconds_a_ticket_is_void_and_only_an_open_session_stays() {
        let mut table = granted(&["never", "half", "whole"]);
        assert_eq!(table.redeem("half-joiner", 1, at(14)), waiting("half"));
        table.redeem("whole-joiner", 1, at(14));
        table.redeem("whole-agent", 2, at(14));
        assert_eq!(table.redeem("never-joiner", 1, at(15)), Redemption::Unknown);
        assert_eq!(table.redeem("half-agent", 2, at(15)), Redemption::Unknown);
        let revoked = table.revoke(&live(&["key_joiner", "key_agent"]), at(15));
        assert!(revoked.ends.is_empty());
        assert_eq!(revoked.unused.iter().map(|unused| &*unused.id).collect::<Vec<_>>(), ["never"]);
        // The end that waits gives up itself.
        assert!(table.give_up("half"));
        assert_eq!((table.sessions.len(), table.tickets.len()), (1, 0));
        assert!(table.end_direction("whole").is_none() && table.end_direction("whole").is_some());
        assert!(table.sessions.is_empty());
    }

    #[test]
    fn an_end_that_gave_up_leaves_nothing_to_its_partner() {
        let mut table = granted(&["s"]);
        table.redeem("s-joiner", 1, at(0));
        assert!(table.give_up("s"));
        assert_eq!(table.redeem("s-agent", 2, at(1)), Redemption::Unknown);
        assert!(table.sessions.is_empty());
        // It may have given up at the very moment in which the partner came.
        let mut table = granted(&["s"]);
        table.redeem("s-joiner", 1, at(0));
        table.redeem("s-agent", 2, at(0));
        assert!(!table.give_up("s"));
        assert_eq!(table.open_sessions().count(), 1);
    }

    #[test]
    fn a_decline_before_the_joiner_has_come_is_kept_for_it_once() {
        let mut table = granted(&["s"]);
        assert_eq!(declined(table.decline("s", CHANNEL, "full")), None);
        assert_eq!(table.redeem("s-agent", 2, at(1)), Redemption::Unknown);
        assert_eq!(table.redeem("s-joiner", 1, at(1)), Redemption::Unknown);
        assert_eq!(table.outcome("s", "key_joiner"), SessionOutcome::Declined("full".into()));
        assert_eq!(table.outcome("s", "key_other"), SessionOutcome::Unknown);
    }

    #[test]
    fn a_decline_after_the_joiner_has_come_gives_it_back_to_be_sent_away() {
        let mut table = granted(&["s"]);
        table.redeem("s-joiner", 1, at(1));
        assert_eq!(declined(table.decline("s", CHANNEL, "full")), Some(1));
        assert_eq!(table.redeem("s-agent", 2, at(1)), Redemption::Unknown);
        assert_eq!(table.outcome("s", "key_joiner"), SessionOutcome::Declined("full".into()));
        // An agent that declines what it came to is let go, and so is the joiner.
        let mut table = granted(&["s"]);
        table.redeem("s-agent", 2, at(1));
        assert_eq!(declined(table.decline("s", CHANNEL, "full")), Some(2));
        assert_eq!(table.redeem("s-joiner", 1, at(1)), Redemption::Unknown);
    }

    #[test]
    fn only_the_channel_that_was_told_of_a_session_declines_it_and_never_an_open_one() {
        let mut table = granted(&["s", "t"]);
        assert_eq!(declined(table.decline("s", ChannelId(2), "full")), None);
        assert_eq!(table.redeem("s-joiner", 1, at(1)), waiting("s"));
        assert_eq!(table.redeem("s-agent", 2, at(1)), open("s", 1, 2));
        assert_eq!(declined(table.decline("s", CHANNEL, "full")), None);
        assert_eq!(table.redeem("t-joiner", 3, at(1)), waiting("t"));
        let left = table.decline_all(CHANNEL, "it has left", at(1));
        assert_eq!(left.into_iter().map(|left| left.waiting).collect::<Vec<_>>(), [Some(3)]);
        assert_eq!(table.open_sessions().count(), 1);
        assert_eq!(table.redeem("t-agent", 4, at(1)), Redemption::Unknown);
    }

    #[test]
    fn a_session_at_another_hub_is_redeemed_once_and_only_as_such() {
        let remote =
            RemoteSession { hub: "https://b".into(), relay: "https://b".into(), ticket: "far".into() };
        let carried = |id: &str| HubSession {
            agent: AgentSide::Elsewhere(remote.clone()),
            ..session(id, "key_joiner")
        };
        let mut table = granted(&["here"]);
        for id in ["s", "old"] {
            table.grant(carried(id), &[(SessionSide::Joiner, id)], at(0)).unwrap();
        }
        assert_eq!(table.redeem_elsewhere("here-joiner", at(1)), None);
        assert_eq!(table.redeem("here-joiner", 1, at(1)), waiting("here"));
        assert_eq!(table.redeem_elsewhere("s", at(14)), Some(("s".to_owned(), remote.clone())));
        assert_eq!(table.redeem_elsewhere("s", at(14)), None);
        assert_eq!(table.outcome("s", "key_joiner"), SessionOutcome::Elsewhere(remote.clone()));
        table.carried("s");
        table.revoke(&live(&["key_joiner", "key_agent"]), at(15));
        assert!(table.give_up("here"));
        assert_eq!(table.sessions.keys().collect::<Vec<_>>(), ["s"]);
        table.remove("s");
        table.grant(carried("old"), &[(SessionSide::Joiner, "old")], at(0)).unwrap();
        assert_eq!(table.redeem_elsewhere("old", at(15)), None);
        assert_eq!(table.redeem("old", 1, at(15)), Redemption::Unknown);
    }

    fn live(keys: &[&str]) -> Registry {
        let mut registry = Registry::default();
        for id in keys {
            registry.apply(Change::Put(Record::Key(Key {
                info: KeyInfo {
                    id: (*id).into(),
                    role: Role::Member,
                    label: String::new(),
                    workspace: "default".into(),
                    created_at: at(0),
                    expires_at: None,
                    limits: KeyLimits::default(),
                    enrolled_by: None,
                    last_used_at: None,
                    revoked_at: None,
                },
                secret: super::super::hub_records::StoredSecret {
                    hash: (*id).into(),
                    public_key: String::new(),
                },
                rotation: None,
            })));
        }
        registry
    }

    #[test]
    fn a_revoked_key_of_either_side_voids_what_waits_and_cuts_what_is_open() {
        for revoked in ["key_joiner", "key_agent"] {
            let mut registry = live(&["key_joiner", "key_agent"]);
            let mut table = granted(&["granted", "waiting", "open"]);
            grant(&mut table, "local", Principal::Local.id(), at(0));
            table.redeem("waiting-joiner", 1, at(0));
            table.redeem("open-joiner", 2, at(0));
            table.redeem("open-agent", 3, at(0));
            assert!(table.revoke(&registry, at(1)).ends.is_empty());
            registry.apply(Change::drop(Table::Key, revoked));
            assert_eq!(table.revoke(&registry, at(1)).ends, [2, 3]);
            for ticket in ["granted-joiner", "granted-agent", "waiting-agent"] {
                assert_eq!(table.redeem(ticket, 9, at(1)), Redemption::Unknown, "{revoked}: {ticket}");
            }
            // Its directions end by the cut; until then it is listed.
            assert_eq!(table.open_sessions().count(), 1);
            let is_good = revoked == "key_joiner";
            let is_waiting = matches!(table.redeem("local-joiner", 4, at(1)), Redemption::Waiting { .. });
            assert_eq!(is_waiting, is_good);
        }
    }

    #[test]
    fn a_share_that_ends_takes_its_sessions_along() {
        let mut table = SessionTable::<u8>::default();
        let shared = HubSession { share: Some("shr_gone".into()), ..session("s", "key_joiner") };
        table.grant(shared, &[(SessionSide::Joiner, "s-joiner")], at(0)).unwrap();
        table.revoke(&live(&["key_joiner", "key_agent"]), at(1));
        assert_eq!(table.redeem("s-joiner", 1, at(1)), Redemption::Unknown);
    }

    /// A table with `open` open sessions of a caller in a workspace, put there directly: each grant looks at all before it.
    fn fill(table: &mut SessionTable<u8>, open: usize, like: &HubSession) {
        for number in 0..open {
            let session = HubSession { id: format!("{}-{number}", like.caller.id()), ..like.clone() };
            let state = HubSessionState::Open { joiner: 1, agent: 2, running_directions: 2 };
            table.sessions.insert(session.id.clone(), SessionEntry { session, granted_at: at(0), state });
        }
    }

    /// Whose limit stands against one more session.
    fn refused(table: &mut SessionTable<u8>, like: &HubSession, now: Time) -> Option<&'static str> {
        table.grant(HubSession { id: "new".into(), ..like.clone() }, &[], now).err()
    }

    #[test]
    fn a_key_that_asks_and_never_comes_leaves_room_for_others() {
        let mut table = SessionTable::default();
        let mut asks =
            |caller: &str, number: usize, now| grant(&mut table, &format!("{caller}{number}"), caller, now);
        assert!((0..KEY_COMING_SESSIONS).all(|number| asks("key", number, at(0))));
        assert!(!asks("key", KEY_COMING_SESSIONS, at(14)));
        assert!(asks("other", 0, at(14)));
        assert!(asks("key", KEY_COMING_SESSIONS, at(15)), "the first ones are too old");
    }

    #[test]
    fn a_share_has_as_many_sessions_at_once_as_its_owner_said() {
        let mut table = SessionTable::default();
        let of = |share: &str| HubSession {
            share: Some(share.into()),
            max_of_share: Some(2),
            ..session("", "key")
        };
        fill(&mut table, 1, &of("one"));
        assert_eq!(refused(&mut table, &of("one"), at(1)), None);
        assert_eq!(refused(&mut table, &of("one"), at(1)), Some("share"));
        assert_eq!(refused(&mut table, &of("two"), at(1)), None);
    }

    #[test]
    fn a_link_has_its_own_limit_and_counts_on_the_key_that_made_it() {
        let mut table = SessionTable::default();
        let link = |share: &str| HubSession {
            caller: Principal::Link { share: share.into(), key: "key".into(), workspace: "w".into() },
            ..session("", "")
        };
        for number in 0..KEY_SESSIONS / LINK_SESSIONS {
            let link = link(&format!("link{number}"));
            fill(&mut table, LINK_SESSIONS - 1, &link);
            assert_eq!(refused(&mut table, &link, at(1)), None);
            table.remove("new");
            fill(&mut table, LINK_SESSIONS, &link);
            assert_eq!(refused(&mut table, &link, at(1)), Some("link"));
        }
        assert_eq!(refused(&mut table, &link("another"), at(1)), Some("key"));
        assert_eq!(refused(&mut table, &session("", "key"), at(1)), Some("key"));
        assert_eq!(refused(&mut table, &session("", "another key"), at(1)), None);
    }

    #[test]
    fn a_workspace_gets_at_most_half_of_what_the_others_leave() {
        let mut table = SessionTable::default();
        let of =
            |workspace: &str, key: &str| HubSession { caller: self::key(key, workspace), ..session("", "") };
        fill(&mut table, KEY_SESSIONS, &of("w", "one"));
        fill(&mut table, HUB_SESSIONS / 2 - KEY_SESSIONS - 1, &of("w", "two"));
        assert_eq!(refused(&mut table, &of("w", "three"), at(1)), None);
        assert_eq!(refused(&mut table, &of("w", "three"), at(1)), Some("workspace"));
        assert_eq!(refused(&mut table, &of("x", "four"), at(1)), None);
    }

    /// A table in which the agent has reported the direct session `d`.
    fn direct() -> SessionTable<u8> {
        let mut table = granted(&["relayed"]);
        table.grant(HubSession { is_direct: true, ..session("d", "key_joiner") }, &[], at(0)).unwrap();
        let opened = table.report("d", &by("agent_1", CHANNEL), &live(&["key_joiner", "key_agent"]), at(14));
        assert!(matches!(opened, ReportOutcome::Opened(_)));
        table
    }

    #[test]
    fn a_direct_session_is_opened_by_its_agent_in_time_and_by_nobody_else() {
        let registry = live(&["key_joiner", "key_agent"]);
        let mut table = granted(&["relayed"]);
        table.grant(HubSession { is_direct: true, ..session("d", "key_joiner") }, &[], at(0)).unwrap();
        for (id, agent, now) in
            [("d", "other", 1), ("d", "agent_1", 15), ("x", "agent_1", 1), ("relayed", "agent_1", 1)]
        {
            assert_eq!(table.report(id, &by(agent, CHANNEL), &registry, at(now)), ReportOutcome::Unknown);
        }
        let mut table = direct();
        assert_eq!(table.report("d", &by("agent_1", CHANNEL), &registry, at(99)), ReportOutcome::Confirmed);
        assert_eq!(table.report("d", &by("other", CHANNEL), &registry, at(99)), ReportOutcome::Unknown);
        assert_eq!(table.end_direct("d", "other"), None);
        assert_eq!(table.end_direct("relayed", "agent_1"), None);
        assert!(table.end_direct("d", "agent_1").is_some());
        assert_eq!(table.count_direct(), 0);
    }

    #[test]
    fn a_revoked_direct_session_is_told_to_its_agents_channel_until_it_is_over() {
        let mut table = direct();
        let told = [DirectSession { id: "d".into(), channel: CHANNEL }];
        for now in [15, 16] {
            assert_eq!(table.revoke(&live(&["key_agent"]), at(now)).direct, told);
        }
        let outcome = table.report("d", &by("agent_1", ChannelId(2)), &live(&["key_agent"]), at(17));
        assert_eq!(outcome, ReportOutcome::Unknown);
        assert!(table.end_direct("d", "agent_1").is_some());
    }

    #[test]
    fn a_direct_session_whose_agent_is_lost_waits_for_it_and_is_forgotten_then() {
        let registry = live(&["key_joiner", "key_agent"]);
        let mut table = direct();
        table.decline_all(CHANNEL, "it has left", at(20));
        assert!(table.revoke(&registry, at(20 + FORGET_SECONDS - 1)).lost.is_empty());
        assert_eq!(
            table.report("d", &by("agent_1", ChannelId(2)), &registry, at(60)),
            ReportOutcome::Confirmed
        );
        // The old channel is nothing to it any more.
        table.decline_all(CHANNEL, "it has left", at(61));
        assert!(table.revoke(&registry, at(1000)).lost.is_empty());
        table.decline_all(ChannelId(2), "it has left", at(1000));
        assert_eq!(table.revoke(&registry, at(1000 + FORGET_SECONDS)).lost.len(), 1);
        assert_eq!(table.count_direct(), 0);
    }
}
