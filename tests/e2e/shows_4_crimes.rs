//! Crimes: each file gives exactly its finding with both call sites; one key changed, none.

use lowzone::expect::check;
use lowzone::result::RunResult;
use lowzone::spec::{CanaryState, Scenario};
use lowzone_tests::program::lowzone;
use lowzone_tests::scenario::{embedded, findings, run, run_threads};

/// A crime file and what must be seen.
struct Crime {
    file: &'static str,
    /// The one change that makes it honest.
    honest: &'static str,
    finding: &'static str,
    /// What the finding's text must say, call sites by role and file among it.
    says: &'static [&'static str],
}

const DEVICE: &str = "0000:00:01.0";
const RAW: &str = "scenarios/src/step/raw.rs:";

const CRIMES: [Crime; 7] = [
    Crime {
        file: "block/too-wide",
        honest: "driver.dma_mask=32",
        finding: "beyond-width",
        says: &[
            DEVICE,
            "beyond its 32-bit width",
            "at 0x100000000, refused",
            "posted by the mapping at scenarios/src/step/raw.rs:",
            "allocated at scenarios/src/step/canary.rs:",
        ],
    },
    Crime {
        file: "block/too-wide-wrap",
        honest: "driver.dma_mask=32",
        finding: "beyond-width",
        says: &[
            DEVICE,
            "beyond its 32-bit width",
            "at 0x100000000, which hit 0x0",
            "posted by the mapping at scenarios/src/step/raw.rs:",
            "allocated at scenarios/src/step/canary.rs:",
        ],
    },
    Crime {
        file: "block/no-bus-master",
        honest: "driver.bus_master=true",
        finding: "bus-master-off",
        says: &[
            DEVICE,
            "bus mastering off",
            "posted by the mapping at driver/src/virtio/ring.rs:",
            "allocated at driver/src/virtio/ring.rs:",
            "in probe/init_vqs",
        ],
    },
    Crime {
        file: "block/use-after-unmap",
        honest: "unmap=after-completion",
        finding: "after-unmap",
        says: &[
            DEVICE,
            "after its unmap",
            "mapped at scenarios/src/step/raw.rs:",
            "unmapped at scenarios/src/step/raw.rs:",
        ],
    },
    Crime {
        file: "block/wrong-direction",
        honest: "direction=from-device",
        finding: "wrong-direction",
        says: &[
            DEVICE,
            "[mapped with DMA_TO_DEVICE]",
            "mapped at scenarios/src/step/raw.rs:",
            "allocated at scenarios/src/step/data.rs:",
        ],
    },
    Crime {
        file: "block/leak",
        honest: "unmap=after-completion",
        finding: "pending-dma",
        says: &[
            DEVICE,
            "device driver has pending DMA allocations while released from device [count=1]",
            "mapped at scenarios/src/step/raw.rs:",
            "released at scenarios/src/step/bind.rs:",
        ],
    },
    Crime {
        file: "block/sleep-in-irq",
        honest: "gfp=GFP_ATOMIC",
        finding: "sleep-in-atomic",
        says: &[
            "BUG: sleeping function called from invalid context",
            "called at scenarios/src/step/raw.rs:",
            "in careless_handler",
            "atomic since scenarios/src/step/raw.rs:",
            "CONFIG_DEBUG_ATOMIC_SLEEP",
        ],
    },
];

/// Five seeds in lockstep, and the threads world, which has none.
fn runs(file: &Scenario) -> impl Iterator<Item = (u64, RunResult)> {
    (1..=5).map(|seed| (seed, run(file, seed))).chain(std::iter::once_with(|| (0, run_threads(file, 1))))
}

#[test]
fn shows_4_each_crime_gives_exactly_its_finding_with_both_call_sites() {
    for crime in &CRIMES {
        let file = embedded(crime.file, &[]);
        // The wrapped write hits memory that is nobody's: the port tells that too.
        let wanted: &[&str] =
            if crime.file.ends_with("wrap") { &["not-mapped", crime.finding] } else { &[crime.finding] };
        for (seed, result) in runs(&file) {
            let mut found = findings(&result);
            found.sort_unstable_by(|a, b| b.cmp(a));
            assert_eq!(found, wanted, "{}, seed {seed}", crime.file);
            assert!(check(&file.expect, &result).is_empty(), "{}: {:?}", crime.file, check(&file.expect, &result));
            let text = &result.findings.iter().find(|row| row.name == crime.finding).unwrap().text;
            for say in crime.says {
                assert!(text.contains(say), "{}: {say} in\n{text}", crime.file);
            }
            assert!(text.matches(" at ").count() + text.matches(" since ").count() >= 2, "two call sites: {text}");
        }
    }
}

#[test]
fn shows_4_the_same_file_but_for_one_key_gives_none() {
    for crime in &CRIMES {
        for (_, result) in runs(&embedded(crime.file, &[crime.honest])) {
            assert_eq!(findings(&result), [""; 0], "{} with {}", crime.file, crime.honest);
            assert_eq!((result.failed_requests, result.leaks.len()), (0, 0), "{} with {}", crime.file, crime.honest);
            assert!(result.errors.is_empty(), "{}: {:?}", crime.file, result.errors);
        }
    }
}

#[test]
fn shows_4_a_device_that_refuses_moves_no_byte_and_one_that_wraps_hits_the_canary() {
    let refused = run(&embedded("block/too-wide", &[]), 1);
    assert_eq!((refused.canary, refused.failed_requests), (Some(CanaryState::Intact), 1));
    assert_eq!(refused.devices[0].bytes, 0, "no byte moved");
    let wrapped = run(&embedded("block/too-wide-wrap", &[]), 1);
    assert_eq!((wrapped.canary, wrapped.failed_requests), (Some(CanaryState::Hit), 0), "nobody is told");
    assert_eq!(wrapped.devices[0].bytes, 4096);
    let honest = run(&embedded("block/too-wide-wrap", &["driver.dma_mask=32"]), 1);
    assert_eq!(honest.canary, Some(CanaryState::Intact), "bounced, so nothing wraps");
}

#[test]
fn shows_4_the_program_ends_well_with_the_crime_and_badly_without() {
    for crime in &CRIMES {
        let guilty = lowzone(["run", crime.file]);
        assert_eq!(guilty.code, Some(0), "{}: {guilty:?}", crime.file);
        assert!(guilty.stdout.contains(crime.finding), "{}: {guilty:?}", crime.file);
        let honest = lowzone(["run", crime.file, "--set", crime.honest]);
        assert_eq!(honest.code, Some(1), "the expected finding is missing: {}: {honest:?}", crime.file);
        assert!(honest.stderr.contains("findings") && honest.stderr.contains(crime.finding), "{honest:?}");
    }
}

#[test]
fn shows_4_sites_are_lines_of_the_source() {
    let result = run(&embedded("block/use-after-unmap", &[]), 1);
    let text = &result.findings[0].text;
    let source = std::fs::read_to_string(lowzone_tests::program::workspace().join(RAW.trim_end_matches(':'))).unwrap();
    let line = |part: &str| -> usize {
        let rest = text.split_once(&format!("{part} {RAW}")).expect(text).1;
        rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    let at = |number: usize| source.lines().nth(number - 1).unwrap();
    assert!(at(line("\n  mapped at")).contains("misuse::map_single("), "{text}");
    assert!(at(line("\n  unmapped at")).contains("misuse::unmap_single("), "{text}");
}
