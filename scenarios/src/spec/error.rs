//! A problem with its place: file, line, column, and the line itself.
//!
//! `Display` is one plain line, `FILE:LINE:COL: message`; as a [`miette::Diagnostic`] it shows the line with a caret
//! and what would mend it. Neighbours: `problem`. Left out: more than one problem at a time.

use std::fmt;
use std::ops::Range;

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode};

use super::{Problem, Set, Source};

/// Why a scenario was not loaded.
#[derive(Clone, Debug)]
pub struct SpecError(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    problem: Problem,
    /// The file's name, or an option such as `--set path=value`.
    place: String,
    source: NamedSource<String>,
    bytes: Option<Range<usize>>,
    /// Line and column, from 1; of a file only.
    line: Option<(usize, usize)>,
}

impl SpecError {
    /// A problem at some bytes of a file, or with the file as a whole.
    pub(super) fn in_file(problem: Problem, source: &Source, bytes: Option<Range<usize>>) -> Self {
        let bytes = bytes.map(|bytes| clamp(&source.text, bytes));
        let line = bytes.as_ref().map(|bytes| line_and_column(&source.text, bytes.start));
        let place = source.name.clone();
        let source = NamedSource::new(&source.name, source.text.clone());
        Self(Box::new(Inner { problem, place, source, bytes, line }))
    }

    /// A problem that a `--set` brought in.
    pub(super) fn in_set(problem: Problem, set: &Set) -> Self {
        let text = format!("{}={}", set.path, set.value);
        Self::in_argument("--set", problem, &text, 0)
    }

    /// A problem with the text of an option such as `--set` itself, from a byte of it on.
    pub(super) fn in_argument(option: &str, problem: Problem, text: &str, offset: usize) -> Self {
        let place = format!("{option} {text}");
        let bytes = Some(clamp(text, offset..text.len()));
        let source = NamedSource::new(option, text.to_owned());
        Self(Box::new(Inner { problem, place, source, bytes, line: None }))
    }

    /// What is wrong.
    pub fn problem(&self) -> &Problem {
        &self.0.problem
    }

    /// The line of the file, from 1; `None` if an option is to blame, or the file as a whole.
    pub fn line(&self) -> Option<usize> {
        self.0.line.map(|(line, _)| line)
    }

    /// The column in that line, in characters from 1.
    pub fn column(&self) -> Option<usize> {
        self.0.line.map(|(_, column)| column)
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { problem, place, line, .. } = &*self.0;
        let text = match line {
            Some((line, column)) => format!("{place}:{line}:{column}: {problem}"),
            None => format!("{place}: {problem}"),
        };
        // Names and values come from a file that anyone wrote: it must not break the line or speak to a terminal.
        text.chars()
            .try_for_each(|c| if c.is_control() { write!(f, "{}", c.escape_default()) } else { write!(f, "{c}") })
    }
}

impl std::error::Error for SpecError {}

impl Diagnostic for SpecError {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.0.problem.help().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.0.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let bytes = self.0.bytes.clone()?;
        Some(Box::new(std::iter::once(LabeledSpan::underline(bytes))))
    }
}

/// Bytes that lie in the text, on borders of its characters and in one line.
fn clamp(text: &str, bytes: Range<usize>) -> Range<usize> {
    let border = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let start = border(bytes.start);
    let line = text[start..].find('\n').map_or(text.len(), |length| start + length);
    start..border(bytes.end).clamp(start, line)
}

/// Line and column of a byte, both from 1.
fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..at];
    let start = before.rfind('\n').map_or(0, |end| end + 1);
    (before.matches('\n').count() + 1, before[start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use miette::{GraphicalReportHandler, GraphicalTheme};

    use super::*;

    #[test]
    fn the_report_shows_line_caret_and_help() {
        let source = Source { name: "x.toml".into(), text: "story = 'é'\n[machine]\nrma = '6G'\n".into() };
        let near = Some("ram".to_owned());
        let problem = Problem::UnknownKey { key: "rma".into(), near, elsewhere: vec![], valid: vec![] };
        let at = source.text.find("rma").unwrap();
        let error = SpecError::in_file(problem, &source, Some(at..at + 3));
        assert_eq!((error.line(), error.column()), (Some(3), Some(1)));
        assert_eq!(error.to_string(), "x.toml:3:1: unknown key 'rma'");
        let mut text = String::new();
        let theme = GraphicalTheme::none();
        GraphicalReportHandler::new_themed(theme).render_report(&mut text, &error).unwrap();
        assert!(text.contains("rma = '6G'"), "{text}");
        assert!(text.contains("^^^"), "{text}");
        assert!(text.contains("help: did you mean 'ram'?"), "{text}");
    }

    #[test]
    fn columns_count_characters_and_lines_end() {
        assert_eq!(line_and_column("", 0), (1, 1));
        assert_eq!(line_and_column("é = x", 3), (1, 3));
        assert_eq!(line_and_column("a\nbc", 2), (2, 1));
        assert_eq!(clamp("é\nb", 1..4), 0..2);
        assert_eq!(clamp("ab", 7..9), 2..2);
    }

    #[test]
    fn display_is_one_line_whatever_a_key_holds() {
        let source = Source { name: "x".into(), text: String::new() };
        let error = SpecError::in_file(Problem::MissingKey { key: "a\n\u{1b}[31m".into() }, &source, None);
        assert_eq!(error.to_string(), "x: missing key 'a\\n\\u{1b}[31m'");
    }
}
