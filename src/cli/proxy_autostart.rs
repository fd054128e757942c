//! `reach` makes its service available by name: it starts the local proxy if none runs.

use super::background;
use super::background::ChildOutput;
use super::call::Call;
use crate::os::detach::BackgroundStart;
use crate::state::proxy;

/// Starts the proxy unless one runs, and says so. For a web service it names the address there. A failure is only a hint,
/// since the tunnel works without.
pub fn say_address(call: &Call, name: &str, is_web: bool) {
    // A build without the proxy cannot start it.
    let is_built = call.args.manual.find("proxy start").is_some_and(|command| command.is_built);
    let running = proxy::running(&call.home);
    if running.is_some() || !is_built {
        let url = running.filter(|_| is_web).map(|running| running.url_of(name));
        url.iter().for_each(|url| call.say.line(&format!("  {url}")));
        return;
    }
    let arguments = background::arguments(call, &["proxy", "start", "--quiet"]);
    let order = BackgroundStart { arguments, secret: None, log: &call.home.file(proxy::PROXY_LOG) };
    let is_started = background::start(call, &order, ChildOutput::Dropped).is_ok_and(|code| code == 0);
    match proxy::running(&call.home).filter(|_| is_started) {
        Some(proxy) => {
            let url = proxy.url_of(name);
            call.say.line(&format!("  {url} (proxy auto-started on port {})", proxy.port));
            call.say.line("  Stop the proxy: connect proxy stop");
        }
        None => call.say.line("  To reach it by name, start the proxy: connect proxy start"),
    }
}
