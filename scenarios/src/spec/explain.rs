//! serde's and the TOML parser's complaints about values, in the words of scenario files.
//!
//! Only the message tells what serde refused, so it is taken apart here and nowhere else; a message that doesn't fit
//! any form is passed on as it is. Neighbours: `shape`, which has dealt with keys before. Left out: keys.

use super::Problem;
use super::nearest::nearest;
use super::path::KeyPath;
use super::schema;

/// The problem behind a parser's message; none of its callers knows more than the message.
pub(super) fn syntax(message: &str) -> Problem {
    Problem::Toml(one_line(message))
}

/// The problem behind serde's message about the value at `path`.
pub(super) fn value(message: &str, path: Option<&KeyPath>) -> Problem {
    let message = one_line(message);
    let key = path.map(KeyPath::leaf).unwrap_or_default().to_owned();
    if let Some((found, wanted)) = strip(&message, "unknown variant ").and_then(|rest| rest.split_once(", expected ")) {
        let value = found.trim_matches('`').to_owned();
        let valid: Vec<String> = wanted.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        let near = nearest(&value, valid.iter().map(String::as_str)).map(str::to_owned);
        return Problem::UnknownValue { key, value, near, valid };
    }
    let wrong = strip(&message, "invalid type: ").or_else(|| strip(&message, "invalid value: "));
    if let Some((found, wanted)) = wrong.and_then(|rest| rest.rsplit_once(", expected ")) {
        return Problem::Mismatch { key, found: found_word(found), expected: plain(wanted, path) };
    }
    Problem::WrongValue { key, reason: message }
}

fn strip<'a>(message: &'a str, prefix: &str) -> Option<&'a str> {
    message.strip_prefix(prefix)
}

fn one_line(message: &str) -> String {
    let lines: Vec<&str> = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ")
}

/// What serde found, in TOML's words.
fn found_word(found: &str) -> String {
    match found {
        "map" => "a table".to_owned(),
        "sequence" => "a list".to_owned(),
        other => other.replace('`', ""),
    }
}

/// What serde expected, without the names of Rust's types.
fn plain(wanted: &str, path: Option<&KeyPath>) -> String {
    let largest = match wanted {
        "u8" => u64::from(u8::MAX),
        "u16" => u64::from(u16::MAX),
        "u32" => u64::from(u32::MAX),
        "u64" => u64::MAX,
        "a boolean" => return "true or false".to_owned(),
        "a string" | "string or table" => return "a text in quotes".to_owned(),
        "a map" => return "a table".to_owned(),
        "a sequence" => return "a list".to_owned(),
        _ => return wanted.to_owned(),
    };
    match path.and_then(schema::at).map_or((None, None), |known| known.range) {
        (min, Some(max)) => format!("a whole number from {} to {max}", min.unwrap_or(0)),
        (min, None) if largest == u64::MAX => format!("a whole number from {}", min.unwrap_or(0)),
        (min, None) => format!("a whole number from {} to {largest}", min.unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_listed_and_the_nearest_offered() {
        let path = KeyPath::parse("step[0].io.memory").unwrap();
        let problem = value("unknown variant `hgih`, expected one of `high`, `low`, `coherent`", Some(&path));
        assert_eq!(problem.to_string(), "unknown value 'hgih' of 'memory'");
        assert_eq!(problem.help().as_deref(), Some("did you mean 'high'?"));
        let problem = value("unknown variant `x`, expected `a` or `b`", None);
        assert_eq!(problem.to_string(), "unknown value 'x'");
        assert_eq!(problem.help().as_deref(), Some("there is: a, b"));
    }

    #[test]
    fn types_lose_their_rust_names() {
        let path = KeyPath::parse("device[0].width").unwrap();
        let text = value("invalid value: integer `300`, expected u8", Some(&path)).to_string();
        assert_eq!(text, "wrong value of 'width': found integer 300, expected a whole number from 1 to 64");
        let text = value("invalid type: string \"a, expected u8\", expected a boolean", None).to_string();
        assert_eq!(text, "wrong value: found string \"a, expected u8\", expected true or false");
    }

    #[test]
    fn what_fits_no_form_is_passed_on_in_one_line() {
        assert_eq!(value("odd\nthing", None).to_string(), "wrong value: odd; thing");
        assert_eq!(syntax("a\n\n b\n").to_string(), "not valid TOML: a; b");
    }
}
