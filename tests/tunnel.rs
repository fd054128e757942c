//! The main job, through the real binary: a service on one machine is used on another.

mod common;

use common::Hub;
use common::echo;
use common::echoes;
use common::expose;
use common::noise;
use common::reach;
use common::service;

#[test]
fn a_service_is_used_from_another_machine() {
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let _exposed = expose(&owner, "echo", service(echo));
    let (_reached, port) = reach(&user, "echo");
    assert!(echoes(port, b"hello"));
    assert!(echoes(port, &noise(1, 3_000_000)));
    let services = user.run(&["services", "--json"]).ok().json();
    assert_eq!((&services[0]["name"], &services[0]["status"]), (&"echo".into(), &"online".into()));
}
