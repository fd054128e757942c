//! The table of the API's calls.

use std::net::IpAddr;

use super::access;
use super::api_call::ApiCall;
use super::api_call::Origin;
use super::api_call::other_upgrade;
use super::core::Core;
use super::directory;
use super::keys;
use super::pages;
use super::session_request;
use super::share_join;
use super::shares;
use crate::http::message::Request;
use crate::http::message::error_body;
use crate::http::reply::Reply;
use crate::model::access::Action;
use crate::model::access::Principal;

type Endpoint = fn(&ApiCall<'_>) -> Result<Reply, Reply>;

/// Who may call: anyone, any key, or a key whose role may do this.
#[derive(Clone, Copy)]
enum Requirement {
    Nothing,
    AnyKey,
    To(Action),
}

/// `*` in a path stands for one part.
const TABLE: [(&str, &str, Requirement, Endpoint); 23] = [
    ("GET", "/health", Requirement::Nothing, directory::health),
    ("GET", "/metrics", Requirement::To(Action::Administer), directory::metrics),
    ("GET", "/v1/whoami", Requirement::AnyKey, directory::whoami),
    ("GET", "/v1/services", Requirement::To(Action::Look), directory::list),
    ("GET", "/v1/agents", Requirement::To(Action::Look), directory::agents),
    ("POST", "/v1/agents/register", Requirement::To(Action::Expose), directory::register),
    ("POST", "/v1/sessions", Requirement::To(Action::Join), session_request::open_session),
    ("POST", "/v1/shares", Requirement::To(Action::Share), shares::make),
    ("GET", "/v1/shares", Requirement::To(Action::Share), shares::list),
    ("DELETE", "/v1/shares/*", Requirement::To(Action::Share), shares::revoke),
    ("GET", "/v1/shares/*", Requirement::To(Action::Join), share_join::preview),
    ("POST", "/v1/shares/*/join", Requirement::To(Action::Join), share_join::join),
    ("POST", "/v1/device", Requirement::Nothing, keys::ask_device),
    ("GET", "/v1/device/*", Requirement::Nothing, keys::device_state),
    ("POST", "/v1/device/*/approve", Requirement::To(Action::Administer), keys::approve_device),
    ("GET", "/v1/keys", Requirement::To(Action::Administer), keys::list),
    ("POST", "/v1/keys", Requirement::To(Action::Administer), keys::make),
    ("DELETE", "/v1/keys/*", Requirement::To(Action::Administer), keys::revoke),
    ("GET", "/v1/agent", Requirement::To(Action::Expose), upgrade_needed),
    ("GET", "/v1/relay", Requirement::Nothing, upgrade_needed),
    ("GET", "/device", Requirement::Nothing, pages::device),
    ("POST", "/device", Requirement::Nothing, pages::approve),
    ("GET", "/join", Requirement::Nothing, pages::join),
];

pub fn answer(core: &Core, request: &Request, origin: Origin) -> Reply {
    let routed = route(request).and_then(|(needs, endpoint, parts)| {
        refuse_if_fenced(core, request)?;
        let principal = match needs {
            Requirement::Nothing => Principal::Local,
            Requirement::AnyKey | Requirement::To(_) => {
                access::authenticate(core, request.key(), origin.address)?
            }
        };
        if let Requirement::To(action) = needs {
            access::allow(core, &principal, action)?;
        }
        endpoint(&ApiCall { core, request, principal, origin, parts })
    });
    routed.unwrap_or_else(|refusal| refusal)
}

/// A hub that is ending, or has lost what the others still have, sends everybody to them.
pub fn refuse_if_fenced(core: &Core, request: &Request) -> Result<(), Reply> {
    let is_fenced = core.fleet.as_ref().is_some_and(|fleet| fleet.is_fenced() || core.stop.is_stopped());
    if !is_fenced || request.path == "/health" || access::is_local(core, request) {
        return Ok(());
    }
    core.refused("adrift");
    let mut body = error_body("This hub is ending or cut off from its fleet", "Use another hub of the fleet");
    body["elsewhere"] = true.into();
    Err(Reply::json(503, body))
}

/// For the hub's own command line when no hub runs: the data folder is the key.
pub fn answer_locally(core: &Core, request: &Request) -> Reply {
    let origin = Origin { address: IpAddr::from([127, 0, 0, 1]), over_tls: true };
    let routed = route(request).and_then(|(_, endpoint, parts)| {
        endpoint(&ApiCall { core, request, principal: Principal::Local, origin, parts })
    });
    routed.unwrap_or_else(|refusal| refusal)
}

fn route(request: &Request) -> Result<(Requirement, Endpoint, Vec<&str>), Reply> {
    let mut methods = Vec::new();
    let asked = if request.method == "HEAD" { "GET" } else { &request.method };
    for (method, pattern, needs, endpoint) in TABLE {
        let Some(parts) = matches(pattern, &request.path) else { continue };
        if method == asked {
            return Ok((needs, endpoint, parts));
        }
        methods.push(method);
    }
    if methods.is_empty() {
        return Err(Reply::error(404, "There is no such call", "The README lists the hub's API"));
    }
    let allowed = methods.join(", ");
    Err(Reply::error(405, "This call has another method", &format!("Use {allowed}")).field("allow", allowed))
}

fn matches<'p>(pattern: &str, path: &'p str) -> Option<Vec<&'p str>> {
    let (mut parts, mut given) = (Vec::new(), path.split('/'));
    for expected in pattern.split('/') {
        match given.next()? {
            part if expected == "*" && !part.is_empty() => parts.push(part),
            part if part == expected => {}
            _ => return None,
        }
    }
    given.next().is_none().then_some(parts)
}

fn upgrade_needed(_: &ApiCall<'_>) -> Result<Reply, Reply> {
    let hint = "Update connect: it did not ask for a protocol that this hub speaks";
    Err(other_upgrade("This path is for connect's own channels", hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_match_part_by_part() {
        assert_eq!(matches("/v1/shares/*", "/v1/shares/abc"), Some(vec!["abc"]));
        assert_eq!(matches("/v1/shares/*/join", "/v1/shares/abc/join"), Some(vec!["abc"]));
        for path in
            ["/v1/shares", "/v1/shares/", "/v1/shares/a/b", "/v1/shares/a/", "//v1/shares/a", "/V1/shares/a"]
        {
            assert_eq!(matches("/v1/shares/*", path), None, "{path}");
        }
    }
}
