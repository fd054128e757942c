//! HTTPS as other people's clients see it: which certificates they take, and which they refuse.

mod common;
#[path = "common/leaf.rs"]
mod leaf;
#[path = "common/proxy.rs"]
mod proxy;

use std::fs;
use std::io::Read;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use common::Hub;
use common::fake_hub::Certificates;
use common::noise;
use proxy::Proxy;
use proxy::answering;
use proxy::read_message;
use proxy::status;
use rustls::ServerConfig;
use rustls::ServerConnection;
use rustls::StreamOwned;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        println!("skipped: {program} is not installed");
    }
    found
}

fn secure() -> (Proxy, PathBuf) {
    let proxy = Proxy::start_with(&[("api", answering(OK).0)], &["--https"]);
    let ca = proxy.home.file("certs/ca.crt");
    (proxy, ca)
}

fn said(command: &mut Command) -> String {
    let output = command.stdin(std::process::Stdio::null()).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn curl_believes_every_name_once_it_has_the_ca() {
    if !has("curl") {
        return;
    }
    let (proxy, ca) = secure();
    for name in ["api.localhost", "API.localhost", "v2.api.localhost"] {
        for version in ["1.2", "1.3"] {
            let is_spoken = version == "1.3";
            let url = format!("https://{name}:{}/", proxy.port);
            let resolve = format!("{name}:{}:127.0.0.1", proxy.port);
            let answer = said(
                Command::new("curl")
                    .args(["-sS", "--tls-max", version, "--resolve", &resolve, &url, "--cacert"])
                    .arg(&ca),
            );
            let wanted = if name.starts_with("v2") { "Service not found" } else { "ok" };
            assert_eq!(answer.contains(wanted), is_spoken, "{name} {version}: {answer}");
        }
    }
    for host in ["localhost", "127.0.0.1", "[::1]"] {
        let url = format!("https://{host}:{}/_connect/state", proxy.port);
        let answer = said(Command::new("curl").args(["-sS", &url, "--cacert"]).arg(&ca));
        assert!(answer.contains("\"tls\":true"), "{host}: {answer}");
    }
    let url = format!("https://api.localhost:{}/", proxy.port);
    assert!(
        said(Command::new("curl").args(["-sS", &url])).contains("certificate"),
        "believed without the CA"
    );
}

#[test]
fn openssl_takes_the_leaf_by_its_name_and_speaks_http_1_1() {
    if Command::new("openssl").arg("version").output().is_err() {
        println!("skipped: openssl is not installed");
        return;
    }
    let (proxy, ca) = secure();
    let address = format!("127.0.0.1:{}", proxy.port);
    let mut command = Command::new("openssl");
    command.args([
        "s_client",
        "-connect",
        &address,
        "-servername",
        "api.localhost",
        "-verify_hostname",
        "api.localhost",
    ]);
    let answer = said(command.args(["-verify_return_error", "-alpn", "h2,http/1.1", "-CAfile"]).arg(&ca));
    assert!(
        answer.contains("Verify return code: 0 (ok)") && answer.contains("ALPN protocol: http/1.1"),
        "{answer}"
    );
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &address, "-servername", "example.com", "-CAfile"]);
    let refused = said(command.arg(&ca));
    assert!(refused.contains("no peer certificate available"), "{refused}");
}

/// Whoever steals the CA's key can vouch for nothing but this machine.
#[test]
fn a_leaf_for_another_host_signed_by_the_ca_is_refused() {
    if Command::new("openssl").arg("version").output().is_err() {
        println!("skipped: openssl is not installed");
        return;
    }
    let (proxy, ca) = secure();
    let folder = proxy.home.path().to_owned();
    let path = |name: &str| folder.join(name).display().to_string();
    for (name, good) in [
        ("DNS:api.localhost", true),
        ("IP:127.0.0.1", true),
        ("DNS:example.com", false),
        ("IP:10.0.0.1", false),
        ("DNS:localhost.example.com", false),
    ] {
        let run = |args: &[&str]| {
            assert!(Command::new("openssl").args(args).output().unwrap().status.success(), "{args:?}");
        };
        run(&[
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            &path("k"),
            "-out",
            &path("csr"),
            "-subj",
            "/O=x",
        ]);
        fs::write(path("ext"), format!("subjectAltName={name}\nextendedKeyUsage=serverAuth\n")).unwrap();
        run(&[
            "x509",
            "-req",
            "-in",
            &path("csr"),
            "-CA",
            ca.to_str().unwrap(),
            "-CAkey",
            &path("certs/ca.key"),
            "-CAcreateserial",
            "-CAserial",
            &path("serial"),
            "-days",
            "9",
            "-extfile",
            &path("ext"),
            "-out",
            &path("leaf"),
        ]);
        let verified = said(Command::new("openssl").args(["verify", "-CAfile"]).arg(&ca).arg(path("leaf")));
        assert_eq!(verified.contains(": OK"), good, "{name}: {verified}");
        if Command::new("certtool").arg("--version").output().is_ok() {
            let gnutls = said(
                Command::new("certtool")
                    .args(["--verify", "--infile", &path("leaf"), "--load-ca-certificate"])
                    .arg(&ca),
            );
            assert_eq!(gnutls.contains("Chain verification output: Verified"), good, "{name}: {gnutls}");
        }
    }
}

#[test]
fn large_bodies_and_switched_connections_pass_through_tls() {
    if !has("python3") {
        return;
    }
    let port = common::service(|mut stream| {
        let head = proxy::read_head(&mut stream).unwrap();
        if head.contains("websocket") {
            let _ =
                stream.write_all(b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nearly");
            return common::echo(stream);
        }
        let mut body = vec![0; proxy::field(&head, "content-length").unwrap().parse().unwrap()];
        stream.read_exact(&mut body).unwrap();
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        let _ = stream.write_all(&body);
    });
    let proxy = Proxy::start_with(&[("api", port)], &["--https"]);
    let program = "import ssl, socket, sys, threading, os\n\
        c = ssl.create_default_context(cafile=sys.argv[2])\n\
        def dial(): return c.wrap_socket(socket.create_connection(('127.0.0.1', int(sys.argv[1]))), server_hostname='api.localhost')\n\
        def exactly(s, n):\n\
        \x20   b = b''\n\
        \x20   while len(b) < n:\n\
        \x20       p = s.recv(min(65536, n - len(b)))\n\
        \x20       if not p: break\n\
        \x20       b += p\n\
        \x20   return b\n\
        def head(s):\n\
        \x20   b = b''\n\
        \x20   while not b.endswith(b'\\r\\n\\r\\n'): b += s.recv(1)\n\
        \x20   return b\n\
        body = os.urandom(3000000)\n\
        s = dial()\n\
        s.sendall(b'POST / HTTP/1.1\\r\\nHost: api.localhost\\r\\nContent-Length: %d\\r\\n\\r\\n' % len(body) + body)\n\
        head(s); print('body', exactly(s, len(body)) == body)\n\
        s = dial()\n\
        s.sendall(b'GET / HTTP/1.1\\r\\nHost: api.localhost\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n\\r\\nfirst')\n\
        print('head', b' 101 ' in head(s), exactly(s, 10) == b'earlyfirst')\n\
        t = threading.Thread(target=lambda: s.sendall(body)); t.start()\n\
        print('both ways', exactly(s, len(body)) == body)\n";
    let answer = said(
        Command::new("python3")
            .args(["-c", program, &proxy.port.to_string()])
            .arg(proxy.home.file("certs/ca.crt")),
    );
    assert_eq!(answer.matches("True").count(), 4, "{answer}");
}

#[test]
fn plain_http_on_the_https_port_is_sent_to_https() {
    let (proxy, _) = secure();
    let answer = proxy.raw(b"GET /a?b=c HTTP/1.1\r\nHost: api.localhost:9\r\nConnection: close\r\n\r\n");
    assert_eq!(status(&answer), 308, "{answer}");
    assert_eq!(proxy::field(&answer, "location").as_deref(), Some("https://api.localhost:9/a?b=c"));
    assert_eq!(status(&proxy.raw(b"GET / HTTP/1.1\r\nHost: evil.com\r\nConnection: close\r\n\r\n")), 421);
}

#[test]
fn python_believes_what_it_should_and_nothing_else() {
    if !has("python3") {
        return;
    }
    let (proxy, ca) = secure();
    let program = "import ssl, socket, sys\n\
        c = ssl.create_default_context(cafile=sys.argv[2])\n\
        for name, good in [('api.localhost', True), ('localhost', True), ('example.com', False)]:\n\
        \x20   try:\n\
        \x20       with c.wrap_socket(socket.create_connection(('127.0.0.1', int(sys.argv[1]))), server_hostname=name) as s:\n\
        \x20           print(name, True == good)\n\
        \x20   except ssl.SSLError:\n\
        \x20       print(name, False == good)\n";
    let answer = said(Command::new("python3").args(["-c", program, &proxy.port.to_string()]).arg(&ca));
    assert_eq!(answer.matches("True").count(), 3, "{answer}");
}

/// A service with a certificate that nobody believes; it sends back a request's body, or echoes behind a 101.
fn speaking_tls() -> u16 {
    let made = Certificates::make();
    let chain = vec![CertificateDer::from_pem_slice(made.leaf.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(made.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let config = Arc::new(config);
    common::service(move |stream| {
        let mut tls = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
        while let Some(head) = proxy::read_head_from(&mut tls) {
            if head.contains("/more") {
                // An answer that fills a record, and one that nobody asked for in the next.
                let head = "HTTP/1.1 200 OK\r\nContent-Length: 16000\r\nX: ";
                let filler = "x".repeat(16 * 1024 - 16_000 - head.len() - 4);
                let body = "b".repeat(16_000);
                let stray = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen";
                tls.write_all(format!("{head}{filler}\r\n\r\n{body}{stray}").as_bytes()).unwrap();
                continue;
            }
            if head.contains("websocket") {
                let switched = "HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nearly";
                tls.write_all(switched.as_bytes()).unwrap();
                let mut room = [0; 100];
                while let Ok(count @ 1..) = tls.read(&mut room) {
                    tls.write_all(&room[..count]).unwrap();
                }
                return;
            }
            let length = proxy::field(&head, "content-length").map_or(0, |length| length.parse().unwrap());
            let mut body = vec![0; length];
            tls.read_exact(&mut body).unwrap();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            if tls.write_all(head.as_bytes()).and_then(|()| tls.write_all(&body)).is_err() {
                return;
            }
        }
    })
}

#[test]
fn a_service_that_speaks_https_itself_is_spoken_to_so_from_the_hub_and_when_it_is_reached() {
    let hub = Hub::start();
    let (owner, user) = (hub.machine("member"), hub.machine("member"));
    let plain = common::service(|mut stream| {
        // As servers do that hear TLS and understand none.
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let vault = speaking_tls();
    let _exposed: Vec<_> = [("vault", vault), ("plain", plain)]
        .map(|(name, port)| {
            let running = owner.start(&["expose", "--json", name, &port.to_string(), "--protocol", "https"]);
            running.wait_event("exposed");
            running
        })
        .into();
    let proxy = Proxy::start_in(user, &[]);
    let body = noise(4, 2_000_000);
    let try_all = || {
        let mut client = proxy.dial();
        for body in [b"once".as_slice(), b"", b"again", &body] {
            let head = format!(
                "POST /x HTTP/1.1\r\nHost: vault.localhost\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            client.write_all(head.as_bytes()).unwrap();
            client.write_all(body).unwrap();
            let head = proxy::read_head(&mut client).unwrap();
            let mut back = vec![0; body.len()];
            client.read_exact(&mut back).unwrap();
            assert!(status(&head) == 200 && back == body, "{head}");
        }
        for _ in 0..3 {
            client.write_all(b"GET /more HTTP/1.1\r\nHost: vault.localhost\r\n\r\n").unwrap();
            assert!(read_message(&mut client).1.starts_with("bbb"));
        }
        let mut client = proxy.dial();
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: vault.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst")
            .unwrap();
        assert_eq!(status(&proxy::read_head(&mut client).unwrap()), 101);
        assert_eq!(proxy::read_exactly(&mut client, 10), "earlyfirst");
        // What comes behind CONNECT is the service's own TLS.
        let mut client = proxy.dial();
        client
            .write_all(b"CONNECT vault.localhost:443 HTTP/1.1\r\nHost: vault.localhost:443\r\n\r\n")
            .unwrap();
        assert_eq!(status(&proxy::read_head(&mut client).unwrap()), 200);
        client.write_all(b"no TLS\r\n\r\n").unwrap();
        assert_eq!(proxy::read_exactly(&mut client, 1).as_bytes()[0], 21, "an alert");
    };
    try_all();
    let mut client = proxy.dial();
    client.write_all(b"GET / HTTP/1.1\r\nHost: plain.localhost\r\n\r\n").unwrap();
    let (head, body) = read_message(&mut client);
    assert!(status(&head) == 502 && body.contains("does not speak TLS"), "{head}{body}");
    let _reached = common::reach(&proxy.home, "vault");
    common::eventually("the route is local", common::PATIENCE, || {
        proxy.get_page("/_connect/state").contains("\"source\":\"reach\"")
    });
    try_all();
}

/// In a private copy of this machine's stores: what `trust` does, programs see without a flag, and `untrust` undoes all of it.
#[test]
fn the_systems_store_and_the_browsers_are_changed_and_changed_back() {
    let here = |program: &str, package: &str| common::is_here(program, package);
    if !here("update-ca-certificates", "ca-certificates") || !here("unshare", "util-linux") {
        return;
    }
    let (proxy, _) = secure();
    let firefox = proxy.home.file(".mozilla/firefox/x.default");
    fs::create_dir_all(&firefox).unwrap();
    let script = proxy.home.file("in-private.sh");
    fs::write(&script, include_str!("scripts/trust-in-private")).unwrap();
    let mut command = Command::new("unshare");
    command.args(["-m", "sh"]).arg(&script).arg(env!("CARGO_BIN_EXE_connect")).arg(proxy.port.to_string());
    command.env("HOME", proxy.home.path()).env("PRIVATECONNECT_HOME", proxy.home.path());
    for name in ["SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"] {
        command.env_remove(name);
    }
    let answer = said(&mut command);
    if answer.contains("unshare failed") {
        eprintln!("\n*** SKIPPED: only root can have a private copy of the trust stores ***\n");
        return;
    }
    let phase = |name: &str| {
        let lines = answer.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let (before, trusted, after) = (phase("before"), phase("trusted"), phase("after"));
    assert!(before.len() > 1 && before.iter().all(|line| line.ends_with(" refuses")), "{answer}");
    assert!(trusted.len() == before.len() && trusted.iter().all(|line| line.ends_with(" loads")), "{answer}");
    assert_eq!(after, before, "{answer}");
    assert!(answer.contains("stores as they were"), "{answer}");
}

/// With each client's own way to name a CA: the proxy's leaf and a leaf for `api.localhost` from its CA are good; one for
/// `example.com` that whoever stole the CA's key made is not.
#[test]
fn every_client_takes_good_leaves_and_refuses_a_leaf_for_another_host() {
    let (proxy, ca) = secure();
    let ca = ca.to_str().unwrap();
    let good = leaf::leaf_server(&proxy.home, "api.localhost");
    let bad = leaf::leaf_server(&proxy.home, "example.com");
    let node = "require('https').get({ host: '127.0.0.1', port: process.argv[1], servername: process.argv[2], \
        headers: { host: process.argv[2], connection: 'close' } }, r => process.exit(0)).on('error', e => process.exit(1))";
    let python = "import ssl, socket, sys\n\
        c = ssl.create_default_context(cafile=sys.argv[3])\n\
        c.wrap_socket(socket.create_connection(('127.0.0.1', int(sys.argv[1]))), server_hostname=sys.argv[2])\n";
    for program in ["curl", "openssl", "gnutls-cli", "python3", "node"] {
        if !common::is_here(program, "curl openssl gnutls-bin python3 nodejs") {
            continue;
        }
        for (port, name, wanted) in
            [(proxy.port, "api.localhost", true), (good, "api.localhost", true), (bad, "example.com", false)]
        {
            let (to, port) = (format!("127.0.0.1:{port}"), port.to_string());
            let (resolve, url) = (format!("{name}:{port}:127.0.0.1"), format!("https://{name}:{port}/"));
            let (sni, verified) = (format!("--sni-hostname={name}"), format!("--verify-hostname={name}"));
            let args: Vec<&str> = match program {
                "curl" => vec!["-sS", "--cacert", ca, "--resolve", &resolve, &url],
                "openssl" => vec![
                    "s_client",
                    "-connect",
                    &to,
                    "-servername",
                    name,
                    "-verify_hostname",
                    name,
                    "-verify_return_error",
                    "-CAfile",
                    ca,
                ],
                "gnutls-cli" => vec!["--x509cafile", ca, "--port", &port, &sni, &verified, "127.0.0.1"],
                "python3" => vec!["-c", python, &port, name, ca],
                _ => vec!["-e", node, &port, name],
            };
            let mut command = Command::new(program);
            command.args(args).env("NODE_EXTRA_CA_CERTS", ca).stdin(std::process::Stdio::null());
            let output = command.output().unwrap();
            assert_eq!(output.status.success(), wanted, "{program} {name} {output:?}");
        }
    }
}
