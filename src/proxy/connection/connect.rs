//! CONNECT: the client leaves HTTP for a service, or for a host outside.

use std::io::Write;
use std::time::Duration;
use std::time::Instant;

use super::AfterRequest;
use super::ProxyClient;
use super::client::CLIENT_BUFFER;
use crate::http::reply::CONNECTED;
use crate::net::connect;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::duplex::Duplex;
use crate::proxy::refusal;
use crate::proxy::route_table::ProxyRoute;
use crate::wire::tls_record::TLS_HANDSHAKE;

/// After a CONNECT the client has this long for its first byte, which tells TLS from anything else. Protocols in which
/// the server speaks first wait this long once.
const CONNECT_FIRST_BYTE_TIMEOUT: Duration = Duration::from_millis(500);

impl ProxyClient<'_> {
    /// What follows CONNECT is for the service's own TLS if it speaks that. Otherwise TLS ends at this proxy, as on an
    /// HTTPS port, and what is not TLS goes to the service as it is.
    pub fn connect(&mut self, route: &ProxyRoute) -> AfterRequest {
        if route.secure {
            return match self.context.dial(route, false) {
                Ok(upstream) => self.grant_connect(upstream.into_duplex()),
                Err(why) => self.reply(&refusal::bad_gateway(&route.name, why)),
            };
        }
        if self.client.writer.stream.write_all(CONNECTED).is_err() {
            return AfterRequest::Close;
        }
        if self.first_byte() == Some(TLS_HANDSHAKE) {
            self.record(200);
            // The client takes us for the service's own HTTPS: requests inside are served like any others.
            return AfterRequest::StartTls;
        }
        match self.context.dial(route, false) {
            Ok(upstream) => {
                self.record(200);
                AfterRequest::Relay(upstream.into_duplex())
            }
            Err(_) => {
                self.record(502);
                AfterRequest::Close
            }
        }
    }

    /// To a host that `--connect-allow` names.
    pub fn connect_outside(&mut self, host: &str, port: u16) -> AfterRequest {
        match connect::dial(host, port, Instant::now() + NETWORK_TIMEOUT, &self.context.stop) {
            Ok(socket) => self.grant_connect(Duplex::plain(socket)),
            Err(error) => {
                log::debug!("{error}");
                self.reply(&refusal::outside_unreachable(host, port))
            }
        }
    }

    fn grant_connect(&mut self, service: Duplex) -> AfterRequest {
        self.record(200);
        match self.client.writer.stream.write_all(CONNECTED) {
            Ok(()) => AfterRequest::Relay(service),
            Err(_) => AfterRequest::Close,
        }
    }

    fn first_byte(&mut self) -> Option<u8> {
        if self.client.reader.is_empty() {
            self.client.writer.socket.set_read_timeout(Some(CONNECT_FIRST_BYTE_TIMEOUT)).ok()?;
            let _ = self.client.reader.fill(CLIENT_BUFFER);
        }
        self.client.reader.unread().first().copied()
    }
}
