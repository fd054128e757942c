//! One session of a hub: for whom it was granted, where its agent is, and which state it is in.

use std::net::IpAddr;

use super::access::Principal;
use super::fingerprint::Fingerprint;
use super::hub_records::ChannelId;
use super::registry::Registry;
use super::session_protocol::LOST_HUB_SECONDS;
use super::session_protocol::TICKET_SECONDS;
use super::time::Time;

/// The hub forgets a direct session a little later than its agent ends it.
pub const FORGET_SECONDS: u64 = LOST_HUB_SECONDS + 15;

/// A session as it was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubSession {
    pub id: String,
    /// The service's name.
    pub service: String,
    pub agent_id: String,
    /// Who asked for it, from where, and the identity that the joiner shows to the agent.
    pub caller: Principal,
    pub address: IpAddr,
    pub peer: Fingerprint,
    /// The share that gave the right to it, if any.
    pub share: Option<String>,
    /// The share's own limit of sessions at once.
    pub max_of_share: Option<u32>,
    pub agent: AgentSide,
    /// The key exchange and the cipher suite between its ends, as the agent says: the hub cannot see them.
    pub tls: String,
    /// The joiner was told to connect to the agent itself.
    pub is_direct: bool,
}

impl HubSession {
    /// The way of its bytes, as the audit log names it.
    pub fn path(&self) -> &'static str {
        match self.agent {
            AgentSide::Elsewhere(_) => "fleet",
            AgentSide::Here { .. } if self.is_direct => "direct",
            AgentSide::Here { .. } => "relay",
        }
    }

    /// Whether a key or the share that it needs is no longer valid.
    pub fn is_revoked(&self, registry: &Registry, now: Time) -> bool {
        let agent_is_gone = match &self.agent {
            AgentSide::Here { key, .. } => !registry.credential_is_live(key, now),
            AgentSide::Elsewhere(_) => false,
        };
        let share_is_gone = self.share.as_ref().is_some_and(|share| registry.share(share, now).is_none());
        agent_is_gone || share_is_gone || !registry.credential_is_live(self.caller.id(), now)
    }
}

/// Where the agent of a session is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentSide {
    Here {
        /// The control channel over which the agent was asked to open the session.
        channel: ChannelId,
        /// The key that opened this channel.
        key: String,
    },
    /// At another hub, which has granted the session too.
    Elsewhere(RemoteSession),
}

/// How a session at another hub is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteSession {
    pub hub: String,
    pub relay: String,
    pub ticket: String,
}

#[derive(Debug)]
pub enum HubSessionState<E> {
    Granted,
    Waiting(E),
    Open {
        joiner: E,
        agent: E,
        running_directions: u8,
    },
    /// The agent is at another hub, and both ends are connected through this one.
    Carried,
    /// Joiner and agent are connected with each other. `lost_at`: when the agent's channel ended.
    Direct {
        lost_at: Option<Time>,
    },
    Declined(String),
}

#[derive(Debug)]
pub struct SessionEntry<E> {
    pub session: HubSession,
    pub granted_at: Time,
    pub state: HubSessionState<E>,
}

impl<E> SessionEntry<E> {
    pub fn is_open(&self) -> bool {
        matches!(self.state, HubSessionState::Open { .. } | HubSessionState::Carried) || self.is_direct()
    }

    /// It may still begin.
    pub fn is_coming(&self) -> bool {
        matches!(self.state, HubSessionState::Granted | HubSessionState::Waiting(_))
    }

    pub fn is_direct(&self) -> bool {
        matches!(self.state, HubSessionState::Direct { .. })
    }

    /// Its agent had the time to come back.
    pub fn is_forgotten(&self, now: Time) -> bool {
        let HubSessionState::Direct { lost_at: Some(lost_at) } = self.state else { return false };
        now.since(lost_at).as_secs() >= FORGET_SECONDS
    }

    pub fn is_old(&self, now: Time) -> bool {
        now.since(self.granted_at).as_secs() >= TICKET_SECONDS
    }

    pub fn is_of(&self, channel: ChannelId) -> bool {
        matches!(self.session.agent, AgentSide::Here { channel: own, .. } if own == channel)
    }

    pub fn ends(&self) -> Option<[&E; 2]> {
        match &self.state {
            HubSessionState::Open { joiner, agent, .. } => Some([joiner, agent]),
            _ => None,
        }
    }

    pub fn direct(&self) -> Option<DirectSession> {
        match (&self.state, &self.session.agent) {
            (HubSessionState::Direct { .. }, AgentSide::Here { channel, .. }) => {
                Some(DirectSession { id: self.session.id.clone(), channel: *channel })
            }
            _ => None,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct DirectSession {
    pub id: String,
    pub channel: ChannelId,
}
