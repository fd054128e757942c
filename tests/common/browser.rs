//! Chromium without a window, told what to do through two pipes and asked what its page has become.

use std::fs::File;
use std::fs::OpenOptions;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::time::Duration;
use std::time::Instant;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;
use serde_json::json;

use crate::common::Home;

/// A browser takes its time on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

pub struct Browser {
    child: Child,
    to: File,
    heard: Receiver<Value>,
    next: u64,
    session: Option<String>,
}

impl Browser {
    /// With a profile of its own and the trust store of `home`.
    pub fn start(home: &Home, options: &[&str]) -> Self {
        let pipes = ["to", "from"].map(|name| home.file(&format!("browser-{name}")));
        for pipe in &pipes {
            let _ = std::fs::remove_file(pipe);
            mkfifo(pipe, Mode::S_IRWXU).unwrap();
        }
        let profile = format!("--user-data-dir={}", home.file("chromium").display());
        let mut command = Command::new("sh");
        command.args(["-c", "exec chromium \"$@\" 3<\"$0\" 4>\"$BACK\"", pipes[0].to_str().unwrap()]);
        command.args(["--remote-debugging-pipe", "--headless", "--no-sandbox", "--disable-gpu", &profile]);
        command.args(["--disable-dev-shm-usage", "--no-first-run", "--disable-breakpad"]).args(options);
        command.env("BACK", &pipes[1]).env("HOME", home.path());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let to = OpenOptions::new().write(true).open(&pipes[0]).unwrap();
        let (tell, heard) = mpsc::channel();
        let from = File::open(&pipes[1]).unwrap();
        std::thread::spawn(move || {
            for message in BufReader::new(from).split(0).map_while(Result::ok) {
                let _ = tell.send(serde_json::from_slice(&message).unwrap());
            }
        });
        let mut it = Self { child, to, heard, next: 0, session: None };
        let page = it.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": page["targetId"], "flatten": true });
        it.session = it.call("Target.attachToTarget", attach)["sessionId"].as_str().map(str::to_owned);
        it
    }

    #[allow(clippy::needless_pass_by_value)] // Callers build it in the call.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let mut asked = json!({ "id": self.next, "method": method, "params": params });
        if let Some(session) = &self.session {
            asked["sessionId"] = session.as_str().into();
        }
        self.to.write_all(format!("{asked}\0").as_bytes()).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut said = self.heard.recv_timeout(left).expect("the browser answers");
            if said["id"] == self.next {
                assert!(said.get("error").is_none(), "{method}: {said}");
                return said["result"].take();
            }
        }
    }

    /// Why it did not load; empty when it did.
    pub fn open(&mut self, url: &str) -> String {
        let opened = self.call("Page.navigate", json!({ "url": url }));
        opened["errorText"].as_str().unwrap_or_default().to_owned()
    }

    pub fn evaluate(&mut self, expression: &str) -> Value {
        let asked = json!({ "expression": expression, "returnByValue": true });
        self.call("Runtime.evaluate", asked)["result"]["value"].take()
    }

    /// Until the page's text holds all of `parts`.
    pub fn wait_for(&mut self, parts: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = self.evaluate("document.body ? document.body.innerText : ''");
            let text = text.as_str().unwrap_or_default().to_owned();
            if parts.iter().all(|part| text.contains(part)) {
                return text;
            }
            assert!(Instant::now() < deadline, "{parts:?} never came: {text}");
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    pub fn press(&mut self, key: &str, code: u32, text: &str) {
        for kind in ["keyDown", "keyUp"] {
            let text = if kind == "keyDown" { text } else { "" };
            let event =
                json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text });
            self.call("Input.dispatchKeyEvent", event);
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its children end when its pipe does.
        let _ = self.to.write_all(b"{\"id\":0,\"method\":\"Browser.close\"}\0");
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.child.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
