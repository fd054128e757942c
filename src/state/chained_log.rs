//! The writer of a chained log (`wire/chain.rs`): a thread that alone writes the file. Callers only queue lines.
//!
//! While the disk is full or does not answer, lines wait in memory; if too many wait, the log says later how many are missing.
//! Nothing that is logged depends on the log: such a disk does not stop the service.

use std::collections::VecDeque;
use std::fs;
use std::fs::File;
use std::io::Write;
use std::iter;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::mpsc::Sender;
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;

use super::chain_files;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::hub_records::ChainHead;
use crate::net::threads::ThreadGroup;
use crate::os::files;
use crate::os::lock::locked;
use crate::wire::chain;
use crate::wire::chain::LineFields;

/// Lines that may wait for the disk: some seconds of a busy hub, and some megabytes.
const CHAIN_QUEUE: u64 = 8192;
/// A disk that takes longer to rotate the log, or to write the last lines, does not answer.
const DISK_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a failed write is retried, and how long a line may not be on the disk itself.
const CHAIN_TICK: Duration = Duration::from_secs(1);
/// Lines that come within this time of a write to a shared log are written together: each write locks the file and looks for
/// lines of other processes, which costs more than the line.
const SHARED_LOG_PAUSE: Duration = Duration::from_millis(20);

pub enum LogOwner {
    /// This process alone, so that any other change of the file is noticed. The log once ended with this head.
    Process(ChainHead),
    /// The processes of one machine together. A segment of so many bytes is closed, and so many of them are kept.
    Machine { segment: u64, kept: usize },
}

pub struct ChainedLogOptions {
    pub path: PathBuf,
    pub owner: LogOwner,
    /// A line of the owner's form for what the writer itself has to say: `audit.missing`, to which it adds how many lines
    /// found no room (`count`), and `audit.broken`, with the `reason`: the file is not as it left it.
    pub own_line: Box<dyn Fn(&str) -> LineFields + Send>,
    /// Gets each line that was written.
    pub written: OnWritten,
}

pub type OnWritten = Box<dyn Fn(&str) + Send>;

pub struct ChainedLog {
    queue: Option<Sender<LogOrder>>,
    state: Arc<LogState>,
    threads: ThreadGroup,
}

/// What the writer and its callers share.
#[derive(Default)]
struct LogState {
    /// Of what is on the disk for certain.
    head: Mutex<ChainHead>,
    /// Lines that wait for the disk, and those that found no room.
    waiting: AtomicU64,
    lost: AtomicU64,
}

/// A closed segment.
pub struct ClosedSegment {
    pub path: PathBuf,
    pub head: ChainHead,
}

enum LogOrder {
    Line(LineFields),
    /// Look whether the file is still where and what it was.
    Check,
    Rotate(SyncSender<Result<ClosedSegment>>),
}

impl ChainedLog {
    /// Opens the log, cuts off a last line that a crash left unfinished, and starts the writer.
    pub fn open(options: ChainedLogOptions) -> Result<Self> {
        let (queue, orders) = mpsc::channel();
        let state = Arc::default();
        let mut writer = LogWriter::open(options, Arc::clone(&state))?;
        let threads = ThreadGroup::default();
        threads.spawn("chained-log", move || writer.run(&orders))?;
        Ok(Self { queue: Some(queue), state, threads })
    }

    /// Queues a line. It cannot fail: one that finds no room is counted.
    pub fn write(&self, fields: LineFields) {
        log::debug!("{}", chain::in_words(&fields));
        if self.state.waiting.load(Ordering::Relaxed) >= CHAIN_QUEUE {
            if self.state.lost.fetch_add(1, Ordering::Relaxed) == 0 {
                log::error!("lines of the log are lost, its disk is full or does not answer");
            }
            return;
        }
        self.state.waiting.fetch_add(1, Ordering::Relaxed);
        self.order(LogOrder::Line(fields));
    }

    pub fn check(&self) {
        self.order(LogOrder::Check);
    }

    /// Closes the segment. The next line begins a new one, and names the hash of the closed one's last line.
    pub fn rotate(&self) -> Result<ClosedSegment> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.order(LogOrder::Rotate(answer));
        answered.recv_timeout(DISK_TIMEOUT).or_say(|| "The log's disk does not answer")?
    }

    pub fn head(&self) -> ChainHead {
        locked(&self.state.head).clone()
    }

    /// Writes all that is queued, and stops. If the disk does not answer, the writer's thread is left to end with the process.
    pub fn close(&mut self) {
        if self.queue.take().is_some() && !self.threads.join_within(DISK_TIMEOUT) {
            log::error!("the log's disk does not answer: the last lines are lost");
        }
    }

    fn order(&self, order: LogOrder) {
        if let Some(queue) = &self.queue {
            let _ = queue.send(order);
        }
    }
}

impl Drop for ChainedLog {
    fn drop(&mut self) {
        self.close();
    }
}

struct LogWriter {
    options: ChainedLogOptions,
    file: File,
    /// Total length of the complete lines, in bytes.
    length: u64,
    /// Half a line of a failed write may lie behind them.
    is_torn: bool,
    head: ChainHead,
    state: Arc<LogState>,
    waiting: VecDeque<LineFields>,
    /// The report of a break, which waits for the next line: who only reads the log leaves it as it is.
    broken: Option<LineFields>,
    /// When the oldest line was written that may not be on the disk yet.
    unsynced: Option<Instant>,
}

impl LogWriter {
    fn open(options: ChainedLogOptions, state: Arc<LogState>) -> Result<Self> {
        let mut log = Self {
            file: files::append(&options.path)?,
            options,
            length: 0,
            is_torn: true,
            head: ChainHead::default(),
            state,
            waiting: VecDeque::new(),
            broken: None,
            unsynced: None,
        };
        log.find_end()?;
        if let LogOwner::Process(known) = &log.options.owner
            && (log.head.count < known.count || (log.head.count == known.count && log.head != *known))
        {
            let lines = log.head.count;
            let reason = format!("the log ends at line {lines}, but once had {} lines", known.count);
            // The numbers go on from there, so that the gap stays for everybody to see.
            log.head = known.clone();
            log.broken = Some(log.report_break(reason));
        }
        locked(&log.state.head).clone_from(&log.head);
        Ok(log)
    }

    fn run(&mut self, orders: &Receiver<LogOrder>) {
        loop {
            let is_due = !self.waiting.is_empty() || self.unsynced.is_some();
            let next = if is_due {
                orders.recv_timeout(CHAIN_TICK)
            } else {
                orders.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            match next {
                Ok(order) => {
                    iter::once(order).chain(orders.try_iter()).for_each(|order| self.carry_out(order));
                    self.write_waiting();
                    if matches!(self.options.owner, LogOwner::Machine { .. }) {
                        thread::sleep(SHARED_LOG_PAUSE);
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.write_waiting(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.unsynced.is_some_and(|since| since.elapsed() >= CHAIN_TICK) {
                self.sync();
            }
        }
        self.write_waiting();
        self.sync();
    }

    /// A line waits for `write_waiting`, the rest is done at once.
    fn carry_out(&mut self, order: LogOrder) {
        match order {
            LogOrder::Line(fields) => {
                if let Some(report) = self.broken.take() {
                    self.say_first(report);
                }
                self.waiting.push_back(fields);
            }
            LogOrder::Check => _ = self.find_change(),
            LogOrder::Rotate(answer) => {
                self.write_waiting();
                let _ = answer.send(self.rotate());
            }
        }
    }

    fn sync(&mut self) {
        if self.unsynced.is_some() && self.file.sync_data().is_ok() {
            self.unsynced = None;
            locked(&self.state.head).clone_from(&self.head);
        }
    }

    /// A line of our own, before those that wait.
    fn say_first(&mut self, line: LineFields) {
        self.state.waiting.fetch_add(1, Ordering::Relaxed);
        self.waiting.push_front(line);
    }

    /// Writes the waiting lines in order, up to the first failure. A line is removed only once it is in the file. If others
    /// found no room meanwhile, one more says how many.
    fn write_waiting(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        if let Err(error) = self.try_write_waiting()
            && !std::mem::replace(&mut self.is_torn, true)
        {
            log::error!("the log cannot be written, its lines wait: {error}");
        }
    }

    fn try_write_waiting(&mut self) -> Result<()> {
        let path = &self.options.path;
        let is_shared = matches!(self.options.owner, LogOwner::Machine { .. });
        let _lock = is_shared.then(|| files::lock(&path.with_extension("lock"))).transpose()?;
        self.find_change()?;
        while let Some(fields) = self.waiting.front() {
            let mut head = self.head.clone();
            let line = chain::seal(fields.clone(), &mut head, chain_files::hash);
            self.file.write_all(format!("{line}\n").as_bytes()).or_say(|| "Cannot write the log")?;
            (self.options.written)(&line);
            self.length += line.len() as u64 + 1;
            self.head = head;
            self.unsynced.get_or_insert_with(Instant::now);
            self.waiting.pop_front();
            self.state.waiting.fetch_sub(1, Ordering::Relaxed);
            let is_last = self.waiting.is_empty();
            let lost = if is_last { self.state.lost.swap(0, Ordering::Relaxed) } else { 0 };
            if lost > 0 {
                let report = self.report("audit.missing", "count", lost.into());
                self.say_first(report);
            }
        }
        if let LogOwner::Machine { segment, kept } = self.options.owner
            && self.length >= segment
        {
            self.rotate()?;
            let closed = chain_files::segments(&self.options.path);
            for old in &closed[..closed.len().saturating_sub(kept)] {
                files::remove(old)?;
            }
        }
        Ok(())
    }

    /// Whether the file is as this writer left it. Others of the machine may write a shared log; a log of our own that was
    /// moved, deleted or changed is reported, and goes on where its name leads.
    fn find_change(&mut self) -> Result<()> {
        let path = &self.options.path;
        let is_same = files::is_same(&self.file, path);
        let length = self.file.metadata().or_say(|| "Cannot read the log")?.len();
        if is_same && (length == self.length || self.is_torn) {
            if self.is_torn {
                self.file.set_len(self.length).or_say(|| "Cannot repair the log")?;
                self.is_torn = false;
            }
            return Ok(());
        }
        if !is_same {
            self.file = files::append(path)?;
        }
        let head = self.head.clone();
        self.find_end()?;
        if matches!(self.options.owner, LogOwner::Process(_)) {
            self.head = head;
            let what = if is_same { "changed" } else { "moved or deleted" };
            let reason = format!("the log was {what} while the hub ran, at line {}", self.head.count);
            let report = self.report_break(reason);
            self.say_first(report);
        }
        Ok(())
    }

    /// Reads the head from the file's end, and cuts off half a line.
    fn find_end(&mut self) -> Result<()> {
        let path = &self.options.path;
        let end = chain_files::end_of(path, &mut self.file);
        (self.head, self.length) = end.or_say(|| format!("Cannot read {}", path.display()))?;
        self.file.set_len(self.length).or_say(|| "Cannot repair the log")?;
        self.is_torn = false;
        Ok(())
    }

    fn report_break(&self, reason: String) -> LineFields {
        log::error!("{}: {reason}", self.options.path.display());
        self.report("audit.broken", "reason", reason.into())
    }

    fn report(&self, event: &str, field: &str, value: Value) -> LineFields {
        let mut line = (self.options.own_line)(event);
        line.insert(field.to_owned(), value);
        line
    }

    fn rotate(&mut self) -> Result<ClosedSegment> {
        self.sync();
        let path = &self.options.path;
        if self.length == 0 || !self.waiting.is_empty() || self.unsynced.is_some() {
            return Err(Error::new("The log cannot be rotated now").because(path.display().to_string()));
        }
        let closed = chain_files::segment(path, self.head.count);
        fs::rename(path, &closed).or_say(|| format!("Cannot rename {}", path.display()))?;
        self.file = files::append(path)?;
        self.length = 0;
        Ok(ClosedSegment { path: closed, head: self.head.clone() })
    }
}
