//! A response on its way back: read from the service, checked, and written for the client with a head of our own.
//!
//! A response that is cut short or invalid never looks complete. Before its head has been sent, the client gets a 502;
//! after that, the client's connection is cut.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::client::ClientWriter;
use super::current_request::CurrentRequest;
use crate::http::body::Body;
use crate::http::body::BodyWalker;
use crate::http::body::response_body;
use crate::http::forward::ResponseForwarding;
use crate::http::forward::body_for;
use crate::http::forward::write_last_chunk;
use crate::http::forward::write_response;
use crate::http::head::HEAD_LIMIT;
use crate::http::head::HttpVersion;
use crate::http::head::ResponseHead;
use crate::http::head::parse_response;
use crate::net::connect::is_timeout;
use crate::os::splice::SpliceOutcome;
use crate::os::splice::SplicePipe;
use crate::proxy::recent_requests::RecentRequests;
use crate::proxy::recent_requests::ShownFields;
use crate::proxy::upstream::ReadFault;
use crate::proxy::upstream::UpstreamReader;

/// A service may take this long before it answers; browsers wait half as long at most.
const SERVICE_ANSWER_TIMEOUT: Duration = Duration::from_mins(10);
/// 1xx responses before the real one. Servers send one or two; a stream of them would keep both ends busy.
const INTERIM_LIMIT: usize = 32;
/// The most that one read takes of a body.
const BODY_READ_LIMIT: usize = 128 * 1024;
/// From this size on, a pipe between the two sockets is worth making.
const SPLICE_MINIMUM: u64 = 256 * 1024;

/// A response that the client has got in full.
#[derive(Debug, PartialEq, Eq)]
pub struct PassedResponse {
    pub status: u16,
    pub keeps_client: bool,
    pub keeps_service: bool,
    /// It was a 101: what follows is another protocol.
    pub switched: bool,
    /// Of the body.
    pub bytes: u64,
    /// For the page; empty while nobody looks.
    pub shown_fields: ShownFields,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseFault {
    /// Not one byte of a response came.
    Silent,
    Invalid(&'static str),
    TooLate,
    ClientLeft,
    /// The head has been sent, and the rest will not follow. `quietly`: the framing shows that to the client, so no
    /// reset is needed.
    Cut {
        status: u16,
        quietly: bool,
    },
}

/// Passes the response to the client: first the interim responses, then the head, then the body. `request_read` tells
/// whether the request's body has been read to its end; only then both connections can be kept.
pub fn pass(
    service: &mut UpstreamReader,
    request: &CurrentRequest,
    client: &mut ClientWriter,
    request_read: &AtomicBool,
    recent: &RecentRequests,
) -> Result<PassedResponse, ResponseFault> {
    client.out.clear();
    let mut interim = 0;
    loop {
        let parsed = parse_response(service.buffer.unread());
        let Some(head) = parsed.map_err(|bad| ResponseFault::Invalid(bad.reason()))? else {
            read_head(service, client)?;
            continue;
        };
        let length = head.length;
        if is_interim(&head, request) {
            interim += 1;
            if head.status == 101 {
                return Err(ResponseFault::Invalid("it switches protocols without being asked"));
            }
            if interim > INTERIM_LIMIT {
                return Err(ResponseFault::Invalid("it sent too many interim (1xx) responses"));
            }
            if request.version == HttpVersion::Http11 {
                let bare = ResponseForwarding { client: request.version, body: Body::None, keep_alive: true };
                write_response(&head, &bare, &mut client.out);
            }
            service.buffer.consume(length);
            flush(client)?;
            continue;
        }
        let body =
            response_body(&request.method, &head).map_err(|bad| ResponseFault::Invalid(bad.reason()))?;
        let client_body = body_for(request.version, body);
        let request_read = request_read.load(Ordering::SeqCst);
        let mut passed = PassedResponse {
            status: head.status,
            keeps_client: request.keep_alive && request_read && client_body != Body::UntilClose,
            keeps_service: head.fields.keep_alive(head.version) && request_read && body != Body::UntilClose,
            switched: head.status == 101,
            bytes: 0,
            shown_fields: recent.shown_fields(&head.fields),
        };
        let forwarding = ResponseForwarding {
            client: request.version,
            body: client_body,
            keep_alive: passed.keeps_client,
        };
        write_response(&head, &forwarding, &mut client.out);
        service.buffer.consume(length);
        if passed.switched {
            flush(client)?;
            return Ok(passed);
        }
        let status = passed.status;
        let mut body = ResponseBody { service, client, walker: BodyWalker::new(body), client_body, status };
        body.pass()?;
        passed.bytes = body.walker.content();
        // Bytes after a response belong to no request.
        passed.keeps_service &= service.buffer.is_drained();
        return Ok(passed);
    }
}

fn read_head(service: &mut UpstreamReader, client: &ClientWriter) -> Result<(), ResponseFault> {
    let nothing_yet = service.buffer.is_empty();
    match service.read_for(&client.socket, Some(SERVICE_ANSWER_TIMEOUT), HEAD_LIMIT) {
        Ok(1..) => Ok(()),
        Err(ReadFault::ClientLeft) => Err(ResponseFault::ClientLeft),
        Err(ReadFault::TimedOut) => Err(ResponseFault::TooLate),
        Ok(0) | Err(ReadFault::Failed) if nothing_yet => Err(ResponseFault::Silent),
        Ok(0) | Err(ReadFault::Failed) => Err(ResponseFault::Invalid("it ended within its head")),
    }
}

fn is_interim(head: &ResponseHead<'_>, request: &CurrentRequest) -> bool {
    matches!(head.status, 100..=199) && !(head.status == 101 && request.upgrade)
}

fn flush(client: &mut ClientWriter) -> Result<(), ResponseFault> {
    client.flush().map_err(|_| ResponseFault::ClientLeft)
}

/// A body that is being passed on. Its head is in `client.out`, and goes out in one write with the first part of the body.
struct ResponseBody<'a> {
    service: &'a mut UpstreamReader,
    client: &'a mut ClientWriter,
    walker: BodyWalker,
    /// The framing towards the client.
    client_body: Body,
    status: u16,
}

impl ResponseBody<'_> {
    /// Passes the whole body on: first what has arrived with the head, then by `splice` if that is worth it, then the rest
    /// through the buffer, which is widened for large bodies.
    fn pass(&mut self) -> Result<(), ResponseFault> {
        self.send_buffered()?;
        self.splice()?;
        while !self.walker.ended() {
            let large = self.walker.ahead().is_none_or(|ahead| ahead > BODY_READ_LIMIT as u64);
            if large || self.service.buffer.is_full() {
                self.service.buffer.widen(BODY_READ_LIMIT);
            }
            let read = self.service.read_for(&self.client.socket, None, BODY_READ_LIMIT);
            if read.map_err(|fault| self.fault(fault))? == 0 {
                self.walker.end_of_stream().map_err(|_| self.cut())?;
                if self.client_body == Body::Chunked {
                    write_last_chunk(&self.walker.trailers(), &mut self.client.out);
                }
            }
            self.send_buffered()?;
        }
        self.service.buffer.shrink();
        Ok(())
    }

    /// Sends the part of the body that has arrived, after what waits in `client.out`. Content that needs no framing is
    /// written from the buffer that it was read into.
    fn send_buffered(&mut self) -> Result<(), ResponseFault> {
        if self.client_body == Body::Chunked {
            let moved = self.service.buffer.move_body(&mut self.walker, true, &mut self.client.out);
            flush(self.client)?;
            return moved.map_err(|_| self.cut());
        }
        while !self.walker.ended() && !self.service.buffer.is_empty() {
            let step = self.walker.step(self.service.buffer.unread()).map_err(|_| self.cut())?;
            let content = &self.service.buffer.unread()[step.payload];
            self.client.write_with_rest(content).map_err(|_| ResponseFault::ClientLeft)?;
            self.service.buffer.consume(step.used);
        }
        flush(self.client)
    }

    /// A large body of known length goes from socket to socket inside the kernel, where nothing has to be encrypted.
    fn splice(&mut self) -> Result<(), ResponseFault> {
        let (Body::Length(_), Some(client)) = (self.client_body, self.client.stream.plain()) else {
            return Ok(());
        };
        if !self.service.buffer.is_plain() || self.walker.ahead().is_none_or(|ahead| ahead < SPLICE_MINIMUM) {
            return Ok(());
        }
        let Ok(pipe) = SplicePipe::new() else { return Ok(()) };
        while let Some(ahead @ 1..) = self.walker.ahead() {
            match pipe.transfer(&self.service.socket, client, ahead) {
                SpliceOutcome::Bytes(0) => return Err(self.cut()),
                SpliceOutcome::Bytes(count) => self.walker.pass(count),
                SpliceOutcome::ReadFailed(error) if is_timeout(&error) => {
                    let waited = self.service.wait_for(&self.client.socket, None);
                    waited.map_err(|fault| self.fault(fault))?;
                }
                SpliceOutcome::ReadFailed(error) if error.kind() == io::ErrorKind::Interrupted => {}
                SpliceOutcome::ReadFailed(_) => return Err(self.cut()),
                SpliceOutcome::WriteFailed => return Err(ResponseFault::ClientLeft),
            }
        }
        Ok(())
    }

    fn cut(&self) -> ResponseFault {
        ResponseFault::Cut { status: self.status, quietly: self.client_body != Body::UntilClose }
    }

    fn fault(&self, read: ReadFault) -> ResponseFault {
        match read {
            ReadFault::ClientLeft => ResponseFault::ClientLeft,
            ReadFault::Failed | ReadFault::TimedOut => self.cut(),
        }
    }
}
