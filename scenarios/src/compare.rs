//! Where the records of two runs part.
//!
//! Two digests that differ say that two runs differ; this names the first event in which they do. Times and addresses
//! are compared last: a run may differ in them and have the same digest.

use std::io::{self, Write};

use lowzone_guest_mem::trace::{Producer, Record};

/// One run's seed and events.
pub(crate) type Events = (u64, Vec<(Producer, Record)>);

/// The index of the first event that differs in kind, length or producer.
pub(crate) fn parting(a: &[(Producer, Record)], b: &[(Producer, Record)]) -> Option<usize> {
    let same =
        |x: &(Producer, Record), y: &(Producer, Record)| x.0 == y.0 && x.1.kind == y.1.kind && x.1.len == y.1.len;
    let common = a.iter().zip(b).position(|(x, y)| !same(x, y));
    common.or_else(|| (a.len() != b.len()).then(|| a.len().min(b.len())))
}

fn show(event: Option<&(Producer, Record)>) -> String {
    event.map_or_else(
        || "the record ends".to_owned(),
        |(who, r)| format!("{:>10} ns  by {:<3} {:<28} len {:<6} at {:#x}", r.ts, who.0, r.kind.name(), r.len, r.addr),
    )
}

/// Tells for each run where it parts from the first.
pub(crate) fn print(out: &mut dyn Write, runs: &[Events]) -> io::Result<()> {
    let Some(((first, a), rest)) = runs.split_first() else { return Ok(()) };
    for (seed, b) in rest {
        match parting(a, b) {
            None => writeln!(out, "seeds {first} and {seed}: {} events, none differs", a.len())?,
            Some(at) => {
                writeln!(out, "seeds {first} and {seed} part at event {at} of {} and {}:", a.len(), b.len())?;
                writeln!(out, "  seed {first:<6} {}\n  seed {seed:<6} {}", show(a.get(at)), show(b.get(at)))?;
            }
        }
    }
    Ok(())
}

/// Where a case parts from the clean run, with what came just before.
pub(crate) fn case(out: &mut dyn Write, clean: &[(Producer, Record)], faulty: &[(Producer, Record)]) -> io::Result<()> {
    const BEFORE: usize = 8;
    const AFTER: usize = 8;
    let Some(at) = parting(clean, faulty) else {
        return writeln!(out, "record   {} events, the same as without the fault", faulty.len());
    };
    writeln!(out, "record   parts from the clean run at event {at} of {} (clean: {})", faulty.len(), clean.len())?;
    for index in at.saturating_sub(BEFORE)..at {
        writeln!(out, "   {index:>7}  {}", show(faulty.get(index)))?;
    }
    for index in at..(at + AFTER).min(faulty.len()) {
        writeln!(out, " > {index:>7}  {}", show(faulty.get(index)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lowzone_guest_mem::trace::Kind;

    fn event(kind: Kind, len: u32) -> (Producer, Record) {
        (Producer(0), Record { ts: 0, addr: 0, len, kind, dev: 0, tag: 0 })
    }

    #[test]
    fn records_part_at_the_first_difference_or_where_one_ends() {
        let a = [event(Kind::Kmalloc, 1), event(Kind::Kfree, 1)];
        assert_eq!(parting(&a, &a), None);
        assert_eq!(parting(&a, &[a[0], event(Kind::Kfree, 2)]), Some(1));
        assert_eq!(parting(&a, &a[..1]), Some(1));
        assert_eq!(parting(&[], &a), Some(0));
    }
}
