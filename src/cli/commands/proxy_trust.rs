//! `connect proxy trust` and `untrust`.

use crate::cli::Call;
use crate::cli::Outcome;
use crate::error::Error;
use crate::error::Result;

pub fn trust(_: &Call) -> Outcome {
    Err(Error::new("Not yet"))
}

pub fn untrust(_: &Call) -> Outcome {
    Err(Error::new("Not yet"))
}

pub fn beside_start(call: &Call) -> Result<()> {
    call.say.line("  [!] CA not trusted yet; browsers will warn. Trust it: connect proxy trust");
    Ok(())
}
