//! Places at the hub of which each key has a few: connections that stay open, control channels, and one long answer at a
//! time. What somebody does with a share link counts for the key that made the share.

use crate::net::places::Places;

/// Connections of one key that stay open between requests. Any more get one answer, like those without a key.
const KEY_CONNECTIONS: usize = 64;
/// Control channels of one key: 100 agents with some processes each. One takes about 115 KiB.
const KEY_CHANNELS: usize = 256;
/// Control channels of one agent. Each process of its machine that exposes something has one.
const AGENT_CHANNELS: usize = 16;

pub struct KeyPlaces {
    pub connections: Places,
    pub channels: Places,
    /// By agent and not by key.
    pub agent_channels: Places,
    /// An answer that its reader takes slowly stays in memory until then.
    pub long_answers: Places,
}

impl Default for KeyPlaces {
    fn default() -> Self {
        let [connections, channels, agent_channels, long_answers] =
            [KEY_CONNECTIONS, KEY_CHANNELS, AGENT_CHANNELS, 1].map(Places::of);
        Self { connections, channels, agent_channels, long_answers }
    }
}
