//! The pure rooms and what must hold in them, for the fuzz targets.

#[path = "../../src/wire"]
pub mod wire {
    pub mod body;
    pub mod chunks;
    pub mod forward;
    pub mod head;
    pub mod host;
    mod scan;
}

pub mod properties;
