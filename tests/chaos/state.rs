//! `kill -9` while state is written, again and again: what was said to be kept is kept, and every file is whole.

use std::fs;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::common::Hub;
use crate::common::Running;
use crate::common::noise;
use crate::common::service;
use crate::soak;

/// Kills of each kind: a thousand together in a soak.
fn kills() -> usize {
    if soak().is_some() { 500 } else { 12 }
}

fn moment(random: u8, longest: u64) -> Duration {
    Duration::from_micros(u64::from(random) * longest * 1000 / 255)
}

#[test]
fn a_hub_that_is_killed_while_it_writes_keeps_what_it_has_acknowledged() {
    let mut hub = Hub::start();
    let mut acknowledged = vec![];
    for random in noise(11, kills()) {
        let address = hub.address.clone();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(hub.running.pid()).unwrap());
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(moment(random, 60));
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
            });
            // The command beside the hub asks the hub, or writes itself when none runs.
            let making = hub.home.run(&["hub", "key", "create", "--json"]);
            if making.code == Some(0) {
                acknowledged.push(making.json()["id"].as_str().unwrap().to_owned());
            }
        });
        hub.restart();
        assert_eq!(hub.address, address);
        let listed = hub.home.run(&["hub", "key", "list", "--json"]).ok().json();
        let is_there = |id: &String| listed.as_array().unwrap().iter().any(|key| key["id"] == id.as_str());
        assert!(acknowledged.iter().all(is_there), "{acknowledged:?} and {listed}");
    }
    println!("{} kills of a hub, {} keys acknowledged, all there", kills(), acknowledged.len());
    hub.home.run(&["hub", "audit", "verify"]).ok();
}

#[test]
fn a_command_that_is_killed_while_it_writes_leaves_every_file_whole() {
    let hub = Hub::start();
    let (owner, home) = (hub.machine("member"), hub.machine("member"));
    let _exposed = crate::common::expose(&owner, "service", service(crate::common::echo));
    let key = hub.key("member");
    let identity = fs::read(home.file("identity.pem")).unwrap();
    drop(crate::common::reach(&home, "service"));
    for (round, random) in noise(13, kills()).into_iter().enumerate() {
        let label = format!("l{round}");
        let args: &[&str] = match round % 2 {
            0 => &["up", "--hub", &hub.url, "--api-key", &key, "--label", &label],
            _ => &["reach", "--json", "service"],
        };
        let mut running: Running = home.start(args);
        thread::sleep(moment(random, 120));
        running.kill();
        assert_eq!(fs::read(home.file("identity.pem")).unwrap(), identity, "round {round}");
        for file in ["config.json", "known_agents.json", "ports.json", "active-routes.json"] {
            let text = fs::read_to_string(home.file(file))
                .unwrap_or_else(|error| panic!("round {round}: {file}: {error}"));
            let value: Value =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("round {round}: {file}: {error}"));
            let has = match file {
                "config.json" => value["hubUrl"] == hub.url.as_str() && value["apiKey"].is_string(),
                "active-routes.json" => value.is_array(),
                _ => !value.as_object().unwrap().is_empty(),
            };
            assert!(has, "round {round}: {file}: {text}");
        }
    }
    home.run(&["whoami"]).ok();
    println!("{} kills of commands, every file whole", kills());
}
