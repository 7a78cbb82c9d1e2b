//! Kinds of drivers and devices, as far as the check of a scenario must know them.
//!
//! A scenario says `kind = "…"`; which there are depends on the program, which brings its own ([`crate::kit`]).
//! Neighbours: `check`, which refuses unknown ones; `kit`, which makes what a kind names. Left out: types of options,
//! which only their reader knows.

use crate::story::{STORIES, Story};

/// The kind of a virtio block device and its driver, which every program has.
pub const VIRTIO_BLK: &str = "virtio-blk";

/// The kind of QEMU's educational device and its driver, which every program has.
pub const EDU: &str = "edu";

/// The kind of a virtio network device and its driver, which every program has.
pub const VIRTIO_NET: &str = "virtio-net";

/// What the options of a [`VIRTIO_NET`] device are called.
pub(crate) const NET_OPTIONS: &[&str] = &["source", "seed", "interval_ns"];

/// One kind of driver or device.
///
/// ```
/// use lowzone::spec::Kind;
/// const SUM: Kind = Kind::new("sum").options(&["bytes"]);
/// assert_eq!((SUM.name, SUM.options, SUM.disks), ("sum", &["bytes"][..], false));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind {
    /// What scenario files call it.
    pub name: &'static str,
    /// The keys that may stand in its `options` table.
    pub options: &'static [&'static str],
    /// Of a driver: it makes disks, so that `io` and the other steps of disks work with it. Of a device: it has a
    /// store, which `size`, `image` or `size_of` describes.
    pub disks: bool,
    /// Of a driver: its devices move bytes to and from a buffer of their own, so that `dma` works with it.
    pub engine: bool,
    /// Of a driver: its devices send and receive packets, so that `packets` works with it.
    pub packets: bool,
}

impl Kind {
    /// A kind without options, disks, engine and packets.
    pub const fn new(name: &'static str) -> Self {
        Self { name, options: &[], disks: false, engine: false, packets: false }
    }

    /// The same with these keys in its `options` table.
    pub const fn options(self, options: &'static [&'static str]) -> Self {
        Self { options, ..self }
    }

    /// The same with disks.
    pub const fn disks(self) -> Self {
        Self { disks: true, ..self }
    }

    /// The same with packets.
    pub const fn packets(self) -> Self {
        Self { packets: true, ..self }
    }

    /// The same with a DMA engine.
    pub const fn engine(self) -> Self {
        Self { engine: true, ..self }
    }
}

/// All kinds that a program has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kinds {
    /// Of drivers.
    pub drivers: Vec<Kind>,
    /// Of devices.
    pub devices: Vec<Kind>,
    /// Stories.
    pub stories: Vec<StoryKind>,
}

/// A story, as far as the check of a scenario must know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoryKind {
    /// What scenario files call it.
    pub name: &'static str,
    /// The mistakes that it can make.
    pub mistakes: &'static [&'static str],
}

impl StoryKind {
    /// All that there are.
    pub(crate) fn all() -> Vec<Self> {
        STORIES.iter().map(|&Story { name, mistakes, .. }| Self { name, mistakes }).collect()
    }
}

/// Those that every program has.
impl Default for Kinds {
    fn default() -> Self {
        let blk = Kind::new(VIRTIO_BLK).disks();
        Self {
            drivers: vec![blk, Kind::new(EDU).engine(), Kind::new(VIRTIO_NET).packets()],
            devices: vec![blk, Kind::new(EDU), Kind::new(VIRTIO_NET).options(NET_OPTIONS)],
            stories: StoryKind::all(),
        }
    }
}

/// The kind of this name; of two, the first.
pub(super) fn find<'a>(kinds: &'a [Kind], name: &str) -> Option<&'a Kind> {
    kinds.iter().find(|kind| kind.name == name)
}
