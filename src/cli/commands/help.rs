//! `connect help`.

use crate::cli::Call;
use crate::cli::Outcome;
use crate::cli::help;
use crate::cli::man;

pub fn run(call: &Call) -> Outcome {
    if call.args.flag("man") {
        call.say.to_stdout(man::page().trim_end());
        return Ok(0);
    }
    help::show(&call.say, &call.args.positionals)
}
