//! The number of the protocol: both ends of everything have the same, or one of them must be updated.
//!
//! Each end ignores what it does not know. A field that must not be ignored, because that would widen a right, needs a new
//! number.

/// What this program speaks. The names of the two upgrades end with it.
pub const PROTOCOL: u32 = 1;
/// The header field with the sender's number, in requests and in answers.
pub const PROTOCOL_FIELD: &str = "x-connect-protocol";

/// What hub and client speak, if that is not the same, and what to do about it. A sender without the field is a tool like
/// `curl`, whose user follows the current protocol.
pub fn objection(hub: Option<&str>, client: Option<&str>) -> Option<(String, String)> {
    let number = |text: Option<&str>| text.map_or(PROTOCOL, |text| text.trim().parse().unwrap_or_default());
    let (hub, client) = (number(hub), number(client));
    let older = if hub < client { "the hub's machine" } else { "this machine" };
    (hub != client).then(|| {
        let what = format!("The hub speaks protocol {hub}, this connect speaks {client}");
        (what, format!("Update connect on {older}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_end_is_to_be_updated() {
        assert_eq!(objection(None, None), None);
        assert_eq!(objection(Some("1"), Some(" 1")), None);
        for (hub, client, numbers, older) in [
            (Some("2"), None, (2, 1), "this machine"),
            (None, Some("2"), (1, 2), "the hub's machine"),
            (Some("1.0"), None, (0, 1), "the hub's machine"),
            (Some(""), Some("3"), (0, 3), "the hub's machine"),
            (None, Some("-1"), (1, 0), "this machine"),
        ] {
            let what = format!("The hub speaks protocol {}, this connect speaks {}", numbers.0, numbers.1);
            assert_eq!(objection(hub, client), Some((what, format!("Update connect on {older}"))));
        }
    }
}
