//! No byte is lost around the relay's upgrade, at either end of it.

mod common;

use std::io::Read;
use std::io::Write;
use std::net::Shutdown;

use common::Hub;
use common::dial;
use common::echo;
use common::echoes;
use common::expose;
use common::fault::Path;
use common::noise;
use common::raw;
use common::reach;
use common::service;

#[test]
fn bytes_right_behind_the_answer_to_an_upgrade_are_the_sessions() {
    let hub = Hub::start();
    let path = Path::to(&hub.address);
    path.glue_upgrades();
    let (owner, user) = (hub.machine_by(&path.url(), "member"), hub.machine("member"));
    let _exposed = expose(&owner, "echo", service(echo));
    let (_reached, port) = reach(&user, "echo");
    assert!(echoes(port, &noise(7, 300_000)));
}

#[test]
fn bytes_right_behind_the_request_for_an_upgrade_reach_the_other_end() {
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let _exposed = expose(&owner, "echo", service(echo));
    let (status, granted) = raw::call(
        &hub,
        &raw::key_of(&user),
        "POST /v1/sessions",
        r#"{"service":"echo","fingerprint":"0000000000000000000000000000000000000000000000000000000000000000"}"#,
    );
    assert_eq!(status, 200, "{granted}");
    let ticket = granted["ticket"].as_str().unwrap();
    let mut stream = dial(hub.address.rsplit_once(':').unwrap().1.parse().unwrap());
    // No record of TLS, so the agent says why it hangs up: an alert, whose first byte is 21.
    let early = [raw::relay_request(&hub, ticket).as_bytes(), b"this is no TLS record\r\n"].concat();
    stream.write_all(&early).unwrap();
    assert!(common::fault::read_head(&stream).starts_with("HTTP/1.1 101 "));
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer.first(), Some(&21), "{answer:?}");
}
