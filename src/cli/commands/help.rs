//! `connect help`.

use crate::cli::Call;
use crate::cli::Outcome;
use crate::cli::help;
use crate::cli::man;
use crate::cli::say;

pub fn run(call: &Call) -> Outcome {
    if call.args.flag("man") {
        say::for_programs(man::page(call.args.table).trim_end());
        return Ok(0);
    }
    help::show(&call.say, call.args.table, &call.args.positionals)
}
