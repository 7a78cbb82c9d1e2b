use lowzone_guest_mem::dma::{DmaDevice, FromDevice, Mapped};
use lowzone_guest_mem::{Cpu, KBuf};

#[allow(dead_code)]
fn crime(cpu: &Cpu<'_>, device: &DmaDevice, buf: KBuf) {
    let mapped: Mapped<KBuf, FromDevice> = device.map_single(cpu, buf).unwrap();
    mapped.unmap(cpu).write_at(0, &[1]).unwrap();
}

fn main() {}
