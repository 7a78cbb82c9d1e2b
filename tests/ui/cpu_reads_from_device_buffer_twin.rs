use lowzone_guest_mem::dma::{DmaDevice, FromDevice, Mapped};
use lowzone_guest_mem::{Cpu, KBuf};

#[allow(dead_code)]
fn crime(cpu: &Cpu<'_>, device: &DmaDevice, buf: KBuf) {
    let mut mapped: Mapped<KBuf, FromDevice> = device.map_single(cpu, buf).unwrap();
    mapped.sync_for_cpu(cpu).read_at(0, &mut [0]).unwrap();
}

fn main() {}
