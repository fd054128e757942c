//! What is still needed of a request after its bytes have been consumed. All requests of a connection share one, so that
//! its memory is reused.

use std::time::Instant;

use crate::http::body::Body;
use crate::http::forward::is_connection_login;
use crate::http::forward::is_upgrade;
use crate::http::head::HttpVersion;
use crate::http::head::RequestHead;
use crate::proxy::recent_requests::ShownFields;

pub struct CurrentRequest {
    pub method: String,
    pub target: String,
    /// The service that its host names; empty where it names none.
    pub service: String,
    pub version: HttpVersion,
    pub body: Body,
    pub keep_alive: bool,
    pub upgrade: bool,
    /// See `http::forward::is_connection_login`.
    pub connection_login: bool,
    pub began: Instant,
    /// For the page; empty while nobody looks.
    pub shown_fields: ShownFields,
    /// What is sent to the service first: the rewritten head, and the part of the body that has arrived.
    pub outgoing: Vec<u8>,
}

impl CurrentRequest {
    pub fn new() -> Self {
        Self {
            method: String::new(),
            target: String::new(),
            service: String::new(),
            version: HttpVersion::Http11,
            body: Body::None,
            keep_alive: false,
            upgrade: false,
            connection_login: false,
            began: Instant::now(),
            shown_fields: Vec::new(),
            outgoing: Vec::new(),
        }
    }

    /// Replaces the previous request.
    pub fn begin(&mut self, request: &RequestHead<'_>, body: Body, shown_fields: ShownFields) {
        request.method.clone_into(&mut self.method);
        request.target.clone_into(&mut self.target);
        self.service.clear();
        self.version = request.version;
        self.body = body;
        self.keep_alive = request.fields.keep_alive(request.version);
        self.upgrade = is_upgrade(request);
        self.connection_login = is_connection_login(request);
        self.began = Instant::now();
        self.shown_fields = shown_fields;
        self.outgoing.clear();
    }

    /// Whether sending it twice does what sending it once does (RFC 9110 9.2.1).
    pub fn is_safe(&self) -> bool {
        matches!(self.method.as_str(), "GET" | "HEAD" | "OPTIONS" | "TRACE")
    }

    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    pub fn has_body(&self) -> bool {
        !matches!(self.body, Body::None | Body::Length(0))
    }
}
