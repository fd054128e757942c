//! The hub whose data folder is on this machine: asked over TLS while it runs, else opened here.
//!
//! The data folder is the credential: a user who can read it may do everything.

use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::call::Call;
use super::store_options::StoreOptions;
use crate::api::Hub;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::http::message::Request;
use crate::hub;
use crate::hub::Core;
use crate::hub::store;
use crate::model::fingerprint::Pin;
use crate::model::hub_trust::HubTrust;
use crate::net::address::HubUrl;
use crate::net::connect::reached_locally;
use crate::net::http_client;
use crate::os::files;
use crate::wire::api::NEXT_PAGE_FIELD;

/// A hub that starts or ends holds its data folder for less than this.
const FOLDER_LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const FOLDER_LOCK_POLL: Duration = Duration::from_millis(50);

/// `hub.json`, which a running hub writes into its data folder.
#[derive(Deserialize)]
struct HubNote {
    url: String,
    address: String,
    pin: String,
    token: String,
}

pub enum LocalHub {
    Running(Hub),
    Opened(Box<Core>),
}

impl LocalHub {
    pub fn find(call: &Call) -> Result<Self> {
        let data = data_folder(call)?;
        if StoreOptions::of(call, &data)?.read()?.is_none() && !data.join("certs").exists() {
            return Err(no_hub(&data));
        }
        Self::find_or_begin(call)
    }

    /// Also a hub that has never started: its data folder is made here.
    pub fn find_or_begin(call: &Call) -> Result<Self> {
        if let Some((hub, _)) = running(call)? {
            return Ok(Self::Running(hub));
        }
        let data = data_folder(call)?;
        let options = StoreOptions::of(call, &data)?;
        let deadline = Instant::now() + FOLDER_LOCK_TIMEOUT;
        loop {
            let mut settings = options.settings(&data)?;
            // A key for a hub that has yet to start: only the command line knows what will stand in front of it.
            settings.is_behind_proxy = call.args.flag("behind-proxy");
            if let Some(core) = Core::open(settings, &call.stop)? {
                return Ok(Self::Opened(Box::new(core)));
            }
            // A hub that is starting or ending, or another command like this one, has the folder.
            if Instant::now() >= deadline {
                return Err(Error::new("The hub holds its data folder, but does not say how to reach it")
                    .hint("Restart the hub, then try again"));
            }
            call.stop.wait_for(FOLDER_LOCK_POLL);
            call.fail_if_stopped()?;
            if let Some((hub, _)) = running(call)? {
                return Ok(Self::Running(hub));
            }
        }
    }

    /// A list of the API, to its end.
    pub fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
        let core = match self {
            Self::Running(hub) => return hub.list(path),
            Self::Opened(core) => core,
        };
        let (mut all, mut after) = (Vec::new(), Some(String::new()));
        while let Some(id) = after {
            let query = vec![("after".to_owned(), id)];
            let request =
                Request { method: "GET".to_owned(), path: path.to_owned(), query, ..Request::default() };
            let reply = hub::answer_locally(core, &request);
            let page = serde_json::from_slice::<Vec<T>>(&reply.body);
            all.extend(page.map_err(|_| http_client::refusal(reply.status, &reply.body))?);
            after = reply.fields.into_iter().find(|(name, _)| *name == NEXT_PAGE_FIELD).map(|(_, id)| id);
        }
        Ok(all)
    }

    /// Calls the API. An opened hub answers as a running one would.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        match self {
            Self::Running(hub) => hub.any(method, path, body),
            Self::Opened(core) => call_core(core, method, path, body),
        }
    }
}

/// Calls the API of a hub that this process holds.
pub fn call_core(core: &Core, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
    let request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        body: body.map(|body| body.to_string().into_bytes()).unwrap_or_default(),
        ..Request::default()
    };
    let reply = hub::answer_locally(core, &request);
    if !(200..300).contains(&reply.status) {
        return Err(http_client::refusal(reply.status, &reply.body));
    }
    Ok(serde_json::from_slice(&reply.body).unwrap_or_default())
}

pub fn data_folder(call: &Call) -> Result<PathBuf> {
    let given = call.args.value("data").map(PathBuf::from);
    let folder = given.unwrap_or_else(|| call.home.file("hub"));
    std::path::absolute(&folder).or_say(|| format!("Cannot use {}", folder.display()))
}

pub fn no_hub(data: &Path) -> Error {
    Error::new("There is no hub on this machine")
        .because(data.display().to_string())
        .hint("Start one: connect hub. If its data is in another folder, add --data DIR")
}

fn note(call: &Call) -> Result<Option<HubNote>> {
    let text = files::read(&data_folder(call)?.join(hub::NOTE_FILE))?;
    Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
}

/// Where clients reach the running hub, for a line that they type.
pub fn url(call: &Call) -> Result<String> {
    Ok(note(call)?.map_or_else(|| "URL".to_owned(), |note| note.url))
}

/// What only this run of the hub has. `None` without a note.
pub fn run_token(call: &Call) -> Option<String> {
    note(call).ok().flatten().map(|note| note.token)
}

/// The running hub and its pin. The note may be old, so it counts only if a hub with this pin answers.
pub fn running(call: &Call) -> Result<Option<(Hub, Pin)>> {
    // At the address of a hub that has ended, a service manager may accept in its place.
    let is_running = store::is_in_use(&data_folder(call)?);
    let Some(note) = note(call)?.filter(|_| is_running) else { return Ok(None) };
    let (Some(pin), Ok(address)) = (Pin::parse(&note.pin), note.address.parse::<SocketAddr>()) else {
        return Ok(None);
    };
    // The token in the note is the hub's own, and the pin keeps it from reaching anybody else.
    let url = HubUrl::parse(&reached_locally(address).to_string())?;
    let hub = Hub::new(vec![url], &HubTrust::Pin(pin), Some(note.token), &call.stop)?;
    Ok(hub.whoami().is_ok().then_some((hub, pin)))
}
