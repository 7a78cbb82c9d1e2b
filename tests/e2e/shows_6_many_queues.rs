//! Four queues under random load: everything comes back, out of order, on every queue, direct and indirect.

use std::time::Instant;

use lowzone::expect::check;
use lowzone::result::RunResult;
use lowzone_tests::scenario::{embedded, lab, run};

#[derive(Default)]
struct Figures {
    least_peak: u32,
    out_of_order: u64,
    direct: u64,
    indirect: u64,
    bytes: u64,
}

fn assert_busy(result: &RunResult) {
    assert!(result.io[0].verified, "seed {}", result.seed);
    assert!(result.peak_in_flight >= 256, "seed {}: peak {}", result.seed, result.peak_in_flight);
    assert_eq!(result.queues.len(), 4);
    let sum = |part: fn(&lowzone::result::QueueRow) -> u64| result.queues.iter().map(part).sum::<u64>();
    assert!(result.queues.iter().all(|queue| queue.requests > 0), "{:?}", result.queues);
    assert!(sum(|queue| queue.direct) > 0 && sum(|queue| queue.indirect) > 0, "{:?}", result.queues);
    assert_eq!(sum(|queue| queue.requests), result.io[0].requests);
    assert_eq!(sum(|queue| queue.direct + queue.indirect), result.io[0].requests, "each chain one way or the other");
}

#[test]
fn shows_6_fifty_seeds_of_ten_thousand_random_requests() {
    let file = embedded("block/random-queues", &[]);
    let begun = Instant::now();
    let mut figures = Figures { least_peak: u32::MAX, ..Figures::default() };
    for seed in 1..=50 {
        let result = run(&file, seed);
        assert!(check(&file.expect, &result).is_empty(), "seed {seed}: {:?}", check(&file.expect, &result));
        assert_eq!(result.io[0].requests, 10_000);
        assert_busy(&result);
        let out_of_order = result.queues.iter().map(|queue| queue.out_of_order).sum::<u64>();
        assert!(out_of_order > 0, "seed {seed}");
        figures.least_peak = figures.least_peak.min(result.peak_in_flight);
        for queue in &result.queues {
            figures.out_of_order += queue.out_of_order;
            figures.direct += queue.direct;
            figures.indirect += queue.indirect;
        }
        figures.bytes += result.bytes();
    }
    let Figures { least_peak, out_of_order, direct, indirect, bytes } = figures;
    println!(
        "50 seeds in {:?}: {} MiB, peak at least {least_peak}, {out_of_order} out of order, {direct} direct, {indirect} indirect",
        begun.elapsed(),
        bytes >> 20,
    );
}

#[test]
fn shows_6_each_queues_index_wraps() {
    let file = embedded("block/random-queues", &["requests=300000", "max_bytes=4K"]);
    let begun = Instant::now();
    let result = lab(&file, 1).run();
    assert!(check(&file.expect, &result).is_empty(), "{:?}", check(&file.expect, &result));
    assert_busy(&result);
    for queue in &result.queues {
        assert!(queue.requests > 65_536, "an index has 16 bits: {queue:?}");
        println!("queue {}: {} requests, {} out of order", queue.queue, queue.requests, queue.out_of_order);
    }
    println!("300000 requests in {:?}", begun.elapsed());
}
