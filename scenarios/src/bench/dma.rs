//! `lowzone bench dma`: what a mapping costs, as it is, bounced, and among how many others.
//!
//! Times are of the whole API (context, point, record, ledger), in interleaved rounds beside a plain copy of as many
//! bytes, for an absolute time says little on a shared machine. What a mapping costs among many others is counted in
//! instructions, which repeat: each count is a run of this program under callgrind. Neighbours: `count`, the work that
//! is counted. Left out: waiting for a device.

mod count;

use std::hint::black_box;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use comfy_table::Table;
use lowzone_guest_mem::dma::{Direction, DmaDevice, FromDevice, MapFailure, MaskError, ToDevice, dma_bit_mask};
use lowzone_guest_mem::gfp::{GFP_DMA32, GFP_KERNEL};
use lowzone_guest_mem::kernel::{Machine, MachineConfig, MachineError};
use lowzone_guest_mem::zone::AllocError;
use lowzone_guest_mem::{Cpu, KBuf};
use thiserror::Error;

pub(crate) use count::Counted;

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
    body: impl FnOnce(&Cpu<'_>) -> Result<T, DmaBenchError> + Send + 'static,
) -> Result<T, DmaBenchError> {
    let machine = Machine::acquire(MachineConfig { cpus: 1, ..MachineConfig::default() })?;
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

/// What is timed, in the order of the rows.
const ROWS: [&str; 4] = [
    "memcpy of 4 KiB",
    "direct: map and unmap of 4 KiB",
    "swiotlb: to the device (one copy)",
    "swiotlb: from the device (two copies)",
];

/// The rows of each round.
fn rounds(cpu: &Cpu<'_>, time: Duration) -> Result<Vec<[f64; 4]>, DmaBenchError> {
    let device = DmaDevice::new(cpu.kernel_ref(), "bench");
    device.set_mask(cpu, dma_bit_mask(32))?;
    let (from, mut to) = ([1_u8; BLOCK], [0_u8; BLOCK]);
    let mut low = Some(KBuf::pages(cpu, 0, GFP_KERNEL | GFP_DMA32)?);
    let mut high = Some(KBuf::pages(cpu, 0, GFP_KERNEL)?);
    let (mut rows, begun) = (Vec::new(), Instant::now());
    while rows.len() < 5 || begun.elapsed() < time {
        rows.push([
            round(&mut || {
                black_box(&mut to).copy_from_slice(black_box(&from));
                Ok(())
            })?,
            round(&mut || pair::<ToDevice>(cpu, &device, &mut low))?,
            round(&mut || pair::<ToDevice>(cpu, &device, &mut high))?,
            round(&mut || pair::<FromDevice>(cpu, &device, &mut high))?,
        ]);
    }
    // The first round is the one in which everything is touched for the first time.
    rows.remove(0);
    Ok(rows)
}

fn median(values: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    let at = |part: usize| values.get((values.len().max(1) - 1) * part / 2).copied().unwrap_or(f64::NAN);
    (at(1), at(0), at(2))
}

/// Does the one count that is asked for, or everything.
pub(crate) fn start(counted: &Counted, seconds: u64, no_count: bool) -> Result<ExitCode, CliError> {
    match (counted.counted, counted.live) {
        (Some(work), Some(live)) => Ok(count::work(work, live).map(|()| ExitCode::SUCCESS)?),
        _ => run(seconds, no_count),
    }
}

/// Measures, counts, and prints.
fn run(seconds: u64, no_count: bool) -> Result<ExitCode, CliError> {
    let time = Duration::from_secs(seconds);
    let rows = on_cpu(move |cpu| rounds(cpu, time))?;
    let out = &mut anstream::stdout();
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["", "ns", "fastest", "of memcpy [min max]"]);
    for (index, name) in ROWS.iter().enumerate() {
        let (ns, fastest, _) = median(rows.iter().map(|row| row[index]));
        let (ratio, least, most) = median(rows.iter().map(|row| row[index] / row[0]));
        let ratio = format!("{ratio:.1} [{least:.1} {most:.1}]");
        table.add_row([(*name).to_owned(), format!("{ns:.0}"), format!("{fastest:.0}"), ratio]);
    }
    table.lines().try_for_each(|line| writeln!(out, "{}", line.trim_end()))?;
    writeln!(out, "{} rounds of {PAIRS} pairs each, one after the other; the ledger's books are kept\n", rows.len())?;
    if no_count {
        return Ok(ExitCode::SUCCESS);
    }
    let good = count::print(out)?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
