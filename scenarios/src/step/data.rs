//! The buffers of the steps: where they come from, and getting bytes in and out of them.

use lowzone_driver::blk::{Completed, Data, Disk, Pending, Request, SubmitError};
use lowzone_guest_mem::dma::{CoherentError, DmaDevice};
use lowzone_guest_mem::gfp::{GFP_ATOMIC, GFP_KERNEL, Gfp};
use lowzone_guest_mem::wait::sleep;
use lowzone_guest_mem::zone::{AllocError, ZoneKind};
use lowzone_guest_mem::{Cpu, KBuf, PhysAddr};
use thiserror::Error;

use crate::spec::{AllocGfp, Memory};

/// How long a submission that finds no room waits for another CPU's completion.
const RETRY_NS: u64 = 10_000_000;
/// How often it tries before it gives up: 2 s of virtual time.
const RETRIES: u32 = 200;

/// Why a step's buffer could not be had.
#[derive(Debug, Error)]
pub(super) enum BufferError {
    #[error(transparent)]
    Alloc(#[from] AllocError),
    #[error(transparent)]
    Coherent(#[from] CoherentError),
}

/// The flags that a step names.
pub(super) fn mask(gfp: AllocGfp) -> Gfp {
    match gfp {
        AllocGfp::Kernel => GFP_KERNEL,
        AllocGfp::Atomic => GFP_ATOMIC,
    }
}

/// A buffer of `len` bytes from where the step wants it.
pub(super) fn allocate(
    cpu: &Cpu<'_>,
    dma: &DmaDevice,
    memory: Memory,
    len: usize,
    gfp: Gfp,
) -> Result<Data, BufferError> {
    Ok(match memory {
        Memory::High => Data::Streaming(KBuf::kmalloc(cpu, len, gfp)?),
        Memory::Low => Data::Streaming(dma.alloc_pages(cpu, len, gfp)?),
        Memory::Coherent => Data::Shared(dma.alloc_coherent(cpu, len, gfp)?),
        Memory::GfpDma => Data::Streaming(zone_pages(cpu, len, gfp | Gfp::DMA)?),
        Memory::GfpDma32 => Data::Streaming(zone_pages(cpu, len, gfp | Gfp::DMA32)?),
    })
}

/// `len` bytes of whole pages of a zone: kmalloc would drop `GFP_DMA32`.
fn zone_pages(cpu: &Cpu<'_>, len: usize, zone: Gfp) -> Result<KBuf, AllocError> {
    let order = len.div_ceil(4096).next_power_of_two().ilog2();
    Ok(KBuf::pages(cpu, u8::try_from(order).unwrap_or(u8::MAX), GFP_KERNEL | zone)?.truncated(len))
}

/// Where a buffer lies.
pub(super) fn phys(data: &Data) -> Option<PhysAddr> {
    match data {
        Data::Streaming(buf) => Some(buf.phys()),
        Data::Shared(memory) => Some(memory.phys()),
        Data::Raw(_) | Data::None => None,
    }
}

/// The zone that a buffer lies in.
pub(super) fn zone(data: &Data) -> Option<ZoneKind> {
    match data {
        Data::Streaming(buf) => Some(buf.zone()),
        Data::Shared(memory) => Some(memory.zone()),
        Data::Raw(_) | Data::None => None,
    }
}

/// Whole pages that a buffer holds or shares.
pub(super) fn pages(data: &Data) -> u64 {
    data.len().div_ceil(4096)
}

/// Copies bytes into a buffer of at least as many.
pub(super) fn fill(cpu: &Cpu<'_>, data: &mut Data, bytes: &[u8]) -> bool {
    match data {
        Data::Streaming(buf) => buf.write_at(0, bytes).is_ok(),
        Data::Shared(memory) => {
            memory.write(cpu, 0, bytes);
            true
        }
        Data::Raw(_) | Data::None => false,
    }
}

/// Copies bytes out of a buffer of at least as many.
pub(super) fn read(cpu: &Cpu<'_>, data: &Data, bytes: &mut [u8]) -> bool {
    match data {
        Data::Streaming(buf) => buf.read_at(0, bytes).is_ok(),
        Data::Shared(memory) => {
            memory.read(cpu, 0, bytes);
            true
        }
        Data::Raw(_) | Data::None => false,
    }
}

/// Submits a request that the caller commits; where there is no room for it, calls `make_room`, or waits for others if that has none either.
pub(super) fn submit(
    cpu: &Cpu<'_>,
    disk: &Disk,
    queue: u16,
    request: Request,
    retries: &mut u64,
    mut make_room: impl FnMut() -> bool,
) -> Result<Pending, SubmitError> {
    let (op, sector) = (request.op, request.sector);
    let mut request = request;
    for _ in 0..RETRIES {
        match disk.submit_more(cpu, queue, request) {
            Err(SubmitError { data, why }) if why.is_temporary() => {
                *retries += 1;
                if !make_room() && sleep(cpu, RETRY_NS).is_err() {
                    return Err(SubmitError { data, why });
                }
                request = Request { op, sector, data };
            }
            other => return other,
        }
    }
    disk.submit_more(cpu, queue, request)
}

/// The data of a completed request that went well.
pub(super) fn good(completed: Completed) -> Result<Data, String> {
    match (completed.result, completed.data) {
        (Ok(()), Some(data)) => Ok(data),
        (Ok(()), None) => Err("the data did not come back".to_owned()),
        (Err(error), _) => Err(error.to_string()),
    }
}
