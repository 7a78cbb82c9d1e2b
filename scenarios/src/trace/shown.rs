//! Texts of a file on their way to a terminal: what would move its cursor or turn its writing is shown by number.
//!
//! Neighbours: `cli`, whose views for people are written through [`Shown`]; `export::value`. Left out: JSON, which has
//! escapes of its own and says every text exactly.

use std::io::{self, Write};

/// Whether a character only prints.
pub(super) fn prints(c: char) -> bool {
    !(c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}'))
}

/// Lines of text in which everything prints.
pub(crate) fn lines(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' || prints(c) { safe.push(c) } else { safe.extend(c.escape_default()) }
    }
    safe
}

/// A writer of lines in which everything prints.
pub(super) struct Shown<W>(pub(super) W);

impl<W: Write> Write for Shown<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Formatted text comes in whole characters.
        let text = String::from_utf8_lossy(bytes);
        if text.chars().all(|c| c == '\n' || prints(c)) {
            self.0.write_all(bytes)?;
        } else {
            self.0.write_all(lines(&text).as_bytes())?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_and_what_turns_the_writing_are_shown_and_lines_stay() {
        let mut out = Shown(Vec::new());
        out.write_all("a\u{1b}[31m\u{7}\rb\n\u{202e}\u{9b}é<b>\n".as_bytes()).unwrap();
        assert_eq!(String::from_utf8(out.0).unwrap(), "a\\u{1b}[31m\\u{7}\\rb\n\\u{202e}\\u{9b}é<b>\n");
    }
}
