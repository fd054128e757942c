//! The hub's two small pages: approving a login, and what a share link is for.

use std::time::Duration;

use super::access;
use super::api_call::ApiCall;
use super::core::Core;
use super::logins;
use super::refusal::Refusal;
use crate::http::reply::Reply;
use crate::http::reply::escaped;
use crate::model::access::Action;
use crate::model::time::in_words;
use crate::wire::api::ApproveDevice;
use crate::wire::api::WaitingLogin;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:32rem;margin:4rem auto;padding:0 1rem}\
label{display:block;margin:1rem 0 .2rem}input{font:inherit;width:100%;padding:.5rem;box-sizing:border-box}\
button{font:inherit;margin-top:1.5rem;padding:.5rem 1.5rem}code{background:#8882;padding:.1rem .3rem}\
@media(prefers-color-scheme:dark){body{background:#111;color:#eee}input,button{background:#222;color:#eee;border:1px solid #555}}";

/// Allows no scripts, nothing from elsewhere, no framing, and forms only to this hub.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// A page in our style, with the fields that protect it.
fn page(status: u16, title: &str, body: &str) -> Reply {
    let html = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style><main><h1>{title}</h1>{body}</main></html>"
    );
    Reply::html(status, html)
        .field("content-security-policy", POLICY)
        .field("x-content-type-options", "nosniff")
        .field("referrer-policy", "no-referrer")
        .field("cache-control", "no-store")
}

const FORM: &str = "<form method=post action=/device><label for=code>Code on the waiting machine</label>\
<input id=code name=code required autofocus autocomplete=off placeholder=ABCD-EFGH>\
<label for=key>Your admin key</label><input id=key name=key type=password required autocomplete=off placeholder=pc_…>\
<button>Continue</button></form><p>Or on the hub's machine: <code>connect hub approve CODE</code></p>";

pub fn approval_form() -> Reply {
    page(200, "Approve a login", FORM)
}

/// The answer to the form. The user types the key each time; no cookie holds it, so another site cannot send it.
pub fn approve(call: &ApiCall<'_>, core: &Core) -> Reply {
    match approve_as_admin(call, core) {
        Ok(page) => page,
        Err(refusal) => {
            let refusal = core.refusals.text(&refusal);
            page(refusal.status, "Not approved", &format!("<p>{}</p>{FORM}", escaped(&refusal.what)))
        }
    }
}

/// Checks the key itself: it is in the form and not in a header, so the table of endpoints requires none.
fn approve_as_admin(call: &ApiCall<'_>, core: &Core) -> Result<Reply, Refusal> {
    let field = |name| form_value(&call.request.body, name).unwrap_or_default();
    let (code, key) = (field("code"), field("key"));
    let principal = access::authenticate(core, &key, call.origin.address, call.now)?;
    access::allow(&core.audit, &principal, Action::Administer)?;
    let admin_call = ApiCall { request: call.request, principal, parts: Vec::new(), ..*call };
    if field("confirmed") == "yes" {
        let order = ApproveDevice { code, ..ApproveDevice::default() };
        let label = escaped(&logins::approve_code(core, &admin_call, &order)?.label);
        let text = format!("<p><b>{label}</b> is logged in. You may close this page.</p>");
        return Ok(page(200, "Approved", &text));
    }
    let login = logins::waiting(core, &admin_call, &code)?;
    Ok(confirmation(&login, &escaped(&code), &escaped(&key)))
}

/// The second step. A code that somebody was talked into typing shows here which machine it would let in.
fn confirmation(login: &WaitingLogin, code: &str, key: &str) -> Reply {
    let WaitingLogin { label, address, .. } = login;
    let (label, age) = (escaped(label), in_words(Duration::from_secs(login.age_seconds)));
    let body = format!(
        "<p>A machine that calls itself <b>{label}</b> asked from <b>{address}</b>, {age} ago. \
         Approve it only if you know it and started this login.</p>\
         <form method=post action=/device><input type=hidden name=confirmed value=yes>\
         <input type=hidden name=code value=\"{code}\"><input type=hidden name=key value=\"{key}\">\
         <button>Approve</button></form>"
    );
    page(200, "Approve this login?", &body)
}

pub fn share_link() -> Reply {
    let body = "<p>This link opens a teammate's services on your machine. It is for the command line; copy it whole:</p>\
                <p><code>connect join 'LINK'</code></p><p>What follows the # never leaves your browser.</p>";
    page(200, "A share link", body)
}

fn form_value(body: &[u8], name: &str) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let value = text.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    crate::http::message::decoded(&value.replace('+', " "))
}
