//! The kernel's log, as `dmesg` would show it: rate-limited and printed once where Linux does so.
//!
//! Findings are the lab's own truth and never limited; this is what a person with only the real kernel would have
//! seen. Mirrors lib/ratelimit.c (10 in 5 s for each place) and WARN_ONCE. Neighbours: `kernel`, the DMA modules.

use crate::lock::Locked;
use crate::site::Site;

/// Lines a place may print in one interval (`DEFAULT_RATELIMIT_BURST`).
const BURST: u32 = 10;
/// The interval in nanoseconds (`DEFAULT_RATELIMIT_INTERVAL`).
const INTERVAL: u64 = 5_000_000_000;

/// How much a place may print, and what it is called when it printed too much (`DEFINE_RATELIMIT_STATE`).
pub(crate) struct Limit {
    /// In nanoseconds.
    pub(crate) interval: u64,
    /// Texts in one interval.
    pub(crate) burst: u32,
    /// The function that is named with the number of texts that were dropped; empty for none.
    pub(crate) function: &'static str,
}

/// One printed line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// When, in the world's nanoseconds.
    pub at: u64,
    /// The text, without the time.
    pub text: String,
}

struct Place {
    site: Site,
    begun: u64,
    printed: u32,
    suppressed: u64,
}

#[derive(Default)]
struct State {
    lines: Vec<Line>,
    places: Vec<Place>,
}

impl State {
    /// The index of a place, which is new if it never printed.
    fn place(&mut self, now: u64, site: Site) -> usize {
        self.places.iter().position(|p| p.site == site).unwrap_or_else(|| {
            self.places.push(Place { site, begun: now, printed: 0, suppressed: 0 });
            self.places.len() - 1
        })
    }

    fn print(&mut self, now: u64, text: &str) {
        self.lines.extend(text.lines().map(|line| Line { at: now, text: line.to_owned() }));
    }
}

/// The log of one kernel.
#[derive(Default)]
pub struct KernelLog(Locked<State>);

impl KernelLog {
    /// Prints a line, unless this place printed its share already (`dev_warn_ratelimited`).
    ///
    /// The text is made only if it is printed.
    pub fn ratelimited(&self, now: u64, site: Site, text: impl FnOnce() -> String) {
        self.limited(now, site, &Limit { interval: INTERVAL, burst: BURST, function: "" }, text);
    }

    /// Prints a text, unless this place printed its share already (`__ratelimit`).
    pub(crate) fn limited(&self, now: u64, site: Site, limit: &Limit, text: impl FnOnce() -> String) {
        let mut state = self.0.lock();
        let index = state.place(now, site);
        let place = &mut state.places[index];
        let mut missed = 0;
        if now.saturating_sub(place.begun) >= limit.interval {
            missed = std::mem::take(&mut place.suppressed);
            (place.begun, place.printed) = (now, 0);
        }
        if place.printed == limit.burst {
            place.suppressed += 1;
            return;
        }
        place.printed += 1;
        if missed > 0 {
            let function = if limit.function.is_empty() { String::new() } else { format!("{}: ", limit.function) };
            state.print(now, &format!("{function}{missed} callbacks suppressed"));
        }
        // Made only if it is printed; nothing that it reads needs the log.
        let text = text();
        state.print(now, &text);
    }

    /// Prints a line the first time this place comes by (WARN_ONCE).
    pub fn once(&self, now: u64, site: Site, text: String) {
        let mut state = self.0.lock();
        if !state.places.iter().any(|p| p.site == site) {
            state.places.push(Place { site, begun: now, printed: BURST, suppressed: 0 });
            state.lines.push(Line { at: now, text });
        }
    }

    /// Prints a text, a line for each of its lines, however often (`printk`).
    pub fn print(&self, now: u64, text: &str) {
        self.0.lock().print(now, text);
    }

    /// Every line so far.
    pub fn lines(&self) -> Vec<Line> {
        self.0.lock().lines.clone()
    }

    /// Lines that were not printed because their place printed too many.
    pub fn suppressed(&self) -> u64 {
        self.0.lock().places.iter().map(|p| p.suppressed).sum()
    }

    pub(crate) fn reset(&self) {
        let mut state = self.0.lock();
        state.lines.clear();
        state.places.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_in_five_seconds_then_a_count() {
        let log = KernelLog::default();
        let site = Site::caller();
        for i in 0..25 {
            log.ratelimited(i, site, || format!("line {i}"));
        }
        assert_eq!((log.lines().len(), log.suppressed()), (10, 15));
        log.ratelimited(INTERVAL, site, || "later".into());
        let lines = log.lines();
        assert_eq!(lines[10].text, "15 callbacks suppressed");
        assert_eq!(lines[11].text, "later");
    }

    #[test]
    fn a_limit_of_its_own_names_its_function() {
        let log = KernelLog::default();
        let limit = Limit { interval: 10, burst: 1, function: "warn_alloc" };
        let site = Site::caller();
        for now in 0..4 {
            log.limited(now, site, &limit, || "two\nlines".into());
        }
        log.limited(10, site, &limit, || "more".into());
        let lines: Vec<_> = log.lines().into_iter().map(|line| line.text).collect();
        assert_eq!(lines, ["two", "lines", "warn_alloc: 3 callbacks suppressed", "more"]);
    }

    #[test]
    fn once_means_once_a_place() {
        let log = KernelLog::default();
        let (a, b) = (Site::caller(), Site::caller());
        log.once(0, a, "a".into());
        log.once(1, a, "a".into());
        log.once(2, b, "b".into());
        assert_eq!(log.lines().len(), 2);
    }
}
