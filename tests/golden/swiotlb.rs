//! The bounce pool, filled to the last slot by one CPU with mappings of one size after the other.

use lowzone_guest_mem::dma::{Dir, DmaDevice, MapFailure, RawMapping, dma_bit_mask, misuse};
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::kernel::{Machine, MachineConfig};
use lowzone_guest_mem::{Cpu, KBuf};

use crate::calm::Calm;
use crate::table::{Golden, Inputs, Outputs};

const FULL: Golden = Golden {
    name: "swiotlb_full",
    text: include_str!("swiotlb_full.tsv"),
    inputs: &["boot", "what", "size", "nslabs", "nareas", "start_cpu"],
    compare: &["maps_until_error", "used", "first_dma_slot", "last_dma_slot", "err"],
};

/// A boot's machine and what is mapped on it.
struct Filled {
    boot: String,
    /// Before the machine that it is on.
    device: DmaDevice,
    machine: Machine,
    /// The CPU that maps.
    cpu: u32,
    maps: Vec<RawMapping>,
    /// The pool's first byte.
    base: Option<u64>,
}

impl Filled {
    fn new(row: &Inputs<'_>) -> Self {
        let (slots, cpus) = (row.number::<u64>("nslabs"), row.number("nareas"));
        let config = MachineConfig { cpus, swiotlb: slots * 2048, ..MachineConfig::default() };
        let machine = Machine::acquire(config).unwrap();
        let device = DmaDevice::new(machine.kernel_ref(), "0000:00:04.0");
        let (boot, cpu) = (row.get("boot").to_owned(), row.number("start_cpu"));
        device.set_mask_and_coherent(&Cpu::new(cpu, machine.kernel_ref(), &Calm), dma_bit_mask(32)).unwrap();
        Self { boot, device, machine, cpu, maps: Vec::new(), base: None }
    }

    fn step(&mut self, row: &Inputs<'_>) -> Outputs {
        let cpu = Cpu::new(self.cpu, self.machine.kernel_ref(), &Calm);
        let device = &self.device;
        let size = row.number("size");
        let buf = KBuf::pages(&cpu, 6, GFP_KERNEL).unwrap().truncated(size);
        assert!(buf.phys().get() >= 1 << 32, "beyond the device's mask");
        let map = |buf: &KBuf| misuse::map_single(&cpu, device, buf, Dir::ToDevice);
        let unmap = |map: RawMapping| misuse::unmap_single(&cpu, device, map.dma, map.len, Dir::ToDevice);
        let mut outputs = Vec::new();
        match row.get("what") {
            "fill" => {
                self.maps.extend(std::iter::from_fn(|| map(&buf).ok()));
                let lowest = self.maps.iter().map(|map| map.dma.get()).min().unwrap();
                let base = *self.base.get_or_insert(lowest);
                let slot = |map: &RawMapping| (map.dma.get() - base) / 2048;
                outputs.push(("maps_until_error", self.maps.len().to_string()));
                outputs.push(("first_dma_slot", self.maps.first().map(slot).unwrap().to_string()));
                outputs.push(("last_dma_slot", self.maps.last().map(slot).unwrap().to_string()));
            }
            "after_unmap_all" => self.maps.drain(..).for_each(unmap),
            "every_other_slot_free_then_map_2049" => {
                let (even, odd): (Vec<_>, Vec<_>) =
                    self.maps.drain(..).enumerate().partition(|(number, _)| number.is_multiple_of(2));
                even.into_iter().for_each(|(_, map)| unmap(map));
                self.maps = odd.into_iter().map(|(_, map)| map).collect();
                // What Linux's function returns in place of an address.
                let err = match map(&buf) {
                    Err(MapFailure::Swiotlb(_)) => (-12_i64).cast_unsigned(),
                    _ => 0,
                };
                outputs.push(("err", err.to_string()));
            }
            other => panic!("no such row: {other}"),
        }
        self.machine.kernel().validate().unwrap();
        outputs.push(("used", self.machine.kernel().swiotlb_usage().0.to_string()));
        outputs
    }
}

#[test]
fn golden_swiotlb_full() {
    let mut filled: Option<Filled> = None;
    FULL.run(|row| {
        if filled.as_ref().is_none_or(|filled| filled.boot != row.get("boot")) {
            filled = Some(Filled::new(row));
        }
        filled.as_mut().unwrap().step(row)
    });
}
