//! Linux's fault injectors at work: asked at every point, heard in the kernel's log.
//!
//! Chance has a generator of its own, so that injectors which let everything pass change nothing about who runs when.
//! Neighbours: `guest_mem::fault`, which decides; the worlds, which ask after the campaign's observer. Left out: marks
//! on single tasks; all that a scenario's steps do counts as done by marked ones (`make-it-fail`).

use lowzone_guest_mem::env::{Point, Verdict};
use lowzone_guest_mem::fault::{Caller, FaultSpec};
use lowzone_guest_mem::kernel::Kernel;

use crate::world::Random;

/// Sets the stream of chance apart from the scheduler's, which has the same seed.
const STREAM: u64 = 0x000f_a117_1213_ec7e;

/// A set of injectors and their chance.
pub(in crate::world) struct Injectors {
    spec: FaultSpec,
    random: Random,
}

impl Injectors {
    /// None yet, in a world of this seed.
    pub(in crate::world) fn new(seed: u64) -> Self {
        Self { spec: FaultSpec::default(), random: Random::new(seed ^ STREAM) }
    }

    /// Puts other ones in their place, which come back.
    pub(in crate::world) fn replace(&mut self, spec: FaultSpec) -> FaultSpec {
        std::mem::replace(&mut self.spec, spec)
    }

    /// The injectors.
    pub(in crate::world) fn spec(&self) -> &FaultSpec {
        &self.spec
    }

    /// Whether there is none.
    pub(in crate::world) fn is_empty(&self) -> bool {
        self.spec.is_empty()
    }

    /// Decides a point; a failure is told to the log as Linux does (`fail_dump`): the message, then the caller.
    pub(in crate::world) fn ask(&mut self, point: &Point, cpu: usize, kernel: Option<&Kernel>) -> Verdict {
        let Self { spec, random } = self;
        let caller = match point.request.caller {
            Caller::Interrupt => Caller::Interrupt,
            Caller::Task | Caller::MarkedTask => Caller::MarkedTask,
        };
        let mut draw = || u32::try_from(random.next() >> 32).unwrap_or(u32::MAX);
        let Some(forced) = spec.inject(&point.request.by(caller), &mut draw) else { return Verdict::Pass };
        if let (Some(message), Some(kernel)) = (forced.message, kernel) {
            let mut text = message.to_string();
            if message.stack {
                text += &format!("\nCPU: {cpu}\nCall Trace:\n {}", point.owner);
            }
            kernel.log().print(kernel.clock(), &text);
        }
        Verdict::Fail
    }
}
