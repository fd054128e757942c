//! The hub's pages: what it is, approving a login, and what a share link is for. Their texts are in `pages/`.

use std::time::Duration;

use super::access;
use super::access::UnknownCall;
use super::api_call::ApiCall;
use super::core::Core;
use super::logins;
use super::refusal::Refusal;
use crate::http::reply::Reply;
use crate::http::reply::escaped;
use crate::model::access::Action;
use crate::model::access::Role;
use crate::model::time::in_words;
use crate::os::secret;
use crate::wire::api::ApproveDevice;

const FRAME: &str = include_str!("pages/frame.html");
const HOME: &str = include_str!("pages/home.html");
const CODE_FORM: &str = include_str!("pages/code.html");
const APPROVAL_FORM: &str = include_str!("pages/approve.html");
const APPROVED: &str = include_str!("pages/approved.html");
const JOIN: &str = include_str!("pages/join.html");

pub fn home(call: &ApiCall<'_>, core: &Core) -> Reply {
    let version = [("version", env!("CARGO_PKG_VERSION").to_owned())];
    page(200, "connect hub", HOME, version.into_iter().chain(about_hub(call, core)))
}

pub fn code_form(call: &ApiCall<'_>, core: &Core) -> Reply {
    show_code_form(call, core, 200, "", "")
}

pub fn share_link() -> Reply {
    page(200, "Somebody shares with you", JOIN, [])
}

/// The answer to both forms. The first has only the code: the answer shows which machine it would let in, since somebody may
/// have been talked into typing it. The second has the key as well. The user types it each time; no cookie holds it, so
/// another site cannot send it.
pub fn approve(call: &ApiCall<'_>, core: &Core) -> Reply {
    let field = |name| form_value(&call.request.body, name);
    let code = field("code").unwrap_or_default();
    let Some(key) = field("key") else {
        return show_approval_form(call, core, &code, 200, "");
    };
    let role = field("role").as_deref().and_then(Role::parse);
    let order = ApproveDevice { code: code.clone(), role, workspace: None };
    match approve_as_admin(call, core, &key, &order) {
        Ok(label) => page(200, "Approved", APPROVED, [("label", label)]),
        Err(refusal) => {
            let refusal = core.refusals.text(&refusal);
            show_approval_form(call, core, &code, refusal.status, &refusal.what)
        }
    }
}

/// Checks the key itself: it is in the form and not in a header, so the table of endpoints requires none. Returns the
/// machine's label.
fn approve_as_admin(
    call: &ApiCall<'_>,
    core: &Core,
    key: &str,
    order: &ApproveDevice,
) -> Result<String, Refusal> {
    let (address, action) = (call.origin.address, Some(Action::Administer));
    let asked =
        UnknownCall { key, address, action, name: "POST /device".to_owned(), refused: "call.refused" };
    let principal = access::admit(core, &asked, call.now)?;
    let admin_call = ApiCall { request: call.request, principal, parts: Vec::new(), ..*call };
    Ok(logins::approve_code(core, &admin_call, order)?.label)
}

fn show_code_form(call: &ApiCall<'_>, core: &Core, status: u16, code: &str, error: &str) -> Reply {
    let values = [("error", error.to_owned()), ("code", code.to_owned())];
    page(status, "Approve a login", CODE_FORM, values.into_iter().chain(about_hub(call, core)))
}

/// Asks for the key, under what the admin should know first. Without a login that waits, asks for the code again.
fn show_approval_form(call: &ApiCall<'_>, core: &Core, code: &str, status: u16, error: &str) -> Reply {
    let login = match logins::waiting(core, call, code) {
        Ok(login) => login,
        Err(refusal) => {
            let refusal = core.refusals.text(&refusal);
            return show_code_form(call, core, refusal.status, code, &refusal.what);
        }
    };
    let values = [
        ("error", error.to_owned()),
        ("code", code.to_owned()),
        ("label", login.label),
        ("address", login.address.to_string()),
        ("age", in_words(Duration::from_secs(login.age_seconds))),
    ];
    let values = values.into_iter().chain(about_hub(call, core));
    page(status, "Approve this login?", APPROVAL_FORM, values)
}

/// The hub as the browser's user knows it.
fn about_hub(call: &ApiCall<'_>, core: &Core) -> [(&'static str, String); 2] {
    let host = call.request.field("host").unwrap_or("localhost").to_owned();
    let pin =
        core.key_pin().map_or("none, its certificate is a public one".to_owned(), |pin| pin.to_string());
    [("hub", host), ("pin", pin)]
}

/// A page in our frame, with the fields that protect it: nothing from elsewhere, no framing, forms only to this hub, and
/// only our own style and script.
fn page(
    status: u16,
    title: &str,
    template: &str,
    values: impl IntoIterator<Item = (&'static str, String)>,
) -> Reply {
    let nonce = secret::secret();
    let mut escaped_values: Vec<(&str, String)> =
        values.into_iter().map(|(name, value)| (name, escaped(&value))).collect();
    escaped_values.extend([("title", escaped(title)), ("nonce", nonce.clone())]);
    let body = filled(template, &escaped_values);
    escaped_values.push(("body", body));
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; img-src data:; \
         form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    );
    Reply::html(status, filled(FRAME, &escaped_values))
        .field("content-security-policy", policy)
        .field("x-content-type-options", "nosniff")
        .field("referrer-policy", "no-referrer")
        .field("cache-control", "no-store")
}

/// Puts each value in the place of its `{{name}}`, in one pass: a value that looks like a place stays as it is.
fn filled(template: &str, values: &[(&str, String)]) -> String {
    let mut parts = template.split("{{");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once("}}").unwrap_or((part, ""));
        let value = values.iter().find(|(known, _)| *known == name);
        text.push_str(value.map_or("", |(_, value)| value));
        text.push_str(rest);
    }
    text
}

fn form_value(body: &[u8], name: &str) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let value = text.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    crate::http::message::decoded(&value.replace('+', " "))
}
