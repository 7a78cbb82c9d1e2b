use lowzone_guest_mem::dma::{DmaDevice, Mapped, ToDevice};
use lowzone_guest_mem::{Cpu, KBuf};

#[allow(dead_code, unused_mut)]
fn crime(cpu: &Cpu<'_>, device: &DmaDevice, buf: KBuf) {
    let mut mapped: Mapped<KBuf, ToDevice> = device.map_single(cpu, buf).unwrap();
    let mut window = mapped.sync_for_cpu(cpu);
    mapped.read_at(0, &mut [0]).unwrap();
    window.write_at(0, &[1]).unwrap();
}

fn main() {}
