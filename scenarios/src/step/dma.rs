//! `dma`: bytes to the buffer that a device has of its own, and back, from memory of the scenario's choice.
//!
//! Each step sends other bytes, so that what comes back tells whose they are. Neighbours: `driver::edu`, which moves
//! them; `data`, which has the memory; `canary`, whose buffer goes before others.

use std::sync::Arc;

use lowzone_driver::blk::Data;
use lowzone_driver::edu::{Edu, EduError, Moved, Way};
use lowzone_guest_mem::dma::dma_bit_mask;
use lowzone_guest_mem::gfp::GFP_KERNEL;
use lowzone_guest_mem::{Cpu, DmaAddr};

use super::data;
use crate::lab::{Bench, Slot, lock};
use crate::result::DmaRow;
use crate::spec::{DmaDirection, DmaStep, Memory};
use crate::world::{Body, Random};

/// The body of a `dma` step.
pub(super) fn body(bench: &Arc<Bench>, step: &DmaStep, label: String, number: u64) -> Body {
    let (bench, step) = (bench.clone(), step.clone());
    Box::new(move |cpu| {
        let slot = bench.slot(&step.device);
        let (Some(slot), Some(card)) = (slot, slot.and_then(|slot| bench.driver.edu(slot.at))) else {
            return bench.failed(format!("{label}: {} has no driver", step.device));
        };
        let _span = cpu.span("dma");
        let word = |text: String| text.trim_matches('"').to_owned();
        let mut row = DmaRow {
            label,
            device: step.device.clone(),
            memory: serde_json::to_string(&step.memory).map(word).unwrap_or_default(),
            dir: serde_json::to_string(&step.dir).map(word).unwrap_or_default(),
            ..DmaRow::default()
        };
        if let Err(why) = go(cpu, &bench, (slot, &card), &step, number, &mut row) {
            row.failed = why;
        }
        (row.mask, row.coherent_mask) = (slot.dma.mask(), slot.dma.coherent_mask());
        let mut result = lock(&bench.result);
        if !row.failed.is_empty() {
            result.failed_requests += 1;
            result.log.push(format!("{}: {}: {}", step.device, row.label, row.failed));
        }
        result.dma.push(row);
    })
}

fn go(
    cpu: &Cpu<'_>,
    bench: &Bench,
    (slot, card): (&Slot, &Edu),
    step: &DmaStep,
    number: u64,
    row: &mut DmaRow,
) -> Result<(), String> {
    if let Some(bits) = step.mask {
        slot.dma.set_mask_and_coherent(cpu, dma_bit_mask(bits)).map_err(|error| error.to_string())?;
    }
    let len = usize::try_from(step.bytes.bytes()).unwrap_or(usize::MAX);
    let mut memory = take(cpu, bench, slot, step.memory, len)?;
    row.phys = data::phys(&memory).map_or(0, |at| at.get());
    row.zone = data::zone(&memory).map(|zone| zone.to_string()).unwrap_or_default();
    if step.dir != DmaDirection::FromDevice {
        let mut content = vec![0; len];
        Random::new(number).fill(&mut content);
        data::fill(cpu, &mut memory, &content);
        // What is there after a failure nobody knows.
        lock(&bench.sent).remove(&slot.name);
        memory = once(cpu, card, Way::ToDevice, (memory, len), row)?;
        lock(&bench.sent).insert(slot.name.clone(), content);
    }
    if step.dir != DmaDirection::ToDevice {
        let sent = lock(&bench.sent).get(&slot.name).cloned().unwrap_or_default();
        let mut seen: Vec<u8> = sent.iter().map(|byte| !byte).take(len).collect();
        data::fill(cpu, &mut memory, &seen);
        let memory = once(cpu, card, Way::FromDevice, (memory, len), row)?;
        data::read(cpu, &memory, &mut seen);
        row.compared = !seen.is_empty();
        row.wrong = !sent.starts_with(&seen);
    }
    Ok(())
}

/// The memory of the step: what a canary stands behind, or new.
fn take(cpu: &Cpu<'_>, bench: &Bench, slot: &Slot, memory: Memory, len: usize) -> Result<Data, String> {
    let marked =
        lock(&bench.canary).as_mut().filter(|_| memory == Memory::High).and_then(|canary| canary.buffer.take());
    match marked {
        Some(buffer) => Ok(Data::Streaming(buffer)),
        None => data::allocate(cpu, &slot.dma, memory, len, GFP_KERNEL).map_err(|error| error.to_string()),
    }
}

/// One transfer; the memory comes back.
fn once(cpu: &Cpu<'_>, card: &Edu, way: Way, (memory, len): (Data, usize), row: &mut DmaRow) -> Result<Data, String> {
    let text = |why: EduError| why.to_string();
    let (memory, at, bounced): (_, DmaAddr, _) = match memory {
        Data::Streaming(buf) => {
            let moved = match way {
                Way::ToDevice => card.dma_to_device(cpu, buf, len),
                Way::FromDevice => card.dma_from_device(cpu, buf, len),
            };
            let Moved { buf, at, bounced } = moved.map_err(|error| text(error.why))?;
            (Data::Streaming(buf), at, bounced)
        }
        Data::Shared(shared) => {
            let at = shared.dma_addr();
            card.transfer(cpu, way, at, len).map_err(text)?;
            (Data::Shared(shared), at, false)
        }
        Data::Raw(_) | Data::None => return Err(text(EduError::Length { len: 0 })),
    };
    row.told = Some(at.get());
    row.bounced |= bounced;
    row.bytes += len as u64;
    Ok(memory)
}
