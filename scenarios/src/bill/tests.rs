//! A bill of calls whose sum is known.

use std::sync::Arc;

use lowzone_guest_mem::KBuf;
use lowzone_guest_mem::dma::{Bidirectional, FromDevice, dma_bit_mask};
use lowzone_guest_mem::gfp::GFP_KERNEL;

use super::*;
use crate::lab::{Control, Lab, Verify};
use crate::spec::{Source, load};

const FILE: &str = "
story = 'a disk that is found and let go'
[[device]]
name = 'vda'
kind = 'virtio-blk'
size = '1M'
[[step]]
probe = {}
[[step]]
remove = {}
";

/// The bill of some calls of a 32-bit device, which are made after its probe.
fn bill_of(
    calls: impl FnOnce(&lowzone_guest_mem::Cpu<'_>, &lowzone_guest_mem::dma::DmaDevice) + Send + 'static,
) -> DeviceBill {
    let file = load(&Source { name: "x.toml".into(), text: FILE.into() }, &[]).unwrap();
    let mut lab = Lab::new("x", file, 1, Verify::Bytes, Arc::new(Control::default())).unwrap();
    lab.keep_bill();
    let result = lab.run_after_first(|cpu, found| {
        found[0].dma().set_mask_and_coherent(cpu, dma_bit_mask(32)).unwrap();
        calls(cpu, found[0].dma());
    });
    let bill = lab.take_bill().unwrap();
    assert_eq!((result.findings.len(), result.errors.len(), bill.devices.len()), (0, 0, 1), "{result:?}");
    let device = bill.devices.into_iter().next().unwrap();
    let booked = device.cost.copied_in + device.cost.copied_back + device.unbooked_bytes;
    assert_eq!((booked, device.whole), (result.devices[0].bounced_bytes, true));
    device
}

#[test]
fn syncs_and_destructors_are_booked_where_the_mapping_was_made_and_an_object_once() {
    let device = bill_of(|cpu, device| {
        let buf = KBuf::kmalloc(cpu, 5000, GFP_KERNEL).unwrap();
        let mut first = device.map_single::<FromDevice>(cpu, buf).unwrap();
        drop(first.sync_for_cpu(cpu));
        let buf = first.unmap(cpu);
        let mut second = device.map_single::<Bidirectional>(cpu, buf).unwrap();
        drop(second.sync_for_cpu(cpu));
        drop(second.sync_range_for_cpu(cpu, 64, 100));
    });
    let ours: Vec<_> = device.sites.iter().filter(|site| site.site.contains("bill/tests.rs")).collect();
    let both = |copied_in, copied_back| Cost {
        maps: 1,
        bounces: 1,
        bounced: 5000,
        copied_in,
        copied_back,
        slots: 3,
        slots_at_once: 3,
        slot_waste: 3 * 2048 - 5000,
        ..Cost::default()
    };
    // The second is copied in anew by the end of each window, and out by its destructor too.
    assert_eq!((ours.len(), ours[0].cost), (2, both(5000 + 5000 + 100, 5000 + 100 + 5000)));
    assert_eq!(ours[1].cost, Cost { objects: 1, object_waste: 8192 - 5000, ..both(5000, 10000) });
    for site in ours {
        let (bytes, slots) = (site.cost.copied_in + site.cost.copied_back, site.cost.slots);
        assert_eq!(site.wider, Some(Wider { bits: 33, maps: 1, bytes, slots }));
    }
    assert_eq!((device.cost.slots, device.cost.slots_at_once, device.unbooked_bytes), (6, 3, 0));
}

#[test]
fn what_a_list_copied_before_it_failed_is_nobodys() {
    let device = bill_of(|cpu, device| {
        let bufs = vec![KBuf::kmalloc(cpu, 64, GFP_KERNEL).unwrap(), KBuf::pages(cpu, 7, GFP_KERNEL).unwrap()];
        assert!(device.map_sg::<_, FromDevice>(cpu, bufs).is_err(), "no mapping of 512 KiB bounces");
    });
    assert_eq!((device.unbooked_bytes, device.unbooked_slots), (64, 1));
    assert_eq!((device.cost.maps, device.cost.refused, device.cost.bounces, device.wider), (0, 2, 0, None));
}
