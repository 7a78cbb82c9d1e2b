use lowzone_guest_mem::dma::{DmaDevice, Mapped, ToDevice};
use lowzone_guest_mem::{Cpu, KBuf};

#[allow(dead_code)]
fn crime(cpu: &Cpu<'_>, device: &DmaDevice, buf: KBuf) {
    let mapped: Mapped<KBuf, ToDevice> = device.map_single(cpu, buf).unwrap();
    let buf = mapped.unmap(cpu);
    drop(buf);
}

fn main() {}
