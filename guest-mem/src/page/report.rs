//! The page allocator's failure report, as Linux prints it.
//!
//! One line that names order and mask, then the memory of the machine. Mirrors `warn_alloc` of mm/page_alloc.c and
//! `show_free_areas`. Neighbours: `klog` limits it to one in ten seconds for all callers, [`crate::refusal`] has the
//! same as numbers. Left out: the stack, and the letters of migrate types behind counts of blocks; what the lab has
//! none of (page cache, swap, processes) is 0.

use crate::addr::PAGE_SIZE;
use crate::cpu::Cpu;
use crate::gfp::Gfp;
use crate::kernel::Kernel;
use crate::klog::Limit;
use crate::site::Site;
use crate::zone::{ZoneKind, ZoneStats};

/// `nopage_rs`: one report in ten seconds.
const NOPAGE: Limit = Limit { interval: 10_000_000_000, burst: 1, function: "warn_alloc" };
const KIB: u64 = PAGE_SIZE / 1024;

/// Prints the report, unless the mask or the limit says no (`warn_alloc`).
pub(super) fn warn_alloc(cpu: &Cpu<'_>, order: u8, gfp: Gfp) {
    let kernel = cpu.kernel();
    let without_dma = gfp.contains(Gfp::DMA) && kernel.zone_stats()[ZoneKind::Dma.index()].managed == 0;
    if gfp.contains(Gfp::NOWARN) || without_dma {
        return;
    }
    kernel.log().limited(cpu.now(), Site::caller(), &NOPAGE, || {
        let mode = gfp.bits();
        let head = format!("insmod: page allocation failure: order:{order}, mode:{mode:#x}({gfp}), nodemask=(null)");
        format!("{head}\n{}", mem_info(kernel))
    });
}

/// `show_mem`: the memory of the machine, in Linux's lines.
fn mem_info(kernel: &Kernel) -> String {
    let zones = kernel.zone_stats();
    let pcp = kernel.pcp_stats().map(|(_, pages)| pages);
    let free: u64 = zones.iter().map(|zone| zone.free).sum();
    let listed: u64 = pcp.iter().sum();
    let mut text = String::from(
        "Mem-Info:\nactive_anon:0 inactive_anon:0 isolated_anon:0\n active_file:0 inactive_file:0 isolated_file:0\n \
         unevictable:0 dirty:0 writeback:0\n slab_reclaimable:0 slab_unreclaimable:0\n mapped:0 shmem:0 pagetables:0\n \
         sec_pagetables:0 bounce:0\n kernel_misc_reclaimable:0\n",
    );
    text += &format!(" free:{free} free_pcp:{listed} free_cma:0\n");
    for (zone, listed) in zones.iter().zip(pcp).filter(|(zone, _)| zone.managed > 0) {
        text += &zone_lines(zone, listed);
    }
    for zone in zones.iter().filter(|zone| zone.managed > 0) {
        text += &blocks_line(zone);
    }
    let managed: u64 = zones.iter().map(|zone| zone.managed).sum();
    let ram = kernel.config().ram / PAGE_SIZE;
    text += "0 total pagecache pages\n0 pages in swap cache\nFree swap  = 0kB\nTotal swap = 0kB\n";
    let high = zones[ZoneKind::HighMem.index()].managed;
    text + &format!("{ram} pages RAM\n{high} pages HighMem/MovableOnly\n{} pages reserved", ram - managed)
}

fn zone_lines(zone: &ZoneStats, listed: u64) -> String {
    let ZoneStats { zone: name, managed, free, marks, protection, boost, highatomic, .. } = zone;
    let [min, low, high] = [marks.min, marks.low, marks.high].map(|pages| pages * KIB);
    let reserves: Vec<_> = protection.iter().map(u64::to_string).collect();
    format!(
        "{name} free:{}kB boost:{}kB min:{min}kB low:{low}kB high:{high}kB reserved_highatomic:{}KB active_anon:0kB \
         inactive_anon:0kB active_file:0kB inactive_file:0kB unevictable:0kB writepending:0kB present:{3}kB \
         managed:{3}kB mlocked:0kB bounce:0kB free_pcp:{4}kB local_pcp:0kB free_cma:0kB\nlowmem_reserve[]: {5}\n",
        free * KIB,
        boost * KIB,
        highatomic * KIB,
        managed * KIB,
        listed * KIB,
        reserves.join(" "),
    )
}

fn blocks_line(zone: &ZoneStats) -> String {
    let blocks = (0..).zip(&zone.free_by_order).map(|(order, blocks)| format!("{blocks}*{}kB", KIB << order));
    let blocks: Vec<_> = blocks.collect();
    format!("{}: {} = {}kB\n", zone.zone, blocks.join(" "), zone.free * KIB)
}
