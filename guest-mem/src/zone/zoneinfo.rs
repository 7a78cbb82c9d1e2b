//! `/proc/zoneinfo`: the numbers of each zone, as Linux prints them.
//!
//! Neighbours: [`super::ZoneStats`], `pcp`. Left out: the node's own counters before the first zone, and the `cma` and
//! `vm stats threshold` lines of a kernel that has neither.

use std::fmt::Write;

use crate::kernel::Kernel;
use crate::zone::ZoneKind;

/// The text. Zones without memory are left out, as in `/proc/buddyinfo`.
///
/// A CPU's lists are shown together, since what they hold in sum is what the zone lacks.
pub(crate) fn zoneinfo(kernel: &Kernel) -> String {
    let (stats, lists) = (kernel.zone_stats(), kernel.pcp_stats());
    let spans = ZoneKind::ALL.map(|zone| kernel.memory.lock().zones.layout().span_of(zone));
    let mut text = String::new();
    for ((stats, (settings, count)), span) in stats.iter().zip(lists).zip(spans) {
        let Some(span) = span else { continue };
        let marks = stats.marks;
        let protection: Vec<_> = stats.protection.iter().map(u64::to_string).collect();
        let numbers = [
            ("pages free    ", stats.free),
            ("      boost   ", stats.boost),
            ("      min     ", marks.min),
            ("      low     ", marks.low),
            ("      high    ", marks.high),
            ("      spanned ", u64::from(span.end - span.start)),
            ("      present ", stats.managed),
            ("      managed ", stats.managed),
        ];
        // Writing to a String can't fail.
        let _ = writeln!(text, "Node 0, zone {:>8}", stats.zone);
        for (name, number) in numbers {
            let _ = writeln!(text, "  {name} {number}");
        }
        let _ = writeln!(text, "        protection: ({})", protection.join(", "));
        if kernel.config().pcp {
            let _ = writeln!(text, "  pagesets\n              count: {count}");
            let _ = writeln!(text, "              high:  {}\n              batch: {}", settings.high, settings.batch);
        }
        let _ = writeln!(text, "  start_pfn:           {}", span.start);
    }
    text
}

#[cfg(test)]
mod tests {
    use crate::kernel::{Machine, MachineConfig};

    #[test]
    fn each_zone_with_memory_has_its_numbers() {
        let machine = Machine::acquire(MachineConfig { pcp: true, ..MachineConfig::default() }).unwrap();
        let text = machine.kernel().zoneinfo();
        let zones: Vec<_> = text.lines().filter(|line| line.starts_with("Node 0")).collect();
        assert_eq!(zones, ["Node 0, zone      DMA", "Node 0, zone    DMA32", "Node 0, zone   Normal"]);
        let normal = text.split("zone   Normal\n").nth(1).unwrap();
        assert!(normal.starts_with("  pages free     786432\n        boost    0\n        min      "), "{normal}");
        assert!(normal.ends_with("  start_pfn:           1048576\n"), "{normal}");
        assert!(text.contains("        protection: (0, "), "{text}");
    }
}
