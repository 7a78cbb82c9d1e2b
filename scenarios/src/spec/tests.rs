//! Whole files: all that are embedded, many that are broken, and text that nobody meant.

use miette::{GraphicalReportHandler, GraphicalTheme};
use proptest::prelude::*;

use super::*;

const DEVICE: &str = "[[device]]\nname = \"vda\"\nkind = \"virtio-blk\"\nsize = \"8M\"\n";

fn source(text: &str) -> Source {
    Source { name: "x.toml".to_owned(), text: text.to_owned() }
}

fn sets(texts: &[&str]) -> Vec<Set> {
    texts.iter().map(|text| Set::parse(text).unwrap()).collect()
}

fn load_embedded(name: &str, with: &[&str]) -> Result<Scenario, SpecError> {
    load(&Source::embedded(name).unwrap(), &sets(with))
}

/// `LINE:COL message / help` of a file that must not load.
fn complaint(text: &str, with: &[&str]) -> String {
    let error = load(&source(text), &sets(with)).expect_err(text);
    match error.problem().help() {
        Some(help) => format!("{error} / {help}"),
        None => error.to_string(),
    }
}

/// A file of one device whose line 6 is `line`, in its `table`.
fn with_line(table: &str, line: &str) -> String {
    match table {
        "device" => format!("story = \"s\"\n{DEVICE}{line}\n[[step]]\nprobe = {{}}\n"),
        "step" => format!("story = \"s\"\n{DEVICE}step = [{{ probe = {{}} }}, {line}]\n").replace(DEVICE, "") + DEVICE,
        _ => format!("story = \"s\"\n[[step]]\nprobe = {{}}\n\n[{table}]\n{line}\n"),
    }
}

#[test]
fn every_embedded_file_loads_and_teaches() {
    for entry in catalogue::entries() {
        let with: &[&str] = if entry.name == "block/copy-image" { &["image=disk.img"] } else { &[] };
        let scenario = load_embedded(entry.name, with).unwrap_or_else(|error| panic!("{error}"));
        let told = scenario.step.iter().any(|step| matches!(step, Step::Story(_)));
        let bound = matches!(scenario.step.first(), Some(Step::Probe(_)));
        assert!(told || bound && matches!(scenario.step.last(), Some(Step::Remove(_))), "{}", entry.name);
        let mut lines = entry.text.lines();
        assert_eq!(lines.next(), Some("#:schema ../../lowzone.schema.json"), "{}", entry.name);
        let comment = lines.take_while(|line| line.starts_with("# ")).count();
        assert!((2..=6).contains(&comment), "{} teaches in {comment} lines", entry.name);
    }
}

#[test]
fn every_file_on_disk_is_embedded() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("files");
    let mut found = Vec::new();
    for area in std::fs::read_dir(&root).unwrap() {
        let area = area.unwrap().path();
        for file in std::fs::read_dir(&area).unwrap() {
            let name = file.unwrap().path().strip_prefix(&root).unwrap().with_extension("");
            found.push(name.to_str().unwrap().replace('\\', "/"));
        }
    }
    found.sort();
    assert_eq!(found, catalogue::entries().iter().map(|entry| entry.name).collect::<Vec<_>>());
}

#[test]
fn low_zone_is_one_workload_three_times() {
    let scenario = load_embedded("block/low-zone", &[]).unwrap();
    let runs: Vec<_> = scenario
        .step
        .iter()
        .filter_map(|step| match step {
            Step::Io(io) => Some((io.label.as_deref().unwrap(), io.memory, io.requests, io.lengths())),
            _ => None,
        })
        .collect();
    let run = |label, memory| (label, memory, 32, 8192..=8192);
    let wanted = [run("bounced", Memory::High), run("low", Memory::Low), run("coherent", Memory::Coherent)];
    assert_eq!(runs, wanted);
    assert_eq!(scenario.expect, Expect::default());
}

#[test]
fn defaults_are_the_documented_ones() {
    let scenario = load(&source(&format!("story = 's'\n{DEVICE}[[step]]\nprobe = {{}}\n")), &[]).unwrap();
    assert_eq!(
        scenario.machine,
        Machine {
            ram: Size(6 << 30),
            low: None,
            arch: Arch::X86_64,
            cpus: 2,
            swiotlb: Size(64 << 20),
            swiotlb_force: false,
            dma_offset: Size(0),
            iommu: None,
            coherent: true,
            pcp: false,
            sanitize: Vec::new(),
            posted_writes: false,
            weak: false
        }
    );
    let device = &scenario.device[0];
    assert_eq!((device.width, device.beyond, device.queues, device.queue_size), (32, Beyond::Refuse, 1, 128));
    assert_eq!((device.seg_max, device.blk_size, device.read_only), (126, 512, false));
    assert!(device.event_idx && device.indirect && device.access_platform);
    assert_eq!(
        (scenario.driver.dma_mask, scenario.driver.coherent_bits(), scenario.driver.deadline_ms),
        (32, 32, 30_000)
    );
    assert_eq!(device.store(), Some(StoreSpec::Memory(8 << 20)));
}

/// Broken keys, words and types: what serde or the shape check refuses.
#[test]
fn broken_files_say_where_and_what() {
    for (text, wanted) in [
        ("", "x.toml: missing key 'story'"),
        ("story = 's'\n", "x.toml: a scenario needs at least one [[step]]"),
        ("story = 's'\nstep = []\n", "x.toml:2:8: a scenario needs at least one [[step]]"),
        ("stroy = 's'\n", "x.toml:1:1: unknown key 'stroy' / did you mean 'story'?"),
        ("[machine]\nram = '6G'\n", "x.toml: missing key 'story'"),
        ("story = 's'\n[machine]\nrma = '6G'\n", "x.toml:3:1: unknown key 'rma' / did you mean 'ram'?"),
        ("story = 's'\n[machin]\n", "x.toml:2:2: unknown key 'machin' / did you mean 'machine'?"),
        ("story = 's'\n[driver]\nwidth = 32\n", "x.toml:3:1: unknown key 'width' / it belongs elsewhere: device.width"),
        (
            "story = 's'\n[machine]\nxyzzy = 1\n",
            "x.toml:3:1: unknown key 'xyzzy' / valid here: arch, coherent, cpus, dma_offset, iommu, low, pcp, posted_writes, ram, sanitize, swiotlb, swiotlb_force, weak",
        ),
        ("story = 's'\n[[device]]\nname = 'a'\n", "x.toml:2:1: missing key 'kind'"),
        ("story = 's'\n[[step]]\nio = {}\n", "x.toml:3:6: missing key 'device'"),
        ("story = 's'\n[[step]]\nprboe = {}\n", "x.toml:3:1: unknown step 'prboe' / did you mean 'probe'?"),
        (
            "story = 's'\n[[step]]\n",
            "x.toml:2:1: this step has no verb / give it one of: probe, io, exercise, dma, packets, raw_packet, copy, clear, raw_read, irq_alloc, canary, hold, story, in_flight, shutdown, remove, recover",
        ),
        (
            "story = 's'\n[[step]]\nprobe = {}\nremove = {}\n",
            "x.toml:4:1: this step has 2 verbs: probe, remove / make one [[step]] of each",
        ),
        (
            "story = 's'\nstep = [3]\n",
            "x.toml:2:9: wrong value of 'step': found integer, expected a table with one verb",
        ),
        (
            "story = 's'\nstep = ['probe']\n",
            "x.toml:2:9: wrong value of 'step': found string, expected a table with one verb",
        ),
        (
            "story = 's'\n[[step]]\nprobe = 1\n",
            "x.toml:3:9: wrong value of 'probe': found integer 1, expected a table of options",
        ),
        ("story = 's'\n[[step]]\nprobe = { x = 1 }\n", "x.toml:3:11: unknown key 'x' / nothing goes in this table"),
        ("story = 7\n", "x.toml:1:9: wrong value of 'story': found integer 7, expected a text in quotes"),
        (
            "story = 's'\nmachine = 3\n",
            "x.toml:2:11: wrong value of 'machine': found integer 3, expected a [machine] table",
        ),
        ("story = 's'\n[device]\n", "x.toml:2:1: wrong value of 'device': found a table, expected a list"),
        (
            "story = 's'\n[machine]\ncpus = -1\n",
            "x.toml:3:8: wrong value of 'cpus': found integer -1, expected a whole number from 1 to 64",
        ),
        (
            "story = 's'\n[driver]\nmsix = 'yes'\n",
            "x.toml:3:8: wrong value of 'msix': found string \"yes\", expected true or false",
        ),
        (
            "story = 's'\n[machine]\nram = '6 GB'\n",
            "x.toml:3:7: wrong value of 'ram': '6 GB' is not a size such as 512, \"64K\" or \"6G\"",
        ),
        (
            "story = 's'\n[machine]\nram = 1.5\n",
            "x.toml:3:7: wrong value of 'ram': found floating point 1.5, expected a size such as 512, \"64K\" or \"6G\"",
        ),
        (
            "story = 's'\n[expect]\ncanary = 'dead'\n",
            "x.toml:3:10: unknown value 'dead' of 'canary' / there is: hit, intact",
        ),
        ("story = 's'\nstory = 't'\n", "x.toml:2:1: not valid TOML: duplicate key"),
        ("story = 's\n", "x.toml:1:11: not valid TOML: invalid literal string, expected `'`"),
    ] {
        assert_eq!(complaint(text, &[]), wanted);
    }
}

#[test]
fn kinds_and_options_say_where_and_what() {
    for (text, wanted) in [
        (
            "story = 's'\n[driver]\nkind = 'virtio-blq'\n[[step]]\nprobe = {}\n",
            "x.toml:3:8: unknown value 'virtio-blq' of 'kind' / did you mean 'virtio-blk'?",
        ),
        (
            "story = 's'\n[driver]\noptions = { depth = 1 }\n[[step]]\nprobe = {}\n",
            "x.toml:3:13: unknown key 'depth' / nothing goes in this table",
        ),
        (
            "story = 's'\n[driver.options]\ndepth = -1\n",
            "x.toml:3:9: wrong value of 'depth': found integer -1, expected a whole number from 0, a text in quotes, true or false",
        ),
        (
            "story = 's'\n[driver]\noptions = 1\n",
            "x.toml:3:11: wrong value of 'options': found integer 1, expected a table",
        ),
    ] {
        assert_eq!(complaint(text, &[]), wanted);
    }
}

#[test]
fn transfers_and_held_memory_say_where_and_what() {
    let edu = "[driver]\nkind = 'edu'\n[[device]]\nname = 'e'\nkind = 'edu'\n";
    let file = |tables: &str, step: &str| format!("story = 's'\nstep = [{{ probe = {{}} }}, {step}]\n{tables}");
    for (tables, step, wanted) in [
        (edu, "{ dma = { device = 'e', bytes = 4096 } }", "2:57: 'bytes' is 4K; it goes from 1 to 4095"),
        (edu, "{ dma = { device = 'e', bytes = 0 } }", "2:57: 'bytes' is 0; it goes from 1 to 4095"),
        (edu, "{ dma = { device = 'e', mask = 65 } }", "2:56: 'mask' is 65; it goes from 1 to 64"),
        (edu, "{ dma = { device = 'f' } }", "2:44: no device 'f' / there is: e"),
        (
            edu,
            "{ dma = { device = 'e', memory = 'gfp-dma23' } }",
            "2:58: unknown value 'gfp-dma23' of 'memory' / did you mean 'gfp-dma32'?",
        ),
        (
            edu,
            "{ dma = { device = 'e', dir = 'back' } }",
            "2:55: unknown value 'back' of 'dir' / there is: both, to-device, from-device",
        ),
        (
            DEVICE,
            "{ dma = { device = 'vda' } }",
            "2:33: 'dma' needs a device with a buffer of its own, and driver \"virtio-blk\" has none such / take driver.kind = \"edu\"",
        ),
        (edu, "{ hold = { below = '5G' } }", "2:44: 'below' is 5G; it goes from 4K to 4G"),
        (edu, "{ hold = { below = 4097 } }", "2:44: 'below' is 4097 bytes, which is not a multiple of 4096 / 8K is"),
    ] {
        assert_eq!(complaint(&file(tables, step), &[]), format!("x.toml:{wanted}"), "{step}");
    }
    let loaded = load(&source(&file(edu, "{ dma = { device = 'e' } }, { hold = { below = '1M' } }")), &[]).unwrap();
    let Step::Dma(dma) = &loaded.step[1] else { panic!("{:?}", loaded.step) };
    assert_eq!((dma.memory, dma.dir, dma.bytes, dma.mask), (Memory::Coherent, DmaDirection::Both, Size(1024), None));
}

/// Values that are of the right type and still wrong.
#[test]
fn limits_say_the_number_and_the_limit() {
    for (table, line, wanted) in [
        ("machine", "ram = 0", "'ram' is 0; it goes from 4K to 1T"),
        ("machine", "ram = '2T'", "'ram' is 2T; it goes from 4K to 1T"),
        ("machine", "ram = 4097", "'ram' is 4097 bytes, which is not a multiple of 4096 / 8K is"),
        ("machine", "low = '3585M'", "'low' is 3585M; it goes from 4K to 3584M"),
        ("machine", "cpus = 0", "'cpus' is 0; it goes from 1 to 64"),
        ("machine", "cpus = 65", "'cpus' is 65; it goes from 1 to 64"),
        (
            "machine",
            "swiotlb = '3G'",
            "'swiotlb' is 3G, which does not fit in the 3G of low memory / make it smaller, or 0 for none",
        ),
        ("driver", "dma_mask = 0", "'dma_mask' is 0; it goes from 1 to 64"),
        ("driver", "coherent_mask = 65", "'coherent_mask' is 65; it goes from 1 to 64"),
        ("driver", "queue_size = 96", "'queue_size' is 96, which is not a power of two / 64 and 128 are"),
        ("driver", "queues = 65", "'queues' is 65; it goes from 0 to 64"),
        ("driver", "deadline_ms = 0", "'deadline_ms' is 0; it goes from 1 to 3600000"),
        ("device", "width = 0", "'width' is 0; it goes from 1 to 64"),
        ("device", "width = 65", "'width' is 65; it goes from 1 to 64"),
        ("device", "queue_size = 100", "'queue_size' is 100, which is not a power of two / 64 and 128 are"),
        ("device", "queue_size = 65535", "'queue_size' is 65535; it goes from 1 to 32768"),
        ("device", "queues = 0", "'queues' is 0; it goes from 1 to 64"),
        ("device", "blk_size = 1000", "'blk_size' is 1000, which is not a power of two / 512 and 1024 are"),
        (
            "expect",
            "findings = ['Beyond Width']",
            "'Beyond Width' is no name of a finding: lower-case words with '-' between them",
        ),
        (
            "expect",
            "canary = 'hit'",
            "the canary is expected, but no step places one / add a step such as canary = { device = \"vda\" }",
        ),
    ] {
        let column = line.find("= ").unwrap() + 3 + usize::from(line.contains('['));
        let place = format!("x.toml:6:{column}: ");
        assert_eq!(complaint(&with_line(table, line), &[]), place + wanted, "{line}");
    }
}

#[test]
fn devices_are_told_apart_and_have_one_store() {
    let file = |devices: &str| format!("story = 's'\n{devices}[[step]]\nprobe = {{}}\n");
    for (devices, wanted) in [
        (format!("{DEVICE}{DEVICE}"), "x.toml:7:8: two devices are called 'vda'"),
        (DEVICE.replace("vda", "a.b"), "x.toml:3:8: 'a.b' is no device name: letters, digits, '-' and '_' only"),
        (
            DEVICE.replace("size = \"8M\"\n", ""),
            "x.toml:2:1: device 'vda' stores its data nowhere / give it 'size', 'image' or 'size_of'",
        ),
        (
            format!("{DEVICE}image = 'x'\n"),
            "x.toml:6:9: device 'vda' has more than one store: size, image / keep one of them",
        ),
        (
            DEVICE.replace("size = \"8M\"", "image = ''"),
            "x.toml:5:9: device 'vda' needs an image file / name one: --set image=FILE",
        ),
        (DEVICE.replace("8M", "1000"), "x.toml:5:8: 'size' is 1000 bytes, which is not a multiple of 512 / 1K is"),
        (DEVICE.replace("8M", "0"), "x.toml:5:8: 'size' is 0; it goes from 512 to 1T"),
        (DEVICE.replace("size = \"8M\"", "size_of = 'vda'"), "x.toml:5:11: no device 'vda' above this one"),
        (
            (0..32).map(|i| DEVICE.replace("vda", &format!("d{i}"))).collect(),
            "x.toml:126:1: 32 devices, but the bus has 31 slots for them",
        ),
    ] {
        assert_eq!(complaint(&file(&devices), &[]), wanted);
    }
}

#[test]
fn steps_fit_their_devices() {
    for (step, column, wanted) in [
        ("{ io = { device = \"vdb\" } }", 19, "no device 'vdb' / did you mean 'vda'?"),
        ("{ exercise = { device = \"vdb\" } }", 25, "no device 'vdb' / did you mean 'vda'?"),
        ("{ exercise = { device = \"vda\", times = 0 } }", 40, "'times' is 0; it goes from 1 to 1000000000"),
        ("{ exercise = { device = \"vda\", tiems = 1 } }", 32, "unknown key 'tiems' / did you mean 'times'?"),
        ("{ io = { device = \"vda\", requests = 0 } }", 37, "'requests' is 0; it goes from 1 to 1000000000"),
        (
            "{ io = { device = \"vda\", requests = 3 } }",
            37,
            "\"write-read\" needs an even number of requests, this is 3",
        ),
        (
            "{ io = { device = \"vda\", bytes = 513 } }",
            34,
            "'bytes' is 513 bytes, which is not a multiple of 512 / 1K is",
        ),
        ("{ io = { device = \"vda\", bytes = \"8M\" } }", 34, "'bytes' is 8M; it goes from 512 to 4M"),
        ("{ io = { device = \"vda\", max_bytes = 512 } }", 38, "'max_bytes' has no meaning in pattern \"write-read\""),
        ("{ io = { device = \"vda\", seed = 1 } }", 33, "'seed' has no meaning in pattern \"write-read\""),
        (
            "{ io = { device = \"vda\", pattern = \"random\", min_bytes = \"2K\", max_bytes = \"1K\" } }",
            58,
            "'min_bytes' is 2K, more than 'max_bytes', which is 1K",
        ),
        (
            "{ io = { device = \"vda\", requests = 4098 } }",
            37,
            "the requests reach to byte 8392704 of device 'vda', which has 8388608",
        ),
        (
            "{ io = { device = \"vda\", start = \"8M\" } }",
            34,
            "the requests reach to byte 8454144 of device 'vda', which has 8388608",
        ),
        (
            "{ io = { device = \"vda\", memory = \"hgih\" } }",
            35,
            "unknown value 'hgih' of 'memory' / did you mean 'high'?",
        ),
        (
            "{ raw_read = { device = \"vda\", memory = \"coherent\" } }",
            41,
            "'raw_read' maps its buffer, and coherent memory is never mapped / take \"high\" or \"low\"",
        ),
        ("{ copy = { from = \"vda\", to = \"vda\" } }", 31, "a copy from 'vda' to itself"),
        ("{ probe = {} }", 11, "step 1 is 'probe', but the driver is bound already / put a remove = {} step before it"),
        (
            "{ remove = {} }, { remove = {} }",
            29,
            "step 2 is 'remove', but the driver is not bound there / put a probe = {} step before it",
        ),
    ] {
        let first = "step = [{ probe = {} }, ".len();
        let text = with_line("step", step);
        assert_eq!(complaint(&text, &[]), format!("x.toml:2:{}: {wanted}", first + column), "{step}");
    }
}

#[test]
fn writes_need_room_and_a_writable_device() {
    let two = |more: &str, step: &str| {
        let second = DEVICE.replace("vda", "vdb").replace("8M", "4M");
        format!("story = 's'\nstep = [{{ probe = {{}} }}, {step}]\n{DEVICE}{more}{second}")
    };
    let (read_only, back) = ("read_only = true\n", "{ copy = { from = 'vdb', to = 'vda' } }");
    for (text, wanted) in [
        (two(read_only, "{ io = { device = 'vda' } }"), "x.toml:2:43: 'io' writes to device 'vda', which is read-only"),
        (two(read_only, back), "x.toml:2:55: 'copy' writes to device 'vda', which is read-only"),
        (
            two("", "{ copy = { from = 'vda', to = 'vdb' } }"),
            "x.toml:2:55: device 'vda' has 8388608 bytes, 'vdb' only 4194304",
        ),
        (
            two("", "{ io = { device = 'vdb', bytes = '4M', requests = 4 } }"),
            "x.toml:2:75: the requests reach to byte 8388608 of device 'vdb', which has 4194304",
        ),
    ] {
        assert_eq!(complaint(&text, &[]), wanted);
    }
    assert!(load(&source(&two("", back)), &[]).is_ok());
    // Exactly as many as the device holds.
    assert!(load(&source(&two("", "{ io = { device = 'vdb', bytes = '2M', requests = 4 } }")), &[]).is_ok());
}

#[test]
fn ram_is_split_at_four_gib() {
    for (sets, low, high) in
        [(&["ram=6G"][..], 3 << 30, 3 << 30), (&["ram=1G"], 1 << 30, 0), (&["ram=6G", "low=1G"], 1 << 30, 5 << 30)]
    {
        let machine = load_embedded("block/low-zone", sets).unwrap().machine;
        assert_eq!((machine.low_bytes(), machine.high_bytes()), (low, high));
    }
    let driver = load_embedded("block/too-wide", &[]).unwrap().driver;
    assert_eq!((driver.dma_mask, driver.coherent_bits()), (64, 32));
}

#[test]
fn a_32_bit_machine_has_high_memory_from_896_mib_on_and_at_most_64_gib_of_addresses() {
    let load = |sets: &[&str]| load_embedded("block/low-zone", sets);
    let scenario = load(&["machine.arch=x86-32"]).unwrap();
    assert_eq!((scenario.machine.arch, scenario.machine.lowmem_bytes()), (Arch::X86_32, 896 << 20));
    assert!(load(&["machine.arch=x86-32", "ram=63G"]).is_ok());
    for (set, wanted) in [
        ("ram=64G", "'ram' is 64G; it goes from 4K to 63G"),
        ("swiotlb=896M", "'swiotlb' is 896M, which does not fit in the 896M of low memory"),
    ] {
        let error = load(&["machine.arch=x86-32", set]).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let plain = serde_json::to_string(&load(&[]).unwrap().machine).unwrap();
    assert!(!plain.contains("arch"), "tokens of campaigns outlive the key: {plain}");
}

#[test]
fn sets_change_values_and_later_ones_win() {
    let scenario = load_embedded("block/low-zone", &["machine.ram=2G", "driver.dma_mask=64", "width=64"]).unwrap();
    assert_eq!((scenario.machine.ram, scenario.machine.low_bytes()), (Size(2 << 30), 2 << 30));
    assert_eq!((scenario.driver.dma_mask, scenario.device[0].width), (64, 64));
    let scenario = load_embedded("block/low-zone", &["cpus=3", "cpus=4", "step[2].io.depth=7"]).unwrap();
    assert_eq!(scenario.machine.cpus, 4);
    assert!(matches!(&scenario.step[2], Step::Io(io) if io.depth == 7));
    let scenario = load_embedded("block/copy-image", &["image=7"]).unwrap();
    assert_eq!(scenario.device[0].store(), Some(StoreSpec::Image("7")));
    let scenario = load_embedded("block/leak", &["unmap=after-completion", "findings=[]", "leaks=0"]).unwrap();
    assert_eq!(scenario.expect, Expect::default());
}

#[test]
fn a_set_is_blamed_for_what_it_brings() {
    let text = with_line("machine", "low = '3G'").replace("[machine]", &format!("{DEVICE}[machine]"));
    for (set, wanted) in [
        ("machine.ram=2G", "'low' is 3G, but 'ram' is only 2G / leave 'low' out: it is then at most 'ram'"),
        ("machine.ram=7x", "wrong value of 'ram': '7x' is not a size such as 512, \"64K\" or \"6G\""),
        ("rma=1G", "this scenario has no 'rma' / did you mean 'ram'?"),
        ("machine.rma=1G", "unknown key 'rma' / did you mean 'ram'?"),
        ("device.width=99", "'width' is 99; it goes from 1 to 64"),
        ("width=999", "wrong value of 'width': found integer 999, expected a whole number from 1 to 64"),
        ("beyond=warp", "unknown value 'warp' of 'beyond' / did you mean 'wrap'?"),
        ("image=x", "device 'vda' has more than one store: size, image / keep one of them"),
        ("queues=2", "'queues' could be 2 things / give the full path: device[0].queues, driver.queues"),
        ("step=[]", "a scenario needs at least one [[step]]"),
    ] {
        assert_eq!(complaint(&text, &[set]), format!("--set {set}: {wanted}"));
        let error = load(&source(&text), &sets(&["cpus=3", set])).unwrap_err();
        assert_eq!((error.line(), error.column()), (None, None));
    }
    // Of two for one value, the one that counts.
    let error = load(&source(&text), &sets(&["cpus=98", "cpus=99"])).unwrap_err();
    assert_eq!(error.to_string(), "--set cpus=99: 'cpus' is 99; it goes from 1 to 64");
    // One that has nothing to do with the fault is not blamed.
    assert_eq!(
        complaint(&text.replace("'3G'", "'7G'"), &["cpus=3"]),
        "x.toml:10:7: 'low' is 7G; it goes from 4K to 3584M"
    );
}

#[test]
fn an_image_left_to_the_user_is_no_fault_of_the_file_once_set() {
    let error = load_embedded("block/copy-image", &[]).unwrap_err();
    assert_eq!(error.problem(), &Problem::ImageUnset { device: "vda".to_owned() });
    assert!(error.line().is_some());
    assert!(load_embedded("block/copy-image", &["image=a b.img"]).is_ok());
}

/// Renders an error as a terminal would see it.
fn render(error: &SpecError) -> String {
    let mut text = String::new();
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor());
    handler.render_report(&mut text, error).unwrap();
    text
}

/// Loads, and of a failure looks at all that is shown.
fn probe_for_panics(text: &str, with: &[Set]) {
    if let Err(error) = load(&source(text), with) {
        assert_eq!(error.to_string().lines().count(), 1);
        render(&error);
    }
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in any::<String>(), lines in "([a-z\\[\\]{}=\"'.# é0-9]{0,12}\n?){0,20}") {
        probe_for_panics(&text, &[]);
        probe_for_panics(&lines, &[]);
    }

    #[test]
    fn damaged_files_never_panic(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(),
                                 length in 0usize..40, put in "[a-z\\[\\]{}=\"'\n, é0-9-]{0,6}") {
        let text = which.get(catalogue::entries()).text;
        let mut chars: Vec<char> = text.chars().collect();
        let from = at.index(chars.len());
        let to = (from + length).min(chars.len());
        chars.splice(from..to, put.chars());
        probe_for_panics(&chars.into_iter().collect::<String>(), &[]);
    }

    #[test]
    fn arbitrary_sets_never_panic(path in "[a-z_.\\[\\]0-9]{0,16}", value in any::<String>(),
                                  which in any::<prop::sample::Index>(), known in any::<prop::sample::Index>()) {
        let text = which.get(catalogue::entries()).text;
        let known = known.get(schema::known()).path.to_string();
        for path in [path, known] {
            if let Ok(set) = Set::parse(&format!("{path}={value}")) {
                probe_for_panics(text, &[set]);
            }
        }
    }
}

#[test]
fn what_is_written_reads_back() {
    for entry in catalogue::entries() {
        let scenario = load_embedded(entry.name, if entry.text.contains("image = \"\"") { &["image=x"] } else { &[] });
        let scenario = scenario.unwrap();
        let text = toml::to_string(&scenario).unwrap();
        assert_eq!(load(&source(&text), &[]).unwrap(), scenario, "{text}");
    }
}

#[test]
fn a_clear_step_fits_its_device_and_takes_one_that_can_be_written() {
    let text = |step: &str, device: &str| {
        format!(
            "story = 'x'\n[[device]]\nname = 'vda'\nkind = 'virtio-blk'\nsize = '1M'\n{device}\n[[step]]\nprobe = {{}}\n\
             [[step]]\nclear = {{ device = 'vda', {step} }}\n"
        )
    };
    let read = |step: &str, device: &str| {
        let source = Source { name: "x.toml".into(), text: text(step, device) };
        load(&source, &[]).map_err(|error| error.problem().to_string())
    };
    let good = read("blocks = 16", "discard = true").unwrap();
    assert!(good.device[0].discard);
    let Step::Clear(step) = &good.step[1] else { panic!("{:?}", good.step) };
    assert_eq!((step.how, step.bytes.bytes(), step.start.bytes()), (Clearing::WriteZeroes, 64 << 10, 0));
    assert!(!read("blocks = 16, how = 'discard'", "").unwrap().device[0].discard, "a file asks for it");
    assert!(read("blocks = 17", "").unwrap_err().contains("vda"), "past the end");
    assert!(read("blocks = 16, start = '512'", "").unwrap_err().contains("vda"), "past the end");
    assert!(read("blocks = 16", "read_only = true").unwrap_err().contains("clear"));
    assert!(read("blocks = 1", "").unwrap_err().contains("2 to 65536"));
    assert!(read("bytes = 100", "").is_err() && read("how = 'erase'", "").is_err());
}
