//! `make load`: what a fleet of three hubs costs etcd and the hubs, with 500 agents and 2000 services.
#![allow(clippy::cast_precision_loss)] // Figures for people.

mod common;

use std::thread;
use std::time::Duration;
use std::time::Instant;

use common::Hub;
use common::etcd::Fleet;
use common::https::RawAgent;
use common::measure::status;

fn main() {
    const AGENTS: usize = 500;
    const EACH: usize = 4;
    let Some(fleet) = Fleet::of(3) else { return };
    // A key is for a hundred agents.
    let keys: Vec<String> = (0..AGENTS / 100).map(|_| fleet.key("member")).collect();
    let key = &keys[0];
    let revision = || {
        let status = fleet.etcd[0].ctl(&["endpoint", "status", "--write-out=json"]).expect("etcd answers");
        let status: serde_json::Value = serde_json::from_str(&status).expect("it is JSON");
        let header = &status[0]["Status"]["header"]["revision"];
        header.as_u64().expect("a revision")
    };
    let memory = || fleet.hubs.iter().map(|hub| status(hub.running.pid(), "VmRSS")).collect::<Vec<_>>();
    let (before, revision_before, began) = (memory(), revision(), Instant::now());
    let agents: Vec<RawAgent> = thread::scope(|scope| {
        let up = |hub: usize| {
            let (fleet, keys) = (&fleet, &keys);
            move || {
                let own = (hub..AGENTS).step_by(3);
                let up = own.map(|number| {
                    let mut agent = RawAgent::up(
                        &fleet.hubs[hub],
                        &keys[number % keys.len()],
                        &format!("agent_{number}"),
                    );
                    (0..EACH).for_each(|service| drop(agent.expose(&format!("svc-{number}-{service}"))));
                    agent
                });
                up.collect::<Vec<_>>()
            }
        };
        let started: Vec<_> = (0..3).map(|hub| scope.spawn(up(hub))).collect();
        started.into_iter().flat_map(|one| one.join().expect("agents come up")).collect()
    });
    let (took, writes) = (began.elapsed(), revision() - revision_before);
    let known = |hub: &Hub| {
        let (mut count, mut after) = (0, String::new());
        loop {
            let page = hub.ask(&format!("GET /v1/services?after={after}"), key, "");
            count += page.json().as_array().map_or(0, Vec::len);
            match page.field("x-next-after") {
                Some(id) => after = id.to_owned(),
                None => return count,
            }
        }
    };
    let spread = common::eventually("all hubs know all services", common::PATIENCE, || {
        fleet.hubs.iter().all(|hub| known(hub) == AGENTS * EACH)
    });
    let quiet = revision();
    thread::sleep(Duration::from_secs(6));
    let stored = fleet.etcd[0].ctl(&["get", "--prefix", "/connect/"]).expect("etcd answers").len();
    let services = AGENTS * EACH;
    println!("A fleet of 3 hubs on one etcd, {AGENTS} agents with {EACH} services each:\n");
    println!(
        "  registered in {took:.1?}, {:.0} changes/s; known to all {spread:.1?} later",
        writes as f64 / took.as_secs_f64()
    );
    println!(
        "  writes      {writes}, {:.1} an agent, {:.2} a service",
        writes as f64 / AGENTS as f64,
        writes as f64 / services as f64
    );
    println!("  while quiet {} writes in 6 s", revision() - quiet);
    println!("  in etcd     {stored} bytes, {} an agent with its services", stored / AGENTS);
    for (hub, (now, then)) in memory().iter().zip(&before).enumerate() {
        println!(
            "  hub {hub}       {} KiB more, {} KiB in all, {} threads",
            now.saturating_sub(*then),
            now,
            status(fleet.hubs[hub].running.pid(), "Threads")
        );
    }
    let asked = Instant::now();
    (0..100).for_each(|n| drop(fleet.hubs[n % 3].ask("GET /v1/whoami", &key, "")));
    println!("  a call      {:.1?}, its own TLS handshake included\n", asked.elapsed() / 100);
    drop(agents);
}
