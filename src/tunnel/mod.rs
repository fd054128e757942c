//! Carrying connections: the agent's side, the joiner's side, and the encrypted session between them.

pub mod agent;
pub mod frames;
pub mod joiner;
mod lane;
pub mod pool;
pub mod serving;
pub mod session;
