//! HTTPS as other people's clients see it: which certificates they take, and which they refuse.

mod common;
#[path = "common/proxy.rs"]
mod proxy;

use std::fs;
use std::io::Read;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use proxy::Proxy;
use proxy::answering;
use proxy::status;

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
            let url = format!("https://{name}:{}/", proxy.port);
            let resolve = format!("{name}:{}:127.0.0.1", proxy.port);
            let answer = said(
                Command::new("curl")
                    .args(["-sS", "--tls-max", version, "--resolve", &resolve, &url, "--cacert"])
                    .arg(&ca),
            );
            let wanted = if name.starts_with("v2") { "Service not found" } else { "ok" };
            assert!(answer.contains(wanted), "{name} {version}: {answer}");
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
