//! `WireKind`: which wire a scenario runs on, and whether its story can be told there.
//!
//! A peer's devices reach memory unseen: findings about their accesses can't be had. A scenario that expects such a
//! finding still runs if it leaves evidence of another kind (a canary, failed requests, wrong data), and is held
//! against that; else it is skipped, and the reason named. Neighbours: `spec`, whose scenarios are looked at; `lab`,
//! which joins. Left out: worlds, of which a peer knows one only.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use super::{qtest, vhost_user};
use crate::spec::{Expect, Need, Scenario};

/// Findings that come from seeing each access of a device.
const FROM_DMA: [&str; 9] = [
    "iommu-fault",
    "beyond-width",
    "bus-master-off",
    "after-unmap",
    "wrong-direction",
    "outside-mapping",
    "not-mapped",
    "while-cpu-owns",
    "after-shutdown",
];

/// What joins the driver to its devices.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum WireKind {
    /// The lab's own devices in this process.
    #[default]
    InProc,
    /// QEMU's devices in an emulator without a guest.
    Qemu,
    /// The virtio block devices that peers serve at these sockets, one for each of the scenario's, in its order.
    VhostUser(Vec<PathBuf>),
}

/// Why a scenario is not run on a wire.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Skip {
    /// Its file says so.
    #[error("needs {0}")]
    Need(Need),
    /// All that it would show is a finding that nobody can see there.
    #[error("needs sees_dma: it is about the finding {finding}, and a peer's devices reach memory unseen")]
    Finding {
        /// The finding.
        finding: String,
    },
    /// A driver that promises more address bits than the scenario's device has wires for.
    #[error(
        "needs sees_dma: the driver promises {promised} address bits, {device} {beyond}s what is beyond its {width}, and {there} does not"
    )]
    Width {
        /// The device.
        device: String,
        /// What the driver promises.
        promised: u8,
        /// What the device decodes.
        width: u8,
        /// What it does with more.
        beyond: &'static str,
        /// What would stand in for it.
        there: &'static str,
    },
    /// Something that needs more than block devices at sockets.
    #[error("can't be told over vhost-user: {0}")]
    Socket(&'static str),
    /// Nothing of it crosses the wire.
    #[error("has no device")]
    NoDevice,
    /// A device that the wire has nothing like.
    #[error("QEMU has no device like {device}: {what}")]
    Device {
        /// The device.
        device: String,
        /// What of it.
        what: String,
    },
}

/// A wire that there is not.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("no wire '{0}'; there is: inproc, qemu, vhost-user=SOCKET")]
pub struct UnknownWire(String);

/// Wires that one run can't have together.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("one run has one wire, and {0} and {1} are two; only vhost-user=SOCKET is given once for each device")]
pub struct TwoWires(WireKind, WireKind);

impl WireKind {
    /// The one wire that several stand for: that of the lab's own devices if there is none, and sockets one after another.
    ///
    /// ```
    /// use lowzone::wire::WireKind;
    ///
    /// let given = ["vhost-user=a", "vhost-user=b"].map(|text| text.parse().unwrap());
    /// assert_eq!(WireKind::join(&given), Ok(WireKind::VhostUser(vec!["a".into(), "b".into()])));
    /// assert_eq!(WireKind::join(&[]), Ok(WireKind::InProc));
    /// assert!(WireKind::join(&[WireKind::Qemu, given[0].clone()]).is_err());
    /// ```
    ///
    /// # Errors
    /// [`TwoWires`].
    pub fn join(given: &[Self]) -> Result<Self, TwoWires> {
        let Some((first, rest)) = given.split_first() else { return Ok(Self::InProc) };
        rest.iter().try_fold(first.clone(), |all, next| match (all, next) {
            (Self::VhostUser(mut paths), Self::VhostUser(more)) => {
                paths.extend(more.iter().cloned());
                Ok(Self::VhostUser(paths))
            }
            (all, next) if all == *next => Ok(all),
            (all, next) => Err(TwoWires(all, next.clone())),
        })
    }

    /// Its name on the command line and in results.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::InProc => "inproc",
            Self::Qemu => "qemu",
            Self::VhostUser(_) => "vhost-user",
        }
    }

    /// Whether each access of a device is seen.
    pub const fn sees_dma(&self) -> bool {
        matches!(self, Self::InProc)
    }

    /// What a scenario must show on this wire.
    ///
    /// ```
    /// use lowzone::spec::{Source, load};
    /// use lowzone::wire::WireKind;
    ///
    /// let scenario = |name| load(&Source::embedded(name).unwrap(), &[]).unwrap();
    /// let low_zone = scenario("block/low-zone");
    /// assert_eq!(WireKind::Qemu.expects(&low_zone).unwrap(), low_zone.expect);
    /// let error = WireKind::Qemu.expects(&scenario("block/use-after-unmap")).unwrap_err();
    /// assert!(error.to_string().starts_with("needs sees_dma"));
    /// ```
    ///
    /// # Errors
    /// [`Skip`]: why it can't be shown there.
    pub fn expects(&self, scenario: &Scenario) -> Result<Expect, Skip> {
        let mut expect = scenario.expect.clone();
        if self.sees_dma() {
            return Ok(expect);
        }
        if scenario.device.is_empty() {
            return Err(Skip::NoDevice);
        }
        // What a peer does and when follows no seed.
        if let Some(&need) = scenario.needs.first() {
            return Err(Skip::Need(need));
        }
        if scenario.machine.weak {
            return Err(Skip::Need(Need::Lockstep));
        }
        match self {
            Self::InProc => {}
            Self::Qemu => qtest::map::fits(scenario)?,
            Self::VhostUser(_) => vhost_user::fits::fits(scenario)?,
        }
        let unseen = |name: &String| FROM_DMA.contains(&name.as_str());
        let evidence = expect.canary.is_some() || expect.failed_requests > 0 || expect.wrong_data > 0;
        match expect.findings.iter().find(|name| unseen(name)) {
            Some(finding) if !evidence => Err(Skip::Finding { finding: finding.clone() }),
            _ => {
                expect.findings.retain(|name| !unseen(name));
                Ok(expect)
            }
        }
    }
}

impl fmt::Display for WireKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for WireKind {
    type Err = UnknownWire;

    fn from_str(text: &str) -> Result<Self, UnknownWire> {
        match text.split_once('=') {
            None if text == "inproc" => Ok(Self::InProc),
            None if text == "qemu" => Ok(Self::Qemu),
            Some(("vhost-user", path)) if !path.is_empty() => Ok(Self::VhostUser(vec![PathBuf::from(path)])),
            _ => Err(UnknownWire(text.to_owned())),
        }
    }
}
