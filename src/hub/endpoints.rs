//! The table of the API's calls: who may make each, how often, and what its endpoint may touch.

use std::net::IpAddr;
use std::slice;

use super::access;
use super::access::UnknownCall;
use super::api_call::ApiCall;
use super::api_call::Origin;
use super::ca_rotation;
use super::core::Core;
use super::directory;
use super::key_rotation;
use super::keys;
use super::logins;
use super::pages;
use super::refusal::Refusal;
use super::session_request;
use super::share_join;
use super::shares;
use super::status;
use crate::http::message::Request;
use crate::http::reply::Reply;
use crate::model::access::Action;
use crate::model::access::Principal;
use crate::model::limiter::RateLimit;
use crate::model::limiter::network_of;
use crate::model::time::Time;
use crate::os::clock;
use crate::os::lock::locked;

/// Wrong share codes by one key and from one address.
pub const SHARE_CODES: RateLimit = RateLimit { name: "too-many-codes", allowed: 10, window: 60 };
/// Login codes that one address may ask for within the lifetime of one. The hub keeps few, and others need some too.
const LOGIN_CODES: RateLimit = RateLimit { name: "too-many-devices", allowed: 10, window: 15 * 60 };

/// Forms that one network may send to the page for approvals; each shows whether a login waits with its code. An approval
/// takes two. Whoever is over the limit approves on the hub's machine.
const LOGIN_PAGES: RateLimit = RateLimit { name: "too-many-approvals", allowed: 60, window: 15 * 60 };

const SESSIONS: &str = "/v1/sessions";

struct Endpoint {
    method: &'static str,
    /// `*` matches one segment.
    path: &'static str,
    needs: Requirement,
    limit: CallLimit,
    /// Its answers may be long.
    is_list: bool,
    run: RunEndpoint,
}

type RunEndpoint = fn(&Core, &ApiCall<'_>) -> Result<Reply, Refusal>;

/// Who may call. A wrong key counts against the limit of logins, see `access.rs`.
#[derive(Clone, Copy)]
enum Requirement {
    Nothing,
    AnyKey,
    /// A key whose role may do this.
    To(Action),
}

/// What counts against a limit. A caller over the limit gets a 429.
#[derive(Clone, Copy)]
enum CallLimit {
    None,
    /// Every call counts.
    Calls(&'static RateLimit),
    /// Wrong codes count. A key with too many gets the 429 for a right code as well; a network with too many only for wrong
    /// ones, so that nobody's guesses stop a neighbour.
    Codes(&'static RateLimit),
    /// Wrong codes count, but a right code always works: it is for calls on a share that the caller owns or has joined.
    OnlyWrongCodes(&'static RateLimit),
}

use CallLimit::Calls;
use CallLimit::Codes;
use CallLimit::OnlyWrongCodes;
use Requirement::AnyKey;
use Requirement::Nothing;
use Requirement::To;

static TABLE: &[Endpoint] = &[
    get("/health", Nothing, |core, _| status::health(core)),
    get("/ready", Nothing, |core, _| status::ready(core)),
    // The certificate is public: it is in every handshake.
    get("/v1/ca", Nothing, |core, _| status::ca(core)),
    post("/v1/ca/rotate", To(Action::Administer), ca_rotation::rotate),
    get("/metrics", To(Action::Measure), status::metrics),
    get("/v1/whoami", AnyKey, status::whoami),
    get("/v1/services", To(Action::Look), |core, call| {
        directory::services(call, &core.records, &core.tunnel_ports)
    })
    .list(),
    get("/v1/agents", To(Action::Look), |core, call| directory::agents(call, &core.records)).list(),
    post("/v1/agents/register", To(Action::Expose), |core, call| {
        directory::register(call, &core.records, &core.audit)
    }),
    delete("/v1/services/*", To(Action::Expose), directory::remove_service),
    delete("/v1/agents/*", To(Action::Administer), |core, call| {
        directory::remove_agent(call, &core.records, &core.audit)
    }),
    post(SESSIONS, To(Action::Join), session_request::open_session).limited(OnlyWrongCodes(&SHARE_CODES)),
    get("/v1/sessions/*", To(Action::Join), session_request::session_state),
    // "Taken" reveals that a code exists, so choosing codes is limited like guessing them.
    post("/v1/shares", To(Action::Share), shares::make).limited(Codes(&SHARE_CODES)),
    get("/v1/shares", To(Action::Share), |core, call| shares::list(call, &core.records)).list(),
    // A code is in the body and never in the path, which proxies write into their logs.
    post("/v1/shares/revoke", To(Action::Share), shares::revoke).limited(OnlyWrongCodes(&SHARE_CODES)),
    post("/v1/shares/preview", To(Action::Join), share_join::preview).limited(Codes(&SHARE_CODES)),
    post("/v1/shares/join", To(Action::Join), share_join::join).limited(Codes(&SHARE_CODES)),
    post("/v1/device", Nothing, logins::ask).limited(Calls(&LOGIN_CODES)),
    post("/v1/device/state", Nothing, logins::state),
    post("/v1/device/preview", To(Action::Administer), logins::preview),
    post("/v1/device/approve", To(Action::Administer), logins::approve),
    get("/v1/keys", To(Action::Administer), |core, call| keys::list(call, &core.records)).list(),
    post("/v1/keys", To(Action::Administer), |core, call| {
        keys::make(call, &core.records, &core.audit, core.key_pin())
    }),
    post("/v1/keys/*/rotate", To(Action::Administer), key_rotation::rotate),
    delete("/v1/keys/*", To(Action::Administer), |core, call| {
        keys::revoke(call, &core.records, &core.audit).inspect(|_| core.cut_dead())
    }),
    get("/v1/audit", To(Action::Administer), status::audit_head),
    post("/v1/audit/rotate", To(Action::Administer), status::rotate_audit),
    post("/v1/enrol", To(Action::Enrol), |core, call| {
        keys::enrol(call, &core.records, &core.audit, core.key_pin())
    }),
    post("/v1/drain", To(Action::Administer), status::drain),
    // `listener.rs` handles the upgrades. A request that gets here asks for none.
    get("/v1/agent", To(Action::Expose), |_, _| Err(Refusal::UpgradeMissing)),
    get("/v1/relay", Nothing, |_, _| Err(Refusal::UpgradeMissing)),
    get("/", Nothing, |core, call| Ok(pages::home(call, core))),
    get("/device", Nothing, |core, call| Ok(pages::code_form(call, core))),
    post("/device", Nothing, |core, call| Ok(pages::approve(call, core))).limited(Calls(&LOGIN_PAGES)),
    get("/join", Nothing, |_, _| Ok(pages::share_link())),
];

const fn get(path: &'static str, needs: Requirement, run: RunEndpoint) -> Endpoint {
    Endpoint { method: "GET", path, needs, limit: CallLimit::None, is_list: false, run }
}

const fn post(path: &'static str, needs: Requirement, run: RunEndpoint) -> Endpoint {
    Endpoint { method: "POST", path, needs, limit: CallLimit::None, is_list: false, run }
}

const fn delete(path: &'static str, needs: Requirement, run: RunEndpoint) -> Endpoint {
    Endpoint { method: "DELETE", path, needs, limit: CallLimit::None, is_list: false, run }
}

impl Endpoint {
    /// As the audit log names it.
    fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// The event that its refusals are.
    fn refused(&self) -> &'static str {
        match self.path {
            SESSIONS => "session.refused",
            path if path.starts_with("/v1/shares") => "share.refused",
            _ => "call.refused",
        }
    }

    const fn limited(self, limit: CallLimit) -> Self {
        Self { limit, ..self }
    }

    const fn list(self) -> Self {
        Self { is_list: true, ..self }
    }
}

/// A request that its sender may make, judged by its head.
pub struct Admission {
    endpoint: &'static Endpoint,
    /// `None` if the endpoint needs no key.
    principal: Option<Principal>,
    now: Time,
}

impl Admission {
    /// The key that pays for what this request holds of the hub.
    pub fn paying_key(&self) -> Option<String> {
        self.principal.as_ref().map(|principal| principal.liable_key().to_owned())
    }

    pub fn is_list(&self) -> bool {
        self.endpoint.is_list
    }

    /// The call, once the request is complete.
    pub fn call(self, request: &Request, origin: Origin) -> ApiCall<'_> {
        // Endpoints that need no key do not look at it.
        let principal = self.principal.unwrap_or(Principal::Local);
        let parts = matches(self.endpoint.path, &request.path).unwrap_or_default();
        ApiCall { request, principal, origin, parts, now: self.now }
    }
}

/// Finds the endpoint that the request is for, and admits its sender.
pub fn admit(core: &Core, request: &Request, origin: Origin) -> Result<Admission, Refusal> {
    let (endpoint, _) = find(request)?;
    refuse_if_fenced(core, request)?;
    let now = clock::now();
    let action = match endpoint.needs {
        Nothing => return Ok(Admission { endpoint, principal: None, now }),
        AnyKey => None,
        To(action) => Some(action),
    };
    let (name, refused) = (endpoint.name(), endpoint.refused());
    let call = UnknownCall { key: request.key(), address: origin.address, action, name, refused };
    Ok(Admission { endpoint, principal: Some(access::admit(core, &call, now)?), now })
}

/// Answers an admitted request: runs the endpoint within the row's limit.
pub fn answer(core: &Core, request: &Request, origin: Origin, admission: Admission) -> Reply {
    let endpoint = admission.endpoint;
    let call = admission.call(request, origin);
    run(core, endpoint, &call).unwrap_or_else(|refusal| {
        // A session's endpoint knows more of it.
        if endpoint.path != SESSIONS && !matches!(endpoint.needs, Nothing) {
            core.audit.say_refused(endpoint.refused(), call.actor(), &endpoint.name(), &refusal);
        }
        core.refusals.reply(refusal)
    })
}

/// Runs the endpoint within its limit, and within that of all changes. Sessions change no record, and have a limit of their own.
fn run(core: &Core, endpoint: &Endpoint, call: &ApiCall<'_>) -> Result<Reply, Refusal> {
    let is_keyless = matches!(endpoint.needs, Nothing);
    if endpoint.method != "GET" && !is_keyless {
        let is_session = endpoint.path == SESSIONS;
        let limit = if is_session { &access::SESSION_REQUESTS } else { &access::CHANGES };
        access::pace(core, limit, call, "")?;
    }
    match endpoint.limit {
        CallLimit::None => (endpoint.run)(core, call),
        Calls(limit) => {
            let who = network_of(call.origin.address).to_string();
            refuse_if_blocked(core, limit, slice::from_ref(&who), call)?;
            locked(&core.tries).count(limit, &who, call.now);
            (endpoint.run)(core, call)
        }
        Codes(limit) => {
            // A link opens one share, so there is nothing to guess. A key has only its own wrong codes to answer for.
            if let Principal::Key { id, .. } = &call.principal {
                refuse_if_blocked(core, limit, slice::from_ref(id), call)?;
            }
            (endpoint.run)(core, call).map_err(|refusal| limit_wrong_code(core, limit, call, refusal))
        }
        OnlyWrongCodes(limit) => {
            (endpoint.run)(core, call).map_err(|refusal| limit_wrong_code(core, limit, call, refusal))
        }
    }
}

/// Refuses if one of `who` is over the limit. Counts nothing.
fn refuse_if_blocked(
    core: &Core,
    limit: &'static RateLimit,
    who: &[String],
    call: &ApiCall<'_>,
) -> Result<(), Refusal> {
    let tries = locked(&core.tries);
    match who.iter().filter_map(|who| tries.blocked(limit, who, call.now)).max() {
        Some(seconds) => Err(Refusal::TooManyTries { limit, seconds }),
        None => Ok(()),
    }
}

/// Counts a wrong code for the caller's key and for its network. If either is over the limit, the answer does not say that
/// the code was wrong. Both happen under one lock, so a burst gets no more answers than the limit allows.
fn limit_wrong_code(core: &Core, limit: &'static RateLimit, call: &ApiCall<'_>, refusal: Refusal) -> Refusal {
    if !refusal.is_wrong_code() {
        return refusal;
    }
    let guessers = [call.principal.id().to_owned(), network_of(call.origin.address).to_string()];
    let mut tries = locked(&core.tries);
    if let Some(seconds) = guessers.iter().filter_map(|who| tries.blocked(limit, who, call.now)).max() {
        return Refusal::TooManyTries { limit, seconds };
    }
    guessers.iter().for_each(|who| tries.count(limit, who, call.now));
    refusal
}

/// A fleet's hub that drains or is stopping, or that alone has lost the store, refuses all calls, so that clients use another hub.
fn refuse_if_fenced(core: &Core, request: &Request) -> Result<(), Refusal> {
    if core.is_leaving()
        && !matches!(request.path.as_str(), "/health" | "/ready")
        && !access::is_local(core, request)
    {
        return Err(Refusal::Fenced);
    }
    Ok(())
}

/// Answers the hub's own command line when no hub runs. Access to the data folder is enough, so neither a key nor a limit
/// is checked.
pub fn answer_locally(core: &Core, request: &Request) -> Reply {
    let origin = Origin { address: IpAddr::from([127, 0, 0, 1]), over_tls: true, by_proxy: false };
    let answered = find(request).and_then(|(endpoint, parts)| {
        let call = ApiCall { request, principal: Principal::Local, origin, parts, now: clock::now() };
        (endpoint.run)(core, &call)
    });
    answered.unwrap_or_else(|refusal| core.refusals.reply(refusal))
}

/// The row for this method and path, and the segments that match a `*`. If only the method is wrong, the refusal lists
/// the methods that the path has. A HEAD runs its GET: no GET may have an effect.
fn find(request: &Request) -> Result<(&'static Endpoint, Vec<&str>), Refusal> {
    let method = if request.method == "HEAD" { "GET" } else { &request.method };
    let mut other_methods = Vec::new();
    for endpoint in TABLE {
        let Some(parts) = matches(endpoint.path, &request.path) else { continue };
        if endpoint.method == method {
            return Ok((endpoint, parts));
        }
        other_methods.push(endpoint.method);
    }
    if other_methods.is_empty() {
        return Err(Refusal::NoSuchCall);
    }
    Err(Refusal::OtherMethod { allowed: other_methods.join(", ") })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_match_part_by_part() {
        assert_eq!(matches("/v1/keys/*", "/v1/keys/abc"), Some(vec!["abc"]));
        assert_eq!(matches("/v1/keys/*/x", "/v1/keys/abc/x"), Some(vec!["abc"]));
        for path in ["/v1/keys", "/v1/keys/", "/v1/keys/a/b", "/v1/keys/a/", "//v1/keys/a", "/V1/keys/a"] {
            assert_eq!(matches("/v1/keys/*", path), None, "{path}");
        }
    }
}
