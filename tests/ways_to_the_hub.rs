//! How clients recognise their hub, and how they get to it: pins, CA files, proxies, a TLS-terminating nginx.

mod common;

use std::fs;
use std::io;
use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use common::Home;
use common::Hub;
use common::PATIENCE;
use common::Running;
use common::Said;
use common::echo;
use common::echoes;
use common::eventually;
use common::expose;
use common::fake_hub::Certificates;
use common::fake_hub::FakeHub;
use common::fake_hub::friendly;
use common::is_here;
use common::noise;
use common::reach;
use common::service;
use rustls::ClientConfig;
use rustls::ClientConnection;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::ServerConnection;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::crypto::SupportedKxGroup;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::aws_lc_rs::kx_group;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;

#[test]
fn a_hub_with_another_pin_is_refused_clearly_and_hears_nothing() {
    let fake = FakeHub::start(friendly);
    let hub = Hub::start();
    let home = Home::new();
    let said = home.run(&["up", "--hub", &fake.url, "--api-key", &hub.admin_key]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.err.contains("did not prove that it is your hub") && said.err.contains("--ca FILE"),
        "{said:#?}"
    );
    assert!(!home.file("config.json").exists());
    // A machine that is logged in is redirected to another hub.
    let machine = hub.machine("member");
    for args in [&["whoami"][..], &["services"], &["reach", "db"], &["expose", "db", "1"]] {
        let said = machine.run(&[args, &["--hub", &fake.url]].concat());
        assert!(said.code == Some(1) && said.err.contains("did not prove"), "{args:?}: {said:#?}");
    }
    assert!(fake.asked().is_empty(), "{:?}", fake.asked());
    // The same hub is believed by whoever has its key.
    home.run(&["up", "--hub", &fake.url, "--api-key", &fake.key]).ok();
    assert!(fake.asked().iter().any(|asked| asked.head.contains(&fake.key)));
    // Without a key nothing but the handshake is made before the user has seen the pin.
    let seen = fake.asked().len();
    let said = Home::new().run(&["up", "--hub", &fake.url]);
    assert!(said.code == Some(1) && said.err.contains(&fake.certificates.pin), "{said:#?}");
    assert_eq!(fake.asked().len(), seen);
}

#[test]
fn a_ca_file_is_believed_by_option_and_by_environment_and_a_wrong_one_is_not() {
    let hub = Hub::start();
    let secret = hub.admin_key.split('.').next().unwrap();
    let ca = hub.home.file("hub/certs/ca.crt").display().to_string();
    let up = ["up", "--hub", &hub.url, "--api-key", secret];
    let without = Home::new().run(&up);
    assert!(without.code == Some(1) && without.err.contains("did not prove"), "{without:#?}");
    let home = Home::new();
    home.run(&[&up[..], &["--ca", &ca]].concat()).ok();
    home.run(&["whoami"]).ok();
    let by_environment = Home::new();
    let mut command = by_environment.connect(&up);
    command.env("PRIVATECONNECT_CA", &ca);
    Said::of(command).ok();
    let other = Home::new();
    let wrong = other.file("wrong.pem");
    fs::write(&wrong, Certificates::make().ca).unwrap();
    let said = other.run(&[&up[..], &["--ca", wrong.to_str().unwrap()]].concat());
    assert!(said.code == Some(1) && said.err.contains("did not prove"), "{said:#?}");
    // A CA that was asked for outweighs the pin in the key.
    let said = home.run(&["whoami", "--hub", &hub.url]);
    assert_eq!(said.code, Some(0));
    for (file, words) in [("/nowhere/ca.pem", "Cannot read the CA file"), ("/etc/hostname", "no certificate")]
    {
        let said = other.run(&[&up[..], &["--ca", file]].concat());
        assert!(said.code == Some(1) && said.err.contains(words), "{said:#?}");
    }
}

/// A proxy that speaks CONNECT, and what it was asked for.
struct Proxy {
    address: String,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn start(answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let own = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let seen = Arc::clone(&own);
                thread::spawn(move || serve_connect(stream, answer, &seen));
            }
        });
        Self { address, seen }
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve_connect(mut client: TcpStream, answer: &str, seen: &Mutex<Vec<String>>) -> io::Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    seen.lock().unwrap().push(head.clone());
    client.write_all(answer.as_bytes())?;
    if !answer.contains(" 200 ") {
        return Ok(());
    }
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).unwrap_or_default();
    let hub = TcpStream::connect(target)?;
    let (mut from, mut to) = (client.try_clone()?, hub.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
    let (mut from, mut to) = (hub, client);
    let _ = io::copy(&mut from, &mut to);
    to.shutdown(std::net::Shutdown::Write)
}

#[test]
fn api_control_channel_and_relay_go_through_the_proxy_that_is_set() {
    let hub = Hub::start();
    let proxy = Proxy::start("HTTP/1.1 200 Connection established\r\n\r\n");
    let with = |home: &Home, args: &[&str], variables: &[(&str, &str)]| {
        let mut command = home.connect(args);
        command.envs(variables.iter().copied());
        command
    };
    let url = format!("http://us%65r:pass@{}", proxy.address);
    let set = [("HTTPS_PROXY", url.as_str())];
    let home = Home::new();
    Said::of(with(&home, &["up", "--hub", &hub.url, "--api-key", &hub.admin_key], &set)).ok();
    assert_eq!(proxy.seen().len(), 1, "one kept-alive connection does for all of `up`");
    let exposed =
        Running::start(with(&home, &["expose", "--json", "echo", &service(echo).to_string()], &set));
    exposed.wait_event("exposed");
    let for_agent = proxy.seen().len();
    assert_eq!(for_agent, 3, "API and control channel: {:#?}", proxy.seen());
    let reached = Running::start(with(&home, &["reach", "--json", "echo"], &set));
    let port = u16::try_from(reached.wait_event("up")["localPort"].as_u64().unwrap()).unwrap();
    assert!(echoes(port, &noise(1, 500_000)));
    // The look at the way, the API, and both halves of one session.
    assert_eq!(proxy.seen().len(), for_agent + 4, "{:#?}", proxy.seen());
    for head in proxy.seen() {
        assert!(head.starts_with(&format!("CONNECT {} HTTP/1.1\r\n", hub.address)), "{head}");
        assert!(
            head.contains("Proxy-Authorization: Basic dXNlcjpwYXNz\r\n") && !head.contains("pc_"),
            "{head}"
        );
    }
    drop((exposed, reached));
    let before = proxy.seen().len();
    for except in ["127.0.0.1", "127.0.0.0/8", "*", "example.com, 127.0.0.1"] {
        Said::of(with(&home, &["whoami"], &[set[0], ("NO_PROXY", except)])).ok();
    }
    assert_eq!(proxy.seen().len(), before);
    Said::of(with(&home, &["whoami"], &[("https_proxy", &proxy.address), ("no_proxy", "example.com")])).ok();
    assert_eq!(proxy.seen().len(), before + 1);
}

#[test]
fn a_proxy_that_refuses_babbles_or_is_not_there_is_named_in_the_error() {
    let hub = Hub::start();
    let endless: &'static str =
        Box::leak(format!("HTTP/1.1 403 Forbidden\r\nA: {}", "a".repeat(200_000)).into_boxed_str());
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let machine = hub.machine("member");
    for (proxy, words) in [
        (
            Proxy::start("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").address,
            "refused with status 407",
        ),
        (Proxy::start("SSH-2.0-x\r\n\r\n").address, "does not answer"),
        (Proxy::start(endless).address, "does not answer"),
        (gone, "unset it, or add the hub to NO_PROXY"),
        ("socks5://x".into(), "HTTPS_PROXY is not a proxy address"),
    ] {
        let mut command = machine.connect(&["whoami"]);
        command.env("HTTPS_PROXY", &proxy);
        let said = Said::of(command);
        assert!(said.code == Some(1) && said.err.contains(words), "{proxy}: {said:#?}");
    }
}

/// nginx that ends TLS before a hub with `--behind-proxy`, with everything in one folder.
struct Nginx {
    _running: Running,
    url: String,
    ca: String,
}

impl Nginx {
    fn start(home: &Home, hub: &str) -> Self {
        let certificates = Certificates::make();
        let ca = home.file("front-ca.pem").display().to_string();
        fs::write(&ca, &certificates.ca).unwrap();
        fs::write(home.file("front.pem"), &certificates.leaf).unwrap();
        fs::write(home.file("front.key"), &certificates.key).unwrap();
        let folder = home.path().display();
        // nginx cannot be told to choose a port and say which, so one is chosen for it; another if it is lost.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let config = format!(
                "master_process off; daemon off; pid {folder}/nginx.pid; error_log stderr; user root;
                 events {{ worker_connections 256; }}
                 http {{ access_log off;
                   client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
                   uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
                   map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
                   server {{ listen 127.0.0.1:{port} ssl; ssl_protocols TLSv1.3; ssl_certificate {folder}/front.pem; ssl_certificate_key {folder}/front.key;
                     location / {{ proxy_pass http://{hub}; proxy_http_version 1.1; proxy_set_header Host $host;
                       proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
                       proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_buffering off; }} }} }}"
            );
            fs::write(home.file("nginx.conf"), config).unwrap();
            let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
            let mut command = Command::new("nginx");
            command
                .env("PATH", path)
                .arg("-e")
                .arg("stderr")
                .arg("-p")
                .arg(home.path())
                .arg("-c")
                .arg(home.file("nginx.conf"));
            let mut running = Running::start(command);
            let listens = || TcpStream::connect(("127.0.0.1", port)).is_ok();
            let mut ended = false;
            eventually("nginx listens or ends", PATIENCE, || {
                ended = !running.is_running();
                ended || listens()
            });
            if !ended {
                return Self { _running: running, url: format!("https://127.0.0.1:{port}"), ca };
            }
        }
        panic!("nginx does not start");
    }
}

#[test]
fn behind_an_nginx_that_ends_tls_everything_works() {
    if !is_here("nginx", "nginx-light") {
        return;
    }
    let hub = Hub::start_with(&["--behind-proxy", "--tunnel-ports", "47100-47199"]);
    assert!(!hub.admin_key.contains('.'), "a key carries no pin of a certificate that clients do not see");
    let nginx = Nginx::start(&hub.home, &hub.address);
    let up = |role: &str| {
        let home = Home::new();
        home.run(&["up", "--hub", &nginx.url, "--api-key", &hub.key(role), "--ca", &nginx.ca]).ok();
        home
    };
    let (owner, user) = (up("member"), up("member"));
    let exposed = expose(&owner, "echo", service(echo));
    let (reached, port) = reach(&user, "echo");
    assert!(echoes(port, &noise(2, 2_000_000)));
    // Half-close, one end first and then the other, passes through three TLS layers.
    assert!(echoes(port, b""));
    let tunnel = user.run(&["services", "--json"]).ok().json()[0]["tunnelPort"].as_u64().unwrap();
    assert!(echoes(u16::try_from(tunnel).unwrap(), &noise(3, 100_000)), "the hub's own tunnel port");
    // The client's address is what nginx says last, not what the client says it is.
    let said = hub.ask_plainly(&[
        ("X-Forwarded-For", "6.6.6.6"),
        ("X-Forwarded-For", "7.7.7.7, 127.9.9.9"),
        ("x-api-key", "pc_x"),
    ]);
    assert_eq!(said, 401);
    eventually("the refusal is audited", PATIENCE, || hub.audit().contains("127.9.9.9"));
    assert!(!hub.audit().contains("6.6.6.6") && !hub.audit().contains("7.7.7.7"));
    // The hub's own command line works beside it.
    assert_eq!(hub.home.run(&["hub", "status", "--json"]).ok().json()["running"], true);
    drop((exposed, reached));
}

#[test]
fn only_a_named_proxy_says_where_a_client_is_and_only_it_may_speak_in_the_clear() {
    let refused = |options: &[&str]| {
        let all: Vec<&str> = ["hub", "--listen", "0.0.0.0:0"].iter().chain(options).copied().collect();
        Home::new().run(&all)
    };
    for (options, words) in [
        (&["--behind-proxy"][..], "--proxy 10.0.0.5"),
        (&["--proxy", "10.0.0.0/8"], "--behind-proxy"),
        (&["--behind-proxy", "--proxy", "10.0.0.0/33"], "10.0.0.0/8"),
    ] {
        let said = refused(options);
        assert!(said.code == Some(2) && said.err.contains(words), "{options:?}: {said:#?}");
    }
    let hub = Hub::start_with(&["--behind-proxy", "--proxy", "127.0.0.1", "--proxy", "10.0.0.0/8"]);
    for (named, address) in [
        ("203.0.113.1:4711", "203.0.113.1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("[2001:db8:1::1]", "2001:db8:1::1"),
        ("6.6.6.6, 203.0.113.2", "203.0.113.2"),
    ] {
        assert_eq!(hub.ask_plainly(&[("X-Forwarded-For", named), ("x-api-key", "pc_x")]), 401);
        eventually("it is audited", PATIENCE, || hub.audit().contains(&format!("\"{address}\"")));
    }
    // Wrong keys of one client block neither another client of the proxy nor the proxy.
    let wrong = |n: usize, address: &str| {
        hub.ask_plainly(&[("X-Forwarded-For", address), ("x-api-key", &format!("pc_{n}"))])
    };
    assert_eq!((0..25).map(|n| wrong(n, "198.51.100.1:1")).max(), Some(429));
    assert_eq!((wrong(30, "198.51.100.2:1"), wrong(31, "198.51.100.1")), (401, 429));
    // A key's addresses are those that the proxy names.
    let (limited, _) = hub.new_key(&["--from", "198.51.100.0/24"]);
    let by = |address| hub.ask_plainly(&[("X-Forwarded-For", address), ("x-api-key", &limited)]);
    assert_eq!((by("198.51.100.9"), by("203.0.113.9"), by("198.51.100.9, 203.0.113.9")), (200, 403, 403));
    // Another address is not believed: no key in the clear, and TLS with the hub's own certificate.
    let mut stranger = common::https::dial_from(Ipv4Addr::new(127, 0, 0, 2), &hub.address).unwrap();
    let fields = [("x-api-key", hub.admin_key.as_str()), ("X-Forwarded-For", "6.6.6.6")];
    stranger.write_all(common::https::request("GET /v1/whoami", "h", &fields, "").as_bytes()).unwrap();
    assert_eq!(common::https::Answer::read(&mut stranger).status, 426);
    let by_tls = hub.from(Ipv4Addr::new(127, 0, 0, 2));
    assert_eq!(by_tls.ask_with("GET /v1/whoami", &fields, "").status, 200);
    assert_eq!(by_tls.ask_with("GET /v1/whoami", &[("x-api-key", "pc_y"), fields[1]], "").status, 401);
    eventually("it is audited", PATIENCE, || hub.audit().contains("\"127.0.0.2\""));
    assert!(!hub.audit().contains("6.6.6.6"));
}

impl Hub {
    /// As a proxy in front would ask it.
    fn ask_plainly(&self, fields: &[(&str, &str)]) -> u16 {
        let mut stream = common::https::dial_from(common::https::LOOPBACK, &self.address).unwrap();
        stream.write_all(common::https::request("GET /v1/whoami", "h", fields, "").as_bytes()).unwrap();
        common::https::Answer::read(&mut stream).status
    }
}

const FAKETIME: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
];
const DAY: Duration = Duration::from_hours(24);

/// The certificate chain that a server on this machine shows, whoever signed it.
fn shown_chain(
    address: &str,
    ca: &str,
    groups: Vec<&'static dyn SupportedKxGroup>,
) -> io::Result<Vec<CertificateDer<'static>>> {
    let provider = CryptoProvider { kx_groups: groups, ..default_provider() };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider));
    let config = builder.with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots(ca)).with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    while client.is_handshaking() {
        client.complete_io(&mut stream)?;
    }
    Ok(client.peer_certificates().unwrap().iter().map(|one| one.clone().into_owned()).collect())
}

fn roots(ca: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    roots
}

/// Whether a client of this CA would take the leaf so many days from now.
fn is_good_in(days: u32, leaf: &CertificateDer<'_>, ca: &str) -> bool {
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots(ca)), Arc::new(default_provider()));
    let at = UNIX_EPOCH.elapsed().unwrap() + DAY * days;
    let name = ServerName::try_from("localhost").unwrap();
    let verifier = verifier.build().unwrap();
    verifier.verify_server_cert(leaf, &[], &name, &[], UnixTime::since_unix_epoch(at)).is_ok()
}

#[test]
fn hub_and_proxy_renew_their_certificates_while_they_run() {
    let Some(library) = FAKETIME.iter().find(|library| Path::new(library).exists()) else {
        println!("skipped: libfaketime is not installed");
        return;
    };
    let home = Home::new();
    let clock = home.file("clock");
    let set = |days: i32| {
        fs::write(home.file("clock.new"), format!("{days:+}d")).unwrap();
        fs::rename(home.file("clock.new"), &clock).unwrap();
    };
    let with_clock = |mut command: Command| {
        command
            .env("LD_PRELOAD", library)
            .env("FAKETIME_TIMESTAMP_FILE", &clock)
            .env("FAKETIME_NO_CACHE", "1");
        command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1");
        Running::start(command)
    };
    set(-45);
    let hub =
        with_clock(home.connect(&["hub", "--json", "--listen", "127.0.0.1:0", "--tunnel-ports", "off"]));
    let hub_address = hub.wait_event("listening")["address"].as_str().unwrap().to_owned();
    let proxy =
        with_clock(home.connect(&["proxy", "start", "--foreground", "--https", "--json", "--port", "0"]));
    let port = proxy.wait_event("listening")["port"].as_u64().unwrap();
    let cas = ["hub/certs/ca.crt", "certs/ca.crt"].map(|file| fs::read_to_string(home.file(file)).unwrap());
    let addresses = [hub_address, format!("127.0.0.1:{port}")];
    let leaf =
        |of: usize| shown_chain(&addresses[of], &cas[of], default_provider().kx_groups).unwrap().remove(0);
    let first = [leaf(0), leaf(1)];
    for of in [0, 1] {
        assert!(is_good_in(43, &first[of], &cas[of]) && !is_good_in(45, &first[of], &cas[of]), "{of}");
    }
    let file = home.file("certs/server.crt");
    let written = fs::read(&file).unwrap();
    // Well before two thirds of their life are over.
    set(0);
    for of in [0, 1] {
        let renewed = leaf(of);
        assert!(is_good_in(88, &renewed, &cas[of]) && !is_good_in(90, &renewed, &cas[of]), "{of}");
    }
    eventually("the certificate for development servers is written again", PATIENCE, || {
        fs::read(&file).unwrap() != written
    });
}

/// A hub, or a proxy in front of one, without post-quantum key exchange. It answers nothing.
fn classical_server(certificates: &Certificates) -> String {
    let chain = [&certificates.leaf, &certificates.ca]
        .map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap());
    let key = PrivateKeyDer::from_pem_slice(certificates.key.as_bytes()).unwrap();
    let provider = CryptoProvider { kx_groups: vec![kx_group::X25519], ..default_provider() };
    let builder = ServerConfig::builder_with_provider(Arc::new(provider));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = Arc::new(builder.with_single_cert(chain.to_vec(), key).unwrap());
    let port = service(move |mut stream| {
        let mut server = ServerConnection::new(Arc::clone(&config)).unwrap();
        let _ = server.complete_io(&mut stream);
    });
    format!("https://127.0.0.1:{port}")
}

#[test]
fn with_require_pq_hub_and_clients_refuse_peers_without_it() {
    const REFUSAL: &str = "accept no common key exchange";
    let hub = Hub::start_with(&["--tunnel-ports", "off", "--require-pq"]);
    let ca = hub.ca();
    let alert = shown_chain(&hub.address, &ca, vec![kx_group::X25519, kx_group::SECP256R1]).unwrap_err();
    assert!(alert.to_string().contains("HandshakeFailure"), "{alert}");
    shown_chain(&hub.address, &ca, vec![kx_group::X25519MLKEM768]).unwrap();
    let home = Home::new();
    home.run(&["up", "--hub", &hub.url, "--api-key", &hub.key("member"), "--require-pq"]).ok();
    let mut config: Value = serde_json::from_slice(&fs::read(home.file("config.json")).unwrap()).unwrap();
    assert_eq!(config["tlsPolicy"], "pq");

    // A client refuses, by its option or by its config, and says what to look at.
    let certificates = Certificates::make();
    let url = classical_server(&certificates);
    let key = format!("pc_{}.{}", "a".repeat(26), certificates.pin);
    let up = ["up", "--hub", &url, "--api-key", &key];
    let said = Home::new().run(&[&up[..], &["--require-pq", "--json"]].concat());
    assert!(
        said.code == Some(1) && said.err.contains(REFUSAL) && said.err.contains("\"tls-policy\""),
        "{said:#?}"
    );
    assert!(!Home::new().run(&up).err.contains(REFUSAL));
    (config["hubUrl"], config["apiKey"]) = (url.into(), key.into());
    fs::write(home.file("config.json"), config.to_string()).unwrap();
    let said = home.run(&["services"]);
    assert!(said.code == Some(1) && said.err.contains(REFUSAL), "{said:#?}");
    // A call may say otherwise.
    assert!(!home.run(&["services", "--tls-policy", "any"]).err.contains(REFUSAL));

    let hidden = Home::new().run(&["hub", "--listen", "127.0.0.1:0", "--behind-proxy", "--require-pq"]);
    assert!(hidden.code == Some(2) && hidden.err.contains("the proxy ends TLS"), "{hidden:#?}");
    let said = Home::new().run(&["services", "--tls-policy", "rot13"]);
    assert!(said.code == Some(2) && said.err.contains("any, pq or cnsa2"), "{said:#?}");
}

#[test]
fn what_a_session_agreed_on_is_named_and_can_be_required() {
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let said = user.run(&["doctor", "--json"]).json();
    let tls = said.as_array().unwrap().iter().find(|check| check["check"] == "hub: TLS").unwrap();
    assert!(tls["said"].as_str().unwrap().contains("X25519MLKEM768, TLS_AES_128_GCM_SHA256"), "{tls}");
    let port = service(echo).to_string();
    let modern = owner.start(&["expose", "--json", "modern", &port, "--protocol", "tcp"]);
    let strict =
        owner.start(&["expose", "--json", "strict", &port, "--protocol", "tcp", "--tls-policy", "cnsa2"]);
    for running in [&modern, &strict] {
        running.wait_event("exposed");
    }
    let agreed = |args: &[&str]| {
        let said = user.run(&[&["reach", "--check", "--json"], args].concat()).ok().json();
        let steps = said["steps"].as_array().unwrap().clone();
        ["TLS", "Agent"].map(|name| steps.iter().find(|step| step["step"] == name).unwrap()["tls"].clone())
    };
    assert_eq!(agreed(&["modern"]), ["X25519MLKEM768, TLS_AES_128_GCM_SHA256"; 2]);
    let cnsa2 = "MLKEM1024, TLS_AES_256_GCM_SHA384";
    assert_eq!(agreed(&["strict"])[1], cnsa2);
    assert_eq!(agreed(&["modern", "--tls-policy", "cnsa2"]), [cnsa2; 2]);
    // The hub cannot see it; the agent says it for the audit log.
    let closed = |line: &&str| line.contains("session.closed") && line.contains(cnsa2);
    eventually("the audit log names it", PATIENCE, || hub.audit().lines().filter(closed).count() >= 2);

    // A joiner without post-quantum key exchange gets no session with an agent that requires it.
    let ticket = hub.ticket(&hub.key("member"), "strict");
    let mut relay = hub.relay(&ticket);
    relay.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(common::fault::read_head(&relay).contains("101"));
    let provider = CryptoProvider { kx_groups: vec![kx_group::X25519], ..default_provider() };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider));
    let config = builder.with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots(&hub.ca())).with_no_client_auth();
    let mut joiner =
        ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
    let refused = joiner.complete_io(&mut relay).and_then(|_| joiner.complete_io(&mut relay)).unwrap_err();
    assert!(refused.to_string().contains("HandshakeFailure"), "{refused}");
}
