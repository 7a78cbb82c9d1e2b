//! What Linux shows of dma-debug under `dma-api/` in debugfs.
//!
//! The lab finds every error, whatever these say of what Linux would print. Mirrors kernel/dma/debug.c. Neighbours:
//! `ledger`, whose findings are counted. Left out: writing to them, more entries than are made at boot, `dump`.

use crate::dma::device::DeviceState;
use crate::finding::FindingKind;
use crate::kernel::Kernel;

/// Entries made at boot (`PREALLOC_DMA_DEBUG_ENTRIES`).
const ENTRIES: u64 = 1 << 16;
/// Errors that are printed, of all.
const PRINTED: u64 = 1;

/// Each file by name, and its text without the newline.
///
/// Of several devices the fewest free entries are reckoned as if all had been at their busiest at once.
///
/// ```
/// use lowzone_guest_mem::dma::debugfs::files;
/// use lowzone_guest_mem::kernel::{Machine, MachineConfig};
///
/// let machine = Machine::acquire(MachineConfig::default())?;
/// assert!(files(machine.kernel()).contains(&("error_count", "0".to_owned())));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn files(kernel: &Kernel) -> [(&'static str, String); 8] {
    let findings = kernel.findings();
    let counts = |kind: &FindingKind| matches!(kind, FindingKind::Dma(misuse) if misuse.counts());
    let errors = findings.iter().filter(|finding| counts(&finding.kind)).count() as u64;
    let devices = kernel.devices.lock();
    let all = |of: fn(&DeviceState) -> u64| devices.iter().map(|device| of(device)).sum::<u64>();
    let live = all(|device| device.ledger.lock().len() as u64);
    let peak = all(|device| device.counters.lock().peak).max(live);
    let shown = |number: u64| number.to_string();
    [
        ("all_errors", shown(0)),
        ("disabled", "N".to_owned()),
        ("driver_filter", String::new()),
        ("error_count", shown(errors)),
        ("min_free_entries", shown(ENTRIES.saturating_sub(peak))),
        ("nr_total_entries", shown(ENTRIES)),
        ("num_errors", shown(PRINTED.saturating_sub(errors))),
        ("num_free_entries", shown(ENTRIES.saturating_sub(live))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::{Dir, ToDevice, misuse};
    use crate::gfp::GFP_KERNEL;
    use crate::kbuf::KBuf;
    use crate::testing::Lab;

    #[test]
    fn errors_and_entries_are_counted() {
        let lab = Lab::new();
        let (cpu, device) = (lab.cpu(), lab.device(64));
        let shown = |name| files(lab.kernel()).into_iter().find(|file| file.0 == name).unwrap().1;
        let buf = || KBuf::kmalloc(&cpu, 64, GFP_KERNEL).unwrap();
        let (one, two) =
            (device.map_single::<ToDevice>(&cpu, buf()).unwrap(), device.map_single::<ToDevice>(&cpu, buf()).unwrap());
        drop(one);
        assert_eq!(["num_free_entries", "min_free_entries"].map(shown), ["65535", "65534"]);
        for _ in 0..2 {
            misuse::unmap_single(&cpu, &device, crate::DmaAddr::new(64), 64, Dir::ToDevice);
        }
        assert_eq!(["error_count", "num_errors"].map(shown), ["2", "0"]);
        drop(two);
    }
}
