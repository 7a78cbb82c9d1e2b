//! `lowzone inspect`: what `/proc` would say of a run's memory, and what is live between its devices and RAM, at its
//! end or after one of its steps.
//!
//! Neighbours: `lab`, which runs the steps; `guest_mem`, whose texts and books these are; `dma`, the rows of the latter.
//! Left out: judging; a run is `run`'s.

mod dma;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value};

use self::dma::{Bounce, Domain, Mappings};
use crate::cli::{CliError, source};
use crate::kit::Kit;
use crate::lab::{Control, Lab, Verify};
use crate::spec::{NamedMachine, Set};

/// Options of `lowzone inspect`.
#[derive(Args)]
pub(crate) struct Inspect {
    /// The scenario: a path to a .toml file, or a name that `list` shows. Default: the program's first.
    scenario: Option<String>,
    /// Look after this step, counted from 1. Default: after the last one, when all should be given back.
    #[arg(long, value_name = "STEP")]
    after: Option<usize>,
    /// Only these.
    #[arg(long, value_enum, value_name = "FILE")]
    file: Vec<File>,
    /// On a machine with this name, laid over the file's [machine].
    #[arg(long, value_enum, value_name = "NAME")]
    machine: Option<NamedMachine>,
    /// Replace a value of the scenario, such as machine.ram=2G.
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// The seed.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Print them as one JSON object, the texts of /proc as strings.
    #[arg(long)]
    json: bool,
}

/// What can be looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum File {
    /// Free blocks of each order, by zone.
    Buddyinfo,
    /// Watermarks, reserves and lists of each zone.
    Zoneinfo,
    /// Objects and slabs of each cache.
    Slabinfo,
    /// Areas of virtually contiguous memory.
    Vmallocinfo,
    /// Live DMA mappings of each device: where, how long, which way, by whom.
    Mappings,
    /// Slots and areas of the bounce pool: taken, at most, free runs.
    Swiotlb,
    /// What each device sees through its IOMMU, what is unmapped and not flushed yet included.
    Iommu,
}

impl File {
    const fn name(self) -> &'static str {
        match self {
            Self::Buddyinfo => "buddyinfo",
            Self::Zoneinfo => "zoneinfo",
            Self::Slabinfo => "slabinfo",
            Self::Vmallocinfo => "vmallocinfo",
            Self::Mappings => "mappings",
            Self::Swiotlb => "swiotlb",
            Self::Iommu => "iommu",
        }
    }

    fn path(self) -> String {
        match self {
            Self::Mappings | Self::Swiotlb | Self::Iommu => self.name().to_owned(),
            _ => format!("/proc/{}", self.name()),
        }
    }
}

/// What there is to see in one file.
enum Seen {
    Text(String),
    Mappings(Vec<Mappings>),
    Swiotlb(Option<Bounce>),
    Iommu(Vec<Domain>),
}

impl Seen {
    fn of(file: File, lab: &Lab) -> Self {
        let kernel = lab.kernel();
        match file {
            File::Buddyinfo => Self::Text(kernel.buddyinfo()),
            File::Zoneinfo => Self::Text(kernel.zoneinfo()),
            File::Slabinfo => Self::Text(kernel.slabinfo()),
            File::Vmallocinfo => Self::Text(lowzone_guest_mem::vmalloc::vmallocinfo(kernel)),
            File::Mappings => Self::Mappings(lab.dma_devices().map(|(name, dma)| Mappings::of(name, dma)).collect()),
            File::Swiotlb => Self::Swiotlb(Bounce::of(kernel)),
            File::Iommu => Self::Iommu(lab.dma_devices().filter_map(|(name, dma)| Domain::of(name, dma)).collect()),
        }
    }

    fn text(&self, out: &mut dyn Write) -> std::io::Result<()> {
        match self {
            Self::Text(text) => writeln!(out, "{}", text.trim_end()),
            Self::Mappings(devices) if devices.is_empty() => writeln!(out, "no device"),
            Self::Mappings(devices) => devices.iter().try_for_each(|device| device.text(out)),
            Self::Swiotlb(Some(pool)) => pool.text(out),
            Self::Swiotlb(None) => writeln!(out, "no bounce pool"),
            Self::Iommu(domains) if domains.is_empty() => writeln!(out, "no IOMMU"),
            Self::Iommu(domains) => domains.iter().try_for_each(|domain| domain.text(out)),
        }
    }

    fn json(&self) -> serde_json::Result<Value> {
        match self {
            Self::Text(text) => serde_json::to_value(text),
            Self::Mappings(devices) => serde_json::to_value(devices),
            Self::Swiotlb(pool) => serde_json::to_value(pool),
            Self::Iommu(domains) => serde_json::to_value(domains),
        }
    }
}

/// Runs the steps and prints what is there.
pub(crate) fn run(kit: &Kit, options: &Inspect) -> Result<ExitCode, CliError> {
    let name = options.scenario.as_deref().unwrap_or(kit.default_scenario());
    let given = options.set.iter().map(|set| Set::parse(set)).collect::<Result<Vec<_>, _>>()?;
    let sets: Vec<_> = options.machine.into_iter().flat_map(NamedMachine::sets).chain(given).collect();
    let scenario = kit.load(&source(kit, name)?, &sets)?;
    let steps = scenario.step.len();
    let last = options.after.unwrap_or(steps);
    if last > steps {
        return Err(CliError::NoStep { scenario: name.to_owned(), step: last, steps });
    }
    let control = Arc::new(Control::default());
    let mut lab = Lab::with_kit(kit, name, scenario, options.seed, Verify::Bytes, control)?;
    lab.run_to(last);
    let files = if options.file.is_empty() { File::value_variants() } else { &options.file };
    let mut out = anstream::stdout();
    if options.json {
        let seen = files.iter().map(|&file| Ok((file.name().to_owned(), Seen::of(file, &lab).json()?)));
        let seen = seen.collect::<serde_json::Result<Map<_, _>>>().map_err(std::io::Error::from)?;
        writeln!(out, "{}", serde_json::to_string_pretty(&seen).map_err(std::io::Error::from)?)?;
    } else {
        for &file in files {
            if files.len() > 1 {
                writeln!(out, "==> {} <==", file.path())?;
            }
            Seen::of(file, &lab).text(&mut out)?;
        }
    }
    // What the steps hold goes back before the machine does.
    lab.finish();
    Ok(ExitCode::SUCCESS)
}
