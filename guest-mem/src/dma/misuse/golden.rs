//! What dma-debug counted and said of each crime that was committed to be measured, and what other boots printed.

use super::*;
use crate::dma::ToDevice;
use crate::dma::ledger::Misuse;
use crate::dma::pool::dma_pool_create;
use crate::dma::sg::SgEntry;
use crate::finding::Finding;
use crate::gfp::{GFP_ATOMIC, GFP_KERNEL};
use crate::lock::SpinLock;
use crate::testing::{Lab, compare, rows};
use crimes::Scene;

mod boots;
mod crimes;

const COUNTS: &str = include_str!("../../../../tests/golden/dmadebug.tsv");
const MESSAGES: &str = include_str!("../../../../tests/golden/messages.tsv");
const NOTHING: &str = "(nothing printed)";

/// A text as the table writes it: addresses that vary are an `@`.
fn normal(text: &str) -> String {
    let hidden = |word: &str| match word.strip_prefix("0x") {
        Some(digits) if digits.len() == 16 => Some("0x@"),
        None if word.len() == 16 && word.chars().all(|digit| digit.is_ascii_hexdigit()) => Some("@"),
        _ => None,
    };
    let pieces = text.split_inclusive(|c: char| !c.is_ascii_alphanumeric());
    let shown = pieces.map(|piece| {
        let word = piece.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        hidden(word).map_or(piece.to_owned(), |hidden| format!("{hidden}{}", &piece[word.len()..]))
    });
    shown.collect()
}

/// What was measured of a probe, line by line, without the second lines of reports and without stacks.
fn measured(boot: &str, probe: &str) -> Vec<&'static str> {
    let of_probe = rows(MESSAGES).filter(|row| row.get("boot") == boot && row.get("probe") == probe);
    let lines: Vec<_> = of_probe.map(|row| row.get("normal")).collect();
    assert!(!lines.is_empty(), "{boot} {probe} was not measured");
    let facts = |line: &&str| *line != NOTHING && *line != "DMA-API: Mapped at:" && !line.starts_with("WARNING: CPU");
    let kept: Vec<_> = lines.iter().copied().filter(facts).collect();
    // A warning without a text of its own says where it stands.
    if kept.is_empty() { lines.into_iter().filter(|line| *line != NOTHING).collect() } else { kept }
}

/// The lines of a dma-debug report; the driver of the lab has another name, and a device without one is `pci`.
fn printed(finding: &Finding) -> Vec<String> {
    let FindingKind::Dma(misuse) = &finding.kind else { return Vec::new() };
    let device = finding.device.as_deref().unwrap();
    let driver =
        if matches!(misuse, Misuse::Pending { .. }) || device != "0000:00:04.0" { "pci" } else { "oracle_edu" };
    let head = if misuse.counts() { format!("DMA-API: {driver} {device}: ") } else { "DMA-API: ".to_owned() };
    let text = normal(&misuse.to_string());
    text.split('\n')
        .enumerate()
        .map(|(at, line)| if at == 0 { format!("{head}{line}") } else { line.to_owned() })
        .collect()
}

/// Commits a probe's crime on a fresh machine, after what must come before it: what is reported, and what is printed in
/// the kernel's log.
fn trial(probe: &str) -> (Vec<Finding>, Vec<String>) {
    let mut scene = Scene::new();
    let mut chain: Vec<_> = std::iter::successors(crimes::before(probe), |probe| crimes::before(probe)).collect();
    chain.reverse();
    for earlier in chain {
        assert!(scene.commit(earlier), "no such probe: {earlier}");
    }
    let kernel = scene.lab.kernel();
    let (found, said) = (kernel.findings().len(), scene.lab.log().len());
    assert!(scene.commit(probe), "no such probe: {probe}");
    (kernel.findings().split_off(found), scene.lab.log().split_off(said))
}

#[test]
fn golden_dmadebug() {
    let rows = compare(COUNTS, &["errors_counted"], |row| {
        let (findings, _) = trial(row.get("probe"));
        let counted =
            findings.iter().filter(|found| matches!(&found.kind, FindingKind::Dma(misuse) if misuse.counts()));
        vec![("errors_counted", counted.count().to_string())]
    });
    assert_eq!(rows, 44);
}

#[test]
fn golden_messages_of_dma_debug() {
    let (mut last, mut wrong, mut probes) = ("", Vec::new(), 0);
    for row in rows(MESSAGES).filter(|row| row.get("boot") == "dmadebug") {
        let probe = row.get("probe");
        if probe == std::mem::replace(&mut last, probe) {
            continue;
        }
        let (findings, log) = trial(probe);
        let mut seen: Vec<_> = log.iter().map(|line| normal(line).replace("0000:", "oracle_edu 0000:")).collect();
        seen.extend(findings.iter().flat_map(printed));
        // One warning is printed once a boot; the finding is made every time.
        let mut once = false;
        seen.retain(|line| !line.starts_with("DMA-API: exceeded") || !std::mem::replace(&mut once, true));
        let want = measured("dmadebug", probe);
        if seen != want {
            wrong.push(format!("{probe}:\n  measured {want:#?}\n  said {seen:#?}"));
        }
        probes += 1;
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(probes, 48);
}

#[test]
fn golden_message_of_no_direction() {
    let lab = Lab::boot("main");
    let (cpu, device) = (lab.cpu(), lab.device(64));
    let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| map_none(&cpu, &device)));
    assert_eq!(stopped.unwrap_err().downcast_ref::<Halt>(), Some(&Halt::Oops));
    let told = lab.kernel().findings().remove(0).kind.to_string();
    // Before it the table says that the probe begins, after it what the processor calls it.
    let lines = measured("crash_dmadir", "crash_map_direction_NONE");
    let place = lines[1].strip_suffix("#!").unwrap();
    assert!(lines.len() == 3 && told.starts_with(place), "{told}: {place}");
}

/// The calls that were made under a spinlock, one of them with interrupts off.
#[test]
fn golden_messages_of_atomic_context() {
    let mut probes = 0;
    for probe in [
        "sleep_dma_free_coherent_spinlock",
        "sleep_dma_alloc_coherent_ATOMIC",
        "sleep_dma_free_coherent_irqsoff",
        "sleep_dma_map_single",
        "sleep_dma_pool_alloc_KERNEL",
        "sleep_dma_pool_alloc_ATOMIC",
    ] {
        let lab = Lab::boot("main");
        let (cpu, device, lock) = (lab.cpu(), lab.device(32), SpinLock::new(()));
        let ring = device.alloc_coherent(&cpu, 4096, GFP_KERNEL).unwrap();
        let buf = KBuf::kmalloc(&cpu, 64, GFP_KERNEL).unwrap();
        let pool = dma_pool_create(&cpu, "or_pool", &device, 64, 0, 0).unwrap();
        let off = probe.ends_with("irqsoff").then(|| cpu.local_irq_save());
        let held = lock.lock(&cpu);
        match probe {
            "sleep_dma_alloc_coherent_ATOMIC" => drop(device.alloc_coherent(&cpu, 4096, GFP_ATOMIC).unwrap()),
            "sleep_dma_map_single" => drop(device.map_single::<ToDevice>(&cpu, buf).unwrap()),
            "sleep_dma_pool_alloc_KERNEL" => drop(pool.alloc(&cpu, GFP_KERNEL).unwrap()),
            "sleep_dma_pool_alloc_ATOMIC" => drop(pool.alloc(&cpu, GFP_ATOMIC).unwrap()),
            _ => ring.free(&cpu),
        }
        drop((held, off));
        // The place that complains is another one: here it is the outermost call.
        let told: Vec<_> = lab.kernel().findings().iter().map(|finding| finding.kind.to_string()).collect();
        match (&*measured("sleep", probe), &*told) {
            ([], []) => {}
            // Printed once a second, and found each time: the calls within complain too.
            ([bug, state, ..], [told, ..]) if bug.starts_with("BUG: sleeping") => {
                let bug = bug.split(" at ").next().unwrap();
                let state = state.split(", non_block").next().unwrap();
                assert!(told.starts_with(bug) && told.contains(state), "{probe}: {told}");
            }
            ([warning], [told]) if warning.starts_with("WARNING") => {
                assert!(warning.ends_with("dma_free_attrs") && told.starts_with("dma_free_coherent called"), "{told}");
            }
            (measured, told) => panic!("{probe}: measured {measured:?}, said {told:?}"),
        }
        probes += 1;
    }
    let all = rows(MESSAGES).filter(|row| row.get("boot") == "sleep" && row.get("probe").contains("_dma_"));
    let all: std::collections::BTreeSet<_> = all.map(|row| row.get("probe")).collect();
    assert_eq!(probes, all.len());
}
