use lowzone_guest_mem::dma::{DmaDevice, Mapped, ToDevice};
use lowzone_guest_mem::{Cpu, KBuf};

#[allow(dead_code)]
fn crime(cpu: &Cpu<'_>, device: &DmaDevice, buf: KBuf) {
    let mut mapped: Mapped<KBuf, ToDevice> = device.map_single(cpu, buf).unwrap();
    mapped.write_at(0, &[1]).unwrap();
}

fn main() {}
