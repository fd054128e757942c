//! The reasons for which a message is refused, each with the status and the text of the answer.

/// Why a head is refused. The connection must close afterwards: two readers may disagree on where the next message
/// begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHead {
    Method,
    MethodTooLong,
    Target,
    TargetTooLong,
    Version,
    OtherVersion,
    Status,
    LineEnd,
    Folded,
    FieldName,
    FieldValue,
    TooLarge,
    TooManyFields,
    Repeated,
    Length,
    LengthAndCoding,
    Coding,
    UnknownCoding,
    CodingInHttp10,
    ConnectWithBody,
    NoHost,
    Host,
}

impl BadHead {
    /// The status of the answer to a client. If a service's response has the fault, the client gets a 502 instead.
    pub fn status(self) -> u16 {
        match self {
            BadHead::TargetTooLong => 414,
            BadHead::TooLarge | BadHead::TooManyFields => 431,
            BadHead::MethodTooLong | BadHead::UnknownCoding => 501,
            BadHead::OtherVersion => 505,
            _ => 400,
        }
    }

    pub fn reason(self) -> &'static str {
        match self {
            BadHead::Method => "the method is not a token",
            BadHead::MethodTooLong => "the method is too long",
            BadHead::Target => "the request target is not valid",
            BadHead::TargetTooLong => "the request target is longer than 8 KiB",
            BadHead::Version => "the protocol is not HTTP",
            BadHead::OtherVersion => "only HTTP/1.0 and HTTP/1.1 are spoken here",
            BadHead::Status => "the status line is not valid",
            BadHead::LineEnd => "a line does not end with CR LF",
            BadHead::Folded => "a field is folded over two lines",
            BadHead::FieldName => "a field's name is not a token followed by a colon",
            BadHead::FieldValue => "a field's value has a control character",
            BadHead::TooLarge => "the head is too large",
            BadHead::TooManyFields => "the head has more than 100 fields",
            BadHead::Repeated => "a field that may stand once is repeated",
            BadHead::Length => "the Content-Length is not a number",
            BadHead::LengthAndCoding => "both Content-Length and Transfer-Encoding are given",
            BadHead::Coding => "the transfer coding does not end with chunked",
            BadHead::UnknownCoding => "a transfer coding other than chunked",
            BadHead::CodingInHttp10 => "HTTP/1.0 has no transfer codings",
            BadHead::ConnectWithBody => "a CONNECT request has no body",
            BadHead::NoHost => "the Host is missing",
            BadHead::Host => "the Host is not valid",
        }
    }
}

/// Why a body is given up. Nothing after it can be read, so the connection must close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadBody {
    ChunkSize,
    Extensions,
    ChunkEnd,
    Trailers(BadHead),
    CutShort,
    TooLarge,
}

impl BadBody {
    /// The status of the answer, if none has begun yet.
    pub fn status(self) -> u16 {
        match self {
            BadBody::TooLarge => 413,
            BadBody::Trailers(bad) => bad.status(),
            _ => 400,
        }
    }

    pub fn reason(self) -> &'static str {
        match self {
            BadBody::ChunkSize => "a chunk's size is not a hexadecimal number",
            BadBody::Extensions => "the chunk extensions are too long or hold a control character",
            BadBody::ChunkEnd => "a chunk does not end with CR LF",
            BadBody::Trailers(bad) => bad.reason(),
            BadBody::CutShort => "the body ended before its time",
            BadBody::TooLarge => "the body is too large",
        }
    }
}
