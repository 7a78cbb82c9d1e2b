//! `Job`: what is measured, and the loop that does it on any side.

use std::sync::Barrier;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use lowzone::world::Random;

/// Pieces of a batch, and of what is handed over at once.
const BATCH: usize = 1000;
const PAIRS: usize = 20_000;
const BATCHES: usize = 10;

/// One thread's way to an allocator.
pub trait Ops {
    /// What is allocated.
    type Piece;
    /// Allocates a piece: bytes of an object, the order of pages.
    fn take(&self, size: usize) -> Self::Piece;
    /// Frees it.
    fn give(&self, piece: Self::Piece);
}

/// An allocator.
pub trait Side: Sync {
    /// What is allocated.
    type Piece: Send;
    /// What the table calls it.
    fn name(&self) -> &'static str;
    /// Does a task on the calling thread as CPU `cpu`.
    fn on<T: Task<Self::Piece>>(&self, cpu: u32, task: T) -> T::Out;
}

/// What one thread does, compiled for each allocator: no call goes through a table.
pub trait Task<P> {
    /// What it gives.
    type Out;
    /// Does it.
    fn run<O: Ops<Piece = P>>(self, ops: &O) -> Self::Out;
}

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// An allocation, then its free, again and again.
    Pair,
    /// A batch of allocations, then their frees in random order.
    Batch,
    /// One thread allocates, another frees.
    Handoff,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Job {
    pub kind: Kind,
    /// Bytes, or an order.
    pub size: usize,
    pub threads: u32,
}

impl Job {
    pub const fn pair(size: usize, threads: u32) -> Self {
        Self { kind: Kind::Pair, size, threads }
    }

    pub const fn batch(size: usize, threads: u32) -> Self {
        Self { kind: Kind::Batch, size, threads }
    }

    pub const fn handoff(size: usize) -> Self {
        Self { kind: Kind::Handoff, size, threads: 2 }
    }
}

/// Nanoseconds of one allocation and one free, on each thread.
pub fn measure<S: Side>(side: &S, job: Job) -> f64 {
    match (job.kind, job.threads) {
        (Kind::Handoff, _) => handoff(side, job.size),
        (_, 1) => side.on(0, Alone { job, start: None }),
        (_, threads) => {
            let start = Barrier::new(threads as usize);
            let start = &start;
            std::thread::scope(|scope| {
                let each = |cpu| scope.spawn(move || side.on(cpu, Alone { job, start: Some(start) }));
                let all: Vec<_> = (0..threads).map(each).collect();
                all.into_iter().map(|thread| thread.join().unwrap()).sum::<f64>() / f64::from(threads)
            })
        }
    }
}

/// A job by one thread, at the same time as others.
struct Alone<'a> {
    job: Job,
    start: Option<&'a Barrier>,
}

impl<P> Task<P> for Alone<'_> {
    type Out = f64;

    fn run<O: Ops<Piece = P>>(self, ops: &O) -> f64 {
        if let Some(start) = self.start {
            start.wait();
        }
        let mut random = Random::new(self.job.size as u64 + 1);
        // The first pass fills lists and pages that every later one finds.
        pass(ops, self.job, &mut random);
        let begun = Instant::now();
        let done = pass(ops, self.job, &mut random);
        begun.elapsed().as_nanos() as f64 / done as f64
    }
}

fn pass<O: Ops>(ops: &O, job: Job, random: &mut Random) -> usize {
    if job.kind == Kind::Pair {
        (0..PAIRS).for_each(|_| ops.give(std::hint::black_box(ops.take(job.size))));
        return PAIRS;
    }
    let mut held = Vec::with_capacity(BATCH);
    for _ in 0..BATCHES {
        held.extend((0..BATCH).map(|_| ops.take(job.size)));
        while !held.is_empty() {
            let at = random.next() % held.len() as u64;
            ops.give(held.swap_remove(usize::try_from(at).unwrap()));
        }
    }
    BATCH * BATCHES
}

/// Allocates batches and hands them over.
struct Taker<P> {
    to: SyncSender<Vec<P>>,
    size: usize,
}

impl<P> Task<P> for Taker<P> {
    type Out = ();

    fn run<O: Ops<Piece = P>>(self, ops: &O) {
        for _ in 0..2 * BATCHES {
            // The other end stays until this one is gone.
            let _ = self.to.send((0..BATCH).map(|_| ops.take(self.size)).collect());
        }
    }
}

/// Frees what it is handed.
struct Freer<P>(Receiver<Vec<P>>);

impl<P> Task<P> for Freer<P> {
    type Out = ();

    fn run<O: Ops<Piece = P>>(self, ops: &O) {
        self.0.iter().flatten().for_each(|piece| ops.give(piece));
    }
}

fn handoff<S: Side>(side: &S, size: usize) -> f64 {
    let (to, from) = sync_channel(4);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || side.on(1, Freer(from)));
        side.on(0, Taker { to, size });
    });
    begun.elapsed().as_nanos() as f64 / (2 * BATCHES * BATCH) as f64
}
