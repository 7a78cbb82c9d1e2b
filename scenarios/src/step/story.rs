//! `story`: an allocator's story, one part on each CPU that takes part.
//!
//! Neighbours: `crate::story`, which has them. Left out: what a story shows.

use std::sync::Arc;

use crate::lab::{Bench, lock};
use crate::result::StoryRow;
use crate::spec::StoryStep;
use crate::story::{self, Part, StoryError, Telling};
use crate::world::Body;

/// The bodies of a story's parts; each part has a row of its own, in the order of CPUs.
pub(super) fn bodies(bench: &Arc<Bench>, step: &StoryStep) -> Vec<Body> {
    let Some(story) = story::find(&step.name) else {
        bench.failed(format!("there is no story {}", step.name));
        return Vec::new();
    };
    let parts = (story.parts)();
    let (count, cpus) = (parts.len(), bench.kernel.config().cpus as usize);
    if count > cpus {
        bench.failed(format!("story {} is told by {count} CPUs, and the machine has {cpus}", step.name));
        return Vec::new();
    }
    parts.into_iter().map(|part| body(bench, step, part)).collect()
}

fn body(bench: &Arc<Bench>, step: &StoryStep, part: Part) -> Body {
    let (bench, step) = (bench.clone(), step.clone());
    let row = StoryRow { story: step.name.clone(), mistake: step.mistake.clone(), facts: Vec::new() };
    let index = {
        let mut result = lock(&bench.result);
        result.stories.push(row);
        result.stories.len() - 1
    };
    Box::new(move |cpu| {
        let _span = cpu.span("story");
        let telling = Telling::new(cpu, step.mistake.as_deref());
        let told = part(&telling);
        let mut result = lock(&bench.result);
        if let Some(row) = result.stories.get_mut(index) {
            row.facts = telling.into_facts();
        }
        match told {
            Ok(()) => {}
            Err(error @ StoryError::Failed(_)) => {
                result.failed_requests += 1;
                result.log.push(format!("story {} {error}", step.name));
            }
            Err(error @ StoryError::Unexpected(_)) => result.errors.push(format!("story {}: {error}", step.name)),
        }
    })
}
