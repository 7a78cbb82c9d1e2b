use super::*;
use crate::dma::Coherent;
use crate::gfp::{GFP_ATOMIC, GFP_KERNEL};
use crate::testing::Lab;
use crate::zone::ZoneKind;

const MIB: u64 = 1 << 20;

fn plain() -> MachineConfig {
    MachineConfig { coherent: false, ..MachineConfig::default() }
}

/// All free pages of the machine's zones.
fn free(lab: &Lab) -> u64 {
    lab.kernel().memory.lock().zones.stats().iter().map(|zone| zone.free).sum()
}

#[test]
fn pieces_are_given_first_fit_and_aligned_to_their_order() {
    let mut pool = AtomicPool::below(0x30_0800, 8 * PAGE_SIZE).unwrap();
    assert_eq!((pool.base.get(), pool.pages), (0x2f_8000, 8));
    let page = |at: Option<PhysAddr>| at.map(|at| (at.get() - 0x2f_8000) / PAGE_SIZE);
    let given: Vec<_> = [1, 3, 1, 2, 2, 1].into_iter().map(|pages| page(pool.take(pages))).collect();
    assert_eq!(given, [Some(0), Some(4), Some(1), Some(2), None, Some(7)]);
    assert!(pool.give(PhysAddr::new(0x2f_c000)) && !pool.give(PhysAddr::new(0x2f_c000)));
    assert_eq!((page(pool.take(4)), page(pool.take(2)), page(pool.take(1))), (None, Some(4), Some(6)));
    assert_eq!(pool.take(9), None);
    assert_eq!(pool.take(u64::MAX), None);
    assert_eq!(AtomicPool::below(4096, 4096), None);
}

#[test]
fn each_machine_has_those_that_its_zones_allow() {
    let zones = |config: MachineConfig| {
        let lab = Lab::of(config);
        let pools = lab.kernel().atomic_pools.lock().clone();
        assert!(
            pools.ranges().all(|range| lab.kernel().ram().contains(range.start, range.end.get() - range.start.get()))
        );
        let zone = |pool: &AtomicPool| (config.arch.zone_of(pool.base), pool.pages * PAGE_SIZE);
        pools.0.iter().map(|pool| pool.as_ref().map(zone)).collect::<Vec<_>>()
    };
    use ZoneKind::{Dma, Dma32, Normal};
    // 768 KiB are asked for and a block of a MiB is taken.
    assert_eq!(zones(plain()), [Some((Normal, MIB)), Some((Dma32, MIB)), Some((Dma, MIB))]);
    let small = zones(MachineConfig { ram: 1 << 30, ..plain() });
    assert_eq!(small, [Some((Dma32, LEAST)), Some((Dma32, LEAST)), Some((Dma, LEAST))]);
    let wide = MachineConfig { arch: Arch::X86_32, ram: 2 << 30, low: 2 << 30, ..plain() };
    assert_eq!(zones(wide), [Some((Normal, 2 * LEAST)), None, Some((Dma, 2 * LEAST))]);
    assert_eq!(zones(MachineConfig { ram: 8 << 20, ..plain() }), [Some((Dma, LEAST)), None, Some((Dma, LEAST))]);
    assert_eq!(zones(MachineConfig { coherent: true, ..plain() }), [None, None, None]);
}

/// Takes atomic coherent memory until there is none.
fn exhaust(cpu: &Cpu<'_>, device: &DmaDevice) -> Vec<Coherent> {
    std::iter::from_fn(|| device.alloc_coherent(cpu, 128 << 10, GFP_ATOMIC).ok()).collect()
}

#[test]
fn who_cannot_wait_is_served_from_them_by_the_mask_and_then_from_lower_ones() {
    use ZoneKind::{Dma, Dma32, Normal};
    for (bits, zones) in
        [(24, vec![Dma; 8]), (32, [[Dma32; 8], [Dma; 8]].concat()), (64, [[Normal; 8], [Dma32; 8], [Dma; 8]].concat())]
    {
        let lab = Lab::of(plain());
        let (cpu, device) = (lab.cpu(), lab.device(bits));
        let before = free(&lab);
        let taken = exhaust(&cpu, &device);
        assert_eq!(taken.iter().map(Coherent::zone).collect::<Vec<_>>(), zones, "{bits} bits");
        assert_eq!((free(&lab), lab.log()), (before, vec!["Failed to get suitable pool for 0000:00:04.0".to_owned()]));
        let mut bytes = [1; 64];
        taken[0].read(&cpu, 65536, &mut bytes);
        assert_eq!(bytes, [0; 64]);
        taken[0].write(&cpu, 65536, &[7; 64]);
        assert_eq!(exhaust(&cpu, &device).len(), 0);
        let at = taken[0].dma_addr();
        drop(taken);
        let again = device.alloc_coherent(&cpu, 128 << 10, GFP_ATOMIC).unwrap();
        again.read(&cpu, 65536, &mut bytes);
        assert_eq!((again.dma_addr(), bytes), (at, [0; 64]), "given back, and zeroed anew");
        again.free(&cpu);
        assert_eq!((lab.leaks().len(), lab.findings()), (0, vec![]));
    }
}

#[test]
fn who_can_wait_and_coherent_devices_ask_the_page_allocator() {
    for (coherent, gfp) in [(false, GFP_KERNEL), (true, GFP_ATOMIC), (true, GFP_KERNEL)] {
        let lab = Lab::of(MachineConfig { coherent, ..plain() });
        let (cpu, device) = (lab.cpu(), lab.device(32));
        let before = free(&lab);
        let ring = device.alloc_coherent(&cpu, 5000, gfp).unwrap();
        assert_eq!(before - free(&lab), 2);
        drop(ring);
        assert_eq!(before, free(&lab));
    }
    let lab = Lab::of(plain());
    let (cpu, device) = (lab.cpu(), lab.device(32));
    assert_eq!(device.alloc_coherent(&cpu, 0, GFP_ATOMIC).unwrap_err(), CoherentError::NoPool { len: 0 });
    lab.solo.fail_nth(0);
    assert!(device.alloc_coherent(&cpu, 64, GFP_ATOMIC).is_err());
    assert_eq!(lab.log().len(), 1, "an injected failure is not told");
}

#[test]
fn behind_an_iommu_any_pool_does_and_a_reset_gives_all_back() {
    let config =
        MachineConfig { iommu: Some(crate::dma::iommu::IommuMode::Strict), ram: (6 << 30) + 0x7000, ..plain() };
    for _ in 0..2 {
        let lab = Lab::of(config);
        let (cpu, device) = (lab.cpu(), lab.device(24));
        let ring = device.alloc_coherent(&cpu, 4096, GFP_ATOMIC).unwrap();
        assert_eq!((ring.zone(), device.behind(ring.dma_addr())), (ZoneKind::Normal, Some(ring.phys())));
        assert!(ring.dma_addr().get() < 1 << 24 && ring.phys().get().is_multiple_of(MIB));
        std::mem::forget(ring);
    }
}
