//! A real browser: the page, and whom it believes. Skipped, aloud, where there is no Chromium.

mod common;
#[path = "common/proxy.rs"]
mod proxy;

use std::process::Command;
use std::process::Stdio;

use common::Home;
use proxy::Proxy;
use proxy::answering;

const OK: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 25\r\n\r\n<p id=here>it is here</p>";

/// What the page at `url` has become, in a browser that keeps all it has in `home`.
fn shown(home: &Home, url: &str) -> String {
    let profile = format!("--user-data-dir={}", home.file("chromium").display());
    let out = home.file("shown.html");
    // Its helpers outlive it and hold its pipes, so it writes into a file; and it is given an end.
    let mut command = Command::new("timeout");
    command.args([
        "-k",
        "1",
        "20",
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
    ]);
    command.args(["--no-first-run", "--disable-crash-reporter", "--disable-breakpad", &profile]);
    command.args(["--timeout=3000", "--dump-dom", url]).env("HOME", home.path());
    command.stdin(Stdio::null()).stdout(std::fs::File::create(&out).unwrap()).stderr(Stdio::null());
    command.status().unwrap();
    std::fs::read_to_string(out).unwrap()
}

/// A browser takes its time on a busy machine, so it is asked for by name and not run with every test.
fn is_here() -> bool {
    let wanted = std::env::var_os("CONNECT_TEST_BROWSER").is_some();
    let all = ["chromium", "certutil"]
        .iter()
        .all(|program| Command::new(program).arg("--version").output().is_ok());
    if !wanted || !all {
        eprintln!(
            "\n*** SKIPPED: for the browser tests: apt-get install chromium libnss3-tools, \
             then CONNECT_TEST_BROWSER=1 make test ***\n"
        );
    }
    wanted && all
}

#[test]
fn chromium_refuses_before_trust_and_loads_after_it() {
    if !is_here() {
        return;
    }
    let proxy = Proxy::start_with(&[("api", answering(OK).0)], &["--https"]);
    let url = format!("https://api.localhost:{}/", proxy.port);
    assert!(!shown(&proxy.home, &url).contains("it is here"));
    let said = proxy.home.run(&["proxy", "trust", "--user"]).ok();
    assert!(said.out.contains("[ok] CA added to Chromium's store"), "{said:?}");
    let loaded = shown(&proxy.home, &url);
    assert!(loaded.contains("it is here"), "{loaded}");
    proxy.home.run(&["proxy", "untrust", "--user"]).ok();
    assert!(!shown(&proxy.home, &url).contains("it is here"));
}

#[test]
fn the_page_works_under_its_own_policy() {
    if !is_here() {
        return;
    }
    let proxy = Proxy::start(&[("api", answering(OK).0)]);
    assert!(proxy.get("api", "/seen-by-the-page").contains("it is here"));
    let link = format!("href=\"http://api.localhost:{}\"", proxy.port);
    let wanted = [link.as_str(), "● answers", "/seen-by-the-page"];
    // The browser shows the page as it is when it has loaded, which may be before its routes have.
    let mut last = String::new();
    let complete = (0..6).any(|_| {
        last = shown(&proxy.home, &format!("http://localhost:{}/", proxy.port));
        wanted.iter().all(|part| last.contains(part))
    });
    assert!(complete, "{last}");
}
