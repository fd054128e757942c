//! What stays known of a request after its bytes are gone. The words lie in memory that is used again.

use std::time::Instant;

use crate::http::body::Body;
use crate::http::forward::is_upgrade;
use crate::http::forward::proves_for_the_connection;
use crate::http::head::HttpVersion;
use crate::http::head::RequestHead;

pub struct CurrentRequest {
    pub method: String,
    pub target: String,
    /// Of the route, or empty.
    pub service: String,
    pub version: HttpVersion,
    pub body: Body,
    pub keep_alive: bool,
    pub upgrade: bool,
    pub personal: bool,
    pub began: Instant,
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
            personal: false,
            began: Instant::now(),
        }
    }

    pub fn note(&mut self, request: &RequestHead<'_>, body: Body) {
        request.method.clone_into(&mut self.method);
        request.target.clone_into(&mut self.target);
        self.service.clear();
        self.version = request.version;
        self.body = body;
        self.keep_alive = request.keeps_alive();
        self.upgrade = is_upgrade(request);
        self.personal = proves_for_the_connection(request);
        self.began = Instant::now();
    }

    /// Whether asking twice does what asking once does (RFC 9110 9.2.1).
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
