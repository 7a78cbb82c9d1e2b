//! Linux's fault injection in scenarios: what each attribute does, seen from outside, and that a run repeats.

use std::fs;
use std::sync::{Arc, Mutex};

use lowzone::result::{FaultRow, RunResult};
use lowzone::world::Exit;
use lowzone_device::blk::BlkOptions as DeviceOptions;
use lowzone_guest_mem::dma::{ToDevice, dma_bit_mask};
use lowzone_guest_mem::env::Class;
use lowzone_guest_mem::fault::{FaultAttr, FaultSpec, injector};
use lowzone_guest_mem::gfp::{__GFP_HIGHMEM, GFP_ATOMIC, GFP_KERNEL};
use lowzone_guest_mem::kernel::MachineConfig;
use lowzone_guest_mem::page::alloc_pages;
use lowzone_guest_mem::{Cpu, KBuf};
use lowzone_tests::image::Folder;
use lowzone_tests::program::{command, lowzone, workspace};
use lowzone_tests::rig::{Rig, Serve};
use lowzone_tests::scenario;

/// Sixteen requests of 4096 bytes, one after the other, whose buffers are `kmalloc-4k` objects.
fn one_by_one(gfp: &str) -> String {
    format!(
        "story = 's'\nmachine = {{ cpus = 1 }}\ndevice = [{{ name = 'vda', kind = 'virtio-blk', size = '1M' }}]\n\
         step = [{{ probe = {{}} }}, {{ io = {{ device = 'vda', requests = 16, depth = 1, gfp = '{gfp}' }} }}, \
         {{ remove = {{}} }}]\n"
    )
}

fn run_with(text: &str, faults: &FaultSpec, seed: u64) -> RunResult {
    let mut lab = scenario::lab(&scenario::text(text, &[]), seed);
    lab.inject(faults);
    lab.run()
}

/// Requests asked about, eligible and failed, of the first injector.
fn counts(result: &RunResult) -> (u64, u64, u64) {
    let FaultRow { asked, eligible, failed, .. } = result.faults[0];
    (asked, eligible, failed)
}

fn assert_nothing_left(result: &RunResult) {
    assert_eq!((&result.findings[..], &result.leaks[..]), (&[][..], &[][..]));
    assert!(result.io.iter().all(|row| row.mismatched == 0), "false success");
}

#[test]
fn faults_do_what_their_attributes_say() {
    let all = "probability=100,times=-1";
    // Beside the 16 buffers five areas of registers are mapped, a GFP_KERNEL object each.
    for (spec, gfp, wanted) in [
        (format!("slab:{all}"), "GFP_ATOMIC", (21, 16, 16)),
        (format!("slab:{all}"), "GFP_KERNEL", (21, 0, 0)),
        (format!("slab:{all},ignore-gfp-wait=N,cache-filter=kmalloc-4k"), "GFP_KERNEL", (21, 16, 16)),
        (format!("slab:{all},interval=4"), "GFP_ATOMIC", (21, 16, 4)),
        ("slab:probability=100,times=3".into(), "GFP_ATOMIC", (21, 16, 3)),
        ("slab:probability=100".into(), "GFP_ATOMIC", (21, 16, 1)),
        // An object has 4096 bytes: four of them pass, then the space that is left is smaller than one.
        (format!("slab:{all},space=20000"), "GFP_ATOMIC", (21, 16, 12)),
        (format!("slab:{all},cache-filter=kmalloc-4k"), "GFP_ATOMIC", (21, 16, 16)),
        (format!("slab:{all},cache-filter=kmalloc-2k+dma-kmalloc-4k"), "GFP_ATOMIC", (21, 0, 0)),
        ("slab:fail-nth=5".into(), "GFP_ATOMIC", (21, 16, 1)),
        ("slab:fail-nth=17".into(), "GFP_ATOMIC", (21, 16, 0)),
    ] {
        let result = run_with(&one_by_one(gfp), &spec.parse().unwrap(), 1);
        assert_eq!(counts(&result), wanted, "{spec} {gfp}");
        assert_eq!(result.failed_requests, wanted.2, "{spec} {gfp}: with nothing in flight each failure is one");
        assert_nothing_left(&result);
    }
}

#[test]
fn faults_of_pages_spare_small_blocks_and_are_absorbed_by_a_smaller_slab() {
    let run = |spec: &str| run_with(&one_by_one("GFP_KERNEL"), &spec.parse().unwrap(), 1);
    // As Linux boots only the first try for a slab of order 3 is hit: it doesn't wait, whatever the caller may.
    let absorbed = run("page:probability=100,times=-1");
    let (asked, eligible, failed) = counts(&absorbed);
    assert!(asked > eligible && eligible == failed && failed > 0, "{:?}", absorbed.faults);
    assert_eq!((absorbed.failed_requests, absorbed.log.len()), (0, 0), "silent, and absorbed");
    assert_nothing_left(&absorbed);
    // The ring's indirect tables are two pages; its other parts are one each.
    let probe = run("page:probability=100,times=-1,ignore-gfp-wait=N");
    assert_eq!(probe.probe_errors, [-12]);
    assert!(probe.errors[0].contains("no memory for a ring of 8192 bytes"), "{:?}", probe.errors);
    assert_nothing_left(&probe);
    let spared = run("page:probability=100,times=-1,ignore-gfp-wait=N,min-order=2");
    assert_eq!(spared.probe_errors, [0; 0]);
    let all = run("page:probability=100,times=-1,ignore-gfp-wait=N,min-order=0");
    assert!(all.errors[0].contains("3342"), "{:?}", all.errors);
}

#[test]
fn faults_spare_high_memory_only_where_it_is_said() {
    let failed = |more: &str| {
        let spec = format!("page:probability=100,times=-1,min-order=0{more}");
        on_a_rig(&spec, |cpu| alloc_pages(cpu, 0, GFP_ATOMIC | __GFP_HIGHMEM).is_err())
    };
    assert_eq!((failed(""), failed(",ignore-gfp-highmem=N")), (false, true));
}

#[test]
fn faults_reach_interrupt_handlers_unless_they_are_for_tasks() {
    let text = scenario::embedded("block/sleep-in-irq", &["gfp=GFP_ATOMIC", "findings=[]"]);
    let run = |spec: &str| {
        let mut lab = scenario::lab(&text, 1);
        lab.inject(&spec.parse().unwrap());
        counts(&lab.run())
    };
    // The handler's 256 bytes are the only atomic allocation.
    assert_eq!(run("slab:probability=100,times=-1"), (7, 1, 1));
    assert_eq!(run("slab:probability=100,times=-1,task-filter=Y"), (7, 1, 0));
    assert_eq!(run("slab:fail-nth=1"), (7, 1, 0), "fail-nth is a task's");
    assert_eq!(run("slab:probability=100,task-filter=Y,ignore-gfp-wait=N"), (1, 1, 1), "tasks are marked");
}

#[test]
fn faults_are_told_in_the_log_as_loud_as_asked() {
    let message =
        ["FAULT_INJECTION: forcing a failure.", "name failslab, interval 1, probability 100, space 0, times 1"];
    for (verbose, lines) in [(0, 0), (1, 2), (2, 5)] {
        let spec = format!("slab:probability=100,verbose={verbose}").parse().unwrap();
        let log = run_with(&one_by_one("GFP_ATOMIC"), &spec, 1).log;
        let kernel: Vec<_> = log.iter().filter(|line| !line.starts_with("vda:")).collect();
        assert_eq!(kernel.len(), lines, "{log:?}");
        assert!(kernel.iter().zip(message).all(|(line, wanted)| *line == wanted), "{log:?}");
        if verbose == 2 {
            assert_eq!((kernel[2].as_str(), kernel[3].as_str()), ("CPU: 0", "Call Trace:"));
            assert!(kernel[4].starts_with(" scenarios/src/step/data.rs:") && kernel[4].ends_with(" in io"), "{log:?}");
        }
    }
}

#[test]
fn faults_of_every_class_strike() {
    for class in Class::INJECTABLE {
        let mut attr = FaultAttr::new(class);
        (attr.fail_nth, attr.ignore_gfp_wait, attr.min_order) = (1, false, 0);
        let spec = FaultSpec::default().with(attr);
        // The block driver has no per-CPU variable.
        let name = if class == Class::PerCpu { "net/loop-back" } else { "block/low-zone" };
        let mut lab = scenario::lab(&scenario::embedded(name, &[]), 1);
        lab.inject(&spec);
        let result = lab.run();
        assert_eq!((counts(&result).2, result.faults[0].class.as_str()), (1, class.name()));
        let told = result.log.iter().any(|line| line.contains(&format!("name {}, ", injector(class))));
        assert!(told, "{class}: {:?}", result.log);
        assert_nothing_left(&result);
    }
}

#[test]
fn faults_repeat_with_the_seed_and_leave_the_order_of_others_alone() {
    let spec: FaultSpec = "slab:probability=50,times=-1".parse().unwrap();
    let text = one_by_one("GFP_ATOMIC");
    let failed: Vec<_> = (1..=8).map(|seed| counts(&run_with(&text, &spec, seed)).2).collect();
    assert!(failed.iter().all(|failed| (1..16).contains(failed)), "{failed:?}");
    assert!(failed.iter().any(|other| other != &failed[0]), "chance follows from the seed: {failed:?}");
    let fault = ["--fault", "slab:probability=50,times=-1", "--fault", "map:probability=10,times=-1"];
    let args = ["run", "block/flaky-memory", "--json", "--seed", "5", "--set", "cpus=4"];
    let [one, two] = [(); 2].map(|()| lowzone(args.into_iter().chain(fault)));
    assert_eq!(one.stdout, two.stdout);
    assert_eq!(one.json()["faults"].as_array().map(Vec::len), Some(2));
    // What decides nothing changes nothing, though it was asked.
    let low_zone = scenario::embedded("block/low-zone", &[]);
    let without = scenario::run(&low_zone, 3);
    let mut idle = [(); 3].map(|()| FaultAttr::new(Class::Slab));
    idle.iter_mut().for_each(|attr| (attr.ignore_gfp_wait, attr.times) = (false, -1));
    (idle[1].probability, idle[1].space, idle[2].fail_nth) = (1, 1 << 40, 1 << 20);
    for attr in idle {
        let mut lab = scenario::lab(&low_zone, 3);
        lab.inject(&FaultSpec::default().with(attr));
        let result = lab.run();
        assert_eq!(counts(&result), (37, 37, 0));
        assert_eq!(RunResult { faults: Vec::new(), ..result }, without);
    }
}

#[test]
fn faults_of_the_flaky_memory_scenario_lose_nothing_at_any_seed() {
    let flaky = scenario::embedded("block/flaky-memory", &[]);
    for seed in 1..=20 {
        let result = scenario::run(&flaky, seed);
        assert_eq!(lowzone::expect::check(&flaky.expect, &result), [], "seed {seed}");
        assert_eq!(counts(&result), (132, 95, 47), "seed {seed}");
        let rows: Vec<_> = result.io.iter().map(|row| (row.failed, row.verified)).collect();
        assert_eq!(rows, [(16, true), (0, true), (0, true)], "seed {seed}");
        assert!(result.io[1].retries > 0);
    }
    let shown = lowzone(["run", "block/flaky-memory"]);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.stdout.contains("\nfault    slab: 132 asked, 95 eligible, 47 failed\n"), "{}", shown.stdout);
    let set = ["fault.slab.probability=100", "fault.slab.times=-1"].map(|set| ["--set", set]);
    let by_set = lowzone(["run"].iter().chain(set.as_flattened()));
    assert!(by_set.stdout.contains("\nfault    slab: 37 asked, 0 eligible, 0 failed\n"), "{by_set:?}");
    let nothing = lowzone(["run", "--fault", "slab:probability=100,times=-1"]);
    assert_eq!(nothing.code, Some(0));
    assert!(nothing.stdout.contains("\nfault    slab: 37 asked, 0 eligible, 0 failed\n"), "{}", nothing.stdout);
}

/// Does one thing on CPU 0 of a machine whose injectors are those of `spec`.
fn on_a_rig<R: Send + 'static>(spec: &str, work: impl FnOnce(&Cpu<'_>) -> R + Send + 'static) -> R {
    let mut rig = rig();
    rig.world.inject(spec.parse().unwrap());
    on(&mut rig, work)
}

fn rig() -> Rig {
    Rig::new(MachineConfig::default(), DeviceOptions::default(), vec![0; 512], Serve::Nobody, 1)
}

fn on<R: Send + 'static>(rig: &mut Rig, work: impl FnOnce(&Cpu<'_>) -> R + Send + 'static) -> R {
    let told = Arc::new(Mutex::new(None));
    let tell = told.clone();
    let exit = rig.run(Box::new(move |cpu| *tell.lock().unwrap() = Some(work(cpu))));
    assert_eq!(exit, Exit::Finished);
    told.lock().unwrap().take().unwrap()
}

/// The calls of the measured table whose allocators exist, each made in a lockstep world under Linux's injector.
#[test]
fn faults_break_the_calls_that_they_break_in_linux() {
    let table = fs::read_to_string(workspace().join("tests/golden/fail_others.tsv")).unwrap();
    let (mut broken, mut whole) = (0, 0);
    for line in table.lines().skip(1) {
        let cells: Vec<_> = line.split('\t').collect();
        let (name, wanted) = (cells[2].to_owned(), cells[3]);
        let spec = match cells[1] {
            "failslab" => "slab:probability=100,times=-1,verbose=1,ignore-gfp-wait=N",
            _ => "page:probability=100,times=-1,verbose=1,ignore-gfp-wait=N,ignore-gfp-highmem=N,min-order=0",
        };
        let mut rig = rig();
        let dma = rig.dma.clone();
        // The measured kernel had slabs of its common caches; the buffer to bounce is none of the call's business.
        let (kept, high) = on(&mut rig, move |cpu| {
            dma.set_mask_and_coherent(cpu, dma_bit_mask(32)).unwrap();
            [100, 2048].map(|len| KBuf::kmalloc(cpu, len, GFP_KERNEL).unwrap()).into()
        });
        rig.world.inject(spec.parse().unwrap());
        let dma = rig.dma.clone();
        let ok = on(&mut rig, move |cpu| match name.as_str() {
            "alloc_pages_o0" => Some(alloc_pages(cpu, 0, GFP_KERNEL).is_ok()),
            "kmalloc_100" | "kstrdup" => Some(KBuf::kmalloc(cpu, 100, GFP_KERNEL).is_ok()),
            "dma_alloc_coherent_4K" => Some(dma.alloc_coherent(cpu, 4096, GFP_KERNEL).is_ok()),
            "dma_map_single_bounced" => {
                Some(dma.map_single::<ToDevice>(cpu, high).is_ok_and(|mapped| mapped.bounced()))
            }
            _ => None,
        });
        let Some(ok) = ok else { continue };
        assert_eq!(ok, wanted != "NULL", "{line}");
        assert_eq!(rig.kernel().log().lines().len(), if ok { 0 } else { 2 }, "{line}");
        drop(kept);
        rig.assert_clean(line);
        (broken, whole) = (broken + usize::from(!ok), whole + usize::from(ok));
    }
    assert_eq!((broken, whole), (2, 5));
}

#[test]
fn faults_that_can_be_none_are_refused_with_place_and_nearest_name() {
    for (spec, says) in [
        ("slap:times=1", "there is no class `slap` (offset 0) … did you mean 'slab'?"),
        (
            "network:times=1",
            "there is: page, slab, coherent, map, swiotlb-slot, ioremap, irq-vector, mask, percpu, mmio",
        ),
        ("lock:fail-nth=1", "a lock never fails (offset 0) … there is: page, slab"),
        ("slab:propability=1", "there is no attribute `propability` (offset 5) … did you mean 'probability'?"),
        ("slab:probability=0", "slab would never fail (offset 0): it needs probability or fail-nth"),
        ("slab:probability=100,times=0", "slab would never fail (offset 0): it needs probability or fail-nth"),
        ("slab:fail-nth=1,cache-filter=kmalloc-65", "there is no slab cache 'kmalloc-65' … did you mean 'kmalloc-64'?"),
        ("page:fail-nth=1,min-order=11", "min-order takes a whole number from 0 to 10, not `11` (offset 26)"),
        ("map:fail-nth=1,cache-filter=N", "map has no cache-filter (offset 15)"),
        ("", "a class is missing at offset 0 … for instance --fault slab:probability=50"),
    ] {
        refused(&lowzone(["run", "--fault", spec]), "--fault", says);
    }
    refused(
        &lowzone(["run", "--fault", "map:fail-nth=1", "--fault", "map:fail-nth=2"]),
        "--fault map:fail-nth=2",
        "a second time",
    );
    let folder = Folder::new();
    for (table, place, says) in [
        ("[fault.slap]\ntimes = 1", "5:8", "unknown key 'slap' … did you mean 'slab'?"),
        (
            "[fault.slab]\nignore_gfp_wait = true",
            "6:1",
            "unknown key 'ignore_gfp_wait' … did you mean 'ignore-gfp-wait'?",
        ),
        ("[fault.slab]\nprobability = -1", "6:15", "expected a whole number from 0 to 4294967295"),
        ("[fault.slab]\nprobability = 1\ntimes = -2", "7:9", "times takes a whole number from -1 to 2147483647"),
        ("[fault.slab]\nprobability = 1\ntimes = 0", "5:1", "[fault.slab] would never fail anything"),
        ("[fault.slab]", "5:1", "[fault.slab] would never fail anything: it needs probability or fail-nth"),
        ("[fault.map]\nfail-nth = 1\nmin-order = 1", "7:13", "map has no min-order"),
        ("[fault.page]\nfail-nth = 1\nmin-order = 11", "7:13", "min-order takes a whole number from 0 to 10"),
        ("[fault.slab]\nfail-nth = 1\ncache-filter = ['kmaloc-64']", "7:16", "did you mean 'kmalloc-64'?"),
        ("[fault.slab]\nfail-nth = 1\ncache-filter = []", "7:16", "cache-filter takes N or the names"),
        ("[fault]\nslab = 50", "6:8", "expected a table of fault attributes"),
    ] {
        folder.file("bad.toml", format!("{}{table}\n", one_by_one("GFP_KERNEL")).as_bytes());
        let output = command(["run", "bad.toml"]).current_dir(folder.path()).output().unwrap();
        refused(&lowzone_tests::program::Outcome::of(&output), &format!("bad.toml:{place}"), says);
    }
}

/// One error, exit code 2; `says` in pieces joined by an ellipsis.
#[track_caller]
fn refused(outcome: &lowzone_tests::program::Outcome, place: &str, says: &str) {
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(2), ""), "{outcome:?}");
    let stderr = outcome.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    for say in says.split(" … ").chain([place]) {
        assert!(stderr.contains(say), "{say} in\n{}", outcome.stderr);
    }
}
