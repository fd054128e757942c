//! What a CI job does: `PostgreSQL`, Redis and a web service on one machine, joined by a link on another that
//! has no account, and used by the programs that people use. What is not installed is skipped, loudly.

mod common;

use common::Home;
use common::Said;
use common::is_here;
use common::servers::postgres;
use common::servers::redis;
use common::team::Team;

/// A page that says its request's path.
fn web() -> u16 {
    common::service(|mut stream| {
        use std::io::Read;
        use std::io::Write;
        let mut request = [0; 4096];
        let count = stream.read(&mut request).unwrap_or(0);
        let text = String::from_utf8_lossy(&request[..count]).into_owned();
        let path = text.split(' ').nth(1).unwrap_or_default();
        let body = format!("you asked for {path}\n");
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        let _ = stream.write_all(format!("{head}{body}").as_bytes());
    })
}

#[test]
fn a_job_joins_by_link_and_its_programs_get_their_answers() {
    let (team, place) = (Team::new(), Home::new());
    let (postgres, redis) = (postgres(&place), redis(&place));
    let mut targets = Vec::new();
    let mut steps = vec!["set -e"];
    let mut answers = Vec::new();
    if let Some((_, port)) = &postgres {
        targets.push(format!("staging-db=127.0.0.1:{port}"));
        steps.push("export PGHOST=$STAGING_DB_HOST PGPORT=$STAGING_DB_PORT PGUSER=ci PGDATABASE=postgres");
        steps.push("psql -qc 'create table t as select generate_series(1, 20000) n'");
        steps.push("psql -Atc 'select sum(n) from t'");
        // A large answer, and several connections at once.
        steps.push("psql -Atc 'select n from t' | tail -1");
        steps.push("for i in 1 2 3 4; do psql -qc \"insert into t values ($i)\" & done; wait");
        steps.push("psql -Atc 'select count(*) from t'");
        answers.extend(["200010000", "20000", "20004"]);
    }
    if let Some((_, port)) = &redis {
        targets.push(format!("redis=127.0.0.1:{port}"));
        steps.push("redis-cli -h $REDIS_HOST -p $REDIS_PORT set greeting hello");
        steps.push("redis-cli -u redis://$REDIS_ADDR get greeting");
        answers.extend(["OK", "hello"]);
    }
    targets.push(format!("api=127.0.0.1:{}", web()));
    if is_here("curl", "curl") {
        steps.push("curl -fsS http://$API_ADDR/health");
        steps.push("curl -fsS http://localhost:$API_PORT/again");
        answers.extend(["you asked for /health", "you asked for /again"]);
    }
    steps.push("exit 42");
    let mut args = vec!["--link", "--name", "staging-env", "--max-joins", "2"];
    args.extend(targets.iter().map(String::as_str));
    let shared = team.share(&args);

    // As the README has it: no account, nothing in the process list, the link in a variable.
    let runner = Home::new();
    let script = steps.join("\n");
    let job = || {
        let mut job = runner.connect(&["join", "-", "--wait", "2m", "--", "sh", "-c", &script]);
        job.env("CONNECT_JOIN", &shared.link);
        job
    };
    let said = Said::of(job());
    assert_eq!(said.out.lines().collect::<Vec<_>>(), answers, "{said:#?}");
    assert_eq!(said.code, Some(42), "{said:#?}");

    // The second and last join: the variables in a file, for the steps that follow.
    let file = runner.file(".env.connect").display().to_string();
    let said = {
        let mut job = runner.connect(&["join", "-", "--env-file", &file, "--", "cat", &file]);
        job.env("CONNECT_JOIN", &shared.link);
        Said::of(job)
    };
    assert_eq!(said.code, Some(0), "{said:#?}");
    assert_eq!(said.out.lines().count(), 3 * targets.len(), "{said:#?}");

    let said = Said::of(job());
    assert_eq!((said.code, said.out.as_str()), (Some(1), ""), "{said:#?}");
    assert!(said.err.contains("[x] This share has been joined as often as it may be"), "{said:#?}");
}

#[test]
fn a_key_of_the_role_join_joins_and_does_nothing_else() {
    let team = Team::new();
    let target = format!("api=127.0.0.1:{}", web());
    let shared = team.share(&[&target]);
    let job = team.hub.machine("join");
    let said = job.run(&["join", &shared.code, "--", "sh", "-c", "echo $API_HOST"]);
    assert_eq!((said.code, said.out.as_str()), (Some(0), "127.0.0.1"), "{said:#?}");
    for refused in [&["reach", "api"][..], &["expose", "mine", "1"], &["share", "mine=1"], &["share", "list"]]
    {
        let said = job.run(refused);
        assert_eq!(said.code, Some(1), "{refused:?}: {said:#?}");
    }
    assert!(!job.run(&["services"]).out.contains("api"));
}
