//! Instructions of a mapping among many others, counted by callgrind, and the exponent that fits them.
//!
//! The program starts itself under callgrind with `--counted WORK --live N`; only what [`counted`] does is counted.
//! Neighbours: the parent, which prints. Left out: caches, which callgrind doesn't model unless told.

use std::hint::black_box;
use std::io::Write;
use std::process::{Command, Stdio};

use clap::{Args, ValueEnum};
use comfy_table::Table;
use indicatif::{ProgressBar, ProgressStyle};
use lowzone_guest_mem::dma::{DmaDevice, DmaPort, Mapped, ToDevice, dma_bit_mask};
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::kernel::MachineConfig;
use lowzone_guest_mem::{Cpu, KBuf};
use vm_memory::{Bytes, GuestAddress};

use super::super::plot::{Cost, Plot};
use super::{DmaBenchError, on_cpu, pair};
use crate::cli::CliError;

/// Operations that are counted.
const TIMES: usize = 1000;
/// Bytes of a mapping.
const LEN: usize = 64;
/// Numbers of live mappings.
const LIVE: [usize; 5] = [100, 1_000, 10_000, 100_000, 1_000_000];
/// A cost that grows with the logarithm has a fitted exponent below this over these four decades.
const LOGARITHMIC: f64 = 0.12;

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Work {
    /// A map and an unmap.
    Map,
    /// A read of the device.
    Read,
}

/// The work of one count.
#[derive(Args)]
pub(crate) struct Counted {
    /// Do this once, for callgrind.
    #[arg(long, hide = true, requires = "live")]
    pub(crate) counted: Option<Work>,
    /// Among so many live mappings.
    #[arg(long, hide = true)]
    pub(crate) live: Option<usize>,
}

/// Does the work among `live` mappings, all of it uncounted but [`counted`].
pub(crate) fn work(work: Work, live: usize) -> Result<(), DmaBenchError> {
    on_cpu(MachineConfig { cpus: 1, ..MachineConfig::default() }, move |cpu| {
        let device = DmaDevice::new(cpu.kernel_ref(), "bench");
        device.set_mask(cpu, dma_bit_mask(64))?;
        let mut spare = Vec::with_capacity(TIMES);
        let mut mapped = Vec::with_capacity(live);
        // The ones that come and go lie between those that stay, all over the range.
        let step = (live / TIMES).max(1);
        for n in 0..live.max(TIMES) {
            if n % step == 0 && spare.len() < TIMES {
                spare.push(Some(KBuf::kmalloc(cpu, LEN, GFP_KERNEL)?));
            }
            if n < live {
                let buf = KBuf::kmalloc(cpu, LEN, GFP_KERNEL)?;
                mapped.push(device.map_single::<ToDevice>(cpu, buf).map_err(|error| error.why)?);
            }
        }
        let done = match work {
            Work::Map => counted(TIMES, |n| pair::<ToDevice>(cpu, &device, &mut spare[n])),
            Work::Read => read(&DmaPort::new(&device), &mapped),
        };
        give_back(cpu, mapped);
        done
    })
}

/// What callgrind counts.
#[inline(never)]
fn counted(times: usize, mut one: impl FnMut(usize) -> Result<(), DmaBenchError>) -> Result<(), DmaBenchError> {
    (0..times).try_for_each(|n| black_box(one(black_box(n))))
}

fn read(port: &DmaPort, mapped: &[Mapped<KBuf, ToDevice>]) -> Result<(), DmaBenchError> {
    let mut bytes = [0; LEN];
    counted(TIMES, |n| {
        let at = mapped[n * mapped.len() / TIMES].dma_addr().get();
        port.read_slice(&mut bytes, GuestAddress(at)).map_err(|_| DmaBenchError::Access { at })
    })
}

fn give_back(cpu: &Cpu<'_>, mapped: Vec<Mapped<KBuf, ToDevice>>) {
    mapped.into_iter().for_each(|one| drop(one.unmap(cpu)));
}

/// Instructions of one operation, from a run of this program under callgrind.
fn count(work: Work, live: usize) -> Result<u64, CliError> {
    let name = work.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let mut valgrind = Command::new("valgrind");
    valgrind.args([
        "--tool=callgrind",
        "--callgrind-out-file=/dev/null",
        "--toggle-collect=*bench::dma::count::counted*",
    ]);
    valgrind.arg(std::env::current_exe()?).args(["bench", "dma", "--counted", &name, "--live", &live.to_string()]);
    let out = valgrind.stdin(Stdio::null()).output().map_err(DmaBenchError::NoValgrind)?;
    let text = String::from_utf8_lossy(&out.stderr);
    let collected = text.lines().filter_map(|line| line.split_once("Collected :")).next_back();
    let number = collected.and_then(|(_, number)| number.trim().parse::<u64>().ok()).filter(|&number| number > 0);
    let last = || text.lines().next_back().unwrap_or_default().to_owned();
    let number = number.filter(|_| out.status.success()).ok_or_else(|| DmaBenchError::NoCount(last()))?;
    Ok(number / TIMES as u64)
}

/// The slope of the logarithms: the exponent of the power of n that fits best.
fn exponent(costs: &[(usize, u64)]) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let points: Vec<_> = costs.iter().map(|&(n, cost)| ((n as f64).ln(), (cost as f64).ln())).collect();
    let count = f64::from(u32::try_from(points.len()).unwrap_or(u32::MAX));
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let rise: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    rise / points.iter().map(|point| (point.0 - x).powi(2)).sum::<f64>()
}

/// Counts everything and prints it; the counts as plots, and whether no cost grows faster than the logarithm.
pub(super) fn print(out: &mut dyn Write) -> Result<(Vec<Plot>, bool), CliError> {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    let header = LIVE.map(|live| live.to_string());
    table.set_header(
        ["instructions, live mappings:".to_owned()].into_iter().chain(header).chain(["exponent".to_owned()]),
    );
    let bar = ProgressBar::new(2 * LIVE.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:32} {pos} of {len} counts  {msg}") {
        bar.set_style(style);
    }
    let (mut good, mut plots) = (true, Vec::new());
    for (work, name) in [(Work::Map, "map and unmap of 64 bytes"), (Work::Read, "a read of the device")] {
        let mut costs = Vec::new();
        for live in LIVE {
            bar.set_message(format!("{name}, {live} live"));
            costs.push((live, count(work, live)?));
            bar.inc(1);
        }
        let fitted = exponent(&costs);
        good &= fitted < LOGARITHMIC;
        let rows = costs.iter().map(|&(live, cost)| Cost::exact(format!("among {live}"), cost)).collect();
        plots.push(Plot { title: format!("{name}, among live mappings"), unit: "instructions", rows });
        let cells = costs.iter().map(|(_, cost)| cost.to_string());
        table.add_row([name.to_owned()].into_iter().chain(cells).chain([format!("{fitted:.3}")]));
    }
    bar.finish_and_clear();
    table.lines().try_for_each(|line| writeln!(out, "{}", line.trim_end()))?;
    let verdict = if good { "no worse than log n" } else { "WORSE than log n" };
    writeln!(out, "{verdict}: the exponent of n that fits is below {LOGARITHMIC}")?;
    Ok((plots, good))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponent_tells_a_logarithm_from_a_root_and_a_line() {
        let of = |cost: fn(f64) -> f64| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let costs: Vec<_> = LIVE.iter().map(|&n| (n, cost(n as f64) as u64)).collect();
            exponent(&costs)
        };
        assert!(of(|_| 700.0).abs() < 1e-9);
        assert!((0.0..LOGARITHMIC).contains(&of(|n| 600.0 + 20.0 * n.log2())));
        assert!((of(|n| 10.0 * n.sqrt()) - 0.5).abs() < 0.01 && (of(|n| 3.0 * n) - 1.0).abs() < 0.01);
        assert!(of(|n| 600.0 + 0.1 * n) > LOGARITHMIC, "a memmove of all keys is found out");
    }
}
