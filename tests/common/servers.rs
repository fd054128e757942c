//! The programs that people have services in, started on ports of their own and ended with the test.
#![allow(dead_code)] // Each test file uses its part.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::Home;
use super::Said;
use super::eventually;
use super::is_here;
use super::team::is_root;

/// A database may take its time on a busy machine.
const START: Duration = Duration::from_secs(30);

/// A server that is ended when the test is.
pub struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        // PostgreSQL is quick at the one and MariaDB deaf to it.
        let _ = kill(pid, Signal::SIGINT).and_then(|()| kill(pid, Signal::SIGTERM));
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.0.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < deadline {
            thread::park_timeout(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that is free now; whoever takes it meanwhile makes the server's start fail, and it is tried again.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn listens(port: u16) -> bool {
    std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// Starts `make(port)` until it listens.
pub fn start(what: &str, mut make: impl FnMut(u16) -> Command) -> (Server, u16) {
    for _ in 0..3 {
        let port = free_port();
        let mut server = Server(make(port).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let mut ended = false;
        eventually(what, START, || {
            ended = server.0.try_wait().unwrap().is_some();
            ended || listens(port)
        });
        if !ended {
            return (server, port);
        }
    }
    panic!("{what} does not start");
}

/// Where Debian keeps what `PostgreSQL` needs to run, newest first.
fn postgres_folder() -> Option<PathBuf> {
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|found| found.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    versions.sort();
    versions.into_iter().rev().find(|bin| bin.join("initdb").is_file())
}

/// `PostgreSQL` does not run as root.
pub fn unprivileged(program: PathBuf) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(program);
    command
}

pub fn postgres(home: &Home) -> Option<(Server, u16)> {
    let bin = postgres_folder();
    let Some(bin) = bin.filter(|_| is_here("psql", "postgresql-client")) else {
        eprintln!("\n*** SKIPPED: there is no PostgreSQL; get it with: apt-get install postgresql ***\n");
        return None;
    };
    let data = home.file("postgres");
    fs::create_dir(&data).unwrap();
    if is_root() {
        nix::unistd::chown(&data, Some(65534.into()), Some(65534.into())).unwrap();
    }
    let mut initdb = unprivileged(bin.join("initdb"));
    initdb.args(["--no-sync", "-A", "trust", "-U", "ci", "-D"]).arg(&data).current_dir("/");
    let said = Said::of(initdb);
    assert_eq!(said.code, Some(0), "{said:#?}");
    let socket = data.display().to_string();
    Some(start("PostgreSQL", |port| {
        let mut server = unprivileged(bin.join("postgres"));
        server.args(["-F", "-h", "127.0.0.1", "-k", &socket, "-p", &port.to_string(), "-D"]).arg(&data);
        server.current_dir("/");
        server
    }))
}

pub fn redis(home: &Home) -> Option<(Server, u16)> {
    if !(is_here("redis-server", "redis-server") && is_here("redis-cli", "redis-tools")) {
        return None;
    }
    let folder = home.path().display().to_string();
    Some(start("Redis", |port| {
        let mut server = Command::new("redis-server");
        server.args(["--bind", "127.0.0.1", "--save", "", "--dir", &folder, "--port", &port.to_string()]);
        server
    }))
}

/// `program` on a port, with these words in which `PORT` and `HOME` are filled in.
pub fn server(home: &Home, (program, package): (&str, &str), words: &str) -> Option<(Server, u16)> {
    if !is_here(program, package) {
        return None;
    }
    let sbin = PathBuf::from("/usr/sbin").join(program);
    let program = if sbin.is_file() { sbin } else { PathBuf::from(program) };
    Some(start(package, |port| {
        let mut server = Command::new(&program);
        let filled = words.replace("PORT", &port.to_string()).replace("PEER", &free_port().to_string());
        server.args(filled.replace("HOME", &home.path().display().to_string()).split_whitespace());
        server.current_dir(home.path());
        server
    }))
}

pub fn mariadb(home: &Home) -> Option<(Server, u16)> {
    if !is_here("mariadbd", "mariadb-server") {
        return None;
    }
    let data = home.file("mariadb").display().to_string();
    let mut install = Command::new("mariadb-install-db");
    install.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
    install.arg(format!("--datadir={data}")).arg(format!("--user={}", if is_root() { "root" } else { "" }));
    let said = Said::of(install);
    assert_eq!(said.code, Some(0), "{said:#?}");
    let words =
        "--no-defaults --bind-address=127.0.0.1 --port=PORT --datadir=HOME/mariadb --socket=HOME/mariadb/s";
    let words = if is_root() { format!("{words} --user=root") } else { words.to_owned() };
    server(home, ("mariadbd", "mariadb-server"), &words)
}

pub fn ssh(home: &Home) -> Option<(Server, u16)> {
    if !(is_here("sshd", "openssh-server") && is_here("ssh-keygen", "openssh-client")) {
        return None;
    }
    if is_root() {
        fs::create_dir_all("/run/sshd").unwrap();
    }
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(home.file("hostkey"));
    assert_eq!(Said::of(keygen).code, Some(0));
    let words = "-D -e -h HOME/hostkey -p PORT -o ListenAddress=127.0.0.1 -o PidFile=none";
    server(home, ("sshd", "openssh-server"), words)
}

/// In the clear, and by TLS at the second port.
pub fn nginx(home: &Home) -> Option<(Server, u16, u16)> {
    if !(is_here("nginx", "nginx-light") && is_here("openssl", "openssl")) {
        return None;
    }
    let (key, certificate) = (home.file("web.key"), home.file("web.crt"));
    let mut make = Command::new("openssl");
    make.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]);
    make.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
    assert_eq!(Said::of(make).code, Some(0));
    let place = home.path().display();
    fs::write(home.file("index.html"), "<html><title>Hello &amp; welcome</title>").unwrap();
    let mut secure = 0;
    let (server, port) = start("nginx", |port| {
        secure = free_port();
        let both = format!(
            "master_process off; daemon off; pid {place}/nginx.pid; error_log {place}/nginx.log; {} events {{}} http {{ access_log off; root {place};
             server {{ listen 127.0.0.1:{port}; }}
             server {{ listen 127.0.0.1:{secure} ssl; ssl_protocols TLSv1.3;
                       ssl_certificate {}; ssl_certificate_key {}; }} }}",
            if is_root() { "user root;" } else { "" },
            certificate.display(),
            key.display()
        );
        fs::write(home.file("nginx.conf"), both).unwrap();
        let mut server = Command::new("/usr/sbin/nginx");
        server.arg("-c").arg(home.file("nginx.conf"));
        server
    });
    Some((server, port, secure))
}
