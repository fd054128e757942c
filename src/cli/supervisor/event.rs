//! What the threads of a command tell its supervisor. All of it comes on one channel.

use crate::error::Result;
use crate::model::name::Name;
use crate::tunnel::agent::AgentEvent;
use crate::tunnel::joiner::JoinerEvent;

pub enum SupervisorEvent {
    /// From the tunnel to the service of this name.
    Tunnel(Name, JoinerEvent),
    /// From the agent with this number. An agent that was replaced may have left events in the channel.
    Agent(u64, AgentEvent),
    /// The command after `--` has ended.
    CommandEnded(Result<u8>),
    /// The first Ctrl-C; wakes the supervisor.
    Stopped,
}
