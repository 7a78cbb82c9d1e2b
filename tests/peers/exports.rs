//! Exports of traces, read by the programs they are for: every count beside what kernel, driver and device counted.
//!
//! trace-cmd reads the `dat`, the protos that Perfetto publishes read the `perfetto`; neither knows lowzone. What they find
//! is compared with the result of the run, whose numbers come from the DMA API's, the queues' and the devices' own
//! counters and not from the record. Neighbours: `broken_exports`, of files that are no whole trace.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use lowzone_tests::image::Folder;
use lowzone_tests::peer;
use lowzone_tests::program::{Outcome, lowzone, target};
use serde_json::Value;

/// Three sizes and three kinds of memory, so that no filter is right by luck; all sizes fill slots of the bounce pool.
const MIXED: &str = r#"
story = "Requests of three sizes from three kinds of memory"
[machine]
ram = "6G"
[[device]]
name = "vda"
kind = "virtio-blk"
size = "8M"
width = 32
[driver]
dma_mask = 32
[[step]]
probe = {}
[[step]]
io = { device = "vda", label = "a", requests = 24, bytes = "4K", memory = "high" }
[[step]]
io = { device = "vda", label = "b", requests = 10, bytes = "12K", memory = "high" }
[[step]]
io = { device = "vda", label = "c", requests = 18, bytes = "8K", memory = "low" }
[[step]]
io = { device = "vda", label = "d", requests = 8, bytes = "4K", memory = "coherent" }
[[step]]
remove = {}
"#;
const STEPS: u64 = 6;

/// A run with its trace, and what it counted.
pub(crate) struct Traced {
    pub(crate) folder: Folder,
    pub(crate) trace: PathBuf,
    result: Value,
}

impl Traced {
    pub(crate) fn run(world: &str) -> Self {
        let folder = Folder::new();
        let scenario = folder.file("mixed.toml", MIXED.as_bytes());
        let trace = folder.path().join("run.lzt");
        let run = lowzone([
            "run".as_ref(),
            scenario.as_os_str(),
            "--world".as_ref(),
            world.as_ref(),
            "--json".as_ref(),
            "--trace".as_ref(),
            trace.as_os_str(),
        ]);
        assert_eq!(run.code, Some(0), "{run:?}");
        Self { folder, trace, result: run.json() }
    }

    pub(crate) fn export(&self, format: &str) -> PathBuf {
        let out = self.folder.path().join(format!("out.{format}"));
        let done = export(&self.trace, format, &out);
        assert_eq!((done.code, done.stdout.as_str(), done.stderr.as_str()), (Some(0), "", ""));
        out
    }

    /// A number that the kernel keeps of the device.
    pub(crate) fn device(&self, what: &str) -> u64 {
        self.result["devices"][0][what].as_u64().unwrap_or_else(|| panic!("{what}: {}", self.result))
    }

    fn queues(&self, what: &str) -> u64 {
        self.result["queues"].as_array().unwrap().iter().map(|queue| queue[what].as_u64().unwrap()).sum()
    }

    /// Mappings by direction and size, as the steps that made the requests counted them.
    fn maps(&self) -> BTreeMap<(u64, u64), u64> {
        let mut maps = BTreeMap::new();
        for step in self.result["io"].as_array().unwrap() {
            let number = |what: &str| step[what].as_u64().unwrap();
            if number("maps") > 0 {
                assert_eq!(number("maps"), number("requests"), "one buffer a request");
                let size = number("bytes") / number("requests");
                *maps.entry((2, size)).or_default() += number("compared");
                *maps.entry((1, size)).or_default() += number("requests") - number("compared");
            }
        }
        maps
    }
}

pub(crate) fn export(trace: &Path, format: &str, out: &Path) -> Outcome {
    lowzone([
        "trace".as_ref(),
        "export".as_ref(),
        "--format".as_ref(),
        format.as_ref(),
        trace.as_os_str(),
        "-o".as_ref(),
        out.as_os_str(),
    ])
}

/// The events that `trace-cmd report` prints with a filter, or all of them.
pub(crate) fn report(dat: &Path, filter: Option<&str>) -> Vec<String> {
    let mut command = Command::new("trace-cmd");
    command.args(["report", "-N", "-t"]);
    if let Some(filter) = filter {
        command.args(["-F", filter]);
    }
    let outcome = Outcome::of(&command.arg("-i").arg(dat).output().unwrap());
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{filter:?}");
    let mut lines = outcome.stdout.lines();
    assert!(lines.next().unwrap().starts_with("cpus="));
    lines.map(ToOwned::to_owned).collect()
}

/// What Perfetto's own protos find in a trace.
pub(crate) fn decoded(trace: &Path) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/read_perfetto.py");
    let output = Command::new("python3").arg(script).arg(trace).env("PYTHONPATH", protos()).output().unwrap();
    let outcome = Outcome::of(&output);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let found = outcome.json();
    assert_eq!(found["unknown"], 0, "fields that Perfetto does not have: {found}");
    assert_eq!(found["errors"], serde_json::json!([]), "{found}");
    found
}

fn protos() -> PathBuf {
    target().join("perfetto")
}

/// Whether Perfetto's protos are there.
pub(crate) fn protos_are_here() -> bool {
    let at = protos();
    if at.join("perfetto/protos").is_dir() {
        return true;
    }
    let allowed = std::env::var_os("LOWZONE_NO_PEERS").is_some_and(|value| value == "1");
    let how = format!("python3 -m pip install --target {} perfetto==0.59.1", at.display());
    assert!(allowed, "Perfetto's protos are not installed: {how} (or set LOWZONE_NO_PEERS=1)");
    println!("skipped: Perfetto's protos are not installed");
    false
}

/// The numbers of a field in lines of a report, added up.
fn sum(lines: &[String], field: &str) -> u64 {
    let of = |line: &String| {
        let word = line.split_whitespace().find_map(|word| word.strip_prefix(field)?.strip_prefix('='));
        word.unwrap_or_else(|| panic!("no {field} in {line}")).parse::<u64>().unwrap()
    };
    lines.iter().map(of).sum()
}

#[test]
fn trace_cmd_counts_what_kernel_and_device_counted() {
    if !peer::is_here("trace-cmd", "trace-cmd") {
        return;
    }
    for world in ["lockstep", "threads"] {
        let run = Traced::run(world);
        let dat = run.export("dat");
        let count = |filter: &str| report(&dat, Some(filter)).len() as u64;
        let maps = run.maps();
        assert_eq!(maps.len(), 6, "both directions of three sizes: {maps:?}");
        for (&(dir, size), &made) in &maps {
            assert_eq!(count(&format!("dma_map_page: size == {size} && dir == {dir}")), made, "{world} {size} {dir}");
            assert_eq!(count(&format!("dma_unmap_page: size == {size} && dir == {dir}")), made, "{world} {size} {dir}");
        }
        assert_eq!(count("dma_map_page: tx > 0"), run.device("maps"));
        assert_eq!(count("dma_map_page: bounced == 1"), run.device("bounces"));
        assert_eq!(count("swiotlb_bounced: dev_name == \"vda\""), run.device("bounces"));
        assert_eq!(count("dma_alloc: size > 0"), run.device("coherent"));
        assert_eq!(count("irq_handler_entry: irq >= 0"), run.device("interrupts"));
        assert_eq!(count("virtq_add: index >= 0"), run.queues("requests"));
        assert_eq!(count("virtq_used: index >= 0"), run.queues("requests"));
        assert_eq!(count("virtq_kick: index >= 0"), run.queues("kicks"));
        assert_eq!(count("lowzone/step: step > 0"), STEPS);
        // The data by the device's own count: nothing else that it reaches is as long.
        let data = report(&dat, Some("port_read,port_write: size >= 4096"));
        assert_eq!(sum(&data, "size"), run.device("bytes"), "{world}");
        let copied_in = sum(&report(&dat, Some("dma_map_page: bounced == 1")), "size");
        let copied_out = sum(&report(&dat, Some("dma_unmap_page: size > 0")), "bounced_bytes");
        assert_eq!(copied_in + copied_out, run.device("bounced_bytes"), "{world}");
        assert_eq!(report(&dat, None).len() as u64, run.result["events"].as_u64().unwrap(), "{world}");
    }
}

#[test]
fn trace_cmd_prints_every_event_as_the_text_says_it() {
    if !peer::is_here("trace-cmd", "trace-cmd") {
        return;
    }
    // Faults, refusals and accesses that no mapping allows, scatterlists, and a device that is no virtio one.
    for scenario in ["block/use-after-unmap", "dma/ledger", "block/swiotlb-full", "net/loop-back", "edu/selftest"] {
        let folder = Folder::new();
        let path = |name: &str| folder.path().join(name);
        let run = lowzone(["run".as_ref(), scenario.as_ref(), "--trace".as_ref(), path("run.lzt").as_os_str()]);
        assert_eq!(run.code, Some(0), "{run:?}");
        for format in ["dat", "text"] {
            let done = export(&path("run.lzt"), format, &path(format));
            assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""));
        }
        let mut read = report(&path("dat"), None);
        let text = std::fs::read_to_string(path("text")).unwrap();
        let mut said: Vec<_> = text.lines().map(ToOwned::to_owned).collect();
        // trace-cmd merges its buffers by time.
        read.sort();
        said.sort();
        let differ = read.iter().zip(&said).find(|(read, said)| read != said);
        assert_eq!((differ, read.len()), (None, said.len()), "{scenario}");
    }
}

#[test]
fn perfettos_protos_find_slices_flows_and_counters_of_every_mapping() {
    if !protos_are_here() {
        return;
    }
    for world in ["lockstep", "threads"] {
        let run = Traced::run(world);
        let found = decoded(&run.export("perfetto"));
        let number = |table: &str, name: &str| found[table][name].as_u64().unwrap_or(0);
        let (maps, bounces, coherent) = (run.device("maps"), run.device("bounces"), run.device("coherent"));
        assert_eq!(number("slices", "transaction:bounced"), bounces, "{world}");
        assert_eq!(number("slices", "transaction:mapped"), maps - bounces, "{world}");
        assert_eq!(number("slices", "transaction:coherent"), coherent, "{world}");
        assert_eq!(number("slices", "irq:irq_handler_entry"), run.device("interrupts"), "{world}");
        assert_eq!(number("slices", "lowzone:step"), STEPS);
        assert_eq!(found["open"], 0, "{world}: all was unmapped");
        assert_eq!(found["flows"].as_u64().unwrap(), maps + coherent, "{world}");
        // Each request has one buffer, so one chain leads to each mapping and comes back.
        for name in ["virtq_add", "virtq_used", "dma_unmap_page"] {
            assert_eq!(number("streaming_flows", name), maps, "{world}: {name}");
        }
        // The device takes each chain, reaches its buffer once, gives it back. A thread may be told of a chain's beginning
        // before the other has said that it posted it, and of its end after the other took it.
        let accesses = number("streaming_flows", "port_read") + number("streaming_flows", "port_write");
        let least = if world == "lockstep" { 3 * maps } else { maps };
        assert!((least..=3 * maps).contains(&accesses), "{world}: {accesses} of {maps}");
        for (&(dir, size), &made) in &run.maps() {
            let dir = if dir == 1 { "TO_DEVICE" } else { "FROM_DEVICE" };
            for call in ["map", "unmap"] {
                assert_eq!(number("by_dir_and_size", &format!("dma_{call}_page {dir} {size}")), made, "{world}");
            }
        }
        assert_eq!(number("instants", "virtq:virtq_kick"), run.queues("kicks"), "{world}");
        assert_eq!(number("instants", "swiotlb:swiotlb_bounced"), bounces, "{world}");
        let counters = found["counters"].as_object().unwrap();
        assert!(counters.len() >= 4 && counters.values().all(|value| value == 0), "{world}: {counters:?}");
        let slots = run.result["swiotlb_peak"].as_u64().unwrap();
        assert_eq!(number("peaks", "bounced bytes"), slots * 2048, "{world}");
        let peak = run.result["queues"][0]["peak"].as_u64().unwrap();
        let in_flight = found["peaks"].as_object().unwrap().iter().find(|(name, _)| name.ends_with("chains in flight"));
        assert_eq!(in_flight.unwrap().1.as_u64(), Some(peak), "{world}");
    }
}

#[test]
fn what_reads_lines_gets_every_event() {
    let run = Traced::run("lockstep");
    let shown = lowzone(["trace".as_ref(), "show".as_ref(), run.trace.as_os_str(), "--json".as_ref()]);
    let lines = std::fs::read_to_string(run.export("jsonl")).unwrap();
    assert_eq!(lines, shown.stdout);
    assert_eq!(lines.lines().count() as u64, run.result["events"].as_u64().unwrap());
    // The same through a pipe; and a device that nothing is made in the place of.
    assert_eq!(export(&run.trace, "jsonl", Path::new("-")).stdout, lines);
    let before = run.folder.names();
    assert_eq!(export(&run.trace, "jsonl", Path::new("/dev/null")).code, Some(0));
    assert!(!File::open("/dev/null").unwrap().metadata().unwrap().is_file());
    assert_eq!(run.folder.names(), before);
}
