//! The one error that crosses rooms: what happened, and what to type next.
//!
//! Pure rooms return small enums of their own; everything that touches the world returns this. Only
//! `cli` prints it and turns it into an exit code.

use std::fmt;
use std::io;

pub type Result<T> = std::result::Result<T, Error>;

/// What the caller may do about it. The words are for people; this is for code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// It failed, and trying again unchanged will fail again.
    Failed,
    /// The command line is wrong (exit 2).
    Usage,
    /// The other side could not be reached; later it may be.
    Unreachable,
    /// The hub answered with this status.
    Refused(u16),
    /// The command after `--` could not be started. The exit code is that of a shell.
    NotStarted(u8),
    /// Ctrl-C cut the work off (exit 130).
    Interrupted,
}

#[derive(Debug)]
pub struct Error {
    pub what: String,
    pub hint: Option<String>,
    pub kind: ErrorKind,
    code: String,
    /// What caused it, in words.
    cause: Option<String>,
}

impl Error {
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), hint: None, kind: ErrorKind::Failed, code: String::new(), cause: None }
    }

    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(what).kind(ErrorKind::Usage)
    }

    /// A word of the command line that cannot be read: `text` … `is not a port`.
    pub fn misread(text: &str, what: &str) -> Self {
        Self::usage(format!("`{}` {what}", text.escape_debug()))
    }

    /// A word of the command line names a role, a store … that does not exist.
    pub fn unknown(what: &str, name: &str) -> Self {
        Self::usage(format!("There is no {what} `{}`", name.escape_debug()))
    }

    /// Ctrl-C, or the end of the work that this was part of.
    pub fn stopped() -> Self {
        Self::new("Stopped").kind(ErrorKind::Interrupted)
    }

    /// An empty one says nothing.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into()).filter(|hint| !hint.is_empty()).or(self.hint);
        self
    }

    pub fn kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    /// The code that came with a hub's answer.
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.code = code.into();
        self
    }

    /// What a program decides by: the hub's own code if it gave one, else one for the kind of error.
    pub fn code(&self) -> &str {
        match self.kind {
            _ if !self.code.is_empty() => &self.code,
            ErrorKind::Failed | ErrorKind::NotStarted(_) => "failed",
            ErrorKind::Usage => "usage",
            ErrorKind::Unreachable => "unreachable",
            ErrorKind::Refused(_) => "refused",
            ErrorKind::Interrupted => "interrupted",
        }
    }

    pub fn because(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.cause = Some(in_words(&*cause.into()));
        self
    }

    /// Whether the same call may succeed later without anybody changing anything.
    pub fn may_pass(&self) -> bool {
        matches!(self.kind, ErrorKind::Unreachable | ErrorKind::Refused(429 | 502..=504))
    }

    pub fn is_status(&self, status: u16) -> bool {
        self.kind == ErrorKind::Refused(status)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.cause {
            Some(cause) => write!(f, ": {cause}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// A deadline that passed is reported by the system in words that help nobody.
fn in_words(cause: &(dyn std::error::Error + 'static)) -> String {
    match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => "it did not answer in time".to_owned(),
        _ => plain_words(&cause.to_string()),
    }
}

/// What libraries say, and what it means to the user. Longer texts come first.
const LIBRARY_WORDS: [(&str, &str); 6] = [
    ("received corrupt message of type InvalidContentType", "what answers there does not speak TLS"),
    ("invalid peer certificate: UnknownIssuer", "its certificate is not from the expected CA"),
    ("UnknownIssuer", "its certificate is not from the expected CA"),
    ("received fatal alert:", "the other side ended the TLS handshake:"),
    ("peer closed connection without sending TLS close_notify", "the connection was cut"),
    ("unexpected end of file", "the connection was closed"),
];

/// The text of a library or the system in the user's words.
pub fn plain_words(text: &str) -> String {
    let mut plain =
        LIBRARY_WORDS.iter().fold(text.to_owned(), |text, (theirs, ours)| text.replace(theirs, ours));
    while let Some((before, (_, after))) =
        plain.split_once(" (os error ").and_then(|(before, rest)| Some((before, rest.split_once(')')?)))
    {
        plain = format!("{before}{after}");
    }
    plain
}

/// Gives an outside error its sentence: `fs::read(path).or_say(|| format!("Cannot read {path}"))?`.
pub trait OrSay<T> {
    fn or_say<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Box<dyn std::error::Error + Send + Sync>>> OrSay<T> for std::result::Result<T, E> {
    fn or_say<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|cause| Error::new(what()).because(cause))
    }
}
