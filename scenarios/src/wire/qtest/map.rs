//! A scenario's devices as QEMU's.
//!
//! `virtio-blk` becomes `virtio-blk-pci`, `edu` becomes `edu`. QEMU's block device decodes 64 bits and its edu drops
//! what is beyond its mask, so a device is the same there only as long as its driver promises no more than it has, or
//! it drops bits too. Neighbours: `peer`, which makes options of them; `wire::kind`, which asks first. Left out:
//! `seg_max`, which QEMU derives from the queue's size.

use std::path::PathBuf;

use lowzone_guest_mem::dma::dma_bit_mask;

use super::peer::{BlkPeer, Drive, Peer};
use crate::spec::{Beyond, Device, EDU, Scenario, Step, StoreSpec, VIRTIO_BLK};
use crate::wire::kind::Skip;

/// The longest queue of QEMU's virtio devices (`VIRTQUEUE_MAX_SIZE`).
const QUEUE_MOST: u16 = 1024;

/// Whether every device of a scenario has its like there.
pub(crate) fn fits(scenario: &Scenario) -> Result<(), Skip> {
    let asked = scenario.step.iter().filter_map(|step| match step {
        Step::Dma(dma) => dma.mask,
        _ => None,
    });
    let promised = asked.chain([scenario.driver.dma_mask, scenario.driver.coherent_bits()]).max().unwrap_or(0);
    for device in &scenario.device {
        let unlike = |what: String| Skip::Device { device: device.name.clone(), what };
        let there = match device.kind.as_str() {
            VIRTIO_BLK if device.queue_size > QUEUE_MOST => {
                return Err(unlike(format!("queues of {} entries; {QUEUE_MOST} are the most", device.queue_size)));
            }
            VIRTIO_BLK => "QEMU's virtio-blk-pci",
            EDU if device.beyond == Beyond::Wrap => continue,
            EDU => "QEMU's edu",
            kind => return Err(unlike(format!("it is of kind '{kind}'"))),
        };
        // Without ACCESS_PLATFORM a driver hands over whatever address there is.
        let promised = if device.kind == VIRTIO_BLK && !device.access_platform { 64 } else { promised };
        let reach = if scenario.machine.high_bytes() == 0 { 32 } else { 64 };
        if promised.min(reach) > device.width {
            let beyond = if device.beyond == Beyond::Wrap { "wrap" } else { "refuse" };
            return Err(Skip::Width { device: device.name.clone(), promised, width: device.width, beyond, there });
        }
    }
    Ok(())
}

/// What stands in for a device whose store has so many bytes.
pub(crate) fn peer(device: &Device, capacity: u64) -> Peer {
    if device.kind == EDU {
        return Peer::Edu { mask: dma_bit_mask(device.width) };
    }
    let drive = match device.store() {
        Some(StoreSpec::Image(path)) => Drive::Image { path: PathBuf::from(path) },
        _ => Drive::Memory { bytes: capacity },
    };
    let options = BlkPeer {
        queues: device.queues,
        queue_size: device.queue_size,
        read_only: device.read_only,
        event_idx: device.event_idx,
        indirect: device.indirect,
        access_platform: device.access_platform,
        discard: device.discard,
        blk_size: device.blk_size,
    };
    Peer::Blk { drive, options }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Set, Source, load};

    fn scenario(name: &str, sets: &[&str]) -> Scenario {
        let sets: Vec<_> = sets.iter().map(|set| Set::parse(set).unwrap()).collect();
        load(&Source::embedded(name).unwrap(), &sets).unwrap()
    }

    #[test]
    fn a_device_fits_as_long_as_its_width_never_matters() {
        let fits = |name, sets: &[&str]| fits(&scenario(name, sets)).map_err(|skip| skip.to_string());
        assert_eq!(fits("block/low-zone", &[]), Ok(()));
        assert_eq!(fits("block/low-zone", &["dma_mask=64", "width=64"]), Ok(()));
        assert_eq!(fits("edu/clamp", &[]), Ok(()), "QEMU's drops bits as this one does");
        let needs = "needs sees_dma: the driver promises";
        assert_eq!(
            fits("block/too-wide", &[]),
            Err(format!(
                "{needs} 64 address bits, vda refuses what is beyond its 32, and QEMU's virtio-blk-pci does not"
            ))
        );
        assert_eq!(fits("block/too-wide", &["machine.ram=2G"]), Ok(()), "there is nothing beyond 32 bits");
        assert!(fits("block/low-zone", &["access_platform=false"]).unwrap_err().starts_with(needs));
        assert!(fits("edu/clamp", &["beyond=refuse"]).unwrap_err().ends_with("and QEMU's edu does not"));
        assert!(fits("edu/three-lows", &["step[1].dma.mask=40"]).is_err(), "a step may promise more");
    }

    #[test]
    fn what_qemu_has_nothing_like_is_named() {
        let error = fits(&scenario("block/low-zone", &["device.queue_size=2048"])).unwrap_err();
        assert_eq!(error.to_string(), "QEMU has no device like vda: queues of 2048 entries; 1024 are the most");
        let mut own = scenario("block/low-zone", &[]);
        own.device[0].kind = "mine".to_owned();
        assert_eq!(fits(&own).unwrap_err().to_string(), "QEMU has no device like vda: it is of kind 'mine'");
    }
}
