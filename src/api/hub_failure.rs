//! What a failed connection to a hub means for the user.

use std::io;

use rustls::CertificateError::Expired;
use rustls::CertificateError::ExpiredContext;
use rustls::CertificateError::NotValidYet;
use rustls::CertificateError::NotValidYetContext;

use crate::error::Error;
use crate::error::ErrorKind;
use crate::net::address::HUB_PORT;
use crate::net::address::HubUrl;
use crate::os::clock;
use crate::tls;

pub fn not_proved(url: &HubUrl, error: io::Error) -> Error {
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
                .hint("Its certificate does not match the key's pin or your CA file. Ask for a new key (hub key create), or give --ca FILE")
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
