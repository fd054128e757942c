//! One request that goes on to its service, and the answer that comes home.

use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use super::answer;
use super::answer::Answered;
use super::answer::Fault;
use super::answer::Home;
use super::answer::frame;
use super::connection::Client;
use super::connection::Connection;
use super::connection::DRAIN_BYTES;
use super::connection::DRAIN_TIME;
use super::connection::Next;
use super::open_clients::OpenClient;
use super::read_buffer::ReadBuffer;
use super::refusal;
use super::route_table::ProxyRoute;
use super::switch;
use super::upstream::NOT_RESPONDING;
use super::upstream::Upstream;
use crate::http::bad_message::BadBody;
use crate::http::body::Body;
use crate::http::body::BodyWalker;
use crate::http::reply::Reply;
use crate::net::connect::is_timeout;
use crate::net::duplex::Reader;
use crate::net::duplex::Writer;
use crate::net::threads::THREAD_STACK;
use crate::os::socket::reset_on_close;

/// An upload of which nothing comes for so long is given up.
const BODY_PATIENCE: Duration = Duration::from_mins(2);
/// An upload that ends within this of its answer ended with it.
const NEARLY: Duration = Duration::from_millis(50);
const UPLOAD_CHUNK: usize = 64 * 1024;

impl Connection<'_> {
    pub fn forward(&mut self, route: &Arc<ProxyRoute>) -> Next {
        let mut walker = BodyWalker::new(self.asked.body);
        let chunked = self.asked.body == Body::Chunked;
        // What is here of the body goes with the head, and is judged before the service sees a byte.
        if let Err(bad) = frame(&mut walker, &mut self.client.inbox, chunked, &mut self.onward) {
            return self.refuse(&Reply::error(bad.status(), bad.reason(), ""));
        }
        let repeatable = walker.ended() && self.asked.is_safe();
        loop {
            let kept = self.shelf.take(route).filter(|kept| repeatable || kept.is_at_rest());
            let dialled = kept.map_or_else(|| self.context.dial(route, route.secure), Ok);
            let mut upstream = match dialled {
                Ok(upstream) => upstream,
                Err(why) => {
                    return self.gateway_trouble(&refusal::bad_gateway(&route.name, why), walker.ended());
                }
            };
            let (outcome, upload) = self.exchange(route, &mut upstream, &mut walker);
            if outcome == Err(Fault::Silent) && upstream.used && repeatable {
                // It died while it was idle: nobody can have seen the request.
                continue;
            }
            return self.conclude(route, Ended { upstream, heard_all: walker.ended(), outcome, upload });
        }
    }

    /// Sends what is ready, and reads the answer while the rest of the body, if any, is on its way.
    fn exchange(
        &mut self,
        route: &ProxyRoute,
        upstream: &mut Upstream,
        walker: &mut BodyWalker,
    ) -> (Result<Answered, Fault>, Upload) {
        // Whoever refuses a request early may close before it took all; what it says still counts.
        let _ = upstream.writer.write_all(&self.onward);
        let Client { reader, writer, socket, inbox } = &mut self.client;
        let heard_all = AtomicBool::new(walker.ended());
        let mut home = Home { writer, socket: &*socket, out: &mut self.homeward, heard_all: &heard_all };
        if walker.ended() {
            return (answer::pass_on(upstream, &self.asked, &mut home), Upload::Whole);
        }
        let over = AtomicBool::new(false);
        // For as long as two threads work on it, one writes and one reads.
        let mut service =
            std::mem::replace(&mut upstream.writer, Writer::Plain(Arc::clone(&upstream.socket)));
        let upload = Sending {
            reader,
            inbox,
            entry: self.entry,
            walker,
            service: &mut service,
            cut: Arc::clone(&upstream.socket),
            chunked: self.asked.body == Body::Chunked,
            heard_all: &heard_all,
            over: &over,
        };
        let ended = thread::scope(|scope| {
            let (done, ended) = mpsc::sync_channel(1);
            let spawned = thread::Builder::new().name("upload".into()).stack_size(THREAD_STACK).spawn_scoped(
                scope,
                move || {
                    let _ = done.send(upload.run());
                },
            );
            if let Err(error) = spawned {
                log::warn!("cannot start a thread: {error}");
                return (Err(Fault::Garbled("the proxy is out of threads")), Upload::Stalled);
            }
            let outcome = answer::pass_on(upstream, &self.asked, &mut home);
            over.store(true, Ordering::SeqCst);
            if outcome.is_err() {
                upstream.cut();
            }
            if let Ok(upload) = ended.recv_timeout(NEARLY) {
                return (outcome, upload);
            }
            if let Err(fault) = &outcome
                && let Some(reply) = gateway_reply(route, *fault)
            {
                reply.write_into(home.out, false, self.asked.is_head());
                let _ = home.writer.write_all(home.out);
                home.out.clear();
            }
            // The answer is through. What is left of the upload is read away, so that no reset overtakes it.
            let _ = home.writer.finish();
            let drained = ended.recv_timeout(DRAIN_TIME);
            if drained.is_err() {
                let _ = socket.shutdown(Shutdown::Read);
            }
            (outcome, Upload::Dropped)
        });
        upstream.writer = service;
        ended
    }

    fn conclude(&mut self, route: &ProxyRoute, ended: Ended) -> Next {
        let Ended { mut upstream, heard_all, outcome, upload } = ended;
        match (outcome, upload) {
            (Ok(answered), Upload::Whole) if answered.switched => {
                self.note(answered.status);
                switch::relay(self, upstream)
            }
            (Ok(answered), upload) => {
                self.note(answered.status);
                upstream.personal |= self.asked.personal || self.asked.has_body();
                if answered.keeps_service && upload == Upload::Whole {
                    self.shelf.keep(upstream);
                }
                match upload {
                    Upload::Whole if answered.keeps_client => Next::Again,
                    Upload::Whole if self.client.is_done() => Next::Close,
                    _ => Next::Linger,
                }
            }
            (Err(Fault::ClientLeft), _) | (_, Upload::Left) => {
                self.note(499);
                Next::Close
            }
            (Err(fault), Upload::Dropped) if !matches!(fault, Fault::Cut { .. }) => {
                self.note(gateway_reply(route, fault).map_or(0, |reply| reply.status));
                Next::Close
            }
            (Err(Fault::Cut { status, quietly }), _) => {
                self.note(status);
                log::debug!("{} broke off its answer", route.name);
                if !quietly {
                    reset_on_close(&self.client.socket);
                }
                Next::Close
            }
            (Err(_), Upload::Bad(bad)) => self.refuse(&Reply::error(bad.status(), bad.reason(), "")),
            (Err(_), Upload::Stalled) => self.refuse(&refusal::timed_out()),
            (Err(fault), _) => match gateway_reply(route, fault) {
                Some(reply) => self.gateway_trouble(&reply, heard_all),
                None => Next::Close,
            },
        }
    }

    fn gateway_trouble(&mut self, reply: &Reply, heard_all: bool) -> Next {
        self.note(reply.status);
        self.write(reply, self.asked.keep_alive && heard_all)
    }
}

/// An exchange that is over, well or not.
struct Ended {
    upstream: Upstream,
    heard_all: bool,
    outcome: Result<Answered, Fault>,
    upload: Upload,
}

/// What a client is told when its service gave no answer that could be passed on.
fn gateway_reply(route: &ProxyRoute, fault: Fault) -> Option<Reply> {
    let (status, error) = match fault {
        Fault::Silent => (502, NOT_RESPONDING.to_owned()),
        Fault::TooLate => (504, "Gateway Timeout: the service takes too long.".to_owned()),
        Fault::Garbled(why) => (502, format!("Bad Gateway: the service's answer is not valid: {why}.")),
        Fault::ClientLeft | Fault::Cut { .. } => return None,
    };
    Some(Reply { status, ..refusal::bad_gateway(&route.name, &error) })
}

/// How the client's part of an exchange ended.
#[derive(Debug, PartialEq, Eq)]
enum Upload {
    Whole,
    Bad(BadBody),
    Stalled,
    Left,
    /// The answer was there before it, and the rest was more than is read away.
    Dropped,
}

/// The body on its way from the client to the service, in a thread of its own.
struct Sending<'a> {
    reader: &'a mut Reader,
    inbox: &'a mut ReadBuffer,
    entry: &'a OpenClient<'a>,
    walker: &'a mut BodyWalker,
    service: &'a mut Writer,
    cut: Arc<TcpStream>,
    chunked: bool,
    heard_all: &'a AtomicBool,
    /// The answer is through, and nobody wants the rest.
    over: &'a AtomicBool,
}

impl Sending<'_> {
    fn run(mut self) -> Upload {
        let upload = self.send();
        if upload != Upload::Whole && upload != Upload::Dropped {
            // Without the rest its request is no request: the service must see that.
            let _ = self.cut.shutdown(Shutdown::Both);
        }
        upload
    }

    fn send(&mut self) -> Upload {
        let (mut out, mut refused, mut drained) = (Vec::new(), false, 0);
        let mut last = Instant::now();
        while !self.walker.ended() {
            match self.inbox.fill(self.reader, UPLOAD_CHUNK) {
                Ok(0) => return Upload::Left,
                Ok(_) => {
                    last = Instant::now();
                    self.entry.works();
                }
                Err(error) if is_timeout(&error) && last.elapsed() > BODY_PATIENCE => return Upload::Stalled,
                Err(error) if is_timeout(&error) && self.over.load(Ordering::SeqCst) => {
                    return Upload::Dropped;
                }
                Err(error) if is_timeout(&error) => {
                    // Whoever stops in the middle rests as well, and makes room when there are too many.
                    self.entry.rests(last);
                    continue;
                }
                Err(_) => return Upload::Left,
            }
            out.clear();
            let framed = frame(self.walker, self.inbox, self.chunked, &mut out);
            if self.walker.ended() {
                self.heard_all.store(true, Ordering::SeqCst);
            }
            if self.over.load(Ordering::SeqCst) || refused {
                drained += out.len();
                if drained > DRAIN_BYTES {
                    return Upload::Dropped;
                }
            } else if self.service.write_all(&out).is_err() {
                refused = true;
            }
            if let Err(bad) = framed {
                return Upload::Bad(bad);
            }
        }
        Upload::Whole
    }
}
