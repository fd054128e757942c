//! Routes: a name and a loopback port on this machine, as `active-routes.json` lists them. People and other tools write
//! entries, too.

use serde_json::Value;

use super::service::Protocol;
use super::text::one_line;

/// More routes than any machine has. A file with more is damaged or hostile.
const ROUTES_LIMIT: usize = 4096;

/// The longest part of a name in the DNS.
const LABEL_LIMIT: usize = 63;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub service_name: String,
    pub local_port: u16,
    /// `None` if it is the usual one at this port.
    pub protocol: Option<Protocol>,
    /// The name of the share from which the service comes.
    pub share: Option<String>,
}

impl Route {
    /// Only name and port are required. The error says what is wrong with the entry.
    pub fn read(entry: &Value) -> Result<Self, &'static str> {
        let service_name = entry["serviceName"].as_str().ok_or("has no serviceName")?.to_owned();
        if !is_label(&service_name) {
            return Err("has a serviceName that no address can have");
        }
        let port = entry["localPort"].as_u64().and_then(|port| u16::try_from(port).ok());
        let local_port = port.filter(|port| *port > 0).ok_or("has no localPort from 1 to 65535")?;
        let protocol = match &entry["protocol"] {
            Value::Null => None,
            named => {
                let known = named.as_str().and_then(Protocol::parse);
                Some(known.ok_or("has a protocol other than tcp, http and https")?)
            }
        };
        let share = entry["share"].as_str().map(one_line);
        Ok(Self { service_name, local_port, protocol, share })
    }

    pub fn protocol(&self) -> Protocol {
        self.protocol.unwrap_or_else(|| Protocol::usual_at(self.local_port))
    }
}

/// Whether it can be one part of a host name. The DNS forbids the underscore, but developers use it.
pub fn is_label(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=LABEL_LIMIT).contains(&text.len()) && text.bytes().all(is_plain)
}

/// The process that an entry names, if it names one.
pub fn process_of(entry: &Value) -> Option<u32> {
    entry["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0)
}

/// The entries of a routes file: a plain list, or one inside `{version, routes: […]}`. `None` if the text is neither.
pub fn entries(text: &str) -> Option<Vec<Value>> {
    let text = text.trim_start_matches('\u{feff}');
    if text.trim().is_empty() {
        return Some(Vec::new());
    }
    let found = match serde_json::from_str(text).ok()? {
        Value::Object(mut wrapper) => wrapper.remove("routes")?,
        plain => plain,
    };
    match found {
        Value::Array(entries) if entries.len() <= ROUTES_LIMIT => Some(entries),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_shapes_of_the_file_are_read_with_and_without_a_byte_order_mark() {
        let plain = r#"[{"serviceName":"staging-db","localPort":5432,"pid":12345,"startedAt":"2026-03-02T10:30:00Z"}]"#;
        let found = entries(plain).unwrap();
        let route = Route::read(&found[0]).unwrap();
        assert_eq!((route.service_name.as_str(), route.local_port), ("staging-db", 5432));
        assert_eq!((process_of(&found[0]), route.protocol()), (Some(12345), Protocol::Tcp));
        assert_eq!(entries(&format!(r#"{{"version":2,"routes":{plain}}}"#)).as_ref(), Some(&found));
        assert_eq!(entries(&format!("\u{feff}{plain}")), Some(found));
        assert_eq!(entries(" "), Some(Vec::new()));
    }

    #[test]
    fn a_damaged_file_is_no_routes_file_and_a_bad_entry_no_route() {
        for bad in ["[", "{}", "null", "1", r#"{"routes":1}"#] {
            assert_eq!(entries(bad), None, "{bad}");
        }
        assert!(Route::read(&json!({ "serviceName": "a", "localPort": 1 })).is_ok());
        let bad = [
            json!(1),
            json!({ "localPort": 1 }),
            json!({ "serviceName": 1, "localPort": 1 }),
            json!({ "serviceName": "a", "localPort": 0 }),
            json!({ "serviceName": "a", "localPort": 70000 }),
            json!({ "serviceName": "a", "localPort": 1, "protocol": "udp" }),
        ];
        for entry in bad {
            assert!(Route::read(&entry).is_err(), "{entry}");
        }
    }
}
