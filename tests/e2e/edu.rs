//! QEMU's edu in process: its scenarios, what was measured with it, and a driver that survives what it does.

use std::sync::{Arc, Mutex};

use lowzone::expect::check;
use lowzone::explore::observer::Observer;
use lowzone::spec::CanaryState;
use lowzone::wire::{InProc, LabTap};
use lowzone::world::{Exit, Lockstep};
use lowzone_device::edu::{Hardware, edu};
use lowzone_device::pci::{AccessError, Beyond, PciFunction, Width};
use lowzone_driver::bus::PciBus;
use lowzone_driver::edu::{Edu, EduDriver, EduError, EduOptions, MOST, Way};
use lowzone_driver::pci::{PciDevice, enumerate};
use lowzone_driver::{Driver, ProbeError};
use lowzone_guest_mem::dma::{DmaDevice, DmaPort, FromDevice};
use lowzone_guest_mem::gfp::{GFP_DMA32, GFP_KERNEL};
use lowzone_guest_mem::kernel::{Machine, MachineConfig};
use lowzone_guest_mem::stats::leaks;
use lowzone_guest_mem::trace::Kind;
use lowzone_guest_mem::{Cpu, DmaAddr, KBuf};
use lowzone_tests::program::lowzone;
use lowzone_tests::scenario::{embedded, findings, lab, run, run_both};

const GOLDEN: &str = include_str!("../golden/edu.tsv");
const SECOND: u64 = 1_000_000_000;

/// A machine with one edu, by hand.
struct Rig {
    world: Lockstep,
    pci: Arc<PciDevice>,
    // Last: the machine is reset when it drops.
    machine: Machine,
}

type Wrap = dyn Fn(Arc<dyn PciFunction>) -> Arc<dyn PciFunction>;

impl Rig {
    fn new(hardware: Hardware, wrap: &Wrap) -> Self {
        let config = MachineConfig::default();
        let machine = Machine::acquire(config).unwrap();
        let wire = Arc::new(InProc::new(machine.kernel_ref(), config.cpus));
        machine.kernel().set_io_space(wire.clone());
        let (at, irq) = wire.next_slot();
        let dma = DmaDevice::new(machine.kernel_ref(), &at.to_string());
        let tap = LabTap::new(machine.kernel_ref(), &dma);
        let made = edu(hardware, irq, DmaPort::new(&dma), tap).unwrap();
        wire.plug(wrap(made.function), Some(made.slot));
        let bus: Arc<dyn PciBus> = wire.clone();
        let pci = enumerate(&bus, |_| Some(dma.clone())).unwrap().remove(0);
        let world = Lockstep::new(machine.kernel_ref(), wire, made.workers, 1);
        Self { world, pci, machine }
    }

    /// Runs `work` between probe and remove; what the probe said.
    fn bound(
        &mut self,
        options: EduOptions,
        work: impl FnOnce(&Cpu<'_>, &Edu) + Send + 'static,
    ) -> Result<(), ProbeError> {
        let outcome = Arc::new(Mutex::new(None));
        let (pci, told) = (self.pci.clone(), outcome.clone());
        let body = move |cpu: &Cpu<'_>| {
            let driver = EduDriver::new(options);
            let probed = lowzone_driver::bind(cpu, &driver, &pci).map(|bound| assert!(bound));
            if probed.is_ok() {
                work(cpu, &driver.card(pci.at()).unwrap());
                lowzone_driver::unbind(cpu, &driver, &pci);
            }
            *told.lock().unwrap() = Some(probed);
        };
        assert_eq!(self.world.run(vec![Box::new(body)]), [Exit::Finished]);
        assert_eq!(leaks(self.machine.kernel()).len(), 0);
        outcome.lock().unwrap().take().unwrap()
    }

    fn findings(&self) -> Vec<&'static str> {
        self.machine.kernel().findings().iter().map(|finding| finding.kind.name()).collect()
    }
}

fn page(cpu: &Cpu<'_>, dma32: bool, byte: u8) -> KBuf {
    let mut buf = KBuf::pages(cpu, 0, if dma32 { GFP_KERNEL | GFP_DMA32 } else { GFP_KERNEL }).unwrap();
    buf.write_at(0, &[byte; 4096]).unwrap();
    buf
}

/// The cells of a measured row that a page shows: `q` as the CPU sees a mapped one, `v` memory itself.
fn cells(letter: char, at: &[usize], page: &[u8; 4096]) -> Vec<(String, String)> {
    at.iter().map(|&at| (format!("{letter}{at}"), format!("{:02x}", page[at]))).collect()
}

/// What the CPU sees where a buffer lies, mapped or not.
fn look(cpu: &Cpu<'_>, at: lowzone_guest_mem::PhysAddr) -> [u8; 4096] {
    let mut bytes = [0; 4096];
    cpu.kernel().ram().read(at, &mut bytes).unwrap();
    bytes
}

/// Does what the measured module did, row by row: the device keeps its 256 bytes of 0xab all the way.
fn measure(cpu: &Cpu<'_>, edu: &Edu) -> Vec<(&'static str, Vec<(String, String)>)> {
    let (dma, four) = (edu.pci().dma().clone(), [0, 255, 256, 4095]);
    let sent = edu.dma_to_device(cpu, page(cpu, false, 0xab), 256).unwrap();
    let mut rows = vec![("ram_to_edu_256", vec![("bounced".to_owned(), u8::from(sent.bounced).to_string())])];
    let target = page(cpu, false, 0x11);
    let at = target.phys();
    let mut mapped = dma.map_single::<FromDevice>(cpu, target).unwrap();
    edu.transfer(cpu, Way::FromDevice, mapped.dma_addr(), 256).unwrap();
    rows.push(("edu_to_ram_256_before_sync", cells('q', &[0], &look(cpu, at))));
    let mut bytes = [0; 4096];
    mapped.sync_for_cpu(cpu).read_at(0, &mut bytes).unwrap();
    rows.push(("edu_to_ram_256_after_sync", cells('q', &four, &bytes)));
    drop(mapped.unmap(cpu));
    let back = edu.dma_from_device(cpu, page(cpu, false, 0x11), 256).unwrap().buf;
    rows.push(("partial_write_after_unmap", cells('q', &four, &look(cpu, back.phys()))));
    let coherent = dma.alloc_coherent(cpu, 4096, GFP_KERNEL).unwrap();
    edu.transfer(cpu, Way::FromDevice, coherent.dma_addr(), 256).unwrap();
    rows.push(("coherent_from_edu", cells('v', &[0, 255, 256], &look(cpu, coherent.phys()))));
    let low = page(cpu, true, 0x11);
    let raw = DmaAddr::new(low.phys().get() + (1 << 32));
    edu.transfer(cpu, Way::FromDevice, raw, 16).unwrap();
    rows.push(("raw_phys_above_4g_lands_in_low_page", cells('v', &[0, 15, 16], &look(cpu, low.phys()))));
    rows
}

#[test]
fn what_the_device_did_to_a_real_kernel_it_does_here() {
    let options = EduOptions { dma_mask: 32, coherent_mask: 32, ..EduOptions::default() };
    let mut rig = Rig::new(Hardware { width: 32, beyond: Beyond::Wrap }, &|function| function);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let rows = seen.clone();
    rig.bound(options, move |cpu, edu| *rows.lock().unwrap() = measure(cpu, edu)).unwrap();
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    let mut lines = GOLDEN.lines();
    let names: Vec<_> = lines.next().unwrap().split('\t').collect();
    let mut compared = 0;
    for (line, (what, cells)) in lines.zip(&seen) {
        let row: Vec<_> = names.iter().zip(line.split('\t')).filter(|(_, cell)| !cell.is_empty()).collect();
        assert!(row.contains(&(&"what", *what)), "{what}: {line}");
        // How long it took is the machine's affair.
        let measured = row.into_iter().filter(|(name, _)| !["boot", "what", "ms"].contains(name));
        let measured: Vec<_> = measured.map(|(name, cell)| ((*name).to_owned(), cell.to_owned())).collect();
        assert_eq!(*cells, measured, "{what}");
        compared += measured.len();
    }
    assert_eq!((seen.len(), GOLDEN.lines().count(), compared), (6, 7, 16));
    assert_eq!(rig.findings(), ["beyond-width", "not-mapped"], "the last row is a crime");
}

#[test]
fn a_transfer_of_more_than_qemu_bears_is_refused_before_the_device_hears_of_it() {
    let mut rig = Rig::new(Hardware::default(), &|function| function);
    rig.bound(EduOptions::default(), |cpu, edu| {
        let at = edu.buffer().dma_addr();
        for len in [0, MOST + 1, usize::MAX] {
            assert_eq!(edu.transfer(cpu, Way::ToDevice, at, len), Err(EduError::Length { len }));
        }
        assert_eq!(edu.transfer(cpu, Way::ToDevice, at, MOST), Ok(()));
        let short = KBuf::kmalloc(cpu, 8, GFP_KERNEL | lowzone_guest_mem::gfp::GFP_DMA).unwrap();
        let error = edu.dma_to_device(cpu, short, 9).unwrap_err();
        assert_eq!((error.why, error.buf.len()), (EduError::Length { len: 9 }, 8));
    })
    .unwrap();
    assert_eq!(rig.findings(), [""; 0]);
}

#[test]
fn work_that_does_not_end_in_time_is_stopped_and_the_next_goes_well() {
    let mut rig = Rig::new(Hardware::default(), &|function| function);
    // A transfer takes 100 ms, a factorial next to nothing.
    let impatient = EduOptions { timeout: SECOND / 20, ..EduOptions::default() };
    rig.bound(impatient, |cpu, edu| {
        let at = edu.buffer().dma_addr();
        for _ in 0..2 {
            let error = edu.transfer(cpu, Way::FromDevice, at, 16).unwrap_err();
            assert!(matches!(error, EduError::NoEnd { what: "transfer", .. }), "{error}");
            assert_eq!(edu.factorial(cpu, 10), Ok(3_628_800), "by interrupt again: MSI was put back");
        }
        assert_eq!(edu.missed_interrupts(), 0);
        edu.buffer().write(cpu, 0, &[0x77; 16]);
        lowzone_guest_mem::wait::sleep(cpu, SECOND).unwrap();
        assert_eq!(edu.buffer().read_u8(cpu, 0), 0x77, "what was given up never comes");
    })
    .unwrap();
    assert_eq!(rig.findings(), [""; 0]);
}

/// A function with one register that reads otherwise, or one that can't be reset.
struct Odd {
    inner: Arc<dyn PciFunction>,
    register: Option<(u64, u64)>,
}

impl PciFunction for Odd {
    fn config_read(&self, offset: u16, width: Width) -> u32 {
        self.inner.config_read(offset, width)
    }

    fn config_write(&self, offset: u16, width: Width, value: u32) {
        self.inner.config_write(offset, width, value);
    }

    fn decode(&self, addr: u64, width: Width) -> Option<(u8, u64)> {
        self.inner.decode(addr, width)
    }

    fn bar_read(&self, bar: u8, offset: u64, width: Width) -> Result<u64, AccessError> {
        let own = self.register.filter(|&(at, _)| at == offset);
        own.map_or_else(|| self.inner.bar_read(bar, offset, width), |(_, value)| Ok(value))
    }

    fn bar_write(&self, bar: u8, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        self.inner.bar_write(bar, offset, width, value)
    }

    fn reset(&self) {
        if self.register.is_some() {
            self.inner.reset();
        }
    }
}

fn odd(offset: u64, value: u64) -> Rig {
    Rig::new(Hardware::default(), &move |inner| Arc::new(Odd { inner, register: Some((offset, value)) }))
}

/// What a probe took by its managed calls, the first first.
const TAKEN: [&str; 5] =
    ["pcim_enable_device", "devm_ioremap", "dmam_alloc_coherent", "pcim_msi_release", "devm_request_irq"];

#[test]
fn what_a_probe_took_goes_in_the_reverse_order_when_the_driver_goes() {
    let mut rig = Rig::new(Hardware::default(), &|function| function);
    rig.machine.kernel().trace().capture();
    rig.bound(EduOptions::default(), |cpu, edu| {
        assert_eq!(edu.pci().devres().held(), TAKEN);
        assert_eq!(edu.factorial(cpu, 5), Ok(120));
    })
    .unwrap();
    assert_eq!(rig.pci.devres().held(), [""; 0]);
    let events = rig.machine.kernel().trace().take_captured();
    let last = |kind: Kind| events.iter().rposition(|(_, record)| record.kind == kind).unwrap();
    // The last register written turns its interrupts off; only then goes the handler, and memory after it.
    let order = [Kind::IrqEntry, Kind::MmioWrite, Kind::DmaFree].map(last);
    assert!(order.is_sorted(), "{order:?}");
    assert_eq!(rig.findings(), [""; 0]);
}

#[test]
fn a_probe_that_fails_midway_gives_back_what_it_has_in_the_reverse_order() {
    let mut held_at = Vec::new();
    let mut absorbed = 0;
    for n in 0.. {
        let mut rig = Rig::new(Hardware::default(), &|function| function);
        let (pci, told) = (rig.pci.clone(), Arc::new(Mutex::new(None)));
        let outcome = told.clone();
        rig.world.observe(Some(Observer::failing(n)));
        rig.world.run(vec![Box::new(move |cpu: &Cpu<'_>| {
            let driver = EduDriver::new(EduOptions::default());
            let probed = driver.probe(cpu, &pci).map_err(|error| error.errno());
            let held = pci.devres().held();
            driver.remove(cpu, &pci);
            *outcome.lock().unwrap() = Some((probed, held, pci.devres().release_all(cpu)));
        })]);
        let reached = rig.world.observe(None).unwrap().reached();
        let (probed, held, released) = told.lock().unwrap().take().unwrap();
        assert_eq!((leaks(rig.machine.kernel()).len(), rig.findings()), (0, vec![]), "point {n}: {probed:?}");
        assert!(released.iter().rev().eq(&held), "point {n}: {held:?} went as {released:?}");
        if probed.is_err() {
            assert_eq!(held, TAKEN[..held.len()], "point {n}");
            held_at.push(held.len());
        } else {
            absorbed += 1;
        }
        rig.bound(EduOptions::default(), |cpu, edu| assert_eq!(edu.factorial(cpu, 5), Ok(120))).unwrap();
        if !reached {
            break;
        }
    }
    held_at.dedup();
    assert_eq!(held_at, [0, 1, 2, 4], "without MSI it takes the pin, so that failure is none");
    assert!(absorbed > 1);
}

#[test]
fn what_is_no_edu_is_not_bound() {
    let probe = |offset, value| odd(offset, value).bound(EduOptions::default(), |_, _| {}).unwrap_err();
    let error = probe(0x00, 0x0100_00ee);
    assert_eq!((error.errno(), error.to_string().as_str()), (-19, "its id register reads 0x10000ee"));
    let error = probe(0x04, 0x1234_5678);
    let text = "the device is not alive: 0x12345678 reads back as 0x12345678";
    assert_eq!((error.errno(), error.to_string().as_str()), (-5, text));
    assert!(odd(0x00, 0x0200_00ed).bound(EduOptions::default(), |_, _| {}).is_ok(), "another version will do");
}

#[test]
fn a_device_at_work_that_nobody_asked_for_is_left_alone() {
    let mut rig = odd(0x98, 1);
    rig.bound(EduOptions::default(), |cpu, edu| {
        let at = edu.buffer().dma_addr();
        assert_eq!(edu.transfer(cpu, Way::FromDevice, at, 16), Err(EduError::Busy { what: "transfer" }));
        assert_eq!(edu.factorial(cpu, 5), Ok(120));
    })
    .unwrap();
    assert_eq!(rig.findings(), [""; 0]);
}

#[test]
fn a_device_that_no_reset_stops_is_cut_off_from_memory() {
    let mut rig = Rig::new(Hardware::default(), &|inner| Arc::new(Odd { inner, register: None }));
    rig.bound(EduOptions { timeout: SECOND / 20, ..EduOptions::default() }, |cpu, edu| {
        edu.buffer().write(cpu, 0, &[0x77; 16]);
        let error = edu.transfer(cpu, Way::FromDevice, edu.buffer().dma_addr(), 16).unwrap_err();
        assert!(matches!(error, EduError::NoEnd { .. }), "{error}");
        lowzone_guest_mem::wait::sleep(cpu, SECOND).unwrap();
        assert_eq!(edu.buffer().read_u8(cpu, 0), 0x77);
        assert_eq!(edu.factorial(cpu, 5), Err(EduError::Gone { what: "factorial" }));
    })
    .unwrap();
    assert_eq!(rig.findings(), ["bus-master-off"], "it tried");
}

#[test]
fn an_interrupt_that_tells_of_nothing_costs_time_and_no_result() {
    let mut rig = odd(0x24, 0);
    rig.bound(EduOptions { msi: false, ..EduOptions::default() }, |cpu, edu| {
        assert_eq!((edu.factorial(cpu, 5), edu.missed_interrupts()), (Ok(120), 1));
    })
    .unwrap();
    assert_eq!(rig.findings(), ["nobody-cared"], "the pin stays up, and no handler claims it");
}

#[test]
fn every_scenario_shows_what_it_expects_with_every_seed() {
    for name in ["edu/bounce", "edu/selftest", "edu/three-lows", "edu/swiotlb-out-of-reach", "edu/clamp"] {
        let file = embedded(name, &[]);
        for seed in 1..=5 {
            assert_eq!(check(&file.expect, &run(&file, seed)), [], "{name}, seed {seed}");
        }
    }
}

#[test]
fn the_three_lows_lie_in_three_places() {
    for result in run_both(&embedded("edu/three-lows", &[]), 1) {
        let row = |label: &str| result.dma.iter().find(|row| row.label == label).unwrap();
        let place = |label: &str| (row(label).zone.as_str(), row(label).compared, row(label).bounced);
        assert_eq!(place("GFP_DMA"), ("DMA", true, false));
        assert_eq!(place("28-bit mask"), ("DMA32", true, false));
        assert_eq!(place("GFP_DMA32 by luck"), ("DMA32", true, false));
        assert_eq!(place("GFP_DMA, held"), ("DMA", true, false));
        assert_eq!(place("28-bit mask, held"), ("DMA", true, false), "it obeys the mask, whatever zone that takes");
        assert_eq!(place("GFP_DMA32, 28 bits"), ("DMA32", false, false));
        assert_eq!(place("GFP_DMA32, 32 bits"), ("DMA32", true, false));
        assert_eq!(place("32-bit mask"), ("DMA32", true, false));
        for row in &result.dma {
            let limit = if row.zone == "DMA" { 16 << 20 } else { 4 << 30 };
            assert!(row.phys < limit && row.told.is_none_or(|at| at == row.phys && at <= row.mask), "{row:?}");
        }
        assert!(row("GFP_DMA32, 28 bits").phys >= 256 << 20);
    }
    // On a machine without RAM above 4 GiB there is no pool either.
    for small in run_both(&embedded("edu/three-lows", &["ram=2G"]), 1) {
        let log = &small.log;
        assert!(log[0].contains(": DMA addr 0x0000000010000000+1024 overflow (mask fffffff,"), "{log:?}");
    }
}

#[test]
fn a_pool_out_of_reach_is_told_once_in_linuxs_words_and_nothing_stays_mapped() {
    for result in run_both(&embedded("edu/swiotlb-out-of-reach", &[]), 1) {
        let line = "0000:00:01.0: swiotlb addr 0x00000000bc000000+1024 overflow (mask fffffff, bus limit 0).";
        assert_eq!(result.log.iter().filter(|text| *text == line).count(), 1, "{:?}", result.log);
        assert_eq!((result.devices[0].map_failures, result.devices[0].bytes, result.dma[0].told), (1, 2048, None));
    }
    let sets = ["driver.dma_mask=32", "device.width=32", "expect.failed_requests=0"];
    let wide = embedded("edu/swiotlb-out-of-reach", &sets);
    for result in run_both(&wide, 1) {
        assert_eq!(check(&wide.expect, &result), []);
        assert!(result.dma[0].bounced && result.dma[0].compared, "{:?}", result.dma[0]);
    }
}

#[test]
fn a_transfer_of_less_than_is_mapped_leaves_the_rest_as_it_was_through_the_pool_too() {
    for (sets, bounces) in [(&[][..], 16), (&["ram=2G"][..], 0)] {
        for result in run_both(&embedded("edu/bounce", sets), 1) {
            let (row, device) = (&result.exercises[0], &result.devices[0]);
            assert_eq!((row.done, row.wrong, device.bounces), (16, 0, bounces), "{sets:?}");
            // Each second time 128 of 2048 bytes stay where they are.
            assert_eq!(device.bytes, 8 * 4096 + 8 * (4096 - 128), "{sets:?}");
        }
    }
}

#[test]
fn a_promise_of_64_bits_is_silent_damage_and_one_of_28_an_error() {
    for guilty in run_both(&embedded("edu/clamp", &[]), 1) {
        let text = &guilty.findings.iter().find(|row| row.name == "beyond-width").unwrap().text;
        let told = guilty.dma.iter().filter_map(|row| row.told).find(|&at| at >> 32 != 0).unwrap();
        let hit = format!("at {told:#x}, which hit {:#x}", told & 0xfff_ffff);
        for say in ["28-bit width", &hit, "driver/src/edu/card.rs:", "step/canary.rs:"] {
            assert!(text.contains(say), "{say} in\n{text}");
        }
        assert_eq!((guilty.canary, guilty.failed_requests), (Some(CanaryState::Hit), 0), "nobody is told");
    }
    for honest in run_both(&embedded("edu/clamp", &["driver.dma_mask=28"]), 1) {
        assert_eq!((findings(&honest), honest.canary, honest.failed_requests), (vec![], Some(CanaryState::Intact), 1));
        assert!(!honest.dma[1].wrong && honest.dma[1].told.is_none());
    }
    for refused in run_both(&embedded("edu/clamp", &["beyond=refuse"]), 1) {
        assert_eq!((findings(&refused), refused.canary), (vec!["beyond-width"], Some(CanaryState::Intact)));
        assert!(refused.dma[1].wrong, "no register tells: the driver believes that all went well");
    }
}

#[test]
fn the_selftest_runs_by_message_and_by_pin() {
    for (sets, irq) in [(&[][..], 64), (&["msix=false"][..], 16)] {
        let mut lab = lab(&embedded("edu/selftest", sets), 1);
        lab.capture();
        let result = lab.run();
        assert_eq!((result.exercises[0].done, result.exercises[0].wrong, result.devices[0].interrupts), (16, 0, 48));
        let entries = lab.take_events().into_iter().filter(|(_, record)| record.kind == Kind::IrqEntry);
        let irqs: Vec<_> = entries.map(|(_, record)| record.addr).collect();
        assert_eq!(irqs, vec![irq; 48], "{sets:?}");
    }
}

#[test]
fn the_driver_mishandles_no_failure_of_the_selftest() {
    for sets in [&[][..], &["--set", "msix=false"]] {
        let outcome = lowzone(["explore", "edu/selftest"].iter().chain(sets));
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert!(outcome.stdout.contains(" 0 wrong, 0 not carried out"), "{}", outcome.stdout);
    }
}
