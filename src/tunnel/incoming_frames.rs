//! What the session's own thread does: it reads and decrypts frames, writes to the local socket, and at the agent dials the
//! target.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::frames::FrameReader;
use super::local_socket::poll_while_blocked;
use super::served::Beginning;
use super::shared_session::CarriedConnection;
use super::shared_session::SharedSession;
use super::shared_session::out_of_turn;
use crate::model::session_protocol::FrameKind;
use crate::model::session_protocol::SessionAction;
use crate::model::target::Target;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::connect::dial;
use crate::net::stop::Stop;
use crate::os::lock::locked;
use crate::wire::frame::FrameHeader;
use crate::wire::frame::parse_addresses;

/// The half of a session that reads.
pub struct IncomingFrames {
    pub frames: FrameReader,
    pub shared: Arc<SharedSession>,
    /// Agent: what to dial for each connection.
    pub target: Option<Target>,
    pub stop: Stop,
}

impl IncomingFrames {
    /// Ends with the session.
    pub fn receive_all(&mut self) -> io::Result<()> {
        loop {
            let header = self.frames.next_header()?;
            match header.kind {
                FrameKind::Data => self.receive_data(header.length)?,
                _ => self.receive(header)?,
            }
        }
    }

    fn receive_data(&mut self, length: usize) -> io::Result<()> {
        let (action, local) = {
            let mut state = locked(&self.shared.state);
            (state.protocol.received(FrameKind::Data).map_err(out_of_turn)?, state.local.clone())
        };
        let local = local.filter(|_| action == SessionAction::Deliver);
        if self.frames.data_into(length, local.as_deref())?.is_err() {
            // The owner's thread wakes and sends a RESET, while this one reads on and drops the rest.
            self.shared.local_failed()?;
        } else if local.is_some() {
            self.shared.count_received(length);
        }
        Ok(())
    }

    fn receive(&mut self, header: FrameHeader) -> io::Result<()> {
        let text = match header.kind {
            FrameKind::Refused | FrameKind::Addresses => self.frames.text(header.length)?,
            _ => String::new(),
        };
        let action = self.shared.apply(|state| {
            state.heard = Instant::now();
            let action = state.protocol.received(header.kind)?;
            match header.kind {
                FrameKind::Refused => state.refusal = Some(text),
                FrameKind::Addresses => state.addresses = Some(parse_addresses(&text)),
                _ => {}
            }
            Ok(action)
        })?;
        if action == SessionAction::DialTarget {
            self.dial_target();
        }
        if header.kind == FrameKind::Eof {
            self.frames.shrink();
        }
        Ok(())
    }

    fn dial_target(&self) {
        let Some(target) = &self.target else { return };
        let before = self.shared.carried();
        let connection = CarriedConnection { begun: Beginning::now(), before, is_refused: false };
        // The one before has ended with a frame that this end has sent.
        let ended = locked(&self.shared.state).connection.replace(connection);
        if let Some(ended) = ended {
            self.shared.record_end(&ended, false);
        }
        let local = dial(&target.host, target.port, Instant::now() + NETWORK_TIMEOUT, &self.stop).ok();
        if let Some(local) = &local {
            poll_while_blocked(local);
        }
        self.shared.update(|state| {
            state.protocol.dialled(local.is_some());
            state.connection.iter_mut().for_each(|connection| connection.is_refused = local.is_none());
            state.refusal = local.is_none().then(|| format!("Nothing is listening at {target}"));
            state.local = local;
        });
    }
}
