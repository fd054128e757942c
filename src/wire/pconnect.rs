//! `pconnect.yml`: the services that a project needs, and those that it exposes.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::Deserializer;
use serde::de;
use serde::de::Unexpected;
use serde::de::Visitor;

use crate::model::name::Name;
use crate::model::service::Protocol;
use crate::model::target::Target;

/// A project file is small. A larger file is something else.
pub const PROJECT_FILE_LIMIT: usize = 256 * 1024;
const PROJECT_SERVICES: usize = 200;

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, expecting = "`services:` or `expose:`")]
pub struct Project {
    #[serde(default)]
    pub hub: Option<String>,
    #[serde(default)]
    pub services: Vec<NeededService>,
    /// Services to expose while the project runs: `5432` or `192.168.1.50:8080`.
    #[serde(default)]
    pub expose: BTreeMap<Name, Target>,
}

/// A service to reach on a local port.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, expecting = "`name: NAME`")]
pub struct NeededService {
    pub name: Name,
    /// The local port. Without one, it is the service's own port.
    #[serde(default, alias = "localPort", alias = "local_port", deserialize_with = "port")]
    pub port: Option<u16>,
    #[serde(default)]
    pub protocol: Protocol,
}

fn port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    deserializer.deserialize_any(Port)
}

/// Reads a port. Its error messages say what a port is; serde's own would name `u16` to the user.
struct Port;

impl Visitor<'_> for Port {
    type Value = Option<u16>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a port from 1 to 65535")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        port.map(Some).ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    /// `port:` without a value.
    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// Reads YAML or JSON: JSON is YAML, so one parser reads both. An error names the line.
pub fn parse(text: &str) -> Result<Project, String> {
    if text.len() > PROJECT_FILE_LIMIT {
        return Err("the file is larger than 256 KiB".into());
    }
    if text.trim().is_empty() {
        return Err("the file is empty".into());
    }
    let project: Project = serde_yaml::from_str(text).map_err(|error| in_words(&error, text))?;
    if project.services.len() + project.expose.len() > PROJECT_SERVICES {
        return Err(format!("there are more than {PROJECT_SERVICES} services"));
    }
    let mut names: Vec<&Name> = project.services.iter().map(|service| &service.name).collect();
    names.sort();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => {
            Err(format!("the service {} stands there twice{}", pair[0], second_line(text, pair[0])))
        }
        None => Ok(project),
    }
}

/// The parser's error as a message. For a tab, the parser only reports an unexpected character.
fn in_words(error: &serde_yaml::Error, text: &str) -> String {
    let line = error.location().and_then(|at| text.lines().nth(at.line().saturating_sub(1)));
    let is_tabbed = line.is_some_and(|line| line.trim_start_matches(' ').starts_with('\t'));
    if is_tabbed { format!("{error}: indent with blanks, not with tabs") } else { error.to_string() }
}

/// The line where a name occurs for the second time, which the parser does not report.
fn second_line(text: &str, name: &Name) -> String {
    let outside = |c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_');
    let has = |line: &str| line.split(outside).any(|word| word == name.as_str());
    let second = text.lines().enumerate().filter(|(_, line)| has(line)).nth(1);
    second.map(|(at, _)| format!(", at line {}", at + 1)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_file_is_read() {
        let text = "services:\n  - name: staging-db\n    port: 5432\n  - name: staging-redis\n    localPort: 6379\n  - name: api\n    local_port: 8080\n    protocol: http\n";
        let project = parse(text).unwrap();
        let ports: Vec<_> =
            project.services.iter().map(|service| (service.name.as_str(), service.port)).collect();
        assert_eq!(parse("services:\n  - name: a\n    port:\n").unwrap().services[0].port, None);
        assert_eq!(ports, [("staging-db", Some(5432)), ("staging-redis", Some(6379)), ("api", Some(8080))]);
    }

    #[test]
    fn what_is_offered_may_be_a_port_or_an_address() {
        let project = parse("hub: https://h:7443\nexpose:\n  web: 3000\n  db: 10.0.0.5:5432\n").unwrap();
        let targets: Vec<_> =
            project.expose.iter().map(|(name, target)| format!("{name} {target}")).collect();
        assert_eq!(targets, ["db 10.0.0.5:5432", "web localhost:3000"]);
        assert_eq!(project.hub.as_deref(), Some("https://h:7443"));
        assert_eq!(parse(r#"{"services":[{"name":"a","port":1}]}"#).unwrap().services.len(), 1);
    }

    #[test]
    fn a_faulty_file_is_refused_with_the_line() {
        for (text, said) in [
            ("services:\n  - name: A B\n", "line 2"),
            ("services:\n  - name: a\n    prot: 1\n", "line 3"),
            ("services:\n  - name: a\n    port: 70000\n", "line 3"),
            ("services:\n  - name: a\n    port: 0\n", "expected a port from 1 to 65535 at line 3"),
            ("services:\n  - name: a\n    port: -1\n", "expected a port from 1 to 65535 at line 3"),
            (
                "services:\n  - name: a\n    port: web\n",
                "services[0].port: invalid type: string \"web\", expected a port from 1 to 65535 at line 3",
            ),
            ("services:\n  - name: a\n    port: '80'\n", "expected a port from 1 to 65535 at line 3"),
            ("services:\n  - a\n", "expected `name: NAME` at line 2"),
            (
                "services:\n\t- name: a\n",
                "line 2 column 1, while scanning for the next token: indent with blanks, not with tabs",
            ),
            ("services:\n  - name: a\n  \tport: 80\n", "indent with blanks"),
            ("a", "expected `services:` or `expose:`"),
            ("servces: []\n", "servces"),
            ("services: [\n", "line"),
            ("", "empty"),
            ("- 1\n", ""),
            ("expose:\n  a: x:y\n", "x:y"),
            ("services:\n  - name: a\n  - name: a\n", "twice, at line 3"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(said), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_file_that_refers_to_itself_ends() {
        let _ = parse("a: &a [*a, *a]\nservices: *a\n");
        let bomb: String = (0..30)
            .map(|level| format!("l{}: &l{} [*l{}, *l{}]\n", level + 1, level + 1, level, level))
            .collect();
        assert!(parse(&format!("l0: &l0 [x]\n{bomb}")).is_err());
    }
}
