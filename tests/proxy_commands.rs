//! `connect proxy` as its users see it: start, stop, status, logs, taking over, and the state files.

mod common;
#[path = "common/proxy.rs"]
mod proxy;

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use common::Home;
use common::Hub;
use common::Said;
use common::expose;
use common::service;
use proxy::Proxy;
use proxy::answering;
use proxy::read_head;
use proxy::read_message;
use proxy::status;
use proxy::write_routes;
use serde_json::Value;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A home whose proxy is stopped in the end, whatever happens.
struct Background(Home);

impl Background {
    fn new() -> Self {
        Self(Home::new())
    }

    /// Starts on any free port, and says which.
    fn start(&self, options: &[&str]) -> Value {
        let mut args = vec!["proxy", "start", "--json", "--port", "0"];
        args.extend_from_slice(options);
        self.0.run(&args).ok().json()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.0.run(&["proxy", "stop"]);
    }
}

fn get(port: u64, name: &str) -> String {
    let mut stream = common::dial(u16::try_from(port).unwrap());
    write!(stream, "GET / HTTP/1.1\r\nHost: {name}.localhost\r\n\r\n").unwrap();
    let (head, body) = read_message(&mut stream);
    format!("{} {body}", status(&head))
}

#[test]
fn it_starts_in_the_background_says_how_it_is_and_stops() {
    let it = Background::new();
    write_routes(&it.0, &[("postgres", 5432), ("api", answering(OK).0)]);
    let said = it.start(&[]);
    let (port, pid) = (said["port"].as_u64().unwrap(), said["pid"].as_u64().unwrap());
    assert_eq!(get(port, "api"), "200 ok");
    let state: Value =
        serde_json::from_str(&fs::read_to_string(it.0.file("proxy-state.json")).unwrap()).unwrap();
    assert_eq!((&state["pid"], &state["port"], &state["tls"]), (&pid.into(), &port.into(), &false.into()));
    let started = state["startedAt"].as_str().unwrap();
    assert!(started.len() == 24 && started.ends_with('Z') && &started[19..20] == ".", "{started}");
    let shown = it.0.run(&["proxy", "status"]).ok().out;
    let wanted = format!(
        "🌐 Proxy Status\n\n  ● Proxy: running (PID {pid})\n    Port: {port}\n    TLS:  disabled\n    Routes:\n      http://api.localhost:{port}\n      postgres: psql -h localhost -p 5432"
    );
    assert_eq!(shown.trim_end(), wanted);
    assert!(it.0.file("proxy.log").exists());
    common::eventually("the request is logged", common::PATIENCE, || {
        it.0.run(&["proxy", "logs"]).out.contains("200 GET api /")
    });
    assert_eq!(it.0.run(&["proxy", "stop"]).ok().out.trim(), "[ok] Proxy stopped.");
    assert!(!it.0.file("proxy-state.json").exists());
    assert!(it.0.run(&["proxy", "status"]).ok().out.contains("not running"));
    it.0.run(&["proxy", "stop"]).ok();
}

#[test]
fn what_is_said_at_the_start_is_as_the_page_says() {
    let it = Background::new();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let said = it.0.run(&["proxy", "start", "--port", &free]).ok();
    let log = format!("Logs: {}", it.0.file("proxy.log").display());
    let log = log.replace(&it.0.path().display().to_string(), "~");
    let wanted = format!(
        "🌐 Starting proxy...\n\n[ok] HTTP proxy started on port {free}\n  {log}\n  Stop: connect proxy stop"
    );
    assert_eq!(said.out.trim_end(), wanted);
    let again = it.0.run(&["proxy", "start", "--port", &free]).ok();
    assert!(again.out.contains(&format!("[ok] The proxy already runs on port {free}")), "{again:?}");
    let other = it.0.run(&["proxy", "start", "--port", "1", "--https"]);
    assert_eq!(other.code, Some(1));
    assert!(other.err.contains("take over: connect proxy start --https --port 1 --replace"), "{other:?}");
}

/// Another program that listens on a free port, for this user or another one.
fn listening(uid: u32, ignores_term: bool) -> (std::process::Child, u16) {
    let script = format!(
        "import signal, socket, time\nif {}: signal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
         s = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()\nprint(s.getsockname()[1], flush=True)\ntime.sleep(1000)",
        if ignores_term { "True" } else { "False" }
    );
    let mut command = std::process::Command::new("python3");
    command.args(["-c", &script]).stdout(std::process::Stdio::piped());
    if uid != 0 {
        command.uid(uid);
    }
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line)
        .unwrap();
    (child, line.trim().parse().unwrap())
}

#[test]
fn replace_ends_the_process_on_the_port_if_it_is_the_same_users() {
    for ignores_term in [false, true] {
        let it = Background::new();
        let (mut holder, port) = listening(0, ignores_term);
        let said = it.0.run(&["proxy", "start", "--port", &port.to_string()]);
        assert_eq!(said.code, Some(1));
        let wanted =
            format!("[x] Port {port} is already in use\n  Try: connect proxy start --port {}", port + 1);
        assert!(said.err.starts_with(&wanted), "{said:?}");
        assert!(said.err.contains(&format!("connect proxy start --port {port} --replace")), "{said:?}");
        let said = it.0.run(&["proxy", "start", "--port", &port.to_string(), "--replace"]).ok();
        assert!(said.out.contains(&format!("[ok] Ended python3 (PID {})", holder.id())), "{said:?}");
        holder.wait().unwrap();
        let port = port.to_string();
        for (action, wanted) in [("status", "running (PID"), ("stop", "Proxy stopped")] {
            let other = it.0.run(&["proxy", action, "--port", "1"]).ok();
            assert!(!other.out.contains(wanted), "{other:?}");
            assert!(!it.0.run(&["proxy", action, "--https"]).ok().out.contains(wanted));
            let said = it.0.run(&["proxy", action, "--port", &port]).ok();
            assert!(said.out.contains(wanted), "{said:?}");
        }
    }
}

#[test]
fn another_users_process_is_left_alone_and_nothing_recommends_it() {
    if !nix::unistd::getuid().is_root() {
        return;
    }
    let home = Home::new();
    let (mut holder, port) = listening(65534, false);
    let said = home.run(&["proxy", "start", "--port", &port.to_string()]);
    assert!(said.code == Some(1) && !said.err.contains("--replace"), "{said:?}");
    let said = home.run(&["proxy", "start", "--port", &port.to_string(), "--replace"]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.err.contains("another user's process") && said.err.contains(&holder.id().to_string()),
        "{said:?}"
    );
    assert!(holder.try_wait().unwrap().is_none());
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(!home.file("proxy-state.json").exists());
}

#[test]
fn a_proxy_of_ours_is_replaced_on_its_own_port() {
    let it = Background::new();
    let first = it.start(&[]);
    let port = first["port"].as_u64().unwrap().to_string();
    let second = it.0.run(&["proxy", "start", "--json", "--port", &port, "--replace"]).ok().json();
    assert_eq!(second["port"], first["port"]);
    assert_ne!(second["pid"], first["pid"]);
    assert_eq!(it.0.run(&["proxy", "status", "--json"]).ok().json()["pid"], second["pid"]);
}

#[test]
fn a_pid_that_is_not_provably_the_proxy_is_never_signalled() {
    let home = Home::new();
    let mut bystander = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let state = serde_json::json!({ "pid": bystander.id(), "port": 3456, "tls": false, "startedAt": "2026-01-15T10:30:00.000Z" });
    fs::write(home.file("proxy-state.json"), state.to_string()).unwrap();
    assert!(home.run(&["proxy", "stop"]).ok().out.contains("No proxy is running"));
    assert!(home.run(&["proxy", "status"]).ok().out.contains("not running"));
    assert!(bystander.try_wait().unwrap().is_none());
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[test]
fn the_foreground_shows_a_line_a_request_without_its_query() {
    let (port, _) = answering(OK);
    let home = Home::new();
    write_routes(&home, &[("api", port)]);
    let running = home.start(&["proxy", "start", "--foreground", "--port", "0"]);
    let line = running.wait_out(|line| line.contains("[ok] HTTP proxy running on port"));
    let port = line.rsplit(' ').next().unwrap().parse().unwrap();
    assert_eq!(get(port, "api"), "200 ok");
    assert_eq!(get(port, "none").split(' ').next(), Some("404"));
    running.wait_out(|line| line.trim_start().starts_with("200 GET api / "));
    running.wait_out(|line| line.trim_start().starts_with("404 GET none / "));
    assert!(running.out().contains("  • api → 127.0.0.1:"));
}

#[test]
fn the_page_lists_routes_and_requests_and_no_header_values() {
    let (port, _) = answering(OK);
    let proxy = Proxy::start(&[("api", port)]);
    assert!(proxy.get("api", "/a?secret=1").ends_with("ok"));
    let page = proxy.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert!(page.contains("Content-Security-Policy: default-src 'none'; script-src 'nonce-"), "{page}");
    assert!(page.contains("<title>connect proxy</title>") && !page.contains("{{nonce}}"), "{page}");
    let state = proxy.raw(b"GET /_connect/state HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
    let state: Value = serde_json::from_str(state.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!((&state["routes"][0]["name"], &state["routes"][0]["health"]), (&"api".into(), &"up".into()));
    let mut events = proxy.dial();
    events.write_all(b"GET /_connect/events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    read_head(&mut events).unwrap();
    let mut seen = String::new();
    while !seen.contains("\"path\":\"/a\"") {
        seen.push_str(&proxy::read_exactly(&mut events, 1));
    }
    assert!(!seen.contains("secret"), "{seen}");
}

#[test]
fn services_of_the_hub_are_reached_without_reaching_for_them() {
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let (port, heard) = answering(OK);
    let _exposed = expose(&owner, "billing", port);
    let proxy = Proxy::start_in(user, &[]);
    assert!(proxy.get("billing", "/x").ends_with("ok"));
    assert!(proxy.get("billing", "/y").ends_with("ok"));
    let heard = String::from_utf8(heard.lock().unwrap().clone()).unwrap();
    assert!(heard.contains("GET /x HTTP/1.1\r\nHost: billing.localhost\r\n"), "{heard}");
}

#[test]
fn a_service_that_comes_later_is_there_within_ten_seconds() {
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let proxy = Proxy::start_in(user, &[]);
    assert_eq!(status(&proxy.get("billing", "/")), 404);
    let _exposed = expose(&owner, "billing", answering(OK).0);
    let took = common::eventually("the service has a route", common::PATIENCE, || {
        proxy.get("billing", "/").ends_with("ok")
    });
    assert!(took < std::time::Duration::from_secs(12), "{took:?}");
}

#[test]
fn the_log_is_followed_into_the_next_file_when_it_has_grown_too_large() {
    let it = Background::new();
    write_routes(&it.0, &[]);
    it.start(&[]);
    let log = it.0.file("proxy.log");
    let mut followed = it.0.start(&["proxy", "logs", "-f"]);
    let append = |text: String| {
        fs::OpenOptions::new().append(true).open(&log).unwrap().write_all(text.as_bytes()).unwrap();
    };
    append("before\n".into());
    followed.wait_out(|line| line == "before");
    append(format!("{}the last of the old\n", "0123456789abcde\n".repeat(70_000)));
    followed.wait_out(|line| line == "the last of the old");
    common::eventually("the log is put aside", common::PATIENCE, || it.0.file("proxy.log.old").exists());
    common::eventually("the next one is there", common::PATIENCE, || log.exists());
    fs::write(it.0.file("active-routes.json"), "[").unwrap();
    followed.wait_out(|line| line.contains("active-routes.json is damaged"));
    assert!(fs::metadata(&log).unwrap().len() < 10_000);
    let (ended, _) = followed.interrupt();
    assert!(ended.success(), "{ended:?}");
}

#[test]
fn nothing_is_lost_of_a_log_that_is_put_aside_while_it_is_followed() {
    let home = Home::new();
    let (log, old) = (home.file("proxy.log"), home.file("proxy.log.old"));
    fs::write(&log, "first\n").unwrap();
    let followed = home.start(&["proxy", "logs", "-f"]);
    followed.wait_out(|line| line == "first");
    for round in 0..3 {
        let mut writer = fs::OpenOptions::new().append(true).open(&log).unwrap();
        let many = "0123456789abcde\n".repeat(40_000);
        writer.write_all(format!("{many}the last of {round}\n").as_bytes()).unwrap();
        fs::rename(&log, &old).unwrap();
        writer.write_all(format!("behind the last of {round}\n").as_bytes()).unwrap();
        fs::write(&log, format!("the next after {round}\n")).unwrap();
        followed.wait_out(|line| line == format!("the next after {round}"));
    }
    let told: Vec<String> =
        followed.out().lines().filter(|line| line.contains(' ')).map(str::to_owned).collect();
    let wanted = |round| {
        [
            format!("the last of {round}"),
            format!("behind the last of {round}"),
            format!("the next after {round}"),
        ]
    };
    assert_eq!(told, (0..3).flat_map(wanted).collect::<Vec<_>>());
    assert_eq!(followed.out().matches("0123456789abcde").count(), 3 * 40_000);
}

/// The body of a 502.
fn trouble(proxy: &Proxy, name: &str) -> Value {
    let answer = proxy.get(name, "/");
    assert_eq!(status(&answer), 502, "{answer}");
    let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(body["error"], "Bad Gateway: the service is not responding.");
    assert_eq!(body["service"], name);
    body
}

#[test]
fn why_a_service_of_the_hub_does_not_respond_is_said() {
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let down = proxy::unused_port();
    let _down = expose(&owner, "down", down);
    let mut exposed = expose(&owner, "billing", answering(OK).0);
    let proxy = Proxy::start_in(user, &[]);
    assert!(proxy.get("billing", "/").ends_with("ok"));
    let reason = format!("Nothing is listening at localhost:{down} on the agent's machine");
    assert_eq!(trouble(&proxy, "down")["reason"], reason);
    let mut client = proxy.dial();
    client.write_all(b"CONNECT down.localhost:80 HTTP/1.1\r\nHost: down.localhost:80\r\n\r\n").unwrap();
    assert_eq!(status(&read_head(&mut client).unwrap()), 502);
    exposed.kill();
    common::eventually("the proxy knows", common::PATIENCE, || {
        !proxy.get("none", "/").contains("\"billing\"")
    });
    let began = std::time::Instant::now();
    assert!(trouble(&proxy, "billing")["reason"].as_str().unwrap().ends_with("is offline"));
    assert!(began.elapsed() < std::time::Duration::from_millis(500));
    assert!(!proxy.home.run(&["proxy", "status"]).ok().out.contains("billing"));
    assert!(!proxy.home.run(&["status"]).ok().out.contains("billing"));
}

#[test]
fn the_log_has_every_request_every_reason_and_the_hubs_loss_and_return() {
    for format in ["text", "json"] {
        let mut hub = Hub::start();
        let it = Background(hub.machine("member"));
        let down = proxy::unused_port();
        write_routes(&it.0, &[("api", answering(OK).0), ("down", down)]);
        let port = it.start(&["--log-format", format])["port"].as_u64().unwrap();
        let log = || fs::read_to_string(it.0.file("proxy.log")).unwrap();
        assert_eq!(get(port, "api"), "200 ok");
        assert!(get(port, "none").starts_with("404") && get(port, "down").starts_with("502"));
        if format == "text" {
            hub.running.kill();
            common::eventually("the loss is logged", common::PATIENCE, || {
                log().contains("The routes stay as they were")
            });
            hub.restart();
            common::eventually("the return is logged", common::PATIENCE, || {
                log().contains("The hub is back")
            });
        }
        common::eventually("the last request is logged", common::PATIENCE, || {
            log().contains("Nothing is listening")
        });
        let log = log();
        let wanted = match format {
            "text" => {
                ["INFO  200 GET api / ", "INFO  404 GET none / ", "WARN  502 GET down / ", "WARN  Cannot"]
            }
            _ => [
                "\"status\":200",
                "\"status\":404",
                "Nothing is listening at localhost:",
                "\"level\":\"WARN\"",
            ],
        };
        assert!(wanted.iter().all(|wanted| log.contains(wanted)), "{log}");
        assert!(log.contains(&format!("Nothing is listening at localhost:{down}")), "{log}");
        for line in log.lines() {
            let time = match format {
                "text" => line.split(' ').next().unwrap().to_owned(),
                _ => serde_json::from_str::<Value>(line).unwrap()["time"].as_str().unwrap().to_owned(),
            };
            assert!(time.len() == 24 && time.ends_with('Z') && time.contains('T'), "{line}");
        }
    }
}

#[test]
fn an_agent_that_is_not_the_one_it_was_is_named_in_the_502() {
    let hub = Hub::start();
    let (one, other, user) = (hub.machine("member"), hub.machine("member"), hub.machine("member"));
    let _exposed = [expose(&one, "api", answering(OK).0), expose(&other, "web", answering(OK).0)];
    let proxy = Proxy::start_in(user, &[]);
    assert!(proxy.get("api", "/").ends_with("ok") && proxy.get("web", "/").ends_with("ok"));
    let Proxy { home, mut running, .. } = proxy;
    assert!(running.interrupt().0.success());
    let file = home.file("known_agents.json");
    let mut known: serde_json::Map<String, Value> =
        serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let mut pins: Vec<&mut Value> = known.values_mut().collect();
    let (first, second) = (pins[0].clone(), pins[1].clone());
    (*pins[0], *pins[1]) = (second, first);
    fs::write(&file, serde_json::to_string(&known).unwrap()).unwrap();
    let proxy = Proxy::start_in(home, &[]);
    let said = trouble(&proxy, "api");
    assert!(said["reason"].as_str().unwrap().contains("is not the one it was"), "{said}");
    assert!(said["hint"].as_str().unwrap().ends_with("connect forget api"), "{said}");
    // The doctor sees it without a request.
    let checked = proxy.home.run(&["doctor", "--hub", &hub.url]);
    assert_eq!(checked.code, Some(1), "{checked:#?}");
    assert!(checked.out.contains("[x]  known agents"), "{checked:#?}");
    assert!(checked.out.contains("connect forget api"), "{checked:#?}");
    assert_eq!(proxy.home.run(&["forget", "nothing"]).code, Some(1));
    for name in ["api", "web"] {
        proxy.home.run(&["forget", name]).ok();
    }
    assert!(proxy.get("api", "/").ends_with("ok"));
    let checked = proxy.home.run(&["doctor"]);
    assert!(checked.out.contains("1 known, none has changed"), "{checked:#?}");
}

#[test]
fn a_login_that_comes_after_the_start_counts_within_a_second_and_so_does_the_next_one() {
    let hubs = [Hub::start(), Hub::start()];
    let proxy = Proxy::start_in(Home::new(), &[]);
    for hub in &hubs {
        let (owner, user) = (hub.machine("member"), hub.machine("member"));
        let _exposed = expose(&owner, "billing", answering(OK).0);
        assert_ne!(status(&proxy.get("billing", "/")), 200);
        fs::copy(user.file("config.json"), proxy.home.file("config.draft")).unwrap();
        fs::rename(proxy.home.file("config.draft"), proxy.home.file("config.json")).unwrap();
        let took = common::eventually("the service has a route", common::PATIENCE, || {
            proxy.get("billing", "/").ends_with("ok")
        });
        assert!(took < std::time::Duration::from_secs(4), "{took:?}");
    }
}

#[test]
fn what_start_prints_to_both_streams_is_in_order() {
    let it = Background::new();
    write_routes(&it.0, &[]);
    fs::write(it.0.file("active-routes.json"), "[").unwrap();
    let command = it.0.connect(&["proxy", "start", "--port", "0"]);
    let script = "exec \"$@\" 2>&1";
    for _ in 0..5 {
        let mut both = std::process::Command::new("bash");
        both.args(["-c", script, "bash"]).arg(command.get_program()).args(command.get_args());
        both.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let said = String::from_utf8(both.output().unwrap().stdout).unwrap();
        let at = |text: &str| said.find(text).unwrap_or_else(|| panic!("{text}: {said}"));
        assert!(
            at("Starting proxy") < at("is damaged") && at("is damaged") < at("HTTP proxy started"),
            "{said}"
        );
        it.0.run(&["proxy", "stop"]).ok();
    }
}

#[test]
fn a_ca_that_is_not_ours_is_not_trusted() {
    let it = Home::new();
    it.run(&["proxy", "trust", "--dry-run"]);
    let certs = it.file("certs");
    let own = fs::read(certs.join("ca.crt")).unwrap();
    for key in ["ca.key", "other.key"] {
        let file = certs.join(key);
        let path = file.to_str().unwrap();
        let made = certs.join("made.crt");
        let source: &[&str] = if key == "ca.key" {
            &["-key", path]
        } else {
            &["-newkey", "rsa:2048", "-nodes", "-keyout", path]
        };
        let made_by = std::process::Command::new("openssl")
            .args(["req", "-x509", "-subj", "/CN=anything", "-days", "30", "-out", made.to_str().unwrap()])
            .args(source)
            .output()
            .unwrap();
        assert!(made_by.status.success(), "{made_by:?}");
        fs::copy(&made, certs.join("ca.crt")).unwrap();
        let said = it.run(&["proxy", "trust", "--dry-run"]);
        assert!(said.code == Some(1) && said.err.contains("is not the CA that connect made"), "{said:?}");
    }
    fs::write(certs.join("ca.crt"), own).unwrap();
    assert!(!it.run(&["proxy", "trust", "--dry-run"]).err.contains("is not the CA"));
}

#[test]
fn a_hub_that_is_away_changes_nothing_for_local_routes() {
    let mut hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let (port, _) = answering(OK);
    let _exposed = expose(&owner, "billing", port);
    write_routes(&user, &[("api", port)]);
    let proxy = Proxy::start_in(user, &[]);
    assert!(proxy.get("billing", "/").ends_with("ok"));
    hub.running.kill();
    assert!(proxy.get("api", "/").ends_with("ok"));
    let user = Home::new();
    fs::copy(proxy.home.file("config.json"), user.file("config.json")).unwrap();
    write_routes(&user, &[("api", port)]);
    let began = std::time::Instant::now();
    let later = Proxy::start_in(user, &[]);
    assert!(later.get("api", "/").ends_with("ok"));
    assert!(began.elapsed() < std::time::Duration::from_secs(5));
}

#[test]
fn reach_starts_the_proxy_and_names_the_address() {
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let _exposed = expose(&owner, "web", service(|_| ()));
    // The default port may be taken on this machine; then reach says how to go on, and goes on.
    let it = Background(user);
    let mut command = it.0.connect(&["reach", "web"]);
    command.env_remove("CONNECT_NO_PROXY");
    let reached = common::Running::start(command);
    reached.wait_out(|line| {
        line.contains("http://web.localhost:3456 (proxy auto-started on port 3456)")
            || line.contains("start the proxy: connect proxy start")
    });
    reached.wait_out(|line| line.contains("Press Ctrl+C to disconnect"));
    let out = reached.out();
    assert!(out.contains("\n  curl http://localhost:"), "{out}");
    assert!(
        !out.contains("auto-started") || out.contains("\n  Stop the proxy: connect proxy stop\n"),
        "{out}"
    );
    reached.signal(nix::sys::signal::Signal::SIGINT);
    assert!(reached.finish().out.ends_with("[ok] Disconnected from web"));
}

#[test]
fn keys_are_private_and_made_before_their_certificates() {
    let it = Background::new();
    let said = it.start(&["--https"]);
    assert_eq!(said["tls"], true);
    for file in ["ca.key", "server.key"] {
        let mode = fs::metadata(it.0.file("certs").join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    for file in ["ca.crt", "server.crt"] {
        assert!(it.0.file("certs").join(file).exists(), "{file}");
    }
}

#[test]
fn a_certificate_and_a_key_that_do_not_belong_together_are_refused() {
    let (one, two) = (rcgen_like("one"), rcgen_like("two"));
    let (Some(one), Some(two)) = (one, two) else {
        println!("skipped: openssl is not installed");
        return;
    };
    let home = Home::new();
    let run = |certificate: &str, key: &str| -> Said {
        home.run(&["proxy", "start", "--json", "--port", "0", "--cert", certificate, "--key", key])
    };
    let refused = run(&one.1, &two.0);
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("do not belong together"), "{refused:?}");
    let it = Background(home);
    assert_eq!(it.0.run(&["proxy", "start", "--cert", &one.1]).code, Some(2));
    assert_eq!(
        it.0.run(&["proxy", "start", "--json", "--port", "0", "--cert", &one.1, "--key", &one.0]).ok().json()
            ["tls"],
        true
    );
}

/// A key and a self-signed certificate, by openssl.
fn rcgen_like(name: &str) -> Option<(String, String)> {
    let folder = std::env::temp_dir().join(format!("connect-own-{}-{name}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let path = |file: &str| folder.join(file).display().to_string();
    let (key, certificate) = (path("key.pem"), path("cert.pem"));
    let made = std::process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "9",
        ])
        .args([
            "-keyout",
            &key,
            "-out",
            &certificate,
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
        ])
        .output();
    made.ok().filter(|output| output.status.success()).map(|_| (key, certificate))
}

/// The loopback ports that a process listens on, except one.
fn other_ports_of(pid: u32, known: u16) -> Vec<u16> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let held: Vec<String> =
        files.filter_map(|file| fs::read_link(file.path()).ok()).map(|to| to.display().to_string()).collect();
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let columns = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    columns
        .filter(|columns| columns[3] == "0A" && held.contains(&format!("socket:[{}]", columns[9])))
        .map(|columns| u16::from_str_radix(columns[1].split_once(':').unwrap().1, 16).unwrap())
        .filter(|port| *port != known)
        .collect()
}

#[test]
fn another_user_does_not_get_around_the_proxy_by_the_port_of_its_tunnel() {
    if !nix::unistd::getuid().is_root() {
        return;
    }
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let _exposed = expose(&owner, "billing", answering(OK).0);
    let proxy = Proxy::start_in(user, &[]);
    let answer = proxy.get("billing", "/");
    assert!(answer.ends_with("ok"), "{answer}{}", proxy.running.err());
    let ports = other_ports_of(proxy.running.pid(), proxy.port);
    assert_eq!(ports.len(), 1, "{ports:?}");
    let said = |uid: u32| {
        let script = format!(
            "exec 3<>/dev/tcp/127.0.0.1/{}; printf 'GET / HTTP/1.1\\r\\n\\r\\n' >&3; head -c 15 <&3",
            ports[0]
        );
        let out = std::process::Command::new("bash").args(["-c", &script]).uid(uid).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    assert_eq!((said(0).as_str(), said(65534).as_str()), ("HTTP/1.1 200 OK", ""));
}
