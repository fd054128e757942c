//! What must hold for any bytes whatever: the fuzz targets, the replay of their corpora and the exhaustive
//! test all ask here. Each function panics where its room is wrong.

pub mod codes;
pub mod cuts;
pub mod discover;
pub mod files;
pub mod http;
pub mod messages;
pub mod session;
pub mod tls;

use cuts::Cuts;

/// Panics where it does not hold of these bytes.
pub type Property = fn(&[u8], Cuts);

/// Every target of the fuzzers, by the name of its corpus.
pub const TARGETS: [(&str, Property); 14] = [
    ("head", http::head),
    ("framing", http::framing),
    ("host", http::host),
    ("chunks", http::chunks),
    ("relay", messages::relay),
    ("control", messages::control),
    ("codes", codes::codes),
    ("pconnect", files::pconnect),
    ("state", files::state),
    ("journal", files::journal),
    ("session", session::session),
    ("probe", discover::probe),
    ("page", discover::page),
    ("tls", tls::tls),
];
