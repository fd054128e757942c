//! The pure rooms and what must hold in them, for the fuzz targets.

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
#[path = "../../src/wire/mod.rs"]
pub mod wire;
