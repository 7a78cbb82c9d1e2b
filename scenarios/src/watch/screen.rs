//! The terminal while somebody watches: taken over, and given back whatever happens.
//!
//! It is given back when the [`Screen`] drops, and by the panic hook before the panic's own text, which would else be
//! written where nobody sees it. Drawn on standard error: the result goes to standard output. Neighbours: `draw`,
//! `progress`, which listens for signals.

use std::io::{self, IsTerminal, Stderr, Write};
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use thiserror::Error;

use super::draw::Board;
use crate::lab::Control;
use crate::world::panics::Quiet;

/// Why nobody can watch.
#[derive(Debug, Error)]
pub(crate) enum NoScreen {
    #[error(
        "--watch draws on a terminal, and standard error is none: leave it out, or see `lowzone report` afterwards"
    )]
    NoTerminal,
    #[error("--watch: the terminal can't be taken over: {0}")]
    Take(#[source] io::Error),
}

/// Whether the terminal is ours just now; one for the process, as the terminal is.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal and what is drawn on it.
pub(crate) struct Screen {
    terminal: Terminal<CrosstermBackend<Stderr>>,
    board: Board,
    begun: Instant,
}

/// Gives the terminal back if it is ours; whether it was.
fn give_back(mut out: impl Write, taken: &AtomicBool) -> bool {
    let ours = taken.swap(false, Ordering::SeqCst);
    if ours {
        // Nothing is left to be done about a terminal that takes no more.
        drop(disable_raw_mode());
        drop(execute!(out, LeaveAlternateScreen, Show));
    }
    ours
}

/// Has a panic's text come after the terminal was given back, a contained driver's too: its destructors may panic as
/// well, and then the process is gone without another word.
fn give_back_on_panic() {
    // The hook that keeps contained panics is put in first, so that this one comes before it.
    drop(Quiet::begin());
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        give_back(io::stderr(), &TAKEN);
        before(info);
    }));
}

impl Screen {
    /// Takes the terminal over.
    ///
    /// # Errors
    /// [`NoScreen`]: standard error is no terminal.
    pub(crate) fn take(board: Board) -> Result<Self, NoScreen> {
        if !io::stderr().is_terminal() {
            return Err(NoScreen::NoTerminal);
        }
        let terminal = Terminal::new(CrosstermBackend::new(io::stderr())).map_err(NoScreen::Take)?;
        give_back_on_panic();
        TAKEN.store(true, Ordering::SeqCst);
        // Not `Terminal::clear`: it asks where the cursor is, which not every terminal answers.
        let taken =
            enable_raw_mode().and_then(|()| execute!(io::stderr(), EnterAlternateScreen, Clear(ClearType::All)));
        if let Err(error) = taken {
            give_back(io::stderr(), &TAKEN);
            return Err(NoScreen::Take(error));
        }
        Ok(Self { terminal, board, begun: Instant::now() })
    }

    /// Draws a frame and looks at the keyboard for at most `wait`.
    pub(crate) fn tick(&mut self, control: &Control, wait: Duration) {
        if !TAKEN.load(Ordering::SeqCst) {
            return std::thread::park_timeout(wait);
        }
        let (board, since) = (&self.board, self.begun.elapsed());
        let drawn = self.terminal.draw(|frame| board.draw(frame, since, control.progress()));
        if drawn.is_err() || pressed(wait).unwrap_or(true) {
            control.stop();
        }
    }
}

/// Whether a key that ends the run is pressed within so long.
fn pressed(wait: Duration) -> io::Result<bool> {
    if !event::poll(wait)? {
        return Ok(false);
    }
    let Event::Key(key) = event::read()? else { return Ok(false) };
    let interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    Ok(key.kind == KeyEventKind::Press && (interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)))
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back(io::stderr(), &TAKEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_terminal_is_given_back_once() {
        let (mut out, taken) = (Vec::new(), AtomicBool::new(true));
        assert!(give_back(&mut out, &taken) && !give_back(&mut out, &taken));
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches("\u{1b}[?1049l").count(), 1, "{text:?}");
        assert!(text.contains("\u{1b}[?25h"), "{text:?}");
    }
}
