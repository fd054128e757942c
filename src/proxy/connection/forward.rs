//! One exchange with a service: the request goes to it, and its response comes back.

use std::io::Write;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use super::AfterRequest;
use super::ProxyClient;
use super::client::ClientWriter;
use super::client::DRAIN_TIMEOUT;
use super::response;
use super::response::PassedResponse;
use super::response::ResponseFault;
use super::upload::ExchangeProgress;
use super::upload::Upload;
use super::upload::UploadEnd;
use crate::http::body::Body;
use crate::http::body::BodyWalker;
use crate::http::reply::Reply;
use crate::net::threads::THREAD_STACK;
use crate::os::socket::reset_on_close;
use crate::proxy::refusal;
use crate::proxy::route_table::ProxyRoute;
use crate::proxy::upstream::NOT_RESPONDING;
use crate::proxy::upstream::Upstream;

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
            let dialled = idle.map_or_else(|| self.context.dial(route, route.secure), Ok);
            let mut upstream = match dialled {
                Ok(upstream) => upstream,
                Err(why) => {
                    return self.reply_gateway(&refusal::bad_gateway(&route.name, why), walker.ended());
                }
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
        let progress = ExchangeProgress::new(walker.ended());
        let writer = &mut self.client.writer;
        if walker.ended() {
            let passed = response::pass(&mut upstream.reader, &self.request, writer, &progress.request_read);
            return (passed, UploadEnd::Complete);
        }
        let upload = Upload {
            reader: &mut self.client.reader,
            slot: &self.slot,
            walker,
            service: &mut upstream.writer,
            socket: Arc::clone(&upstream.reader.socket),
            chunked: self.request.body == Body::Chunked,
            progress: &progress,
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
            let passed = response::pass(&mut upstream.reader, &self.request, writer, &progress.request_read);
            progress.response_done.store(true, Ordering::SeqCst);
            if passed.is_err() {
                upstream.reader.cut();
            }
            if let Ok(upload) = upload_end.recv_timeout(UPLOAD_END_GRACE) {
                return (passed, upload);
            }
            // The client is still sending. It gets our reply now, if the service gave no response.
            if let Some(reply) = passed.as_ref().err().and_then(|fault| gateway_reply(route, *fault)) {
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
                self.record(passed.status);
                AfterRequest::Relay(upstream.into_duplex())
            }
            (Ok(passed), upload) => {
                self.record(passed.status);
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
                self.record(gateway_reply(route, fault).map_or(0, |reply| reply.status));
                AfterRequest::Close
            }
            (Err(_), UploadEnd::Invalid(bad)) => self.reject(&refusal::bad_body(bad)),
            (Err(_), UploadEnd::Stalled) => self.reject(&refusal::timed_out()),
            (Err(fault), UploadEnd::Complete) => match gateway_reply(route, fault) {
                Some(reply) => self.reply_gateway(&reply, true),
                None => AfterRequest::Close,
            },
        }
    }

    /// Answers in the service's place. `request_read`: the request's body has been read to its end, so the connection can
    /// be kept.
    fn reply_gateway(&mut self, reply: &Reply, request_read: bool) -> AfterRequest {
        self.record(reply.status);
        self.write_reply(reply, self.request.keep_alive && request_read)
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

/// The answer to the client if the service gave no usable response.
fn gateway_reply(route: &ProxyRoute, fault: ResponseFault) -> Option<Reply> {
    let (status, error) = match fault {
        ResponseFault::Silent => (502, NOT_RESPONDING.to_owned()),
        ResponseFault::TooLate => (504, "Gateway Timeout: the service took too long to answer.".to_owned()),
        ResponseFault::Invalid(why) => {
            (502, format!("Bad Gateway: the service's answer is not valid: {why}."))
        }
        ResponseFault::ClientLeft | ResponseFault::Cut { .. } => return None,
    };
    Some(Reply { status, ..refusal::bad_gateway(&route.name, &error) })
}
