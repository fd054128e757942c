//! Connections that leave HTTP: upgrades such as WebSocket, and CONNECT.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use super::connection::Connection;
use super::connection::Next;
use super::refusal;
use super::route_table::ProxyRoute;
use super::upstream::Upstream;
use crate::http::reply::CONNECTED;
use crate::http::reply::Reply;
use crate::net;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::connect::clear_deadline;
use crate::net::duplex::Duplex;
use crate::net::relay;
use crate::wire::tls_record::TLS_HANDSHAKE;

/// How long a CONNECT's client has for its first byte, which tells TLS from anything else. Protocols in which the server
/// speaks first wait this long once.
const FIRST_BYTE: Duration = Duration::from_millis(500);
/// What of the first bytes is read at once.
const CHUNK: usize = 4 * 1024;

/// Behind a 101 from the service.
pub fn relay(it: &mut Connection<'_>, upstream: Upstream) -> Next {
    both_ways(it, upstream.into_duplex());
    Next::Close
}

/// What comes behind CONNECT is for the service's own TLS if it speaks that. Otherwise TLS ends here, as on an
/// HTTPS port, and what is no TLS goes to the service as it is.
pub fn connect(it: &mut Connection<'_>, route: &Arc<ProxyRoute>) -> Next {
    if route.secure {
        return straight_to(it, route, true);
    }
    if it.client.writer.write_all(CONNECTED).is_err() {
        return Next::Close;
    }
    if first_byte(it) != Some(TLS_HANDSHAKE) {
        return straight_to(it, route, false);
    }
    it.note(200);
    // It takes us for the service's own HTTPS: requests within are served like any others.
    Next::Secure
}

/// To a host outside, which `--connect-allow` names.
pub fn dial(it: &mut Connection<'_>, host: &str, port: u16) -> Next {
    match net::connect::dial(host, port, Instant::now() + NETWORK_TIMEOUT, &it.context.stop) {
        Ok(socket) => {
            it.note(200);
            if it.client.writer.write_all(CONNECTED).is_ok() {
                both_ways(it, Duplex::plain(socket));
            }
            Next::Close
        }
        Err(error) => {
            log::debug!("{error}");
            it.say(&Reply::error(502, &format!("{host}:{port} does not answer"), ""))
        }
    }
}

fn straight_to(it: &mut Connection<'_>, route: &ProxyRoute, tell: bool) -> Next {
    match it.context.dial(route, false) {
        Ok(upstream) => {
            it.note(200);
            if !tell || it.client.writer.write_all(CONNECTED).is_ok() {
                return relay(it, upstream);
            }
        }
        Err(why) if tell => return it.say(&refusal::bad_gateway(&route.name, why)),
        Err(_) => it.note(502),
    }
    Next::Close
}

fn first_byte(it: &mut Connection<'_>) -> Option<u8> {
    if it.client.inbox.is_empty() {
        it.client.socket.set_read_timeout(Some(FIRST_BYTE)).ok()?;
        let _ = it.client.inbox.fill(&mut it.client.reader, CHUNK);
    }
    it.client.inbox.unread().first().copied()
}

/// Copies in both directions until both have ended.
fn both_ways(it: &mut Connection<'_>, service: Duplex) {
    let client = it.take_over();
    it.entry.works();
    if clear_deadline(&client.socket).and_then(|()| clear_deadline(&service.socket)).is_err() {
        return;
    }
    let Some(_cut) = it.context.stop.attach(&service.socket) else { return };
    relay::both_ways(client, service);
}
