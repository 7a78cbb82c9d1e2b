//! Progress and Ctrl-C: what a person sees and says while a scenario runs.
//!
//! A thread of its own draws a bar (on a terminal only, after a moment), or a whole [`Screen`], and listens for Ctrl-C,
//! which asks the steps to end with everything in flight completed. The lab's own thread never waits for it.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use crate::lab::Control;
use crate::watch::Screen;

/// How often the bar is drawn.
const TICK: Duration = Duration::from_millis(100);
/// What ends within this many ticks gets no bar.
const PATIENCE: u32 = 3;

/// The thread that draws and listens; it ends when this drops.
pub(crate) struct Watch {
    over: Arc<AtomicBool>,
    bar: ProgressBar,
    screen: Place,
    thread: Option<JoinHandle<()>>,
}

/// Where the thread finds a screen to draw on.
type Place = Arc<Mutex<Option<Screen>>>;

impl Watch {
    /// Has a screen drawn from now on, in the bar's place.
    pub(crate) fn show(&self, screen: Screen) {
        *self.screen.lock().unwrap_or_else(PoisonError::into_inner) = Some(screen);
    }

    /// Clears the bar and gives the screen back, so that a result can be printed.
    pub(crate) fn pause(&self) {
        drop(self.screen.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.bar.finish_and_clear();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A watcher that died drew badly, no more.
            drop(thread.join());
        }
        self.pause();
    }
}

/// Begins to watch; Ctrl-C is listened for when this returns.
pub(crate) fn watch(control: &Arc<Control>) -> Watch {
    let over = Arc::new(AtomicBool::new(false));
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
    if let Ok(style) = ProgressStyle::with_template("{bar:32} {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left") {
        bar.set_style(style);
    }
    let (ready, listens) = mpsc::channel();
    let screen = Place::default();
    let thread = std::thread::Builder::new().name("lowzone-watch".into()).spawn({
        let (control, over, bar, screen) = (control.clone(), over.clone(), bar.clone(), screen.clone());
        move || watch_thread(&control, &over, (&bar, &screen), &ready)
    });
    // Of a thread that could not listen there is nothing to wait for.
    let _ = listens.recv();
    Watch { over, bar, screen, thread: thread.ok() }
}

fn watch_thread(control: &Control, over: &AtomicBool, (bar, screen): (&ProgressBar, &Place), ready: &Sender<()>) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
    let stop = Arc::new(AtomicBool::new(false));
    runtime.block_on(async {
        let asked = stop.clone();
        // Whoever is told to end gives the terminal back first.
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
            let Ok(mut told) = signal(kind) else { continue };
            let asked = asked.clone();
            tokio::task::spawn(async move {
                if told.recv().await.is_some() {
                    asked.store(true, Ordering::Relaxed);
                }
            });
        }
        // Whoever waits has gone on by itself if this can't be told.
        let _ = ready.send(());
        let mut ticks = 0_u32;
        while !over.load(Ordering::Relaxed) {
            // The listener needs the runtime's thread now and then; the pause itself is an ordinary one.
            tokio::task::yield_now().await;
            if stop.load(Ordering::Relaxed) {
                control.stop();
            }
            if let Some(screen) = screen.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
                screen.tick(control, TICK);
                continue;
            }
            std::thread::park_timeout(TICK);
            ticks += 1;
            let (done, total) = control.progress();
            if ticks == PATIENCE && std::io::stderr().is_terminal() {
                bar.set_draw_target(ProgressDrawTarget::stderr());
            }
            bar.set_length(total);
            bar.set_position(done);
        }
    });
}

/// The bar of so many things, on a terminal only; its message is the caller's.
pub(crate) fn bar(things: usize) -> ProgressBar {
    let visible = std::io::stderr().is_terminal();
    let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(things as u64), target);
    // The template is a constant; a bar without it would only look different.
    if let Ok(style) = ProgressStyle::with_template("{bar:32} {pos} of {len}  {msg}") {
        bar.set_style(style);
    }
    bar
}
