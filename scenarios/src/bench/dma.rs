//! `lowzone bench dma`: what a mapping costs, as it is, bounced, and among how many others.
//!
//! Times are of the whole API (context, point, record, ledger), in interleaved rounds beside a plain copy of as many
//! bytes, for an absolute time says little on a shared machine. What a mapping costs among many others is counted in
//! instructions, which repeat: each count is a run of this program under callgrind. Neighbours: `count`, the work that
//! is counted. Left out: waiting for a device.

mod count;

use std::hint::black_box;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use comfy_table::Table;
use lowzone_guest_mem::addr::{DmaAddr, PhysAddr};
use lowzone_guest_mem::dma::iommu::IommuMode;
use lowzone_guest_mem::dma::ledger::Ledger;
use lowzone_guest_mem::dma::mapping::{Entries, Kind, NewMapping};
use lowzone_guest_mem::dma::{Dir, Direction, DmaDevice, FromDevice, MapFailure, MaskError, ToDevice, dma_bit_mask};
use lowzone_guest_mem::gfp::{GFP_DMA32, GFP_KERNEL};
use lowzone_guest_mem::kernel::{Machine, MachineConfig, MachineError};
use lowzone_guest_mem::site::Owner;
use lowzone_guest_mem::zone::AllocError;
use lowzone_guest_mem::{Cpu, KBuf};
use thiserror::Error;

pub(crate) use count::Counted;

use super::percentile;
use super::plot::{Bench, Cost, Plot};
use crate::cli::CliError;
use crate::wire::InProc;
use crate::world::{Body, Exit, Lockstep};

const BLOCK: usize = 4096;
/// Pairs a round.
const PAIRS: u32 = 500;

/// Why there is no figure.
#[derive(Debug, Error)]
pub(crate) enum DmaBenchError {
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Mask(#[from] MaskError),
    #[error(transparent)]
    Alloc(#[from] AllocError),
    #[error("a mapping was refused: {0}")]
    Map(#[from] MapFailure),
    #[error("the device was refused at {at:#x}")]
    Access { at: u64 },
    #[error("the body ended so: {0:?}")]
    Body(Exit),
    #[error("{0} findings")]
    Unclean(usize),
    #[error("valgrind, which counts instructions, can't be started: {0} (apt-get install valgrind)")]
    NoValgrind(std::io::Error),
    #[error("valgrind counted nothing; its last line: {0}")]
    NoCount(String),
}

/// Runs a body on the one CPU of a machine.
fn on_cpu<T: Send + 'static>(
    config: MachineConfig,
    body: impl FnOnce(&Cpu<'_>) -> Result<T, DmaBenchError> + Send + 'static,
) -> Result<T, DmaBenchError> {
    let machine = Machine::acquire(config)?;
    let kernel = machine.kernel_ref();
    let (tell, told) = channel();
    // The receiver waits for the body's end.
    let body: Body = Box::new(move |cpu| _ = tell.send(body(cpu)));
    let mut world = Lockstep::new(kernel, Arc::new(InProc::new(kernel, 1)), Vec::new(), 1);
    let exit = world.run(vec![body]).first().copied().unwrap_or(Exit::TornDown);
    let result = told.try_recv().unwrap_or(Err(DmaBenchError::Body(exit)))?;
    match machine.kernel().findings().len() {
        0 => Ok(result),
        found => Err(DmaBenchError::Unclean(found)),
    }
}

/// Nanoseconds of one pair, of a round.
fn round(pair: &mut dyn FnMut() -> Result<(), DmaBenchError>) -> Result<f64, DmaBenchError> {
    let begun = Instant::now();
    (0..PAIRS).try_for_each(|_| pair())?;
    Ok(begun.elapsed().as_secs_f64() * 1e9 / f64::from(PAIRS))
}

fn pair<D: Direction>(cpu: &Cpu<'_>, device: &DmaDevice, buf: &mut Option<KBuf>) -> Result<(), DmaBenchError> {
    let Some(taken) = buf.take() else { return Ok(()) };
    match device.map_single::<D>(cpu, taken) {
        Ok(mapped) => {
            *buf = Some(mapped.unmap(cpu));
            Ok(())
        }
        Err(error) => Err(error.why.into()),
    }
}

/// What is timed on one machine, the copy first; the name of each.
type Timed = (Vec<&'static str>, Vec<Vec<f64>>);

/// Rounds of everything, in turns with the copy, until the time is over.
fn rounds(
    time: Duration,
    names: &[&'static str],
    mut all: impl FnMut(usize) -> Measured,
) -> Result<Timed, DmaBenchError> {
    let (from, mut to) = ([1_u8; BLOCK], [0_u8; BLOCK]);
    let mut copy = || {
        black_box(&mut to).copy_from_slice(black_box(&from));
        Ok(())
    };
    let (mut rows, begun) = (Vec::new(), Instant::now());
    while rows.len() < 5 || begun.elapsed() < time {
        let others = (0..names.len()).map(&mut all);
        rows.push([round(&mut copy)].into_iter().chain(others).collect::<Result<Vec<_>, _>>()?);
    }
    // The first round is the one in which everything is touched for the first time.
    rows.remove(0);
    Ok((["memcpy of 4 KiB"].into_iter().chain(names.iter().copied()).collect(), rows))
}

type Measured = Result<f64, DmaBenchError>;

/// The plain machine: in place, the ledger's part of that, and bounced.
fn plain(cpu: &Cpu<'_>, time: Duration) -> Result<Timed, DmaBenchError> {
    let device = DmaDevice::new(cpu.kernel_ref(), "bench");
    device.set_mask(cpu, dma_bit_mask(32))?;
    let mut low = Some(KBuf::pages(cpu, 0, GFP_KERNEL | GFP_DMA32)?);
    let mut high = Some(KBuf::pages(cpu, 0, GFP_KERNEL)?);
    let mut ledger = Ledger::new();
    let names = [
        "direct: map and unmap of 4 KiB",
        LEDGER,
        "swiotlb: to the device (one copy)",
        "swiotlb: from the device (two copies)",
    ];
    rounds(time, &names, |row| match row {
        0 => round(&mut || pair::<ToDevice>(cpu, &device, &mut low)),
        1 => round(&mut || {
            books(&mut ledger);
            Ok(())
        }),
        2 => round(&mut || pair::<ToDevice>(cpu, &device, &mut high)),
        _ => round(&mut || pair::<FromDevice>(cpu, &device, &mut high)),
    })
}

const LEDGER: &str = "  of it the ledger's books";

/// What a map and an unmap do to a ledger, and nothing else of them.
fn books(ledger: &mut Ledger) {
    let (dma, phys) = (DmaAddr::new(0x10_0000), PhysAddr::new(0x10_0000));
    let (len, dir, kind, owner) = (BLOCK as u64, Dir::ToDevice, Kind::Single, Owner::default());
    black_box(ledger.map_tracked(NewMapping {
        id: 1,
        dma,
        phys,
        orig: phys,
        len,
        dir,
        kind,
        entries: Entries::default(),
        bounced: false,
        map_owner: owner,
        alloc_owner: owner,
        mapped_at: 0,
        checked: true,
    }));
    let _ = black_box(ledger.unmap(dma, len, dir, kind, owner, 0));
}

/// A machine with an IOMMU.
fn iommu(cpu: &Cpu<'_>, time: Duration, name: &'static str) -> Result<Timed, DmaBenchError> {
    let device = DmaDevice::new(cpu.kernel_ref(), "bench");
    device.set_mask(cpu, dma_bit_mask(32))?;
    let mut high = Some(KBuf::pages(cpu, 0, GFP_KERNEL)?);
    rounds(time, &[name], |_| round(&mut || pair::<ToDevice>(cpu, &device, &mut high)))
}

/// Does the one count that is asked for, or everything.
pub(crate) fn start(
    counted: &Counted,
    seconds: u64,
    no_count: bool,
    report: Option<&Path>,
) -> Result<ExitCode, CliError> {
    match (counted.counted, counted.live) {
        (Some(work), Some(live)) => Ok(count::work(work, live).map(|()| ExitCode::SUCCESS)?),
        _ => run(seconds, no_count, report),
    }
}

/// Measures on the plain machine and on two with an IOMMU.
fn measure(time: Duration) -> Result<Vec<Timed>, DmaBenchError> {
    let part = time / 3;
    let with = |iommu| MachineConfig { iommu: Some(iommu), cpus: 1, ..MachineConfig::default() };
    Ok(vec![
        on_cpu(MachineConfig { cpus: 1, ..MachineConfig::default() }, move |cpu| plain(cpu, part))?,
        on_cpu(with(IommuMode::Strict), move |cpu| iommu(cpu, part, "IOMMU, strict: map and unmap of 4 KiB"))?,
        on_cpu(with(IommuMode::Lazy), move |cpu| iommu(cpu, part, "IOMMU, lazy: map and unmap of 4 KiB"))?,
    ])
}

/// Measures, counts, and prints; `report` is where the page goes.
fn run(seconds: u64, no_count: bool, report: Option<&Path>) -> Result<ExitCode, CliError> {
    crate::report::cli::writable(report)?;
    let machines = measure(Duration::from_secs(seconds))?;
    let out = &mut anstream::stdout();
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["", "ns", "fastest", "of memcpy [10 % 90 %]"]);
    let mut costs = Vec::new();
    for (machine, (names, rows)) in machines.iter().enumerate() {
        // The copy is told once, though each machine has its own beside it.
        for (index, name) in names.iter().enumerate().skip(usize::from(machine > 0)) {
            let ns = |hundredths| percentile(rows.iter().map(|row| row[index]), hundredths);
            let ratio = |hundredths| percentile(rows.iter().map(|row| row[index] / row[0]), hundredths);
            let ratios = format!("{:.1} [{:.1} {:.1}]", ratio(50), ratio(10), ratio(90));
            costs.push(Cost { name: (*name).trim().to_owned(), value: ns(50), low: Some(ns(10)), high: Some(ns(90)) });
            table.add_row([(*name).to_owned(), format!("{:.0}", ns(50)), format!("{:.0}", ns(0)), ratios]);
            if *name == LEDGER {
                let without = percentile(rows.iter().map(|row| row[index - 1] - row[index]), 50);
                table.add_row(["  without them, by difference".to_owned(), format!("{without:.0}")]);
            }
        }
    }
    table.lines().try_for_each(|line| writeln!(out, "{}", line.trim_end()))?;
    let rounds: Vec<_> = machines.iter().map(|(_, rows)| rows.len().to_string()).collect();
    writeln!(out, "{} rounds of {PAIRS} pairs each, on three machines one after the other\n", rounds.join(" + "))?;
    let mut plots = vec![Plot { title: "A mapping of 4 KiB".to_owned(), unit: "ns", rows: costs }];
    let mut good = true;
    if !no_count {
        let (counted, logarithmic) = count::print(out)?;
        plots.extend(counted);
        good = logarithmic;
    }
    if let Some(page) = report {
        Bench { bench: "dma", plots }.page(page)?;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
