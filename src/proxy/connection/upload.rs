//! A request's body on its way from the client to the service, in a thread of its own, while the response is read.

use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use super::client::DRAIN_LIMIT;
use crate::http::bad_message::BadBody;
use crate::http::body::BodyWalker;
use crate::net::connect::is_timeout;
use crate::net::duplex::Writer;
use crate::proxy::buffered_reader::BufferedReader;
use crate::proxy::open_clients::OpenClient;

/// An upload that makes no progress for this long is given up.
const UPLOAD_TIMEOUT: Duration = Duration::from_mins(2);
const UPLOAD_BUFFER: usize = 64 * 1024;

#[derive(Debug, PartialEq, Eq)]
pub enum UploadEnd {
    Complete,
    Invalid(BadBody),
    Stalled,
    ClientLeft,
    /// The response was complete first, and the rest of the body was too much to read and drop.
    Abandoned,
}

pub struct Upload<'a> {
    pub reader: &'a mut BufferedReader,
    pub slot: &'a OpenClient<'a>,
    pub walker: &'a mut BodyWalker,
    pub service: &'a mut Writer,
    /// The service's.
    pub socket: Arc<TcpStream>,
    pub chunked: bool,
    /// Set by the upload: the request's last byte has been read.
    pub request_read: &'a AtomicBool,
    /// Set by the other thread: the response is complete, or will not come. The rest of the upload is useless.
    pub response_done: &'a AtomicBool,
}

impl Upload<'_> {
    /// Copies the rest of the body, and cuts the service's connection if the body stays incomplete.
    pub fn run(mut self) -> UploadEnd {
        let end = self.copy();
        if !matches!(end, UploadEnd::Complete | UploadEnd::Abandoned) {
            // The service must see that the request is incomplete.
            let _ = self.socket.shutdown(Shutdown::Both);
        }
        end
    }

    /// Reads from the client until the body has ended, even if the service no longer reads or the response is complete: then
    /// the bytes are dropped, up to `DRAIN_LIMIT`, so that the client can read its response without a reset.
    fn copy(&mut self) -> UploadEnd {
        let mut out = Vec::new();
        let mut service_closed = false;
        let mut drained = 0;
        let mut last_read = Instant::now();
        while !self.walker.ended() {
            match self.reader.fill(UPLOAD_BUFFER) {
                Ok(1..) => {
                    last_read = Instant::now();
                    self.slot.set_busy();
                }
                Err(error) if is_timeout(&error) && last_read.elapsed() > UPLOAD_TIMEOUT => {
                    return UploadEnd::Stalled;
                }
                Err(error) if is_timeout(&error) && self.response_done() => return UploadEnd::Abandoned,
                Err(error) if is_timeout(&error) => {
                    // A client that pauses in the middle counts as idle, and makes room when there are too many.
                    self.slot.set_idle(last_read);
                    continue;
                }
                Ok(0) | Err(_) => return UploadEnd::ClientLeft,
            }
            out.clear();
            let moved = self.reader.move_body(self.walker, self.chunked, &mut out);
            if self.walker.ended() {
                self.request_read.store(true, Ordering::SeqCst);
            }
            if self.response_done() || service_closed {
                drained += out.len();
                if drained > DRAIN_LIMIT {
                    return UploadEnd::Abandoned;
                }
            } else {
                service_closed = self.service.write_all(&out).is_err();
            }
            if let Err(bad) = moved {
                return UploadEnd::Invalid(bad);
            }
        }
        UploadEnd::Complete
    }

    fn response_done(&self) -> bool {
        self.response_done.load(Ordering::SeqCst)
    }
}
