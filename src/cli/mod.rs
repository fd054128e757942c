//! The command line: reads it, runs the command, reports how it ended, and turns that into an exit code.
//!
//! `commands.txt` describes the commands and `table.rs` names their functions; a command's file is in `commands/`.
//! Everything else in this room is what several of them share. A command gets a `Call` and returns its exit code; an
//! error that it returns is printed here, and nowhere else.

mod args;
mod background;
mod call;
mod checkup;
mod command;
mod commands;
#[cfg(feature = "agent")]
mod daemon_process;
#[cfg(any(feature = "agent", feature = "join", feature = "proxy"))]
mod health_page;
mod help;
mod hub_checks;
#[cfg(feature = "proxy")]
mod hub_login;
mod hub_path;
#[cfg(feature = "proxy")]
mod local_ca;
#[cfg(feature = "hub")]
mod local_hub;
mod log_lines;
mod logs;
mod machine_checks;
mod man_page;
mod manual;
mod next_key;
#[cfg(feature = "join")]
mod project_file;
#[cfg(feature = "join")]
mod project_hub;
#[cfg(feature = "join")]
mod proxy_autostart;
#[cfg(feature = "proxy")]
mod proxy_checks;
#[cfg(feature = "proxy")]
mod proxy_setup;
#[cfg(feature = "proxy")]
mod request_log;
mod saved_login;
mod say;
#[cfg(feature = "agent")]
mod share_watch;
#[cfg(feature = "hub")]
mod store_options;
#[cfg(any(feature = "agent", feature = "join"))]
mod supervisor;
mod table;
mod topics;
#[cfg(any(feature = "hub", feature = "agent", feature = "join", feature = "proxy"))]
mod tunnel_access;
mod wrap;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::sync::LazyLock;

use args::Args;
use call::Call;
use call::CommandResult;
use manual::Manual;
use say::Say;
use serde_json::json;

use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::plain_words;
use crate::os::detach;
use crate::os::limits;
use crate::tls::provider::set_policy;

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Commit and its date, of a build by `make` in a git checkout.
const BUILD: Option<&str> = option_env!("CONNECT_BUILD");

static MANUAL: LazyLock<Manual> = LazyLock::new(|| {
    let is_built = |path: &str| table::function(path).is_some();
    Manual::parse(manual::TEXT, is_built).expect("a unit test parses this text")
});

/// Exit codes: 0 done, 1 failed, 2 the command line is wrong, 130 interrupted. With `-- CMD` the code is CMD's.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let arguments = detach::take_handover().unwrap_or(arguments);
    // An error of the parser is printed before there are parsed options, so --json is looked for by hand.
    let as_json =
        arguments.iter().take_while(|argument| *argument != "--").any(|argument| argument == "--json");
    let outcome = args::parse(arguments, &MANUAL).and_then(run);
    let code = outcome.unwrap_or_else(|error| {
        if error.kind != ErrorKind::Interrupted {
            Say::new(as_json, false, false).trouble(&error);
        }
        match error.kind {
            ErrorKind::Usage => 2,
            ErrorKind::Interrupted => 130,
            ErrorKind::NotStarted(code) => code,
            _ => 1,
        }
    });
    ExitCode::from(code)
}

fn run(args: Args) -> CommandResult {
    if detach::own_log().is_some() {
        detach::leave_terminal();
    }
    let log_format = args.value("log-format").map(str::to_owned);
    if let Some(format) = log_format.or_else(|| call::variable("CONNECT_LOG_FORMAT")) {
        log_lines::choose(&format)?;
    }
    start_log(args.flag("verbose"));
    let say = Say::new(args.flag("json"), args.flag("quiet"), args.run.is_some());
    // Help and version need neither a state folder nor signals, so they come before the call.
    if args.flag("version") {
        let (commit, date) = BUILD.and_then(|build| build.split_once(' ')).unzip();
        let build = commit.zip(date).map(|(commit, date)| format!(" ({commit}, {date})"));
        say.result(&format!("connect {VERSION}{}", build.unwrap_or_default()));
        say.value(&json!({ "version": VERSION, "commit": commit, "date": date }));
        return Ok(0);
    }
    if args.flag("help") {
        return help::show(&say, args.manual, &args.words);
    }
    let Some(command) = args.command else {
        if args.words.is_empty() {
            say.result(help::FIRST_STEPS);
            say.value(&json!({ "help": help::FIRST_STEPS }));
            return Ok(0);
        }
        return Err(help::unfinished(args.manual, &args.words));
    };
    let function =
        table::function(command.path).ok_or_else(|| help::not_in_this_build(args.manual, command))?;
    limits::raise_open_files();
    let call = Call::new(args, say)?;
    // A hub has a policy of its own: the login of its machine's user does not count.
    set_policy(call.tls_policy()?.unwrap_or_default());
    if !command.path.starts_with("hub") {
        // A config that cannot be read fails where it is needed.
        let _ = call.config();
    }
    // The doctor reports it together with all else, and can repair it.
    if command.path != "doctor" {
        call.home.check()?;
    }
    let outcome = function(&call);
    // After Ctrl-C everything fails because it was cut; that is not worth a message.
    outcome.map_err(|error| if call.stop.is_stopped() { Error::stopped() } else { error })
}

/// What happens underneath goes to stderr: trouble always, everything with `-v` or as `RUST_LOG` says. The proxy tells of a
/// hub that is back as well.
fn start_log(verbose: bool) {
    let default = if verbose { "debug" } else { "warn,connect::proxy=info" };
    let environment = env_logger::Env::default()
        .default_filter_or(format!("{default},ureq=warn,ureq_proto=warn,rustls=warn"));
    let mut builder = env_logger::Builder::from_env(environment);
    builder.format(|out, record| {
        let message = say::clean(&plain_words(&record.args().to_string()).replace('\n', " "));
        if detach::is_starting() {
            write!(out, "{}", detach::STDERR_MARK)?;
        }
        match log_lines::of_records() {
            Some(format) => writeln!(out, "{}", format.line(record.level().as_str(), &message)),
            None if record.level() <= log::Level::Warn => {
                writeln!(out, "{}", say::fitted(&format!("[!] {message}"), true))
            }
            None => writeln!(out, "{}", say::fitted(&format!("    {message}"), true)),
        }
    });
    if detach::is_starting() {
        builder.target(env_logger::Target::Stdout);
    }
    let _ = builder.try_init();
}
