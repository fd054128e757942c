//! One call on its way: at the hub used last or, while that one is away, at the next of its fleet.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Hub;
use super::REGISTER_PATH;
use super::dialer::unreachable_hub;
use super::understand;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::text::one_line;
use crate::model::version;
use crate::model::version::Version;
use crate::net::address::HubUrl;
use crate::net::http;
use crate::os::lock::locked;

/// Lists of thousands of services are larger than any other answer.
const ANSWER_LIMIT: u64 = 16 * 1024 * 1024;

impl Hub {
    /// At the hub used last or, while that one is away, at the next that is there.
    pub fn at_any_hub<T>(
        &self,
        may_repeat: bool,
        call: impl Fn(&HubUrl) -> std::result::Result<T, CallFailure>,
    ) -> Result<(T, HubUrl)> {
        let (list, first) = {
            let hubs = locked(&self.dialer.hubs);
            (hubs.list.clone(), hubs.at)
        };
        let mut failure = None;
        for step in 0..list.len() {
            let at = &list[(first + step) % list.len()];
            match call(at) {
                Ok(done) => {
                    let mut hubs = locked(&self.dialer.hubs);
                    hubs.at = hubs.list.iter().position(|url| url == at).unwrap_or(0);
                    return Ok((done, at.clone()));
                }
                Err(CallFailure { error, nothing_done }) => {
                    // What may have been heard is not said to another one too.
                    if !nothing_done && (!may_repeat || error.kind != ErrorKind::Unreachable) {
                        return Err(error);
                    }
                    log::debug!("{at}: {error}");
                    failure = failure.or(Some(error));
                }
            }
        }
        Err(failure.unwrap_or_else(|| Error::new("There is no hub")))
    }

    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.read(&self.exchange("GET", path, &[], None)?)
    }

    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.read(&self.exchange("POST", path, &[], Some(&to_json(body)?))?)
    }

    pub fn read<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T> {
        serde_json::from_slice(bytes).map_err(|error| {
            Error::new(format!("{} does not answer as a hub does", self.url))
                .because(one_line(&error.to_string()))
                .hint("Check the address given with --hub")
        })
    }

    pub fn exchange(
        &self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Result<Vec<u8>> {
        let may_repeat = method == "GET" || path == REGISTER_PATH;
        let call = |url: &HubUrl| self.exchange_at(url, (method, path), fields, body);
        self.at_any_hub(may_repeat, call)?.0.content()
    }

    pub fn exchange_at(
        &self,
        url: &HubUrl,
        (method, path): (&str, &str),
        fields: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> std::result::Result<HubAnswer, CallFailure> {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{url}{path}"));
        request = request.header(version::FIELD, version::OURS.to_string());
        if let Some(key) = &self.key {
            request = request.header("x-api-key", key);
        }
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let odd = |_| Error::new("The API key has characters that a key never has");
        let answered = match body {
            Some(body) => {
                let request = request.header("content-type", "application/json").body(body).map_err(odd)?;
                self.run(request)
            }
            None => self.run(request.body(()).map_err(odd)?),
        };
        let mut answer = answered.map_err(|error| call_failure(url, error))?;
        let status = answer.status().as_u16();
        let speaks = answer.headers().get(version::FIELD).map(|said| said.to_str().unwrap_or_default());
        understand("The hub", "the hub's machine", Version::said(speaks))?;
        let read = answer.body_mut().with_config().limit(ANSWER_LIMIT).read_to_vec();
        let body = read.map_err(|error| call_failure(url, error))?;
        let goes_on = || serde_json::from_slice::<Value>(&body).is_ok_and(|body| body["elsewhere"] == true);
        if status == 503 && goes_on() {
            return Err(CallFailure { error: explain(status, &body), nothing_done: true });
        }
        Ok(HubAnswer { status, body })
    }

    fn run(
        &self,
        request: ureq::http::Request<impl ureq::AsSendBody>,
    ) -> std::result::Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        let in_time = self.agent.configure_request(request).timeout_global(Some(self.timeout));
        self.agent.run(in_time.build())
    }
}

pub fn to_json(body: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(body).or_say(|| "Cannot write the request")
}

/// A hub's answer, whatever it says.
pub struct HubAnswer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl HubAnswer {
    pub fn content(self) -> Result<Vec<u8>> {
        if (200..300).contains(&self.status) { Ok(self.body) } else { Err(explain(self.status, &self.body)) }
    }
}

/// A hub that was not there.
pub struct CallFailure {
    pub error: Error,
    /// It has surely done nothing of what it was asked for.
    pub nothing_done: bool,
}

impl From<Error> for CallFailure {
    fn from(error: Error) -> Self {
        Self { error, nothing_done: false }
    }
}

fn call_failure(url: &HubUrl, error: ureq::Error) -> CallFailure {
    let (error, nothing_done) = match error {
        ureq::Error::Other(inner) => match inner.downcast::<Error>() {
            Ok(ours) => (*ours, true),
            Err(inner) => (unreachable_hub(url, inner.to_string()), false),
        },
        ureq::Error::Timeout(_) => (unreachable_hub(url, "it did not answer in time".to_owned()), false),
        error => (unreachable_hub(url, error.to_string()), false),
    };
    CallFailure { error, nothing_done }
}

/// What a refusal means for the person who got it.
fn explain(status: u16, body: &[u8]) -> Error {
    let error = http::refusal(status, body);
    match (status, &error.hint) {
        (401, None) => error.hint("Run: connect up --hub URL --api-key KEY"),
        _ => error,
    }
}
