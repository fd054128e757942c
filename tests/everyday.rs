//! What a user meets on an ordinary day: the doctor, completions in real shells, the manual page, and a first
//! sentence that helps when the disk is full, a certificate is too old, or the hub speaks another protocol.

mod common;

use std::fs;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use common::Home;
use common::Hub;
use common::Said;
use common::echo;
use common::expose;
use common::fake_hub::FakeHub;
use common::fake_hub::friendly;
use common::is_here;
use common::raw;
use common::service;
use common::team::is_root;
use common::team::with_input;

fn verdicts(home: &Home, options: &[&str]) -> (Option<i32>, Value) {
    let said = home.run(&[&["doctor", "--json"], options].concat());
    let list = said.json();
    let named =
        list.as_array().unwrap().iter().map(|one| (one["check"].as_str().unwrap().to_owned(), one.clone()));
    (said.code, Value::Object(named.collect()))
}

#[test]
fn the_doctor_finds_what_is_amiss_names_the_cure_and_mends_what_is_safe() {
    let mut hub = Hub::start();
    let home = hub.machine("member");
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(home.file("somebody-elses.txt"), "").unwrap();
    let (code, all) = verdicts(&home, &[]);
    assert_eq!(code, Some(0), "{all}");
    for check in [
        "state folder",
        "file modes",
        "config",
        "key",
        "hub: TCP",
        "hub: TLS",
        "clock",
        "login",
        "control channel",
        "relay",
    ] {
        assert_eq!(all[check]["verdict"], "ok", "{check}: {}", all[check]);
    }
    fs::set_permissions(home.file("identity.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::create_dir_all(home.file("run")).unwrap();
    let fallen =
        r#"{"pid":4000000,"kind":"join","names":["abc"],"startedAt":"2026-01-01T00:00:00Z","log":"/x"}"#;
    fs::write(home.file("run/4000000.json"), fallen).unwrap();
    fs::set_permissions(home.file("run/4000000.json"), fs::Permissions::from_mode(0o600)).unwrap();
    let (code, all) = verdicts(&home, &[]);
    assert_eq!((code, &all["file modes"]["verdict"]), (Some(1), &"fail".into()), "{all}");
    assert_eq!(all["file modes"]["mend"], "connect doctor --fix");
    assert!(all["stale entries"]["said"].as_str().unwrap().contains("join abc"), "{all}");
    let (code, all) = verdicts(&home, &["--fix"]);
    assert_eq!(
        (code, &all["file modes"]["fixed"], &all["stale entries"]["fixed"]),
        (Some(0), &true.into(), &true.into())
    );
    assert_eq!(fs::metadata(home.file("identity.pem")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!home.file("run/4000000.json").exists());

    hub.running.kill();
    let (code, all) = verdicts(&home, &[]);
    assert_eq!((code, &all["hub: TCP"]["verdict"]), (Some(1), &"fail".into()), "{all}");
    assert!(all["hub: TLS"].is_null() && all["login"].is_null(), "{all}");
    assert_eq!(verdicts(&Home::new(), &[]).1["config"]["verdict"], "warn");
}

#[test]
fn state_that_another_user_could_change_is_refused_with_what_to_type() {
    let (hub, home) = (Hub::start(), Home::new());
    let key = hub.key("member");
    let up = || home.run(&["up", "--hub", &hub.url, "--api-key", &key]);
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let is_refused = |path: &Path, what: &str, hint: &str| {
        let said = up();
        let (what, hint) = (format!("[x] {} {what}", path.display()), format!("{hint} {}", path.display()));
        assert!(said.code == Some(1) && said.err.starts_with(&what) && said.err.contains(&hint), "{said:#?}");
    };
    // The folder, and what was put into it when it was open.
    for open in [0o777, 0o775] {
        mode(home.path(), open);
        is_refused(home.path(), "can be changed by other users", "chmod go-w");
    }
    let (code, all) = verdicts(&home, &[]);
    assert_eq!((code, &all["state folder"]["verdict"]), (Some(1), &"fail".into()), "{all}");
    let (_, all) = verdicts(&home, &["--fix"]);
    assert_eq!(
        (&all["file modes"]["fixed"], &all["state folder"]["verdict"]),
        (&true.into(), &"ok".into()),
        "{all}"
    );
    let identity = home.file("identity.pem");
    let (owner, planted) = (Home::new(), || fs::write(&identity, "x").unwrap());
    planted();
    mode(&identity, 0o666);
    is_refused(&identity, "can be changed by other users", "chmod go-w");
    fs::remove_file(&identity).unwrap();
    up().ok();
    // A link of one's own is meant, as for a folder on another disk.
    let link = owner.file("link");
    std::os::unix::fs::symlink(home.path(), &link).unwrap();
    let linked = Home::at(link.clone());
    linked.run(&["whoami"]).ok();
    if !is_root() {
        return eprintln!("SKIPPED: only root can give a file to another user; run the tests as root");
    }
    std::os::unix::fs::lchown(&link, Some(65_534), None).unwrap();
    let said = linked.run(&["whoami"]);
    assert!(said.code == Some(1) && said.err.contains("belongs to another user"), "{said:#?}");
    for path in [identity.as_path(), home.path()] {
        std::os::unix::fs::chown(path, Some(65_534), None).unwrap();
        is_refused(path, "belongs to another user", "chown 0");
        let (code, all) = verdicts(&home, &["--fix"]);
        assert_eq!((code, &all["file modes"]["verdict"]), (Some(1), &"fail".into()), "{all}");
    }
}

#[test]
fn the_doctor_tells_one_clock_from_another() {
    let hub = FakeHub::start(|asked, stream| match asked.call.as_str() {
        "GET /health" => common::fake_hub::json(
            stream,
            200,
            r#"{"status":"ok","version":"1","uptimeSeconds":1,"time":"2001-01-01T00:00:00Z"}"#,
        ),
        _ => friendly(asked, stream),
    });
    let home = Home::new();
    home.run(&["up", "--hub", &hub.url, "--api-key", &hub.key]).ok();
    let (_, all) = verdicts(&home, &[]);
    assert_eq!(all["clock"]["verdict"], "warn", "{all}");
    assert!(all["clock"]["said"].as_str().unwrap().contains("ahead of the hub"), "{all}");
    assert_eq!(all["relay"]["verdict"], "fail", "{all}");
}

/// A machine that knows services, and a command in the background, and where `connect` lies.
fn knowing() -> (Hub, Home, common::Running, String) {
    let hub = Hub::start();
    let home = hub.machine("member");
    let exposed = expose(&home, "staging-db", service(echo));
    home.run(&["services"]).ok();
    let folder = Path::new(env!("CARGO_BIN_EXE_connect")).parent().unwrap().display().to_string();
    let path = format!("{folder}:{}", std::env::var("PATH").unwrap());
    (hub, home, exposed, path)
}

const COMPLETED: [(&[&str], &str, &str); 8] = [
    (&[], "rea", "reach"),
    (&["hub", "key"], "cr", "create"),
    (&["reach"], "st", "staging-db"),
    (&["stop"], "", "staging-db"),
    (&["share"], "--serv", "--service"),
    (&["share", "--service"], "s", "staging-db"),
    (&["expose", "x", "1", "--protocol"], "htt", "http"),
    (&["help", "daemon"], "ins", "install"),
];

#[test]
fn completions_come_from_the_table_and_from_local_files_in_every_shell() {
    let (mut hub, home, _exposed, path) = knowing();
    // None of it asks the hub.
    hub.running.kill();
    for (before, last, expected) in COMPLETED {
        let said = home.run(&[&["completions", "words", "--"], before, &[last]].concat()).ok();
        let words: Vec<&str> = said.out.lines().map(|line| line.split('\t').next().unwrap()).collect();
        assert!(words.contains(&expected), "{before:?} {last}: {words:?}");
        assert!(words.iter().all(|word| word.starts_with(last)), "{before:?} {last}: {words:?}");
        let line = [&["connect"], before, &[last]].concat();
        for (shell, script) in [
            (
                "bash",
                format!(
                    "source <(connect completions bash); COMP_WORDS=({}); COMP_CWORD={}; _connect; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
                    line.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" "),
                    line.len() - 1
                ),
            ),
            (
                "zsh",
                format!(
                    "compdef() {{ }}; _files() {{ }}; _describe() {{ print -l -- \"${{lines[@]%%:*}}\" }}; source <(connect completions zsh); words=({}); CURRENT={}; _connect",
                    line.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" "),
                    line.len()
                ),
            ),
            (
                "fish",
                format!("connect completions fish | source; complete -C '{}' | cut -f1", line.join(" ")),
            ),
        ] {
            if !is_here(shell, shell) {
                continue;
            }
            let mut command = Command::new(shell);
            command.args(["-c", &script]);
            common::team::copy_environment(&home.connect(&[]), &mut command);
            command.env("PATH", &path);
            let said = Said::of(command);
            assert!(said.out.lines().any(|word| word == expected), "{shell} {line:?}: {said:#?}");
            assert!(said.err.is_empty(), "{shell}: {said:#?}");
        }
    }
    // What stands behind two dashes is another program's.
    assert_eq!(home.run(&["completions", "words", "--", "reach", "db", "--", "r"]).ok().out, "");
    assert!(home.run(&["completions", "bsh"]).err.contains("Did you mean: connect completions bash"));
}

#[test]
fn the_manual_page_has_every_command_and_no_fault() {
    let home = Home::new();
    let page = home.run(&["help", "--man"]).ok().out;
    assert!(page.contains(".SS connect reach NAME") && page.contains(".SS connect daemon install"), "{page}");
    if is_here("mandoc", "mandoc") {
        let mut command = Command::new("mandoc");
        command.args(["-T", "lint", "-W", "warning"]);
        let said = with_input(command, page.as_bytes());
        assert_eq!((said.code, said.out.as_str()), (Some(0), ""), "{said:#?}");
    }
    // Every command has its help, with an example.
    for line in page.lines().filter_map(|line| line.strip_prefix(".SS connect ")) {
        let words: Vec<&str> =
            line.split(' ').take_while(|word| word.bytes().all(|b| b.is_ascii_lowercase())).collect();
        let said = home.run(&[&["help"], words.as_slice()].concat()).ok().out;
        assert!(
            said.split("Examples:\n  ").nth(1).is_some_and(|example| example.contains("connect")),
            "{line}: {said}"
        );
    }
}

#[test]
fn a_hub_or_an_agent_of_another_version_is_named_with_the_side_to_update() {
    for (speaks, update) in [("2", "this machine"), ("0", "the hub's machine")] {
        let hub = FakeHub::start(move |_, stream| {
            let body = r#"{"somehow":"different"}"#;
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nx-connect-protocol: {speaks}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
        });
        let said = Home::new().run(&["up", "--hub", &hub.url, "--api-key", &hub.key]);
        let expected = format!(
            "[x] The hub speaks protocol {speaks}, this connect speaks 1\n  Update connect on {update}"
        );
        assert_eq!((said.err, said.code), (expected, Some(1)));
        assert!(hub.asked()[0].head.contains("x-connect-protocol: 1\r\n"));
    }
    // The hub says it to a client of another version.
    let hub = Hub::start();
    let home = hub.machine("member");
    let _exposed = expose(&home, "db", service(echo));
    let key = format!("{}\r\nx-connect-protocol: 2", raw::key_of(&home));
    let (status, body) = raw::call(&hub, &key, "GET /v1/services", "");
    assert_eq!((status, &body["hint"]), (426, &"Update connect on the hub's machine".into()), "{body}");
    let upgrade = format!("{}\r\nConnection: upgrade\r\nUpgrade: connect-control/2", raw::key_of(&home));
    assert_eq!(raw::call(&hub, &upgrade, "GET /v1/agent", "").0, 426);
    // What is not known is ignored.
    let ask = format!(r#"{{"service":"db","fingerprint":"{}","later":true}}"#, "00".repeat(32));
    assert_eq!(raw::call(&hub, &raw::key_of(&home), "POST /v1/sessions", &ask).0, 200);
    // A right is not given by a request that is understood in part.
    let share = r#"{"name":"x","agent":"x","services":["db"],"expiresInSeconds":60,"onlyFor":"ann"}"#;
    assert_eq!(raw::call(&hub, &raw::key_of(&home), "POST /v1/shares", share).0, 400);
}

#[test]
fn a_full_disk_and_a_folder_of_somebody_elses_get_a_sentence_that_helps() {
    let home = Home::new();
    fs::write(home.file("file"), "").unwrap();
    let mut command =
        home.connect(&["up", "--hub", "https://127.0.0.1:1", "--api-key", &format!("pc_{}", "a".repeat(26))]);
    command.env("PRIVATECONNECT_HOME", home.file("file/below"));
    let said = Said::of(command);
    assert_eq!(said.code, Some(1));
    let mut command = home.connect(&["doctor"]);
    command.env("PRIVATECONNECT_HOME", home.file("file/below"));
    let said = Said::of(command);
    assert!(said.out.contains("Set CONNECT_HOME to a folder that you can write to"), "{said:#?}");
    if !is_root() {
        return;
    }
    let hub = Hub::start();
    let key = hub.key("member");
    let script = "mount -t tmpfs -o size=16k,mode=700 tmpfs \"$PRIVATECONNECT_HOME\" || exit 77; head -c 1M /dev/zero > \"$PRIVATECONNECT_HOME/full\" 2>/dev/null; exec \"$0\" \"$@\"";
    let ours = home.connect(&["up", "--hub", &hub.url, "--api-key", &key]);
    let mut command = Command::new("unshare");
    command.args(["-m", "bash", "-c", script]).arg(ours.get_program()).args(ours.get_args());
    common::team::copy_environment(&ours, &mut command);
    let said = Said::of(command);
    if said.code == Some(77) {
        return;
    }
    assert_eq!(said.code, Some(1), "{said:#?}");
    assert!(said.err.ends_with("  The disk is full: free some space, then try again"), "{said:#?}");
}

#[test]
fn a_certificate_of_another_time_is_a_matter_of_the_clock() {
    if !is_here("faketime", "faketime") {
        return;
    }
    let later = |args: &[&str]| {
        let ours = Home::new().connect(args);
        let mut command = Command::new("faketime");
        command.args(["4400-01-01 00:00:00"]).arg(ours.get_program()).args(ours.get_args());
        common::team::copy_environment(&ours, &mut command);
        command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        Said::of(command)
    };
    // Who has the pin does not need the right time, though a hub's certificate lives 90 days.
    let hub = Hub::start();
    later(&["up", "--hub", &hub.url, "--api-key", &hub.key("member")]).ok();
    // With the CA of a company, dates count.
    let hub = FakeHub::start(friendly);
    let (files, key) = (Home::new(), hub.key.split_once('.').unwrap().0);
    let ca = files.file("ca.pem");
    fs::write(&ca, &hub.certificates.ca).unwrap();
    let said = later(&["up", "--hub", &hub.url, "--api-key", key, "--ca", ca.to_str().unwrap()]);
    assert_eq!(said.code, Some(1), "{said:#?}");
    assert!(said.err.contains("is not valid now: this machine's clock says 4400-01-01"), "{said:#?}");
    assert!(
        said.err.contains("  If that is not the time, set the clock: timedatectl set-ntp true."),
        "{said:#?}"
    );
}

#[test]
fn the_first_key_goes_to_a_file_or_a_terminal_and_never_into_a_log() {
    let home = Home::new();
    let args = ["hub", "--listen", "127.0.0.1:0", "--tunnel-ports", "off"];
    // As under systemd or docker: no terminal, so no key, but the command that makes one.
    let mut hub = home.start(&args);
    hub.wait_out(|line| line.contains("There is no key yet"));
    hub.interrupt();
    assert!(hub.out().contains("connect hub key create --role admin --label NAME"), "{}", hub.out());
    assert!(!hub.out().contains("pc_") && !hub.err().contains("pc_"));
    let file = home.file("first.key");
    let mut hub = home.start(&[&args[..], &["--first-key-file", file.to_str().unwrap()]].concat());
    hub.wait_out(|line| line.contains("Press Ctrl+C"));
    let key = fs::read_to_string(&file).unwrap();
    assert!(key.starts_with("pc_") && !hub.out().contains("pc_"), "{}", hub.out());
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    hub.interrupt();
    // On a terminal it is shown.
    if is_here("script", "bsdutils") {
        let other = Home::new();
        let shown = common::Running::start(common::team::on_terminal(&other.connect(&args)));
        shown.wait_out(|line| line.contains("connect up --hub") && line.contains("pc_"));
        shown.wait_out(|line| line.contains("hub key create --role member --label NAME"));
    }
}

#[test]
fn a_key_can_be_made_before_the_first_start_of_the_hub() {
    let home = Home::new();
    let made = home.run(&["hub", "key", "create", "--role", "admin", "--label", "ann", "--json"]).ok().json();
    let hub = home.start(&["hub", "--json", "--listen", "127.0.0.1:0", "--tunnel-ports", "off"]);
    let url = hub.wait_event("listening")["url"].as_str().unwrap().to_owned();
    let user = Home::new();
    fs::write(user.file("key"), format!("{}\n", made["key"].as_str().unwrap())).unwrap();
    let file = user.file("key").display().to_string();
    user.run(&["up", "--hub", &url, "--api-key-file", &file]).ok();
    common::eventually("the use of the key is noted", common::PATIENCE, || {
        home.run(&["hub", "key", "list", "--json"]).ok().json()[0]["lastUsedAt"].is_string()
    });
    let mut piped = Command::new("sh");
    let typed = user.connect(&[]);
    let line = format!("{} up --hub {url} --api-key - < {file}", typed.get_program().to_string_lossy());
    piped.arg("-c").arg(line);
    common::team::copy_environment(&typed, &mut piped);
    Said::of(piped).ok();
    home.run(&["hub", "key", "revoke", "ann"]).ok();
    let listed = home.run(&["hub", "key", "list", "--json"]).ok().json();
    assert!(listed[0]["revokedAt"].is_string(), "{listed}");
    assert_eq!(user.run(&["whoami"]).code, Some(1));
    // Behind a proxy clients see the proxy's certificate, so a pin of ours would only keep them away.
    for (options, parts) in [(&["--behind-proxy"][..], 1), (&[], 2)] {
        let home = Home::new();
        let made = home.run(&[&["hub", "key", "create", "--json"], options].concat()).ok().json();
        assert_eq!(made["key"].as_str().unwrap().split('.').count(), parts, "{made}");
    }
}

#[test]
fn the_form_of_a_key_is_checked_before_any_hub_is_asked() {
    let home = Home::new();
    let half = "a".repeat(26);
    let whole = format!("pc_{half}.{half}");
    for (key, flaw) in [
        (&whole[..40], "its end is missing"),
        (&whole[..20], "its end is missing"),
        (&whole[..30], "its end is missing"),
        (&format!("{whole}{whole}"), "pasted twice"),
        (&format!("pc_{} {}", &half[..10], &half[11..]), "spaces inside"),
        ("https://hub", "does not begin with pc_"),
    ] {
        // Nobody listens there, and nobody is asked.
        let said = home.run(&["up", "--hub", "https://127.0.0.1:1", "--api-key", key]);
        assert!(said.code == Some(2) && said.err.contains(flaw), "{key}: {said:#?}");
        let mut command = home.connect(&["services", "--hub", "https://127.0.0.1:1"]);
        command.env("PRIVATECONNECT_TOKEN", key);
        let said = Said::of(command);
        assert!(said.code == Some(2) && said.err.contains(flaw), "{key}: {said:#?}");
    }
}

#[test]
fn a_login_at_another_hub_is_kept_and_used_with_its_address() {
    let (first, second) = (Hub::start(), Hub::start());
    let home = first.machine("member");
    let key = second.key("member");
    let up = home.run(&["up", "--hub", &second.url, "--api-key", &key]).ok();
    assert!(up.out.contains(&format!("Instead of {}; that login is kept", first.url)), "{up:#?}");
    let hub_of = |args: &[&str]| home.run(&[args, &["--json"]].concat()).ok().json()["hub"].clone();
    assert_eq!(hub_of(&["whoami"]), second.url.as_str());
    assert_eq!(hub_of(&["whoami", "--hub", &first.url]), first.url.as_str());
    let all = home.run(&["whoami", "--all"]).ok().out;
    assert_eq!(all, format!("{}\n{}", second.url, first.url));
    // Back without a key, and the agent is the same machine's.
    home.run(&["up", "--hub", &first.url]).ok();
    assert_eq!(hub_of(&["whoami"]), first.url.as_str());
    let exposed = expose(&home, "web", service(echo));
    let whoami = home.run(&["whoami"]).ok().out;
    assert!(whoami.contains(", online") && whoami.contains("Exposes:     web"), "{whoami}");
    drop(exposed);
    home.run(&["logout", "--hub", &first.url]).ok();
    assert_eq!(home.run(&["whoami", "--all"]).ok().out, second.url);
    let unknown = home.run(&["logout", "--hub", "https://other.example"]);
    assert!(unknown.code == Some(1) && unknown.err.contains("whoami --all"), "{unknown:#?}");
    // As `whoami --all` prints it.
    home.run(&["logout", &second.url]).ok();
    assert_eq!(home.run(&["whoami"]).code, Some(1));
}

#[test]
fn the_hubs_certificate_is_had_on_a_joiner_and_on_the_hubs_machine() {
    let hub = Hub::start();
    let joiner = hub.machine("join");
    let certificate = joiner.run(&["whoami", "--ca"]).ok().out;
    assert_eq!(hub.home.run(&["hub", "ca"]).ok().out, certificate);
    let file = joiner.file("hub-ca.crt");
    fs::write(&file, &certificate).unwrap();
    let health = format!("{}/health", hub.url);
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "10", "--cacert"]).arg(&file).arg(&health);
    let said = Said::of(curl);
    assert!(said.out.contains("\"status\":\"ok\""), "{said:#?}");
}

#[test]
fn up_names_the_default_hub_and_what_to_do_when_it_is_away() {
    let mut command = Home::new().connect(&["up", "--api-key", &format!("pc_{}", "a".repeat(26))]);
    // Nothing leaves this machine: the way to the hub ends at a port that nobody has.
    command.env("HTTPS_PROXY", "http://127.0.0.1:1");
    let said = Said::of(command);
    assert!(said.out.starts_with("Hub: https://hub.privateconnect.co, the default"), "{said:#?}");
    assert!(said.err.contains("connect up --hub URL") && said.err.contains("connect hub"), "{said:#?}");
}

#[test]
fn at_a_wrong_port_up_says_what_answers_there_and_where_a_hub_usually_is() {
    let greeting = service(|mut stream| _ = stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n"));
    let web = service(|mut stream| {
        let _ = stream.read(&mut [0; 64]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    });
    let mute = service(drop);
    let key = format!("pc_{}", "a".repeat(26));
    let up = |port: u16| {
        let url = format!("https://127.0.0.1:{port}");
        let said = Home::new().run(&["up", "--hub", &url, "--api-key", &key]);
        assert_eq!(said.code, Some(1), "{said:#?}");
        assert!(said.err.contains(". A hub usually listens on port 7443"), "{said:#?}");
        said.err
    };
    for (port, said) in [(greeting, "`SSH-2.0-OpenSSH_9.9`"), (web, "`HTTP/1.1 400 Bad Request`")] {
        let err = up(port);
        assert!(err.contains(&format!("what answers there does not speak TLS, it says {said}\n")), "{err}");
    }
    assert!(up(mute).contains("Cannot reach the hub https://127.0.0.1"));
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    assert!(up(free).contains("Connection refused\n"));
}
