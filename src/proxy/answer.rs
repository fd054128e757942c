//! An answer on its way home: read from the service, judged, written anew for the client.
//!
//! What breaks off or is garbled never looks complete: before its head has gone home the client gets a
//! 502, behind it the connection is cut.

use std::io;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::current_request::CurrentRequest;
use super::read_buffer::ReadBuffer;
use super::upstream::Silence;
use super::upstream::Upstream;
use crate::http::bad_message::BadBody;
use crate::http::body::Body;
use crate::http::body::BodyWalker;
use crate::http::body::response_body;
use crate::http::chunks::write_chunk;
use crate::http::forward::ResponseForwarding;
use crate::http::forward::body_for;
use crate::http::forward::write_last_chunk;
use crate::http::forward::write_response;
use crate::http::head::HEAD_LIMIT;
use crate::http::head::HttpVersion;
use crate::http::head::ResponseHead;
use crate::http::head::parse_response;
use crate::net::connect::is_timeout;
use crate::net::duplex::Writer;
use crate::os::splice::SpliceOutcome;
use crate::os::splice::SplicePipe;

/// A service may think this long before it answers; browsers wait half as long at most.
const THINK: Duration = Duration::from_mins(10);
/// 1xx answers before the real one. Servers send one or two; a stream of them keeps everyone busy.
const INTERIM: usize = 32;
/// What a read of a body's next piece brings at most.
const CHUNK: usize = 128 * 1024;
/// From so much on, a pipe between the sockets is worth its making.
const BULK: u64 = 256 * 1024;

/// How an exchange ended for the two connections.
#[derive(Debug, PartialEq, Eq)]
pub struct Answered {
    pub status: u16,
    pub keeps_client: bool,
    pub keeps_service: bool,
    /// The answer was a 101: what follows is another protocol.
    pub switched: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not one byte of an answer came.
    Silent,
    /// It came, and is not valid.
    Garbled(&'static str),
    TooLate,
    ClientLeft,
    /// The head is on its way, and the rest will not follow. `quietly`: the client sees that without a reset.
    Cut {
        status: u16,
        quietly: bool,
    },
}

/// The client's end while an answer is on its way.
pub struct Home<'c> {
    pub writer: &'c mut Writer,
    pub socket: &'c TcpStream,
    /// Memory for what is written; empty between two answers.
    pub out: &'c mut Vec<u8>,
    /// Whether the client's request has been read to its end.
    pub heard_all: &'c AtomicBool,
}

pub fn pass_on(
    upstream: &mut Upstream,
    asked: &CurrentRequest,
    home: &mut Home<'_>,
) -> Result<Answered, Fault> {
    home.out.clear();
    let mut interim = 0;
    loop {
        let parsed = parse_response(upstream.inbox.unread());
        match parsed.map_err(|bad| Fault::Garbled(bad.reason()))? {
            None => read_head(upstream, home)?,
            Some(response) if is_interim(&response, asked) => {
                interim += 1;
                if interim > INTERIM || response.status == 101 {
                    return Err(Fault::Garbled("it does not come to its point"));
                }
                if asked.version == HttpVersion::Http11 {
                    write_response(
                        &response,
                        &ResponseForwarding { client: asked.version, body: Body::None, keep_alive: true },
                        home.out,
                    );
                }
                let length = response.length;
                upstream.inbox.consume(length);
                home.flush()?;
            }
            Some(response) => {
                let (plan, length) = (plan(&response, asked, home)?, response.length);
                upstream.inbox.consume(length);
                return deliver(upstream, plan, home);
            }
        }
    }
}

fn read_head(upstream: &mut Upstream, home: &Home<'_>) -> Result<(), Fault> {
    let nothing_yet = upstream.inbox.is_empty();
    match upstream.read_for(home.socket, Some(THINK), HEAD_LIMIT) {
        Ok(1..) => Ok(()),
        Err(Silence::ClientLeft) => Err(Fault::ClientLeft),
        Err(Silence::TooLong) => Err(Fault::TooLate),
        Ok(0) | Err(Silence::Failed) if nothing_yet => Err(Fault::Silent),
        Ok(0) | Err(Silence::Failed) => Err(Fault::Garbled("it broke off")),
    }
}

fn is_interim(response: &ResponseHead<'_>, asked: &CurrentRequest) -> bool {
    matches!(response.status, 100..=199) && !(response.status == 101 && asked.upgrade)
}

/// What is known about an answer once its head is.
struct Plan {
    answered: Answered,
    /// As the service frames it, and as the client gets it.
    from: Body,
    to: Body,
}

/// Appends the head to what goes home.
fn plan(response: &ResponseHead<'_>, asked: &CurrentRequest, home: &mut Home<'_>) -> Result<Plan, Fault> {
    let from = response_body(&asked.method, response).map_err(|bad| Fault::Garbled(bad.reason()))?;
    let to = body_for(asked.version, from);
    let heard_all = home.heard_all.load(Ordering::SeqCst);
    let keeps_client = asked.keep_alive && heard_all && to != Body::UntilClose;
    write_response(
        response,
        &ResponseForwarding { client: asked.version, body: to, keep_alive: keeps_client },
        home.out,
    );
    let answered = Answered {
        status: response.status,
        keeps_client,
        keeps_service: response.keeps_alive() && heard_all && from != Body::UntilClose,
        switched: response.status == 101,
    };
    Ok(Plan { answered, from, to })
}

/// The head and what has come of the body go in one write, every later piece as it comes.
fn deliver(upstream: &mut Upstream, plan: Plan, home: &mut Home<'_>) -> Result<Answered, Fault> {
    let Plan { mut answered, from, to } = plan;
    if answered.switched {
        home.flush()?;
        return Ok(answered);
    }
    let chunked = to == Body::Chunked;
    let mut walker = BodyWalker::new(from);
    let cut = Fault::Cut { status: answered.status, quietly: to != Body::UntilClose };
    send_content(&mut walker, &mut upstream.inbox, chunked, home)?.map_err(|_| cut)?;
    bulk(&mut walker, upstream, to, home).map_err(|bad| bad.unwrap_or(cut))?;
    while !walker.ended() {
        if upstream.inbox.is_full() || walker.ahead().is_none_or(|ahead| ahead > CHUNK as u64) {
            upstream.inbox.widen(CHUNK);
        }
        let ended = match upstream.read_for(home.socket, None, CHUNK) {
            Ok(0) => walker.end_of_stream().map(|()| true),
            Ok(_) => Ok(false),
            Err(Silence::ClientLeft) => return Err(Fault::ClientLeft),
            Err(_) => Err(BadBody::CutShort),
        };
        if ended.map_err(|_| cut)? && chunked {
            write_last_chunk(&walker.trailers(), home.out);
        }
        send_content(&mut walker, &mut upstream.inbox, chunked, home)?.map_err(|_| cut)?;
    }
    upstream.inbox.shrink();
    // What stands behind an answer belongs to no request.
    answered.keeps_service &= upstream.holds_nothing();
    Ok(answered)
}

/// A large body of known length goes from socket to socket, when nothing has to be encrypted. `None`: it broke off.
fn bulk(
    walker: &mut BodyWalker,
    upstream: &Upstream,
    to: Body,
    home: &Home<'_>,
) -> Result<(), Option<Fault>> {
    let (Body::Length(_), Some(client)) = (to, home.writer.plain()) else { return Ok(()) };
    if !upstream.reader.is_plain() || walker.ahead().is_none_or(|ahead| ahead < BULK) {
        return Ok(());
    }
    let Ok(pipe) = SplicePipe::new() else { return Ok(()) };
    while let Some(ahead @ 1..) = walker.ahead() {
        match pipe.transfer(&upstream.socket, client, ahead) {
            SpliceOutcome::Bytes(0) => return Err(None),
            SpliceOutcome::Bytes(count) => walker.pass(count),
            SpliceOutcome::ReadFailed(error) if is_timeout(&error) => {
                match upstream.wait_for(home.socket, None) {
                    Ok(()) => {}
                    Err(Silence::ClientLeft) => return Err(Some(Fault::ClientLeft)),
                    Err(_) => return Err(None),
                }
            }
            SpliceOutcome::ReadFailed(error) if error.kind() == io::ErrorKind::Interrupted => {}
            SpliceOutcome::ReadFailed(_) => return Err(None),
            SpliceOutcome::WriteFailed => return Err(Some(Fault::ClientLeft)),
        }
    }
    Ok(())
}

/// Sends what is here of a body behind what waits to be sent. Content that needs no framing goes out from where it
/// was read.
fn send_content(
    walker: &mut BodyWalker,
    inbox: &mut ReadBuffer,
    chunked: bool,
    home: &mut Home<'_>,
) -> Result<Result<(), BadBody>, Fault> {
    if chunked {
        let framed = frame(walker, inbox, chunked, home.out);
        return home.flush().map(|()| framed);
    }
    while !walker.ended() && !inbox.is_empty() {
        let step = match walker.step(inbox.unread()) {
            Ok(step) => step,
            Err(bad) => return Ok(Err(bad)),
        };
        home.writer.write_both(home.out, &inbox.unread()[step.payload]).map_err(|_| Fault::ClientLeft)?;
        inbox.consume(step.used);
    }
    home.flush().map(Ok)
}

/// Moves what is here of a body from the inbox to `out`, with its last chunk when it ends here.
pub fn frame(
    walker: &mut BodyWalker,
    inbox: &mut ReadBuffer,
    chunked: bool,
    out: &mut Vec<u8>,
) -> Result<(), BadBody> {
    let begun = !walker.ended();
    while !walker.ended() && !inbox.is_empty() {
        let step = walker.step(inbox.unread())?;
        let content = &inbox.unread()[step.payload];
        if chunked {
            write_chunk(content, out);
        } else {
            out.extend_from_slice(content);
        }
        inbox.consume(step.used);
    }
    if begun && walker.ended() && chunked {
        write_last_chunk(&walker.trailers(), out);
    }
    Ok(())
}

impl Home<'_> {
    fn flush(&mut self) -> Result<(), Fault> {
        if self.out.is_empty() {
            return Ok(());
        }
        let written = self.writer.write_all(self.out);
        self.out.clear();
        written.map_err(|_| Fault::ClientLeft)
    }
}
