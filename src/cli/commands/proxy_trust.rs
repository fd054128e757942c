//! `connect proxy trust` and `connect proxy untrust`: the local CA in the trust stores of this machine.

use crate::cli::Call;
use crate::cli::CommandResult;
use crate::cli::local_ca;
use crate::os::setup::trust_store::TrustChange;
use crate::proxy::certificates::Certificates;

pub fn trust(call: &Call) -> CommandResult {
    call.say.line("🔒 Trusting Private Connect local CA...\n");
    // Makes the CA if there is none, so that `proxy trust` may come before the first `proxy start`.
    Certificates::of_folder(&local_ca::folder(call))?;
    let count = local_ca::change_stores(call, TrustChange::Trust)?;
    if count.changed > 0 {
        call.say.line("  Browsers will now trust Private Connect HTTPS certificates.");
    }
    // These programs do not ask the system which CAs it trusts.
    let ca = local_ca::ca_file(call).display().to_string();
    call.say.line("\n  Programs with a list of their own:");
    call.say
        .line(&format!("    NODE_EXTRA_CA_CERTS={ca} for Node; SSL_CERT_FILE={ca} for Python and others, which then believe no other CA"));
    Ok(count.exit_code())
}

pub fn untrust(call: &Call) -> CommandResult {
    call.say.line("🔒 Removing Private Connect local CA from the trust stores...\n");
    Ok(local_ca::change_stores(call, TrustChange::Untrust)?.exit_code())
}
