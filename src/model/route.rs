//! Routes: a name and a loopback port on this machine, as `active-routes.json` lists them.

use serde::Deserialize;
use serde::Serialize;

use super::service::Protocol;
use super::time::Time;

/// More routes than any machine has. A file with more is damaged or hostile.
const ROUTES_LIMIT: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    pub service_name: String,
    pub local_port: u16,
    pub pid: u32,
    pub started_at: Time,
    /// Left out of the file if it is the usual one at this port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
}

impl Route {
    pub fn protocol(&self) -> Protocol {
        self.protocol.unwrap_or_else(|| Protocol::usual_at(self.local_port))
    }
}

/// Today the file is a plain list. A later format may wrap it as `{version, routes: […]}`.
#[derive(Deserialize)]
#[serde(untagged)]
enum RoutesFile {
    Plain(Vec<Route>),
    Wrapped { routes: Vec<Route> },
}

/// `None` if the text is not a routes file.
pub fn parse(text: &str) -> Option<Vec<Route>> {
    if text.trim().is_empty() {
        return Some(Vec::new());
    }
    let (RoutesFile::Plain(routes) | RoutesFile::Wrapped { routes }) = serde_json::from_str(text).ok()?;
    (routes.len() <= ROUTES_LIMIT).then_some(routes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_of_the_file_are_read() {
        let plain = r#"[{"serviceName":"staging-db","localPort":5432,"pid":12345,"startedAt":"2026-03-02T10:30:00Z"}]"#;
        let routes = parse(plain).unwrap();
        assert_eq!((routes[0].service_name.as_str(), routes[0].local_port), ("staging-db", 5432));
        assert_eq!(parse(&format!(r#"{{"version":2,"routes":{plain}}}"#)), Some(routes));
        assert_eq!(parse(" "), Some(Vec::new()));
    }

    #[test]
    fn a_damaged_file_is_no_routes_file() {
        for bad in ["[", "{}", "null", r#"[{"serviceName":1}]"#, r#"[{"serviceName":"a","localPort":70000}]"#]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
