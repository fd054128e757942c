//! `connect help`.

use crate::cli::Call;
use crate::cli::Outcome;
use crate::cli::help;

pub fn run(call: &Call) -> Outcome {
    help::show(&call.say, &call.args.positionals)
}
