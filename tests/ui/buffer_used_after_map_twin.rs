use lowzone_guest_mem::dma::{DmaDevice, Mapped, ToDevice};
use lowzone_guest_mem::{Cpu, KBuf};

#[allow(dead_code, unused_mut)]
fn crime(cpu: &Cpu<'_>, device: &DmaDevice, mut buf: KBuf) {
    let _mapped: Mapped<KBuf, ToDevice> = device.map_single(cpu, buf).unwrap();
    _mapped.unmap(cpu).write_at(0, &[1]).unwrap();
}

fn main() {}
