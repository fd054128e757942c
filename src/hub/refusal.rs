//! What the hub refuses, and how: one table of statuses, codes, messages and hints.
//!
//! A code is stable: clients act on it, and the metrics count refusals by it. The text of a refusal is
//! available only through `RefusalCounts` (`refusal/counts.rs`), so none is answered without being counted.

pub mod counts;

use std::net::IpAddr;

use crate::http::reply::Reply;
use crate::model::access::Action;
use crate::model::limiter::RateLimit;
use crate::model::name::BadName;
use crate::model::name::Name;
use crate::model::service::Service;
use crate::model::time::Time;
use crate::wire::api::BAD_KEY_CODE;
use crate::wire::api::SHARE_NOT_FOUND_CODE;

/// One refusal a line, in the order of the table below.
#[rustfmt::skip]
#[derive(Debug)]
pub enum Refusal {
    // Before the caller is known.
    Garbage,
    BadRequest { status: u16, what: &'static str, hint: &'static str },
    TooManyConnections,
    TlsRequired { url: String },
    OtherProtocol { what: String, hint: String },
    UpgradeMissing,
    NoSuchCall,
    OtherMethod { allowed: String },
    Fenced,
    // Authentication and roles.
    NoKey,
    BadKey,
    Role(Action),
    KeyElsewhere { address: IpAddr },
    KeyOnlyEnrols,
    KeyUsedUp,
    NameOutside { name: Name, limits: String },
    OtherWorkspace,
    WholeHub,
    TooManyTries { limit: &'static RateLimit, seconds: u64 },
    // The content of the request.
    BadBody { why: String },
    BadHost,
    BadPage,
    BadWorkspace(BadName),
    BadAgentId,
    BadKeyLifetime,
    BadKeyLimits,
    BadShareCode { why: &'static str },
    BadShareServices,
    BadShareLifetime,
    BadShareJoins,
    // Missing, taken, or somebody else's.
    NoSuchKey,
    KeyRotates { until: Time },
    CaRotates,
    NoSuchService,
    NotExposed(Name),
    ShareNotFound,
    ShareNameUnclear(usize),
    ShareNotJoined,
    ShareFull,
    ShareCodeTaken,
    LoginCodeUnknown,
    NoLoginWaiting,
    AgentOfAnotherKey,
    AgentNotYours,
    AgentIdentity,
    NameTaken { name: Name, by: String },
    NameKept { name: Name, by: String },
    NoSuchAgent,
    AgentConnected { label: String, key: String },
    ServiceOfAnotherKey(Name),
    StillOnline(Name),
    TakenAway { name: Name, by: String },
    // Limits.
    TooManyKeys,
    TooManyAgents,
    TooManyAgentsOfKey { limit: usize },
    TooManyServicesOfKey { limit: usize },
    TooManyServices { limit: usize },
    TooManyLongAnswers,
    TooManyChannels,
    TooManyShares { of: &'static str },
    TooManySessions { whose: &'static str },
    // Sessions.
    Offline(Box<Service>),
    AgentAtOtherHub { service: Name, hub: String },
    BadTicket,
    RelayOverTls,
    DirectForbidden,
    Declined,
    PartnerMissing,
    Draining,
    // The hub itself.
    StoreFailed,
    FleetStoreAway,
    AnswerFailed,
    OtherHubAway,
    /// Another hub's refusal, passed on unchanged.
    OtherHub(Reply),
}

/// One row of the table: what a refusal says, to programs by status and code, to people by the rest.
#[derive(Debug)]
pub struct RefusalText {
    pub status: u16,
    pub code: &'static str,
    pub what: String,
    pub hint: String,
}

fn row(status: u16, code: &'static str, what: impl Into<String>) -> RefusalText {
    RefusalText { status, code, what: what.into(), hint: String::new() }
}

impl RefusalText {
    fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: hint.into(), ..self }
    }
}

impl Refusal {
    /// Whether it counts as a wrong share code.
    pub fn is_wrong_code(&self) -> bool {
        matches!(self, Self::ShareNotFound | Self::ShareNotJoined | Self::ShareCodeTaken)
    }

    /// Whether it says something about what its caller may do, or does too often, and not only that the call is wrong. The
    /// audit log has these. A wrong agent has an event of its own.
    pub fn is_denial(&self) -> bool {
        match self {
            Self::AgentOfAnotherKey => false,
            Self::ShareFull => true,
            other => other.is_wrong_code() || matches!(other.text().status, 403 | 429),
        }
    }

    /// Its stable code, which is the reason in the audit log.
    pub fn code(&self) -> &'static str {
        self.text().code
    }

    /// The table. Rustfmt would give most rows five lines.
    #[rustfmt::skip]
    #[allow(clippy::too_many_lines)]
    fn text(&self) -> RefusalText {
        match self {
            // Before the caller is known.
            Self::Garbage => row(400, "garbage", "This is neither TLS nor HTTP"),
            Self::BadRequest { status, what, hint } => row(*status, "bad-request", *what).hint(*hint),
            Self::TooManyConnections => row(503, "too-many-connections", "The hub has too many connections")
                .hint(IN_A_MOMENT),
            Self::TlsRequired { url } => row(426, "in-the-clear", "This hub speaks https")
                .hint(format!("Use {url}")),
            Self::OtherProtocol { what, hint } => row(426, "protocol", what).hint(hint),
            Self::UpgradeMissing => row(426, "upgrade-missing", "This path is for connect's own channels")
                .hint("Update connect: it did not ask for a protocol that this hub speaks"),
            Self::NoSuchCall => row(404, "no-such-call", "There is no such call")
                .hint("See: connect help protocol"),
            Self::OtherMethod { allowed } => row(405, "other-method", "This call does not take this method")
                .hint(format!("Use {allowed}")),
            Self::Fenced => row(503, "fenced", "This hub is ending or cut off from its fleet")
                .hint("Use another hub of the fleet"),
            // Authentication and roles.
            Self::NoKey => row(401, "no-key", "An API key is needed")
                .hint("Send it as x-api-key; make one with: connect hub key create --label NAME"),
            Self::BadKey => row(401, BAD_KEY_CODE, "This API key is not valid here")
                .hint("It may be revoked or expired; ask for a new one: connect hub key create"),
            Self::Role(action) => row(403, "role", "This key's role does not allow that")
                .hint(format!("Ask for a key with --role {}", match action {
                    Action::Administer => "admin",
                    Action::Measure => "metrics",
                    Action::Join => "join, or use a link",
                    Action::Expose | Action::Share => "expose, or member to reach services too",
                    Action::Look | Action::Reach => "member",
                    Action::Enrol => "expose --uses 10",
                })),
            Self::KeyElsewhere { address } =>
                row(403, "key-elsewhere", format!("This key may not be used from {address}"))
                .hint("Use it where its --from allows: connect hub key list"),
            Self::KeyOnlyEnrols => row(403, "key-only-enrols", "This key only enrols machines")
                .hint("`connect up` exchanges it for a key of the machine's own; then leave it out"),
            Self::KeyUsedUp => row(403, "key-used-up", "This key has enrolled as many machines as it may")
                .hint("Make another: connect hub key create --uses N"),
            Self::NameOutside { name, limits } =>
                row(403, "name-outside", format!("This key may not expose {name}; its limits: {limits}"))
                .hint("Choose such a name, or ask for a key with another --only"),
            Self::OtherWorkspace => row(403, "other-workspace", "This key rules another workspace")
                .hint("Make it on the hub's machine: connect hub key create --workspace NAME"),
            Self::WholeHub => row(403, "whole-hub", "These are the figures of the whole hub")
                .hint("Use a key with --role metrics of the workspace `default`, or on its machine: connect hub status"),
            Self::TooManyTries { limit, seconds } => row(429, limit.name, "Too many tries in a short time")
                .hint(format!("Try again in {seconds} seconds")),
            // The content of the request.
            Self::BadBody { why } => row(400, "bad-body", format!("The body does not fit this call: {why}"))
                .hint("Send JSON: connect help protocol"),
            Self::BadHost => row(400, "bad-host", "The Host header is not an address"),
            Self::BadPage => row(400, "bad-page", "The limit of a page is not a number").hint("Try ?limit=100"),
            Self::BadWorkspace(bad) =>
                row(400, "bad-workspace", format!("The workspace's name {}", bad.reason()))
                .hint("Use a-z, 0-9 and -"),
            Self::BadAgentId => row(400, "bad-agent-id", "This is not an agent id")
                .hint("Agent ids look like agent_k3v7; connect up makes one"),
            Self::BadKeyLifetime => row(400, "bad-key-lifetime", "A key lives a second at least")
                .hint("Try --expires 30d"),
            Self::BadKeyLimits => row(400, "bad-key-limits", "These limits do not fit the key")
                .hint("1 to 32 names for a key of the role member, expose or join; 1 to 32 addresses; 1 use at least"),
            Self::BadShareCode { why } => row(400, "bad-share-code", *why)
                .hint("Choose 6 to 32 letters and digits"),
            Self::BadShareServices => row(400, "bad-share-services", "A share has 1 to 100 services")
                .hint("Expose something first: connect expose NAME PORT"),
            Self::BadShareLifetime =>
                row(400, "bad-share-lifetime", "A share lives between a second and a year")
                .hint("Try --expires 24h"),
            Self::BadShareJoins => row(400, "bad-share-joins", "A share needs room for a join and a session")
                .hint("Leave --max-joins and --max-sessions out, or give 1 or more"),
            // Missing, taken, or somebody else's.
            Self::NoSuchKey => row(404, "no-such-key", "There is no such key")
                .hint("Look at the ids: connect hub key list"),
            Self::KeyRotates { until } => row(409, "key-rotates", format!("This key is being rotated, until {until}"))
                .hint("See who still uses the old secret: connect hub key list"),
            Self::CaRotates => row(409, "ca-rotates", "The root before this one is still valid")
                .hint("See until when: connect hub ca. If it may be stolen: connect hub ca rotate --overlap 0s"),
            Self::NoSuchService => row(404, "no-such-service", "There is no such service")
                .hint("List them: connect services"),
            Self::NotExposed(name) => row(404, "not-exposed", format!("This machine does not expose {name}"))
                .hint(format!("Expose it first: connect expose {name} PORT")),
            Self::ShareNotFound => row(404, SHARE_NOT_FOUND_CODE, "Share not found or expired")
                .hint("Check the code and try again."),
            Self::ShareNameUnclear(count) => row(409, "share-name-unclear", format!("{count} shares have this name"))
                .hint("Revoke them by their IDs: connect share list"),
            Self::ShareNotJoined => row(403, "share-not-joined", "This share has not been joined")
                .hint("Join it first: connect join CODE"),
            Self::ShareFull => row(409, "share-full", "This share has been joined as often as it may be")
                .hint("Ask for a new one: connect share"),
            Self::ShareCodeTaken => row(409, "share-code-taken", "This code is taken")
                .hint("Choose another with --code. If it is your own, left by a share that crashed: \
                    connect share revoke CODE"),
            Self::LoginCodeUnknown => row(404, "login-code-unknown", "This login code is not valid")
                .hint("It lives 15 minutes; run connect up again"),
            Self::NoLoginWaiting => row(404, "no-login-waiting", "No login waits with this code")
                .hint("Codes live 15 minutes; run connect up again there"),
            Self::AgentOfAnotherKey => row(403, "agent-of-another-key", "This agent belongs to another key")
                .hint("Log in with that key, or from the machine that has the agent's identity: connect up"),
            Self::AgentNotYours => row(403, "agent-not-yours", "This agent belongs to another key")
                .hint("Share from the machine that exposes the services"),
            Self::AgentIdentity => row(409, "agent-identity", "This agent has another identity")
                .hint("Its identity.pem was replaced. To make this machine a new agent: connect up"),
            Self::NameTaken { name, by } =>
                row(409, "name-taken", format!("{name} is already exposed by {by}")).hint(take_over(name, by)),
            Self::NameKept { name, by } =>
                row(409, "name-kept", format!("{name} is offline, but its name belongs to {by}"))
                .hint(take_over(name, by)),
            Self::NoSuchAgent => row(404, "no-such-agent", "There is no such agent")
                .hint("List them on the hub's machine: connect hub agent list"),
            Self::AgentConnected { label, key } =>
                row(409, "agent-connected", format!("{label} is connected, so it would be back at once"))
                .hint(format!("End what it runs, or revoke its key: connect hub key revoke {key}")),
            Self::ServiceOfAnotherKey(name) =>
                row(403, "service-of-another-key", format!("{name} belongs to another key"))
                .hint("Its agent's key may remove it, or an admin's"),
            Self::StillOnline(name) => row(409, "still-online", format!("{name} is online"))
                .hint(format!("End it on its machine first: connect stop {name}")),
            Self::TakenAway { name, by } =>
                row(409, "taken-away", format!("{name} was taken over by {by}"))
                .hint("Choose another name, or ask there"),
            // Limits.
            Self::TooManyKeys => row(409, "too-many-keys", "There are too many keys")
                .hint("Revoke some: connect hub key list"),
            Self::TooManyAgents => row(409, "too-many-agents", "There are too many agents in this workspace")
                .hint("Remove some on the hub's machine: connect hub agent list"),
            Self::TooManyAgentsOfKey { limit } =>
                row(409, "too-many-agents-of-key", "Too many agents use this key")
                .hint(format!("At most {limit} that are connected or expose something; use another key")),
            Self::TooManyServicesOfKey { limit } =>
                row(409, "too-many-services-of-key", "Too many services were exposed with this key")
                .hint(format!("At most {limit}; remove some: connect services remove NAME, or use another key")),
            Self::TooManyServices { limit } =>
                row(409, "too-many-services", "This workspace has too many services")
                .hint(format!("At most {limit}; a service that is gone for good leaves when its agent ends")),
            Self::TooManyLongAnswers =>
                row(429, "too-many-long-answers", "Another long list for this key has not been read yet")
                .hint(IN_A_MOMENT),
            Self::TooManyChannels => row(503, "too-many-channels", "This key has too many agents connected")
                .hint("Use another key for some of them"),
            Self::TooManyShares { of } =>
                row(409, "too-many-shares", format!("There are too many shares of {of}"))
                .hint("Revoke some: connect share list"),
            Self::TooManySessions { whose } =>
                row(503, "too-many-sessions", format!("This {whose} has too many sessions open"))
                .hint("Close some of its connections, or try again in a moment"),
            // Sessions.
            Self::Offline(service) => row(503, "offline", format!("{} is offline", service.name))
                .hint(format!("Its agent is not connected; start it there: connect expose {} {}",
                    service.name, service.target_port)),
            Self::AgentAtOtherHub { service, hub } =>
                row(421, "agent-at-other-hub", format!("The agent of {service} is at another hub"))
                .hint(format!("Ask {hub}")),
            Self::BadTicket => row(403, "bad-ticket", "This ticket is not valid")
                .hint("Tickets work once, for 15 seconds"),
            Self::RelayOverTls => row(400, "relay-over-tls", "The relay is not spoken over TLS")
                .hint("Use the address that the hub named"),
            Self::Declined => row(503, "declined", "The agent declined"),
            Self::PartnerMissing => row(504, "partner-missing", "The other end did not come")
                .hint(IN_A_MOMENT),
            Self::Draining => row(503, "draining", "The hub is about to end, and takes no new sessions")
                .hint("Its operator is upgrading it; open connections go on. Try again in a few minutes"),
            // The hub itself.
            Self::StoreFailed => row(503, "store", "The hub cannot write to its data folder")
                .hint("Tell the operator of the hub; nothing was changed"),
            Self::FleetStoreAway =>
                row(503, "fleet-store-away",
                    "The hub cannot reach the store of its fleet, so nothing can be changed now")
                .hint("Try again in a moment; open sessions go on"),
            Self::AnswerFailed => row(500, "answer-failed", "The hub failed to write its answer"),
            Self::DirectForbidden => row(403, "direct-forbidden", "This hub allows no sessions without its relay")
                .hint("Ask for a session that is not direct"),
            Self::OtherHubAway => row(504, "other-hub-away", "The agent's hub cannot be reached").hint(IN_A_MOMENT),
            Self::OtherHub(reply) => row(reply.status, "other-hub", ""),
        }
    }
}

fn take_over(name: &Name, by: &str) -> String {
    format!("Choose another name. With the key of {by} or an admin's: connect expose {name} PORT --take-over")
}

const IN_A_MOMENT: &str = "Try again in a moment";
