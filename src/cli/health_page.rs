//! `--health ADDRESS:PORT`: what a container's supervisor asks, over plain HTTP. `/health` says that the process lives,
//! `/ready` that every service was proved.

use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use super::args::listen_address;
use super::call::Call;
use crate::error::OrSay;
use crate::error::Result;
use crate::http::reply::Reply;
use crate::net::duplex::Duplex;
use crate::net::http_server::HttpConnection;
use crate::net::places::Places;
use crate::net::serve::ServeOptions;
use crate::net::serve::Server;
use crate::net::serve::each;
use crate::net::serve::shut;
use crate::os::lock::locked;

/// A probe sends its request at once.
const HEALTH_PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Probes at once, and those of one address; more are turned away. A crowd must not make the supervisor's probe fail, or this
/// process would be ended for it.
const PROBE_LIMIT: usize = 64;
const ADDRESS_PROBES: usize = 4;

/// Serves until it is dropped.
pub struct HealthPage {
    missing: Arc<Mutex<Vec<String>>>,
    _server: Server,
}

impl HealthPage {
    /// `None` without the option. It is not ready until `set_missing` says so.
    pub fn start(call: &Call) -> Result<Option<Self>> {
        let Some(text) = call.args.value("health") else { return Ok(None) };
        let (host, port) = listen_address("health", text)?;
        let listener =
            TcpListener::bind((host.as_str(), port)).or_say(|| format!("Cannot listen on {text}"))?;
        let missing = Arc::new(Mutex::new(vec!["it is starting".to_owned()]));
        let asked = Arc::clone(&missing);
        let of_address = Places::of(ADDRESS_PROBES);
        let options = ServeOptions {
            name: "health",
            limit: PROBE_LIMIT,
            new_worker: each(move |stream| {
                let address = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
                let place = of_address.take(address, Duration::ZERO);
                if place.is_some() {
                    answer(&stream, &locked(&asked).clone());
                }
            }),
            idle: None,
            cut: shut,
            make_room: None,
            turn_away: Box::new(|_| ()),
        };
        let server = Server::start(listener, options, &call.stop)?;
        call.say.event(&json!({ "event": "health", "address": server.address().to_string() }));
        Ok(Some(Self { missing, _server: server }))
    }

    /// What is not proved now, with the reasons.
    pub fn set_missing(&self, missing: Vec<String>) {
        *locked(&self.missing) = missing;
    }
}

fn answer(stream: &Arc<TcpStream>, missing: &[String]) {
    let mut conversation =
        HttpConnection::new(Duplex::plain(Arc::clone(stream)), Instant::now() + HEALTH_PROBE_TIMEOUT);
    let Ok(request) = conversation.next_head() else { return };
    conversation.answer_and_close(&match request.path.as_str() {
        "/health" => Reply::json(200, json!({ "status": "ok" })),
        "/ready" => {
            let is_ready = missing.is_empty();
            Reply::json(if is_ready { 200 } else { 503 }, json!({ "ready": is_ready, "why": missing }))
        }
        _ => Reply::error(404, "There is no such page", "Ask for /health or /ready"),
    });
}
