//! Exports of traces that are cut, foreign, newer, hostile, or too large for any memory; and exports that are stopped.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lowzone::trace::{Header, Reader, Writer};
use lowzone_guest_mem::dma::direction::Dir;
use lowzone_guest_mem::site::{Owner, Scope, Site};
use lowzone_guest_mem::trace::{Kind, Producer, Record, Shape, owner_word};
use lowzone_guest_mem::zone::ZoneKind;
use lowzone_tests::image::Folder;
use lowzone_tests::peer;
use lowzone_tests::program::{Outcome, command};
use rustix::process::{Pid, Signal, kill_process};

use crate::exports::{decoded, export, protos_are_here, report};

const FORMATS: [&str; 4] = ["dat", "perfetto", "jsonl", "text"];

fn header() -> Header {
    let kinds = Kind::ALL.iter().map(|kind| (kind.number(), kind.name().to_owned())).collect();
    Header {
        program: "test".into(),
        scenario: "s".into(),
        seed: 1,
        clock: "virtual-ns".into(),
        began: None,
        cpus: 2,
        kinds,
        only: Vec::new(),
    }
}

/// A trace with so many events, of which each fifth begins a transaction; 64 are mapped at a time.
fn long(folder: &Folder, events: u64) -> PathBuf {
    let path = folder.path().join(format!("{events}.lzt"));
    let out = std::io::BufWriter::new(fs::File::create(&path).unwrap());
    let devices = [(1, "0000:00:01.0".into(), "vda".into())];
    let mut writer = Writer::new(out, &header(), &devices, None).unwrap();
    let owner = owner_word(Owner { site: Site::caller(), scope: Scope::ROOT.enter("long") });
    let (dir, zone) = (Dir::ToDevice, ZoneKind::Dma32);
    let shape = Shape { dir, bounced: true, coherent: false, zone, buffer_zone: ZoneKind::Normal };
    let mut page = Vec::new();
    for tx in 1..=events / 5 {
        let at = |kind, tag| Record { ts: tx * 100, addr: 0x10_0000 + tx % 64 * 4096, len: 4096, kind, dev: 1, tag };
        let (cpu, port) = (Producer(0), Producer(3));
        page.push((cpu, at(Kind::Kmalloc, owner)));
        page.push((cpu, at(Kind::DmaMapPage, tx)));
        page.push((cpu, Record { len: shape.pack(), ..at(Kind::Mapping, owner) }));
        page.push((cpu, at(Kind::Buffer, owner)));
        page.push((cpu, at(Kind::VirtqAdd, tx)));
        page.push((port, at(Kind::PortRead, tx)));
        page.push((Producer(1), if tx > 64 { at(Kind::DmaUnmapPage, tx - 64) } else { at(Kind::VirtqKick, 0) }));
        if page.len() > 4096 || tx == events / 5 {
            writer.page(&page);
            page.clear();
        }
    }
    writer.finish(0, events * 20).unwrap().flush().unwrap();
    path
}

fn count(path: &Path) -> u64 {
    let mut reader = Reader::open(path).unwrap();
    std::iter::from_fn(|| reader.next_event().ok().flatten()).count() as u64
}

#[test]
fn of_a_trace_that_is_cut_every_format_has_what_came_before() {
    if !peer::is_here("trace-cmd", "trace-cmd") || !protos_are_here() {
        return;
    }
    let folder = Folder::new();
    let whole = fs::read(long(&folder, 10_000)).unwrap();
    for cut in [whole.len() / 3, whole.len() - 1] {
        let trace = folder.file("cut.lzt", &whole[..cut]);
        let events = count(&trace);
        assert!(events > 3000 && events <= 10_000, "{events}");
        for format in FORMATS {
            let out = folder.path().join(format);
            let done = export(&trace, format, &out);
            assert_eq!((done.code, done.stdout.as_str()), (Some(2), ""), "{format}");
            let told = format!("cut off at byte {cut}, inside what begins at byte ");
            assert!(done.stderr.lines().count() == 1 && done.stderr.contains(&told), "{format}: {}", done.stderr);
            let exported = match format {
                "dat" => report(&out, None).len() as u64,
                "perfetto" => {
                    let found = decoded(&out);
                    let sum = |table: &str| {
                        found[table].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum::<u64>()
                    };
                    // A slice is a second telling of the map that begins it.
                    assert_eq!(sum("slices"), found["instants"]["dma:dma_map_page"].as_u64().unwrap());
                    sum("instants")
                }
                _ => fs::read_to_string(&out).unwrap().lines().count() as u64,
            };
            assert_eq!(exported, events, "{format}");
        }
    }
}

#[test]
fn what_is_no_trace_leaves_no_export() {
    let folder = Folder::new();
    let whole = fs::read(long(&folder, 100)).unwrap();
    let mut newer = whole.clone();
    newer[12] = 9;
    let cases = [
        ("foreign", b"\x17\x08\x44tracing6\0 is the other way round".to_vec(), "byte 0 differs from the magic's"),
        ("newer", newer, "byte 12: format version 9, written by test"),
        ("empty", Vec::new(), "byte 0 differs"),
    ];
    for (name, bytes, why) in cases {
        let trace = folder.file(name, &bytes);
        let before = folder.names();
        for format in FORMATS {
            let done = export(&trace, format, &folder.path().join("out"));
            assert!(done.code == Some(2) && done.stderr.contains(why), "{name} {format}: {done:?}");
            assert_eq!(folder.names(), before, "{name} {format}");
        }
    }
    let trace = folder.file("whole", &whole);
    let pages = export(&trace, "dat", Path::new("-"));
    assert!(pages.code == Some(2) && pages.stderr.contains("name a file with -o"), "{pages:?}");
    let itself = export(&trace, "text", &trace);
    assert!(itself.code == Some(2) && itself.stderr.contains("would replace what it is made of"), "{itself:?}");
    assert_eq!(fs::read(&trace).unwrap(), whole);
    let nowhere = export(&trace, "text", &folder.path().join("no/such/folder"));
    assert!(nowhere.code == Some(2) && nowhere.stderr.contains("no/such/folder: No such file"), "{nowhere:?}");
}

#[test]
fn names_with_markup_and_control_characters_are_shown_and_do_nothing() {
    if !peer::is_here("trace-cmd", "trace-cmd") || !protos_are_here() {
        return;
    }
    let folder = Folder::new();
    let name = "<img src=x onerror=alert(1)>\u{1b}[2J\u{202e}\"%s%n\0";
    let shown = "<img src=x onerror=alert(1)>\\u{1b}[2J\\u{202e}\"%s%n\\u{0}";
    let record = |n, kind, dev| (Producer(0), Record { ts: n, addr: 7, len: 8, kind, dev, tag: 1 });
    let records = [record(1, Kind::DmaMapPage, 1), record(2, Kind::PortRead, 1), record(3, Kind::Finding, 1)];
    let mut writer = Writer::new(Vec::new(), &header(), &[(1, "p".into(), name.into())], None).unwrap();
    writer.page(&records);
    let trace = folder.file("t.lzt", &writer.finish(0, 0).unwrap());
    for format in FORMATS {
        let out = folder.path().join(format);
        assert_eq!(export(&trace, format, &out).code, Some(0), "{format}");
        let bytes = fs::read(&out).unwrap();
        assert!(!bytes.contains(&0x1b) || format == "perfetto", "{format}: an escape that a terminal obeys");
        assert!(!bytes.windows(3).any(|three| three == "\u{202e}".as_bytes()), "{format}");
        match format {
            "dat" => assert!(report(&out, None).iter().all(|line| line.contains(shown)), "{:?}", report(&out, None)),
            "perfetto" => {
                let tracks = decoded(&out)["tracks"].to_string();
                let shown = serde_json::to_string(shown).unwrap();
                assert!(tracks.contains(shown.trim_matches('"')), "{tracks}");
            }
            "jsonl" => {
                let lines = String::from_utf8(bytes).unwrap();
                let first: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
                assert_eq!(first["device"], name, "JSON says it exactly, in escapes");
            }
            _ => assert!(String::from_utf8(bytes).unwrap().lines().all(|line| line.contains(shown))),
        }
    }
}

#[test]
fn an_export_that_is_stopped_leaves_what_was_there() {
    let folder = Folder::new();
    let trace = long(&folder, 600_000);
    let out = folder.file("out", b"what was there");
    let before = folder.names();
    for format in ["dat", "text"] {
        let args = ["trace", "export", "--format", format, trace.to_str().unwrap(), "-o", out.to_str().unwrap()];
        let child = command(args).spawn().unwrap();
        let begun = Instant::now();
        while folder.names() == before {
            assert!(begun.elapsed() < Duration::from_secs(20), "{format}: it never began");
            std::thread::sleep(Duration::from_millis(1));
        }
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let outcome = Outcome::of(&child.wait_with_output().unwrap());
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(130), ""), "{format}");
        assert_eq!(folder.names(), before, "{format}");
        assert_eq!(fs::read(&out).unwrap(), b"what was there", "{format}");
    }
}

/// The most memory that a process has had, in KiB.
fn high_water(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok())
}

/// Exports a trace; peak memory in KiB, seconds, and bytes of the export.
fn measured(trace: &Path, format: &str, out: &Path) -> (u64, f64, u64) {
    let args = ["trace", "export", "--format", format, trace.to_str().unwrap(), "-o", out.to_str().unwrap()];
    let begun = Instant::now();
    let mut child = command(args).spawn().unwrap();
    let mut most = 0;
    let status = loop {
        most = most.max(high_water(child.id()).unwrap_or(0));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(status.success(), "{format}");
    let bytes = fs::metadata(out).unwrap().len();
    fs::remove_file(out).unwrap();
    (most, begun.elapsed().as_secs_f64(), bytes)
}

fn same_memory(few: u64, many: u64, formats: &[&str]) {
    let folder = Folder::new();
    let (few, many) = (long(&folder, few), long(&folder, many));
    for format in formats {
        let out = folder.path().join("out");
        let (small, ..) = measured(&few, format, &out);
        let (large, seconds, bytes) = measured(&many, format, &out);
        let name = |path: &Path| path.file_stem().unwrap().to_string_lossy().into_owned();
        println!(
            "{format}: {small} KiB for {} events, {large} KiB for {} in {seconds:.1} s, {bytes} bytes",
            name(&few),
            name(&many)
        );
        assert!(small > 1024, "{format}: {small} KiB is no program's");
        assert!(large < small + 2048, "{format}: {large} KiB against {small} KiB");
    }
}

#[test]
fn an_export_takes_the_same_memory_whatever_the_length() {
    same_memory(40_000, 300_000, &FORMATS);
    if std::env::var_os("LOWZONE_LONG").is_some() {
        same_memory(1_000_000, 10_000_000, &FORMATS);
    }
}
