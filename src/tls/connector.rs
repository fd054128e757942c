//! How this program connects as a client: to a hub, from hub to hub, to etcd. One way to resolve, dial, use a forward
//! proxy, prove the server and be cut.

use std::time::Instant;

use super::trust::ClientTls;
use crate::error::Error;
use crate::error::Result;
use crate::model::host_port::HostPort;
use crate::net::connect::dial;
use crate::net::duplex::Duplex;
use crate::net::forward_proxy::dial_by_environment;
use crate::net::stop::Registration;
use crate::net::stop::Stop;

#[derive(Clone)]
pub struct Connector {
    pub tls: ClientTls,
    /// Whether `HTTPS_PROXY` counts. It does not between the parts of a fleet.
    pub by_environment: bool,
    /// Cuts every connection.
    pub stop: Stop,
}

impl Connector {
    /// A TCP connection, direct or through a forward proxy, and the registration that cuts it.
    pub fn connect_plain(&self, at: &HostPort, deadline: Instant) -> Result<(Duplex, Registration)> {
        let connection = if self.by_environment {
            dial_by_environment(at, deadline, &self.stop)?
        } else {
            Duplex::plain(dial(&at.host, at.port, deadline, &self.stop)?)
        };
        let cut = self.stop.attach(&connection.socket).ok_or_else(Error::stopped)?;
        Ok((connection, cut))
    }
}
