//! `reach` makes its service available by name: it starts the local proxy if none runs.

use super::background;
use super::background::ChildOutput;
use super::call::Call;
use super::call::CommandResult;
use crate::os::detach::BackgroundStart;
use crate::state::proxy;

/// The line that names the service's address at the proxy. A failure is only a hint, since the tunnel works without.
pub fn address_line(call: &Call, name: &str) -> Option<String> {
    if let Some(running) = proxy::running(&call.home) {
        return Some(running.url_of(name));
    }
    // A build without the proxy could not start it.
    if !call.args.manual.find("proxy start").is_some_and(|command| command.is_built) {
        return None;
    }
    match start(call) {
        Ok(0) => proxy::running(&call.home)
            .map(|state| format!("{} (proxy auto-started on port {})", state.url_of(name), state.port)),
        Ok(_) | Err(_) => Some("To reach it by name, start the proxy: connect proxy start".to_owned()),
    }
}

fn start(call: &Call) -> CommandResult {
    let arguments = background::arguments(call, &["proxy", "start", "--quiet"]);
    let log = call.home.file(proxy::PROXY_LOG);
    background::start(call, &BackgroundStart { arguments, secret: None, log: &log }, ChildOutput::Dropped)
}
