//! Who may do what at the hub.

use std::net::IpAddr;

use serde::Deserialize;
use serde::Serialize;

use super::address_block::AddressBlock;
use super::name::Name;
use super::name::NamePattern;
use super::text::counted;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// May do everything, and manage keys.
    Admin,
    /// May expose, reach, share and join.
    Member,
    /// May expose and share its own services, and sees no others: the right key for servers.
    Expose,
    /// May only join shares: the right key for CI.
    Join,
    /// May only read the metrics.
    Metrics,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// See the workspace's services and agents; without `Reach` only its own.
    Look,
    /// Register an agent, expose services.
    Expose,
    /// Open a session to a service by its name.
    Reach,
    /// Make, list and revoke shares.
    Share,
    /// Look at a share, join it, open sessions to its services.
    Join,
    /// Read the metrics.
    Measure,
    /// Make, list and revoke keys; approve devices.
    Administer,
    /// Exchange a use of the key for a key of the machine's own.
    Enrol,
}

impl Role {
    pub fn parse(text: &str) -> Option<Self> {
        let all = [Self::Admin, Self::Member, Self::Expose, Self::Join, Self::Metrics];
        all.into_iter().find(|role| role.as_str() == text)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Member => "member",
            Self::Expose => "expose",
            Self::Join => "join",
            Self::Metrics => "metrics",
        }
    }

    pub fn may(self, action: Action) -> bool {
        match self {
            Self::Admin => action != Action::Enrol,
            Self::Member => !matches!(action, Action::Administer | Action::Measure | Action::Enrol),
            Self::Expose => matches!(action, Action::Look | Action::Expose | Action::Share),
            Self::Join => action == Action::Join,
            Self::Metrics => action == Action::Measure,
        }
    }
}

/// What narrows a key's role. An empty list narrows nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyLimits {
    /// The names that it may expose, reach and share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<NamePattern>,
    /// The addresses that it may be used from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<AddressBlock>,
    /// How many machines it may still enrol. Such a key is good for nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses_left: Option<u32>,
}

impl KeyLimits {
    pub fn allows_name(&self, name: &Name) -> bool {
        self.only.is_empty() || self.only.iter().any(|pattern| pattern.matches(name))
    }

    pub fn allows_address(&self, address: IpAddr) -> bool {
        self.from.is_empty() || self.from.iter().any(|block| block.contains(address))
    }

    /// `only staging-*, from 10.0.0.0/8, 3 uses left`; empty if there are none.
    pub fn in_words(&self) -> String {
        let only = (!self.only.is_empty()).then(|| format!("only {}", listed(&self.only)));
        let from = (!self.from.is_empty()).then(|| format!("from {}", listed(&self.from)));
        let uses = self.uses_left.map(|left| format!("{} left", counted(left, "use")));
        [only, from, uses].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

fn listed(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// A secret of an API key, or the hub's pin in it, in base32.
const KEY_PART_LENGTH: usize = 26;

/// What is wrong with the form of an API key, which is `pc_SECRET` or `pc_SECRET.PIN`.
pub fn key_flaw(key: &str) -> Option<&'static str> {
    let parts = key.strip_prefix("pc_").map(|key| key.split_once('.').unwrap_or((key, "")));
    let Some((secret, pin)) = parts else { return Some("it does not begin with pc_") };
    let is_plain = |part: &str| part.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'));
    if secret.len().max(pin.len()) > KEY_PART_LENGTH {
        Some("it is too long, as if it was pasted twice or has spaces inside")
    } else if !is_plain(secret) || !is_plain(pin) {
        Some("it has spaces inside, or characters that no key has")
    } else {
        let is_whole =
            secret.len() == KEY_PART_LENGTH && (pin.len() == KEY_PART_LENGTH || !key.contains('.'));
        (!is_whole).then_some("its end is missing")
    }
}

/// The sender of a request, after the hub has checked its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    Key {
        id: String,
        label: String,
        role: Role,
        workspace: String,
        limits: KeyLimits,
    },
    /// Somebody with the link of one share.
    Link {
        share: String,
        /// The key that made the share.
        key: String,
        workspace: String,
    },
    /// The hub itself, or a command on its machine that can read its data folder.
    Local,
}

pub const DEFAULT_WORKSPACE: &str = "default";

impl Principal {
    pub fn may(&self, action: Action) -> bool {
        match self {
            Self::Key { limits, .. } if limits.uses_left.is_some() => action == Action::Enrol,
            Self::Key { role, .. } => role.may(action),
            Self::Link { .. } => action == Action::Join,
            Self::Local => true,
        }
    }

    /// Whether the limits of its key leave this name. What a link opens was checked when its share was made.
    pub fn may_use(&self, name: &Name) -> bool {
        match self {
            Self::Key { limits, .. } => limits.allows_name(name),
            Self::Link { .. } | Self::Local => true,
        }
    }

    /// Whether no service of its workspace is hidden from it.
    pub fn sees_all(&self) -> bool {
        match self {
            Self::Key { role, limits, .. } => role.may(Action::Reach) && limits.only.is_empty(),
            Self::Link { .. } => false,
            Self::Local => true,
        }
    }

    pub fn workspace(&self) -> &str {
        match self {
            Self::Key { workspace, .. } | Self::Link { workspace, .. } => workspace,
            Self::Local => DEFAULT_WORKSPACE,
        }
    }

    /// Its name in the audit log and in the list of joiners.
    pub fn label(&self) -> &str {
        match self {
            Self::Key { label, .. } => label,
            Self::Link { .. } => "link",
            Self::Local => "local",
        }
    }

    /// The key that what it holds counts on: its own, or the one that made the link.
    pub fn liable_key(&self) -> &str {
        match self {
            Self::Link { key, .. } => key,
            own => own.id(),
        }
    }

    /// Its ID. Rate limits count by it, and running sessions are bound to it.
    pub fn id(&self) -> &str {
        match self {
            Self::Key { id, .. } => id,
            Self::Link { share, .. } => share,
            Self::Local => "local",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_may_do_what_it_says_and_no_more() {
        use Action::{Administer, Expose, Join, Look, Measure, Reach, Share};
        for action in [Look, Expose, Reach, Share, Join, Measure, Administer] {
            assert!(Role::Admin.may(action));
            assert_eq!(Role::Member.may(action), action != Administer && action != Measure);
            assert_eq!(Role::Expose.may(action), [Look, Expose, Share].contains(&action));
            assert_eq!(Role::Join.may(action), action == Join);
            assert_eq!(Role::Metrics.may(action), action == Measure);
        }
        assert_eq!(Role::parse("member"), Some(Role::Member));
        assert_eq!(Role::parse("root"), None);
    }
}
