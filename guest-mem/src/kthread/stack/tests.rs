use super::super::*;
use super::*;
use crate::dma::{Dir, MapFailure, RawMapping, misuse as raw};
use crate::env::Class;
use crate::kernel::MachineConfig;
use crate::testing::Lab;

/// Runs `body` as a thread of CPU 0, to its end.
fn in_thread(lab: &Lab, body: fn(&Cpu<'_>, &Current)) {
    let run = move |cpu: &Cpu<'_>, current: &Current| {
        body(cpu, current);
        0
    };
    kthread_run(&lab.cpu(), 0, run).unwrap().stop(&lab.cpu());
    assert!(lab.leaks().is_empty(), "{:?}", lab.leaks());
}

fn lab_32() -> Lab {
    Lab::of(MachineConfig { arch: Arch::X86_32, ram: 2 << 30, low: 2 << 30, ..MachineConfig::default() })
}

#[test]
fn variables_lie_one_below_the_other_until_they_go() {
    for lab in [Lab::new(), lab_32()] {
        in_thread(&lab, |cpu, current| {
            let size = usize::try_from(Stack::size(cpu)).unwrap();
            let first = current.on_stack(100).unwrap();
            {
                let second = current.on_stack(4096).unwrap();
                assert!(second.virt(cpu).get() + 4096 <= first.virt(cpu).get() && second.virt(cpu).get() % 16 == 0);
                assert_eq!(second.write(cpu, &[7; 5000]), 4096, "no more than it has");
                assert!(current.on_stack(size - 4096).is_none(), "the stack is full");
            }
            assert!(current.on_stack(size - 112).is_some());
            let mut seen = [1; 100];
            assert_eq!((first.read(cpu, &mut seen), seen, first.len(), first.is_empty()), (100, [0; 100], 100, false));
            assert_eq!(first.write(cpu, &[9; 2]) + first.read(cpu, &mut seen[..2]), 4);
            assert_eq!(seen[..3], [9, 9, 0]);
        });
        assert!(lab.findings().is_empty());
    }
}

#[test]
fn a_stack_of_vmalloc_is_at_a_multiple_of_its_size_and_other_than_the_direct_map() {
    in_thread(&Lab::new(), |cpu, current| {
        let all = current.on_stack(16 << 10).unwrap();
        let at = all.virt(cpu);
        assert!(crate::vmalloc::is_vmalloc_addr(cpu.kernel(), at) && at.get().is_multiple_of(STACK));
        let pages = crate::vmalloc::find_vm_area(cpu.kernel(), at).unwrap().pages;
        assert_eq!((pages, vmalloc::read(cpu, at.wrapping_add(STACK), &mut [0])), (4, 0), "a guard page behind it");
        assert_eq!(cpu.kernel().findings().len(), 1);
    });
    in_thread(&lab_32(), |cpu, current| {
        let at = current.on_stack(8 << 10).unwrap().virt(cpu);
        assert!(crate::vmalloc::virt_addr_valid(cpu.kernel(), at) && current.on_stack(1 << 14).is_none());
    });
}

fn device(cpu: &Cpu<'_>) -> crate::dma::DmaDevice {
    let device = crate::dma::DmaDevice::new(cpu.kernel_ref(), "card");
    device.set_mask_and_coherent(cpu, u64::MAX).unwrap();
    device
}

fn unmap(cpu: &Cpu<'_>, device: &crate::dma::DmaDevice, mapped: RawMapping) {
    raw::unmap_single(cpu, device, mapped.dma, mapped.len, Dir::ToDevice);
}

#[test]
fn its_address_is_refused_as_every_one_of_vmallocs() {
    let lab = Lab::new();
    in_thread(&lab, |cpu, current| {
        let (variable, device) = (current.on_stack(64).unwrap(), device(cpu));
        let refused = misuse::map_single(cpu, &device, &variable, Dir::ToDevice).err();
        assert_eq!(refused, Some(MapFailure::Vmalloc { len: 64 }));
    });
    assert_eq!(
        (lab.findings(), lab.log()),
        (vec!["map-vmalloc"], vec!["card: rejecting DMA map of vmalloc memory".into()])
    );
}

#[test]
fn by_its_page_it_is_mapped_and_told_to_be_a_stack() {
    let lab = Lab::new();
    in_thread(&lab, |cpu, current| {
        let (variable, device) = (current.on_stack(64).unwrap(), device(cpu));
        assert_eq!(variable.write(cpu, &[5; 64]), 64);
        let mapped = misuse::map_page(cpu, &device, &variable, Dir::ToDevice).unwrap();
        let mut seen = [0; 64];
        cpu.kernel().ram().read(PhysAddr::new(mapped.dma.get()), &mut seen).unwrap();
        assert_eq!(seen, [5; 64], "the device would see the variable");
        unmap(cpu, &device, mapped);
    });
    assert_eq!(lab.findings(), ["map-stack"]);
    let text = lab.kernel().findings()[0].to_string();
    assert!(text.contains("device driver maps memory from stack [probable addr=ffffc9"), "{text}");
    assert!(text.ends_with("Linux prints this under CONFIG_DMA_API_DEBUG"), "{text}");

    let lab = lab_32();
    in_thread(&lab, |cpu, current| {
        let (variable, device) = (current.on_stack(64).unwrap(), device(cpu));
        let mapped = misuse::map_single(cpu, &device, &variable, Dir::ToDevice).unwrap();
        assert_eq!(Some(PhysAddr::new(mapped.dma.get())), variable.phys(cpu));
        unmap(cpu, &device, mapped);
    });
    let text = lab.kernel().findings()[0].kind.to_string();
    assert!(text.contains("device driver maps memory from stack [addr=00000000c"), "{text}");
}

/// Linux looks at the stack of the task that maps, and at no other.
#[test]
fn another_tasks_stack_is_not_told() {
    let lab = Lab::new();
    let stack = Stack::new(&lab.cpu(), 7).unwrap();
    let (variable, device) = (OnStack::new(&stack, 64).unwrap(), device(&lab.cpu()));
    for task in [8, 7] {
        let cpu = Cpu::of_task(0, task, lab.machine.kernel_ref(), &lab.solo);
        let mapped = misuse::map_page(&cpu, &device, &variable, Dir::ToDevice).unwrap();
        unmap(&cpu, &device, mapped);
        assert_eq!(lab.findings().len(), usize::from(task == 7));
    }
}

#[test]
fn each_allocation_for_it_can_fail_and_a_failure_leaves_nothing() {
    for (lab, points) in [(Lab::new(), 6), (lab_32(), 1)] {
        let cpu = lab.cpu();
        for nth in 0..points {
            lab.solo.fail_nth(nth);
            assert!(kthread_run(&cpu, 0, |_, _| 0).is_err(), "point {nth}");
            assert!(lab.leaks().is_empty());
        }
        lab.solo.points();
        kthread_run(&cpu, 0, |_, _| 0).unwrap().stop(&cpu);
        let passed = lab.solo.points();
        assert_eq!(passed.iter().filter(|class| class.may_fail()).count(), usize::try_from(points).unwrap());
        assert_eq!(passed.iter().filter(|class| **class == Class::Page).count(), if points == 1 { 1 } else { 4 });
    }
}
