//! Connections to the hubs of a fleet, and what their failures mean for the user.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Instant;

use rustls::CertificateError::Expired;
use rustls::CertificateError::ExpiredContext;
use rustls::CertificateError::NotValidYet;
use rustls::CertificateError::NotValidYetContext;
use rustls::pki_types::CertificateDer;

use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::model::fingerprint::Pin;
use crate::net::address::HUB_PORT;
use crate::net::address::HubUrl;
use crate::net::duplex::Duplex;
use crate::net::stop::Registration;
use crate::os::clock;
use crate::os::lock::locked;
use crate::tls;
use crate::tls::connector::Connector;
use crate::tls::trust;

/// With other hubs to go to, one that does not answer takes this part of the time.
const TIME_SHARE_PER_HUB: u32 = 3;

/// The hubs of a fleet, in the order in which they are tried.
pub struct FleetHubs {
    pub list: Vec<HubUrl>,
    /// The first ones were given by the user; the rest was learnt from a hub.
    pub given: usize,
    /// The one used last.
    pub at: usize,
    /// See `TlsConnection::negotiated`; of the last connection.
    pub negotiated: String,
    pub saved: Option<SavedLogin>,
}

/// Where this process has the key and the hub's pin from.
#[derive(Clone)]
pub struct SavedLogin {
    /// What is there now: another process may have changed it.
    pub read: Arc<dyn Fn() -> Option<LoginSecrets> + Send + Sync>,
    /// The root with the first pin has signed the one with the second, which replaces it.
    pub replace_root: Arc<dyn Fn(Pin, Pin) + Send + Sync>,
}

pub struct LoginSecrets {
    pub key: Option<String>,
    pub pin: Option<Pin>,
}

#[derive(Clone)]
pub struct HubConnector {
    pub hubs: Arc<Mutex<FleetHubs>>,
    pub connector: Connector,
}

impl HubConnector {
    /// A TLS connection on which the hub has proved who it is.
    pub fn connect(&self, url: &HubUrl, deadline: Instant) -> Result<(Duplex, Registration)> {
        let (below, cut) = self.connect_plain(url, deadline)?;
        self.take_saved_root();
        let secured = tls::client(&self.connector.tls.config, &url.host, below, deadline);
        let secured = secured.map_err(|error| not_proved(url, error))?;
        locked(&self.hubs).negotiated.clone_from(&secured.negotiated);
        self.follow_root(&secured.chain, &url.host);
        Ok((secured.into_duplex(), cut))
    }

    pub fn saved(&self) -> Option<LoginSecrets> {
        let saved = locked(&self.hubs).saved.clone()?;
        (saved.read)()
    }

    /// Another process may have followed the hub to a new root. The one in memory would let the thief of its key play the hub.
    fn take_saved_root(&self) {
        let Some(root) = &self.connector.tls.root else { return };
        if let Some(pin) = self.saved().and_then(|saved| saved.pin) {
            *locked(root) = pin;
        }
    }

    /// If the hub has replaced its root, and the known one has signed the new one, that one counts from now on.
    fn follow_root(&self, chain: &[CertificateDer<'_>], host: &str) {
        let Some(root) = &self.connector.tls.root else { return };
        let known = *locked(root);
        let Some(new) = trust::newer_root(chain, known, host) else { return };
        *locked(root) = new;
        let saved = locked(&self.hubs).saved.clone();
        if let Some(saved) = saved {
            (saved.replace_root)(known, new);
        }
    }

    pub fn connect_plain(&self, url: &HubUrl, deadline: Instant) -> Result<(Duplex, Registration)> {
        let left = deadline.saturating_duration_since(Instant::now());
        let has_others = locked(&self.hubs).list.len() > 1;
        let share = if has_others { left / TIME_SHARE_PER_HUB } else { left };
        let connected = self.connector.connect_plain(&url.host_port(), Instant::now() + share);
        connected
            .map_err(|error| unreachable_hub(url, error.to_string()).hint(error.hint.unwrap_or_default()))
    }
}

/// ureq wants to show its connector.
impl fmt::Debug for HubConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HubConnector")
    }
}

fn not_proved(url: &HubUrl, error: io::Error) -> Error {
    let certificate = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match certificate {
        Some(rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
        )) => Error::new(format!("The certificate of {url} is not valid now"))
            .because(format!("this machine's clock says {}", clock::now()))
            .hint("If that is not the time, set the clock: timedatectl set-ntp true. Otherwise restart the hub, which renews it"),
        Some(rustls::Error::InvalidCertificate(why)) => {
            Error::new(format!("{url} did not prove that it is your hub"))
                .because(format!("{why}"))
                .hint("Its certificate does not match the pin in your key or link, or your CA file. If its root was replaced (hub ca rotate), ask for a new key or link, or give --ca FILE")
        }
        _ => match tls::nothing_in_common(&error, &url.to_string()) {
            Some(nothing) => nothing,
            None => unreachable_hub(url, error),
        },
    }
}

pub fn unreachable_hub(url: &HubUrl, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    let usual = if url.port == HUB_PORT {
        String::new()
    } else {
        format!(". A hub usually listens on port {HUB_PORT}")
    };
    Error::new(format!("Cannot reach the hub {url}"))
        .because(why)
        .hint(format!("Check the address, and on its machine that it runs: connect hub status{usual}"))
        .kind(ErrorKind::Unreachable)
}
