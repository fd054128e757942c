//! A real browser: the page, and whom it believes. Skipped, aloud, where there is no Chromium.

#[path = "common/browser.rs"]
mod browser;
mod common;
#[path = "common/leaf.rs"]
mod leaf;
#[path = "common/proxy.rs"]
mod proxy;

use browser::Browser;
use common::is_here;
use leaf::leaf_server;
use proxy::Proxy;
use proxy::answering;
use serde_json::json;

const OK: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 25\r\n\r\n<p id=here>it is here</p>";

#[test]
fn chromium_refuses_before_trust_and_loads_after_it_and_believes_nothing_else() {
    if !is_here("chromium", "chromium") || !is_here("certutil", "libnss3-tools") {
        return;
    }
    let proxy = Proxy::start_with(&[("api", answering(OK).0)], &["--https"]);
    let url = format!("https://api.localhost:{}/", proxy.port);
    let refused = Browser::start(&proxy.home, &[]).open(&url);
    assert_eq!(refused, "net::ERR_CERT_AUTHORITY_INVALID");
    let said = proxy.home.run(&["proxy", "trust", "--user"]).ok();
    assert!(said.out.contains("[ok] CA added to Chromium's store"), "{said:?}");
    let (good, bad) = (leaf_server(&proxy.home, "api.localhost"), leaf_server(&proxy.home, "example.com"));
    {
        let rules = "--host-resolver-rules=MAP example.com 127.0.0.1";
        let mut browser = Browser::start(&proxy.home, &[rules]);
        assert_eq!(browser.open(&url), "");
        browser.wait_for(&["it is here"]);
        assert_eq!(browser.open(&format!("https://api.localhost:{good}/")), "");
        let refused = browser.open(&format!("https://example.com:{bad}/"));
        assert!(refused.starts_with("net::ERR_CERT_"), "a leaf for example.com: {refused:?}");
    }
    proxy.home.run(&["proxy", "untrust", "--user"]).ok();
    assert_eq!(Browser::start(&proxy.home, &[]).open(&url), "net::ERR_CERT_AUTHORITY_INVALID");
}

#[test]
fn the_page_shows_requests_as_they_happen_and_needs_no_mouse() {
    if !is_here("chromium", "chromium") {
        return;
    }
    let proxy = Proxy::start(&[("api", answering(OK).0)]);
    let mut browser = Browser::start(&proxy.home, &[]);
    assert_eq!(browser.open(&format!("http://localhost:{}/", proxy.port)), "");
    browser.wait_for(&["api", "● answers", "127.0.0.1:", "Live."]);
    assert!(proxy.get("api", "/seen-by-the-page?secret=1").contains("it is here"));
    let shown = browser.wait_for(&["/seen-by-the-page", "200"]);
    assert!(!shown.contains("secret"), "{shown}");
    // A request opens to its details.
    browser.evaluate("document.querySelector('#requests tr').click()");
    let details = browser.wait_for(&["Exchange", "25 bytes", "Response", "text/html"]);
    assert!(details.contains("api.localhost") && !details.contains("secret"), "{details}");
    let wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth";
    for (width, scheme) in [(360, "dark"), (1200, "light")] {
        let metrics = json!({ "width": width, "height": 700, "deviceScaleFactor": 1, "mobile": false });
        browser.call("Emulation.setDeviceMetricsOverride", metrics);
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        browser.call("Emulation.setEmulatedMedia", features);
        assert_eq!(browser.evaluate(wide), false, "the page is wider than {width}");
        if let Some(folder) = std::env::var_os("CONNECT_TEST_SHOTS") {
            let shot = browser.call("Page.captureScreenshot", json!({}));
            let file = std::path::Path::new(&folder).join(format!("{width}-{scheme}.png.base64"));
            std::fs::write(file, shot["data"].as_str().unwrap()).unwrap();
        }
    }
    browser.press("Tab", 9, "");
    let focused = browser.evaluate("document.activeElement.href");
    assert_eq!(focused, format!("http://api.localhost:{}/", proxy.port));
    browser.press("Enter", 13, "\r");
    browser.wait_for(&["it is here"]);
}
