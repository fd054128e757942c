//! The pure rooms and what must hold in them, for the fuzz targets; and of TLS the part without I/O.

#[path = "../../src/discover"]
pub mod discover {
    pub mod probe;
    pub mod web_page;
}
#[path = "../../src/http/mod.rs"]
pub mod http;
#[path = "../../src/model/mod.rs"]
pub mod model;
pub mod properties;
#[path = "../../src/tls"]
pub mod tls {
    pub mod unbuffered;
}
#[path = "../../src/wire/mod.rs"]
pub mod wire;
