//! One exchange with a service: the request goes to it, and its response comes back.

use std::io::Write;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use super::AfterRequest;
use super::ProxyClient;
use super::client::ClientWriter;
use super::client::DRAIN_TIMEOUT;
use super::current_request::CurrentRequest;
use super::response;
use super::response::PassedResponse;
use super::response::ResponseFault;
use super::upload::Upload;
use super::upload::UploadEnd;
use crate::http::body::Body;
use crate::http::body::BodyWalker;
use crate::model::service::Protocol;
use crate::net::threads::THREAD_STACK;
use crate::os::socket::reset_on_close;
use crate::proxy::context::ProxyContext;
use crate::proxy::refusal;
use crate::proxy::route_table::ProxyRoute;
use crate::proxy::trouble::Trouble;
use crate::proxy::upstream::Upstream;
use crate::proxy::upstream::UpstreamReader;

/// An upload that ends within this time of its response is taken to have ended with it.
const UPLOAD_END_GRACE: Duration = Duration::from_millis(50);

impl ProxyClient<'_> {
    /// Sends the request on an idle connection to the service, or on a new one, and repeats it once at most for each
    /// idle connection that turns out to be dead.
    pub fn forward(&mut self, route: &ProxyRoute) -> AfterRequest {
        let mut walker = BodyWalker::new(self.request.body);
        let chunked = self.request.body == Body::Chunked;
        // The part of the body that has arrived goes with the head. It is checked before the service sees a byte.
        let moved = self.client.reader.move_body(&mut walker, chunked, &mut self.request.outgoing);
        if let Err(bad) = moved {
            return self.reject(&refusal::bad_body(bad));
        }
        let repeatable = walker.ended() && self.request.is_safe();
        loop {
            let idle = self.idle.take(route).filter(|idle| repeatable || idle.is_idle_and_open());
            let dialled =
                idle.map_or_else(|| self.context.dial(route, route.protocol == Protocol::Https), Ok);
            let mut upstream = match dialled {
                Ok(upstream) => upstream,
                Err(trouble) => return self.refuse(&trouble, walker.ended()),
            };
            let (response, upload) = self.exchange(route, &mut upstream, &mut walker);
            if response == Err(ResponseFault::Silent) && upstream.used && repeatable {
                // The connection had died while it was idle, so no service has seen the request.
                continue;
            }
            return self.conclude(route, upstream, response, upload);
        }
    }

    /// Sends what is ready. The response is read while the rest of the body, if any, is sent in a thread of its own.
    fn exchange(
        &mut self,
        route: &ProxyRoute,
        upstream: &mut Upstream,
        walker: &mut BodyWalker,
    ) -> (Result<PassedResponse, ResponseFault>, UploadEnd) {
        // A service that refuses a request early may close before it has taken all of it: its response still counts.
        let _ = upstream.writer.write_all(&self.request.outgoing);
        let (request_read, response_done) = (AtomicBool::new(walker.ended()), AtomicBool::new(false));
        let (recent, writer) = (&self.context.recent, &mut self.client.writer);
        if walker.ended() {
            let passed = response::pass(&mut upstream.reader, &self.request, writer, &request_read, recent);
            return (passed, UploadEnd::Complete);
        }
        let upload = Upload {
            reader: &mut self.client.reader,
            slot: &self.slot,
            walker,
            service: &mut upstream.writer,
            socket: Arc::clone(&upstream.reader.socket),
            chunked: self.request.body == Body::Chunked,
            request_read: &request_read,
            response_done: &response_done,
        };
        thread::scope(|scope| {
            let (done, upload_end) = mpsc::sync_channel(1);
            let builder = thread::Builder::new().name("upload".into()).stack_size(THREAD_STACK);
            let spawned = builder.spawn_scoped(scope, move || {
                let _ = done.send(upload.run());
            });
            if let Err(error) = spawned {
                log::warn!("cannot start a thread: {error}");
                return (Err(ResponseFault::Invalid("the proxy is out of threads")), UploadEnd::Stalled);
            }
            let passed = response::pass(&mut upstream.reader, &self.request, writer, &request_read, recent);
            response_done.store(true, Ordering::SeqCst);
            if passed.is_err() {
                upstream.reader.cut();
            }
            if let Ok(upload) = upload_end.recv_timeout(UPLOAD_END_GRACE) {
                return (passed, upload);
            }
            // The client is still sending. It gets our reply now, if the service gave no response.
            let fault = passed.as_ref().err();
            if let Some(trouble) =
                fault.and_then(|fault| trouble(self.context, route, &upstream.reader, *fault))
            {
                let CurrentRequest { service, outgoing, .. } = &self.request;
                let reply = refusal::gateway_failed(self.context, service, &trouble, outgoing);
                let _ = writer.write_reply(&reply, false, self.request.is_head());
            }
            drain_upload(writer, &upload_end);
            (passed, UploadEnd::Abandoned)
        })
    }

    /// Decides what the client gets and which connections are kept.
    ///
    /// A complete response counts first, even if the upload was not. Then come the faults after which nobody can be
    /// answered: the client has left, or it has the response's head already. Next, a fault of the upload explains the
    /// missing response better than a fault of the service does.
    fn conclude(
        &mut self,
        route: &ProxyRoute,
        mut upstream: Upstream,
        response: Result<PassedResponse, ResponseFault>,
        upload: UploadEnd,
    ) -> AfterRequest {
        match (response, upload) {
            (Ok(passed), UploadEnd::Complete) if passed.switched => {
                self.record_passed(&passed);
                AfterRequest::Relay(upstream.into_duplex())
            }
            (Ok(passed), upload) => {
                self.record_passed(&passed);
                let complete = upload == UploadEnd::Complete;
                upstream.personal |= self.request.connection_login || self.request.has_body();
                if passed.keeps_service && complete {
                    self.idle.keep(upstream);
                }
                if complete && passed.keeps_client {
                    AfterRequest::KeepAlive
                } else if complete && self.client.is_drained() {
                    AfterRequest::Close
                } else {
                    AfterRequest::Linger
                }
            }
            (Err(ResponseFault::ClientLeft), _) | (_, UploadEnd::ClientLeft) => {
                self.record(499);
                AfterRequest::Close
            }
            (Err(ResponseFault::Cut { status, quietly }), _) => {
                self.record(status);
                log::debug!("{} ended its response early", route.name);
                if !quietly {
                    reset_on_close(&self.client.writer.socket);
                }
                AfterRequest::Close
            }
            (Err(fault), UploadEnd::Abandoned) => {
                // The client has the reply already.
                if let Some(trouble) = trouble(self.context, route, &upstream.reader, fault) {
                    self.record_with(trouble.status, &trouble.reason, 0, &[]);
                }
                AfterRequest::Close
            }
            (Err(_), UploadEnd::Invalid(bad)) => self.reject(&refusal::bad_body(bad)),
            (Err(_), UploadEnd::Stalled) => self.reject(&refusal::timed_out()),
            (Err(fault), UploadEnd::Complete) => {
                match trouble(self.context, route, &upstream.reader, fault) {
                    Some(trouble) => self.refuse(&trouble, true),
                    None => AfterRequest::Close,
                }
            }
        }
    }
}

/// The client has its answer. The rest of its upload is read and dropped for a while, so that no reset overtakes the
/// answer.
fn drain_upload(writer: &mut ClientWriter, upload_end: &Receiver<UploadEnd>) {
    let _ = writer.stream.finish();
    if upload_end.recv_timeout(DRAIN_TIMEOUT).is_err() {
        let _ = writer.socket.shutdown(Shutdown::Read);
    }
}

/// What the client is told if the service gave no usable response.
fn trouble(
    context: &ProxyContext,
    route: &ProxyRoute,
    service: &UpstreamReader,
    fault: ResponseFault,
) -> Option<Trouble> {
    let answered = service.buffer.unread();
    match fault {
        ResponseFault::Silent => Some(context.why_no_response(route, b"")),
        ResponseFault::TooLate => Some(Trouble::too_late()),
        ResponseFault::Invalid(why) if answered.is_empty() || answered.starts_with(b"HTTP/") => {
            Some(Trouble::invalid(why))
        }
        ResponseFault::Invalid(_) => Some(context.why_no_response(route, answered)),
        ResponseFault::ClientLeft | ResponseFault::Cut { .. } => None,
    }
}
