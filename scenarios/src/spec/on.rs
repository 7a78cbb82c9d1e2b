//! Machines that have a name, and the `[on.MACHINE]` tables: what a scenario shows there instead.
//!
//! A name stands for some keys of the `[machine]` table, laid over a scenario's own. Neighbours: `set`, which replaces
//! them; `matrix`, which runs every scenario on each. Left out: two names at once.

use std::fmt;

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Expect, Set};

/// A machine that has a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum NamedMachine {
    /// The scenario's own: bus addresses are physical ones, and what is out of reach bounces.
    Identity,
    /// A bridge adds 64 MiB to each address.
    BridgeOffset,
    /// An IOMMU that forgets what is unmapped at once.
    IommuStrict,
    /// An IOMMU that forgets it 10 ms or 256 unmaps later.
    IommuLazy,
    /// Every streaming mapping bounces.
    SwiotlbForce,
    /// Devices don't see the CPUs' caches.
    NonCoherent,
    /// 32 bits, with high memory.
    Highmem,
    /// 1 GiB of RAM: no zone Normal, and no bounce pool.
    Ram1g,
    /// No bounce pool.
    NoSwiotlb,
}

impl NamedMachine {
    /// As the command line and files have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::BridgeOffset => "bridge-offset",
            Self::IommuStrict => "iommu-strict",
            Self::IommuLazy => "iommu-lazy",
            Self::SwiotlbForce => "swiotlb-force",
            Self::NonCoherent => "non-coherent",
            Self::Highmem => "highmem",
            Self::Ram1g => "ram1g",
            Self::NoSwiotlb => "no-swiotlb",
        }
    }

    /// The keys it lays over a scenario's.
    ///
    /// ```
    /// use lowzone::spec::{NamedMachine, Source, load};
    ///
    /// let source = Source::embedded("block/low-zone").unwrap();
    /// let scenario = load(&source, &NamedMachine::NonCoherent.sets()).unwrap();
    /// assert!(!scenario.machine.coherent);
    /// ```
    pub fn sets(self) -> Vec<Set> {
        let keys: &[(&str, &str)] = match self {
            Self::Identity => &[],
            Self::BridgeOffset => &[("dma_offset", "64M")],
            Self::IommuStrict => &[("iommu", "strict")],
            Self::IommuLazy => &[("iommu", "lazy")],
            Self::SwiotlbForce => &[("swiotlb_force", "true")],
            Self::NonCoherent => &[("coherent", "false")],
            Self::Highmem => &[("arch", "x86-32")],
            Self::Ram1g => &[("ram", "1G"), ("low", "1G")],
            Self::NoSwiotlb => &[("swiotlb", "0")],
        };
        keys.iter().map(|(key, value)| Set { path: format!("machine.{key}"), value: (*value).to_owned() }).collect()
    }
}

impl fmt::Display for NamedMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a scenario shows on one machine instead of its `expect` table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "an [on.MACHINE] table")]
pub struct OnMachine {
    /// Why it differs there.
    pub why: String,
    /// What must be seen there. Default: its story can't be told there, and isn't run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
}

/// What a scenario shows on named machines where that is not its `expect` table.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case", expecting = "an [on] table of machines")]
pub struct On {
    /// On the machine with a bridge offset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge_offset: Option<OnMachine>,
    /// On the machine with a strict IOMMU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommu_strict: Option<OnMachine>,
    /// On the machine with a lazy IOMMU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iommu_lazy: Option<OnMachine>,
    /// On the machine where every streaming mapping bounces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swiotlb_force: Option<OnMachine>,
    /// On the machine whose devices don't see the CPUs' caches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub non_coherent: Option<OnMachine>,
    /// On the 32-bit machine with high memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub highmem: Option<OnMachine>,
    /// On the machine with 1 GiB of RAM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ram1g: Option<OnMachine>,
    /// On the machine without a bounce pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_swiotlb: Option<OnMachine>,
}

impl On {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What it says of a machine.
    pub fn of(&self, machine: NamedMachine) -> Option<&OnMachine> {
        match machine {
            NamedMachine::Identity => None,
            NamedMachine::BridgeOffset => self.bridge_offset.as_ref(),
            NamedMachine::IommuStrict => self.iommu_strict.as_ref(),
            NamedMachine::IommuLazy => self.iommu_lazy.as_ref(),
            NamedMachine::SwiotlbForce => self.swiotlb_force.as_ref(),
            NamedMachine::NonCoherent => self.non_coherent.as_ref(),
            NamedMachine::Highmem => self.highmem.as_ref(),
            NamedMachine::Ram1g => self.ram1g.as_ref(),
            NamedMachine::NoSwiotlb => self.no_swiotlb.as_ref(),
        }
    }
}
