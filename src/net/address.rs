//! The address of a hub.

use std::fmt;

use crate::error::Error;
use crate::error::Result;
use crate::model::host_port::HostPort;
use crate::model::host_port::bracketed;

const HTTPS_PORT: u16 = 443;
/// Where a hub listens unless told otherwise.
pub const HUB_PORT: u16 = 7443;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubUrl {
    pub host: String,
    pub port: u16,
}

impl HubUrl {
    /// Reads `https://host[:port]`. The scheme may be left out, since it is always https.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = || {
            Error::misread(text, "is not a hub address").hint("Write it like --hub https://hub.example:7443")
        };
        let text = text.trim();
        if let Some(rest) = text.strip_prefix("http://") {
            return Err(Error::usage("A hub speaks https only").hint(format!("Try: --hub https://{rest}")));
        }
        let rest = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
        let HostPort { host, port } = HostPort::parse(rest, HTTPS_PORT).ok_or_else(bad)?;
        Ok(Self { host, port })
    }

    pub fn host_port(&self) -> HostPort {
        HostPort { host: self.host.clone(), port: self.port }
    }

    /// The address as a `Host` field has it.
    pub fn authority(&self) -> String {
        if self.port == HTTPS_PORT {
            bracketed(&self.host)
        } else {
            format!("{}:{}", bracketed(&self.host), self.port)
        }
    }
}

impl fmt::Display for HubUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_addresses_are_read_with_and_without_scheme_and_port() {
        for (text, shown) in [
            ("https://h:7443", "https://h:7443"),
            ("hub.example", "https://hub.example"),
            ("https://[::1]:7443/", "https://[::1]:7443"),
            (" HTTPS.example:443 ", "https://https.example"),
        ] {
            assert_eq!(HubUrl::parse(text).unwrap().to_string(), shown);
        }
        for bad in [
            "",
            "https://",
            "http://h:7443",
            "https://h:0",
            "https://h:+1",
            "https://h:1:2",
            "https://a b",
            "https://h/x",
        ] {
            assert!(HubUrl::parse(bad).is_err(), "{bad}");
        }
    }
}
