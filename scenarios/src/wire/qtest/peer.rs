//! Which devices QEMU gets, as its command line.
//!
//! Each takes a slot of bus 0, from 2 up: the ones before are the host bridge's and the ISA bridge's.
//! Neighbours: `process`, which runs the line; `spec`, whose devices are mapped on these. Left out: what QEMU's devices
//! can't be told, such as how many address bits they decode.

use std::fs::File;
use std::path::{Path, PathBuf};

use lowzone_driver::bus::Bdf;

use super::QtestError;
use super::process::scratch;
use crate::host::path_of;

/// The first slot that is free on QEMU's `pc`.
const FIRST_SLOT: u8 = 2;

/// What a block device of QEMU's stores its data in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Drive {
    /// Nothing: reads give zeros, writes are dropped.
    Null {
        /// The capacity in bytes.
        bytes: u64,
    },
    /// Memory, zeros at first.
    Memory {
        /// The capacity in bytes.
        bytes: u64,
    },
    /// A raw image file.
    Image {
        /// Its path.
        path: PathBuf,
    },
}

/// What both of QEMU's virtio block devices can be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlkPeer {
    /// Request queues.
    pub queues: u16,
    /// Entries of each.
    pub queue_size: u16,
    /// Takes no writes. A device elsewhere says so itself.
    pub read_only: bool,
    /// Offers EVENT_IDX.
    pub event_idx: bool,
    /// Offers INDIRECT_DESC.
    pub indirect: bool,
    /// Offers ACCESS_PLATFORM.
    pub access_platform: bool,
    /// Offers DISCARD and WRITE_ZEROES. A device elsewhere says so itself.
    pub discard: bool,
    /// Logical block size.
    pub blk_size: u32,
}

impl Default for BlkPeer {
    /// One queue of 128 with every feature.
    fn default() -> Self {
        Self {
            queues: 1,
            queue_size: 128,
            read_only: false,
            event_idx: true,
            indirect: true,
            access_platform: true,
            discard: true,
            blk_size: 512,
        }
    }
}

/// One of QEMU's devices.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Peer {
    /// `edu`, whose DMA engine ANDs addresses with this mask.
    Edu {
        /// The mask; QEMU's default is 28 bits.
        mask: u64,
    },
    /// `virtio-blk-pci`.
    Blk {
        /// Where its data is.
        drive: Drive,
        /// What it offers.
        options: BlkPeer,
    },
    /// `vhost-user-blk-pci`: the transport alone, the device is the process that listens on a socket.
    VhostUserBlk {
        /// The socket's path.
        socket: PathBuf,
        /// What it offers.
        options: BlkPeer,
    },
}

impl Peer {
    /// The place of the device with this number.
    pub(super) fn place(index: usize) -> Bdf {
        let device = u8::try_from(index).unwrap_or(u8::MAX).saturating_add(FIRST_SLOT);
        Bdf { bus: 0, device, function: 0 }
    }

    /// Its part of the command line, and the files that it names.
    pub(super) fn args(&self, index: usize, files: &mut Vec<File>) -> Result<Vec<String>, QtestError> {
        let slot = Self::place(index).device;
        match self {
            Self::Edu { mask } => Ok(vec!["-device".into(), format!("edu,addr={slot:#x},dma_mask={mask:#x}")]),
            Self::Blk { drive, options } => {
                let read_only = switch(options.read_only);
                let drive = format!("{},node-name=drive{index},read-only={read_only}", drive.option(files)?);
                let device = format!(
                    "virtio-blk-pci,addr={slot:#x},drive=drive{index},logical_block_size={size},physical_block_size={size},discard={clear},write-zeroes={clear},{}",
                    options.option(),
                    clear = switch(options.discard),
                    size = options.blk_size
                );
                Ok(vec!["-blockdev".into(), drive, "-device".into(), device])
            }
            Self::VhostUserBlk { socket, options } => {
                let chardev = format!("socket,id=peer{index},path={}", escaped(socket)?);
                let device = format!("vhost-user-blk-pci,addr={slot:#x},chardev=peer{index},{}", options.option());
                Ok(vec!["-chardev".into(), chardev, "-device".into(), device])
            }
        }
    }
}

impl BlkPeer {
    fn option(&self) -> String {
        format!(
            "disable-legacy=on,num-queues={},queue-size={},event_idx={},indirect_desc={},iommu_platform={}",
            self.queues,
            self.queue_size,
            switch(self.event_idx),
            switch(self.indirect),
            switch(self.access_platform)
        )
    }
}

impl Drive {
    fn option(&self, files: &mut Vec<File>) -> Result<String, QtestError> {
        match self {
            Self::Null { bytes } => Ok(format!("driver=null-co,read-zeroes=on,size={bytes}")),
            Self::Memory { bytes } => {
                let file = scratch("drive", *bytes)?;
                let option = format!("driver=file,locking=off,discard=unmap,filename={}", path_of(&file));
                files.push(file);
                Ok(option)
            }
            Self::Image { path } => Ok(format!("driver=file,filename={}", escaped(path)?)),
        }
    }
}

fn switch(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// A path as QEMU's option parser wants it: commas doubled.
fn escaped(path: &Path) -> Result<String, QtestError> {
    let text = path.to_str().ok_or_else(|| QtestError::Path { path: path.to_owned() })?;
    Ok(text.replace(',', ",,"))
}
