//! The control channels of the agents that are connected to this hub.

use std::collections::HashMap;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;

use crate::model::hub_records::ChannelId;
use crate::model::registry::Registry;
use crate::model::time::Time;
use crate::net::channel::ChannelSender;
use crate::os::lock::locked;
use crate::wire::control::ToAgent;

/// One control channel, as other connections use it to reach its agent.
#[derive(Clone)]
pub struct AgentChannel {
    pub outgoing: ChannelSender,
    /// The relay at the address by which this agent reached the hub.
    pub relay: String,
    /// The key that opened it. When that key expires or is revoked, the channel is cut.
    pub key: String,
    pub socket: Arc<TcpStream>,
    /// The next secret of its key, as it was offered last.
    pub offered: String,
}

#[derive(Default)]
pub struct AgentChannels {
    by_id: Mutex<HashMap<ChannelId, AgentChannel>>,
}

impl AgentChannels {
    pub fn add(&self, id: ChannelId, channel: AgentChannel) {
        locked(&self.by_id).insert(id, channel);
    }

    pub fn remove(&self, id: ChannelId) {
        locked(&self.by_id).remove(&id);
    }

    pub fn find(&self, id: ChannelId) -> Option<AgentChannel> {
        locked(&self.by_id).get(&id).cloned()
    }

    /// Tells the agents of this key of its next secret, unless they have been told.
    pub fn offer_secret(&self, key: &str, sealed: &str) {
        let mut by_id = locked(&self.by_id);
        for channel in by_id.values_mut().filter(|channel| channel.key == key && channel.offered != sealed) {
            sealed.clone_into(&mut channel.offered);
            channel.outgoing.send(&ToAgent::Rotate { sealed: sealed.to_owned() });
        }
    }

    /// The sockets of channels whose key is no longer valid.
    pub fn dead(&self, registry: &Registry, now: Time) -> Vec<Arc<TcpStream>> {
        let by_id = locked(&self.by_id);
        let dead = by_id.values().filter(|channel| !registry.credential_is_live(&channel.key, now));
        dead.map(|channel| Arc::clone(&channel.socket)).collect()
    }

    pub fn send_all(&self, message: &ToAgent) {
        for channel in locked(&self.by_id).values() {
            channel.outgoing.send(message);
        }
    }

    /// Cuts all channels, so that every agent connects to another hub.
    pub fn cut_all(&self) {
        let channels: Vec<AgentChannel> = locked(&self.by_id).values().cloned().collect();
        for channel in channels {
            let _ = channel.socket.shutdown(Shutdown::Both);
        }
    }
}
