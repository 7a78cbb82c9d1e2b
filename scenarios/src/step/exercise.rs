//! `exercise`: the driver's own work with one device, again and again, each result checked by the driver itself.
//!
//! It runs on one CPU; the others take interrupts. After work that failed it waits a little, as callers do: a device
//! that was given up may not be through yet. Neighbours: `kit::LabDriver`, which does the work.

use std::sync::Arc;

use super::bind::device_at;
use lowzone_guest_mem::wait::sleep;

use crate::kit::ExerciseError;
use crate::lab::{Bench, lock};
use crate::result::ExerciseRow;
use crate::spec::ExerciseStep;
use crate::world::Body;

/// How long nothing is asked of a device after work that failed, in nanoseconds.
const PAUSE: u64 = 200_000_000;

/// The body of an exercise.
pub(super) fn body(bench: &Arc<Bench>, step: &ExerciseStep, label: String) -> Body {
    let (bench, step) = (bench.clone(), step.clone());
    Box::new(move |cpu| {
        let slot = bench.slot(&step.device).filter(|slot| bench.is_bound(slot.at));
        let Some(device) = slot.and_then(|slot| device_at(&bench, slot.at)) else {
            return bench.failed(format!("{label}: {} has no driver", step.device));
        };
        let _span = cpu.span("exercise");
        bench.control.begin(0);
        let index = {
            let mut result = lock(&bench.result);
            result.exercises.push(ExerciseRow { label, device: step.device.clone(), ..ExerciseRow::default() });
            result.exercises.len() - 1
        };
        for nth in 0..step.times {
            if bench.control.stopped() {
                break;
            }
            let done = bench.driver.exercise(cpu, &device, nth);
            let failed = matches!(done, Err(ref error) if !matches!(error, ExerciseError::WrongData { .. }));
            note(&bench, &step, index, done);
            if failed && sleep(cpu, PAUSE).is_err() {
                break;
            }
        }
    })
}

fn note(bench: &Bench, step: &ExerciseStep, index: usize, done: Result<u64, ExerciseError>) {
    let mut result = lock(&bench.result);
    let Some(row) = result.exercises.get_mut(index) else { return };
    let why = match done {
        Ok(bytes) => {
            row.done += 1;
            row.bytes += bytes;
            return bench.control.advance(bytes);
        }
        Err(error) => error,
    };
    if let ExerciseError::WrongData { .. } = why {
        row.wrong += 1;
    } else {
        row.failed += 1;
        result.failed_requests += 1;
    }
    // They are counted; the first tells why.
    let text = format!("{}: exercise failed: {why}", step.device);
    if !result.log.contains(&text) {
        result.log.push(text);
    }
}
