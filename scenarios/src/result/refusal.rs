//! Why something was refused, as a row of a result.
//!
//! Neighbours: `lowzone_guest_mem::refusal`, whose answers these are; `render`, which prints them.

use lowzone_guest_mem::refusal::{Refusal, Refused, ZoneAnswer};
use serde::Serialize;

/// One request that found no memory.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct RefusalRow {
    /// Nanoseconds of the world's clock.
    pub at: u64,
    /// Who asked.
    pub site: String,
    /// The device it was asked for, if one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The order of the block, of pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<u8>,
    /// The mask, of pages.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gfp: String,
    /// What each zone said that the mask allows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<ZoneRow>,
    /// What the bounce pool said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots: Option<SlotsRow>,
    /// All of it in words.
    pub text: String,
}

/// One zone's answer.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct ZoneRow {
    /// The zone.
    pub zone: String,
    /// Pages free.
    pub free: u64,
    /// The mark they had to exceed.
    pub mark: u64,
    /// What is kept from such requests on top of it.
    pub reserve: u64,
    /// The order of the largest free block.
    pub largest: Option<u8>,
    /// Pages on CPUs' lists.
    pub listed: u64,
    /// `mark`, `fragmented` or `late`.
    pub why: &'static str,
}

/// The bounce pool's answer.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct SlotsRow {
    /// Bytes to be bounced.
    pub bytes: u64,
    /// Slots in a row that they take.
    pub wanted: u64,
    /// Slots of the pool.
    pub total: u32,
    /// Those in use.
    pub used: u32,
}

impl RefusalRow {
    pub(crate) fn of(refused: &Refused) -> Self {
        let row = Self {
            at: refused.at,
            site: refused.owner.to_string(),
            device: refused.device.clone(),
            text: refused.refusal.to_string(),
            ..Self::default()
        };
        match &refused.refusal {
            Refusal::Pages { order, gfp, zones } => {
                let zones = zones.iter().map(zone_row).collect();
                Self { order: Some(*order), gfp: gfp.to_string(), zones, ..row }
            }
            &Refusal::Slots { bytes, wanted, total, used } => {
                Self { slots: Some(SlotsRow { bytes, wanted, total, used }), ..row }
            }
        }
    }
}

fn zone_row(answer: &ZoneAnswer) -> ZoneRow {
    let ZoneAnswer { zone, free, mark, reserve, largest, listed, why } = *answer;
    ZoneRow { zone: zone.to_string(), free, mark, reserve, largest, listed, why: why.name() }
}
