//! A headless Chromium that shows a page, spoken to in its DevTools protocol over a pipe.
//!
//! Its pipe is on descriptors 3 and 4, which a shell makes of standard input and output: no port is opened, and what it
//! prints goes nowhere. Neighbours: `program` makes the pages. Left out: any other browser.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// Longer than anything takes here.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running browser with one page.
pub struct Browser {
    child: Child,
    send: ChildStdin,
    receive: BufReader<ChildStdout>,
    session: Value,
    next: u64,
    /// What the browser told by itself: requests, errors, messages of the console.
    told: Vec<Value>,
}

/// A message on the console, an exception, a violation of the page's policy.
const COMPLAINTS: [&str; 4] =
    ["Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Audits.issueAdded"];

impl Browser {
    /// Starts one, which ends when its pipe does; `profile` is a folder that is its own.
    ///
    /// # Panics
    /// If there is no Chromium, which `tests/run` installs.
    pub fn start(profile: &Path) -> Self {
        let pipe = "exec chromium --headless=new --no-sandbox --disable-gpu --disable-extensions --no-first-run \
                    --disable-background-networking --disable-component-update --hide-scrollbars \
                    --force-color-profile=srgb --user-data-dir=\"$0\" --remote-debugging-pipe \
                    3<&0 4>&1 </dev/null >/dev/null 2>&1";
        let mut command = Command::new("sh");
        command.args(["-c", pipe]).arg(profile).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("a shell");
        let send = child.stdin.take().expect("a pipe");
        let receive = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut browser = Self { child, send, receive, session: Value::Null, next: 0, told: Vec::new() };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = attached["sessionId"].clone();
        for domain in ["Page", "Runtime", "Network", "Log", "Audits"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// A command and its result.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let mut message = json!({ "id": self.next, "method": method, "params": params });
        if !self.session.is_null() {
            message["sessionId"] = self.session.clone();
        }
        self.send.write_all(format!("{message}\0").as_bytes()).expect("the browser listens (is chromium installed?)");
        loop {
            let mut bytes = Vec::new();
            self.receive.read_until(0, &mut bytes).expect("the browser talks");
            assert_eq!(bytes.pop(), Some(0), "the browser ended (is chromium installed?)");
            let answer: Value = serde_json::from_slice(&bytes).expect("JSON");
            if answer["id"] == self.next {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
            self.told.push(answer);
        }
    }

    /// The value of an expression in the page; a promise is waited for.
    pub fn eval(&mut self, expression: &str) -> Value {
        let asked = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", asked);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Shows a file, in a window of this size and theme, until it says that it is ready.
    pub fn open(&mut self, file: &Path, (width, height): (u32, u32), theme: &str) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
        let feature = json!([{ "name": "prefers-color-scheme", "value": theme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": feature }));
        self.told.clear();
        self.call("Page.navigate", json!({ "url": format!("file://{}", file.display()) }));
        self.wait_for("document.getElementById('status')?.dataset.ready === '1'");
    }

    /// Waits until an expression is true.
    pub fn wait_for(&mut self, expression: &str) {
        let begun = Instant::now();
        while self.eval(expression) != true {
            assert!(begun.elapsed() < PATIENCE, "never true: {expression}; told {:?}", self.complaints());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Presses a key, by its name.
    pub fn press(&mut self, key: &str) {
        let text = if key.chars().count() == 1 { key } else { "" };
        for sort in ["keyDown", "keyUp"] {
            self.call("Input.dispatchKeyEvent", json!({ "type": sort, "key": key, "text": text }));
        }
    }

    /// Types a text and ends it with Enter.
    pub fn enter(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text }));
        let enter =
            json!({ "type": "keyDown", "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r" });
        self.call("Input.dispatchKeyEvent", enter);
    }

    /// The addresses of all requests since the page was opened.
    pub fn requests(&self) -> Vec<String> {
        let sent = self.told.iter().filter(|told| told["method"] == "Network.requestWillBeSent");
        sent.map(|told| told["params"]["request"]["url"].to_string()).collect()
    }

    /// Everything on the console, exceptions, and violations of the policy.
    pub fn complaints(&self) -> Vec<&Value> {
        self.told.iter().filter(|told| COMPLAINTS.iter().any(|method| told["method"] == *method)).collect()
    }

    /// Writes what the page looks like, from its top, as a PNG.
    pub fn screenshot(&mut self, to: &Path, height: u32) {
        let width = self.eval("innerWidth");
        let clip = json!({ "x": 0, "y": 0, "width": width, "height": height, "scale": 1 });
        let asked = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        let picture = self.call("Page.captureScreenshot", asked)["data"].clone();
        let picture = STANDARD.decode(picture.as_str().expect("a text")).expect("base64");
        std::fs::create_dir_all(to.parent().expect("a folder")).expect("the folder is made");
        std::fs::write(to, picture).expect("the picture is written");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It is this test's own, and whether it ended by itself does not matter.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
