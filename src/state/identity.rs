//! `identity.pem`: this machine's certificate and key, made when first needed.

use std::path::Path;

use super::home::Home;
use crate::error::Result;
use crate::os::files;
use crate::tls::identity::Identity;

const IDENTITY_FILE: &str = "identity.pem";

/// Loads the identity, or makes it. The lock keeps two processes from making two; one that is there can be read in a
/// folder that cannot be written.
pub fn load_or_make(home: &Home) -> Result<Identity> {
    let is_there = home.file(IDENTITY_FILE).exists();
    let _lock = if is_there { None } else { Some(home.lock()?) };
    load_or_make_in(&home.file(""))
}

/// For a machine that only reaches: nobody needs to know it again, so where no identity can be kept, one for this process
/// will do.
pub fn load_or_temporary(home: &Home) -> Result<Identity> {
    let is_there = || home.file(IDENTITY_FILE).exists();
    load_or_make(home).or_else(|error| if is_there() { Err(error) } else { temporary() })
}

pub fn temporary() -> Result<Identity> {
    Identity::parse(Identity::generate(None)?.as_bytes())
}

/// Replaces the identity by a new one that it signs. Returns the old one; its key is gone.
pub fn rotate(home: &Home) -> Result<Identity> {
    let _lock = home.lock()?;
    let old = load_or_make_in(&home.file(""))?;
    files::write(&home.file(IDENTITY_FILE), Identity::generate(Some(&old))?.as_bytes())?;
    Ok(old)
}

/// Different after every change of the identity.
pub fn stamp(home: &Home) -> files::FileStamp {
    files::stamp(&home.file(IDENTITY_FILE))
}

/// The same in a folder that only the caller writes to, so no lock is needed.
pub fn load_or_make_in(folder: &Path) -> Result<Identity> {
    let path = folder.join(IDENTITY_FILE);
    let pem = match files::read(&path)? {
        Some(pem) => pem,
        None => {
            let pem = Identity::generate(None)?.into_bytes();
            files::write(&path, &pem)?;
            pem
        }
    };
    Identity::parse(&pem).map_err(|error| {
        error.hint(format!("{0} is damaged; move it away and try again: mv {0} {0}.old", path.display()))
    })
}
