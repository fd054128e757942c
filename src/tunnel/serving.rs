//! A session from the agent's end: each OPEN dials the service's target.
//!
//! The thread that reads the session also dials and writes to the target; a second thread reads the
//! target and is the only one that writes to the session, so no frame is ever written into another.

use std::io;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use super::frames::CopyEnd;
use super::frames::FrameReader;
use super::frames::FrameWriter;
use super::frames::abort;
use super::frames::abort_on_stop;
use super::frames::out_of_turn;
use super::frames::poll_while_blocked;
use super::traffic::TrafficCounters;
use crate::model::target::Target;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::connect::dial;
use crate::net::stop::Stop;
use crate::net::threads;
use crate::os::socket;
use crate::tls::TlsConnection;
use crate::wire::frame::FrameKind;

/// OPENED, for which nobody waits with data, waits this long for the target's first words to go with them.
const FIRST_WORDS: Duration = Duration::from_millis(1);

/// What may wait for the thread that writes. A joiner that reads what it is told has three such things on the way at the
/// most; one that does not is not heard any further, or each connection that it opens and breaks off would stay open.
const WAITING: usize = 8;

/// A connection to the target, shared by the thread that reads the session and the one that reads the target.
struct Open {
    target: Arc<TcpStream>,
    /// It broke: the end of reading the target is no end of file.
    broken: AtomicBool,
    /// Our direction has ended.
    ended: AtomicBool,
}

enum Say {
    Pong,
    Opened(Arc<Open>),
    Refused(String),
    Reset,
}

/// Serves the session until it ends.
pub fn serve(established: TlsConnection, target: &Target, traffic: &Arc<TrafficCounters>, stop: &Stop) {
    let TlsConnection { reader, writer, socket, .. } = established;
    let Some(_attached) = stop.attach(&socket) else { return };
    let (say, said) = mpsc::sync_channel(WAITING);
    let (cut, count) = (Arc::clone(&socket), Arc::clone(traffic));
    let speaker = threads::spawn("session-write", move || {
        let mut frames = FrameWriter::new(writer);
        if speak_all(&mut frames, &said, &count).is_ok() {
            frames.close_notify();
        }
        let _ = cut.shutdown(Shutdown::Both);
    });
    let Ok(speaker) = speaker.inspect_err(|error| log::warn!("cannot serve a session: {error}")) else {
        return;
    };
    traffic.sessions.fetch_add(1, Ordering::Relaxed);
    let frames = FrameReader::new(reader, Arc::clone(&socket));
    let mut listener = Listener { frames, target, say, traffic, stop, current: Weak::new() };
    let ended = listener.listen();
    log::debug!("a session ended: {ended:?}");
    if let Some(open) = listener.current.upgrade() {
        open.abort();
    }
    drop(listener);
    let _ = socket.shutdown(Shutdown::Both);
    let _ = speaker.join();
    traffic.sessions.fetch_sub(1, Ordering::Relaxed);
}

impl Open {
    fn abort(&self) {
        self.broken.store(true, Ordering::SeqCst);
        abort(&self.target);
    }
}

struct Listener<'s> {
    frames: FrameReader,
    target: &'s Target,
    say: mpsc::SyncSender<Say>,
    traffic: &'s Arc<TrafficCounters>,
    stop: &'s Stop,
    /// The connection that is open, or that has ended in the joiner's direction only.
    current: Weak<Open>,
}

impl Listener<'_> {
    fn listen(&mut self) -> io::Result<()> {
        loop {
            let header = self.frames.next_header()?;
            match header.kind {
                FrameKind::Ping if self.is_idle() => self.say(Say::Pong)?,
                FrameKind::Open if self.is_idle() => self.open()?,
                // It speaks of a connection that has ended in the meantime.
                FrameKind::Reset => self.forget_broken(),
                kind => return Err(out_of_turn(kind)),
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.current.upgrade().is_none_or(|open| open.ended.load(Ordering::SeqCst))
    }

    fn open(&mut self) -> io::Result<()> {
        let dialled = dial(&self.target.host, self.target.port, Instant::now() + NETWORK_TIMEOUT, self.stop);
        let Ok(target) = dialled else {
            self.say(Say::Refused(format!("Nothing answers at {}", self.target)))?;
            return self.discard();
        };
        let Some(_attached) = abort_on_stop(self.stop, &target) else {
            return Err(io::ErrorKind::Interrupted.into());
        };
        poll_while_blocked(&target);
        let (broken, ended) = Default::default();
        let open = Arc::new(Open { target, broken, ended });
        self.current = Arc::downgrade(&open);
        let received = self.say(Say::Opened(Arc::clone(&open))).and_then(|()| self.receive(&open));
        // The speaker may be done with it, and then a session that was cut would look like an end of file.
        received.inspect_err(|_| open.abort())
    }

    /// The joiner's direction of an open connection, to its end.
    fn receive(&mut self, open: &Open) -> io::Result<()> {
        loop {
            let header = self.frames.next_header()?;
            match header.kind {
                FrameKind::Data => {
                    if self.frames.data_into(header.length, Some(&open.target))?.is_err() {
                        open.abort();
                        self.say(Say::Reset)?;
                        return self.discard();
                    }
                    self.traffic.bytes.fetch_add(header.length as u64, Ordering::Relaxed);
                }
                FrameKind::Eof => {
                    let _ = open.target.shutdown(Shutdown::Write);
                    self.frames.shrink();
                    return Ok(());
                }
                FrameKind::Reset => {
                    self.forget_broken();
                    return Ok(());
                }
                kind => return Err(out_of_turn(kind)),
            }
        }
    }

    /// The joiner's direction of a connection that is none: everything to its end is dropped.
    fn discard(&mut self) -> io::Result<()> {
        loop {
            let header = self.frames.next_header()?;
            match header.kind {
                FrameKind::Data => drop(self.frames.data_into(header.length, None)?),
                FrameKind::Eof | FrameKind::Reset => return Ok(()),
                kind => return Err(out_of_turn(kind)),
            }
        }
    }

    fn forget_broken(&mut self) {
        if let Some(open) = std::mem::take(&mut self.current).upgrade() {
            open.abort();
            let _ = self.say(Say::Reset);
        }
    }

    fn say(&self, what: Say) -> io::Result<()> {
        self.say.send(what).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

fn speak_all(
    frames: &mut FrameWriter,
    said: &mpsc::Receiver<Say>,
    traffic: &TrafficCounters,
) -> io::Result<()> {
    for what in said {
        match what {
            Say::Pong => frames.send(&[FrameKind::Pong])?,
            Say::Refused(reason) => frames.refuse(&reason)?,
            Say::Reset => frames.send(&[FrameKind::Reset])?,
            Say::Opened(open) => {
                // The listener may be gone, and then a session that was cut would look like an end of file.
                let end = copy_back(frames, &open, traffic).inspect_err(|_| open.abort())?;
                // A connection that broke is ended by the RESET which is already on its way here.
                let broken = open.broken.load(Ordering::SeqCst);
                if end == CopyEnd::Broken && !broken {
                    abort(&open.target);
                }
                frames.shrink();
                // Before the frame goes out: the joiner may open the next connection as soon as it has it.
                open.ended.store(true, Ordering::SeqCst);
                if !broken {
                    frames.send(&[if end == CopyEnd::Eof { FrameKind::Eof } else { FrameKind::Reset }])?;
                }
            }
        }
    }
    Ok(())
}

/// All that the target says, OPENED before it.
fn copy_back(frames: &mut FrameWriter, open: &Open, traffic: &TrafficCounters) -> io::Result<CopyEnd> {
    let count = |count: usize| _ = traffic.bytes.fetch_add(count as u64, Ordering::Relaxed);
    let _ = socket::wait_for_data(&open.target, &open.target, FIRST_WORDS);
    count(frames.begin(FrameKind::Opened, &open.target)?);
    frames.copy_from(&open.target, count)
}
