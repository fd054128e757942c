//! `identity.pem`: this machine's certificate and key, made when first needed.

use super::home::Home;
use crate::error::Result;
use crate::net::identity::Identity;
use crate::os::files;

const FILE: &str = "identity.pem";

/// Loads the identity, or makes it. The lock keeps two processes from making two.
pub fn load_or_make(home: &Home) -> Result<Identity> {
    let path = home.file(FILE);
    let _lock = home.lock()?;
    let pem = match files::read(&path)? {
        Some(pem) => pem,
        None => {
            let pem = Identity::generate()?.into_bytes();
            files::write(&path, &pem)?;
            pem
        }
    };
    Identity::parse(&pem).map_err(|error| {
        error.hint(format!(
            "{0} is damaged; move it away and run connect up again: mv {0} {0}.old",
            path.display()
        ))
    })
}
