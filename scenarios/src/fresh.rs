//! `lowzone new NAME`: a crate with a driver, a device, a scenario and a test of one's own, that passes.
//!
//! The files are templates of this crate, `templates/new`; only the name and the dependency on lowzone are filled in.
//! Neighbours: `kit`, which the written crate is built on. Left out: adding to a crate that exists.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use thiserror::Error;

use crate::cli::CliError;

/// Options of `lowzone new`.
#[derive(Args)]
pub(crate) struct New {
    /// The crate's name, and that of the folder to be made for it here.
    name: String,
    /// The lowzone that it depends on: a folder with its sources, or the URL of a git repository. Default: the sources
    /// that this program was built from, if they are still there.
    #[arg(long, value_name = "PATH|URL")]
    lowzone: Option<String>,
}

/// Why no crate was written.
#[derive(Debug, Error)]
pub(crate) enum NewError {
    #[error("'{name}' is no name of a crate: a letter, then letters, digits, '-' and '_'")]
    Name { name: String },
    #[error("a crate can't be called '{name}': cargo or Rust has another meaning for it")]
    Reserved { name: String },
    #[error("{} exists already", .path.display())]
    Exists { path: PathBuf },
    #[error("{} is not lowzone: no Cargo.toml with the package lowzone there, nor in its folder scenarios", .path.display())]
    NotLowzone { path: PathBuf },
    #[error("lowzone's sources are no longer where this program was built from: say where, with --lowzone PATH|URL")]
    NoSources,
    #[error("{}: {source}", .path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Where this program's sources were when it was built.
const SOURCES: &str = env!("CARGO_MANIFEST_DIR");

macro_rules! templates {
    ($($file:literal from $template:literal),* $(,)?) => {
        &[$(($file, include_str!(concat!("../templates/new/", $template)))),*]
    };
}

/// Each file of the crate and its template.
const FILES: &[(&str, &str)] = templates![
    "Cargo.toml" from "Cargo.toml.in",
    "rustfmt.toml" from "rustfmt.toml",
    ".gitignore" from "gitignore",
    "src/main.rs" from "main.rs",
    "src/driver.rs" from "driver.rs",
    "src/device.rs" from "device.rs",
    "src/regs.rs" from "regs.rs",
    "scenarios/first.toml" from "first.toml",
    "tests/explore.rs" from "explore.rs",
];

/// Names that cargo refuses for a package, and those that would stand for two things in the crate.
const RESERVED: &[&str] = &[
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "build",
    "const",
    "continue",
    "core",
    "crate",
    "deps",
    "do",
    "dyn",
    "else",
    "enum",
    "examples",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "incremental",
    "let",
    "loop",
    "lowzone",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "proc_macro",
    "pub",
    "ref",
    "return",
    "self",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "yield",
];

/// Where the crate finds lowzone.
#[derive(Debug, PartialEq, Eq)]
enum Lowzone {
    /// A folder with the package.
    Path(PathBuf),
    /// A git repository.
    Git(String),
}

impl Lowzone {
    fn of(given: Option<&str>) -> Result<Self, NewError> {
        match given {
            Some(url) if url.contains("://") || url.starts_with("git@") => Ok(Self::Git(url.to_owned())),
            Some(path) => Self::package(Path::new(path)),
            None => Self::package(Path::new(SOURCES)).map_err(|_| NewError::NoSources),
        }
    }

    /// The package in a folder, or in the workspace that the folder is.
    fn package(path: &Path) -> Result<Self, NewError> {
        let is_lowzone = |folder: &PathBuf| {
            let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
            manifest.lines().any(|line| line.trim() == "name = \"lowzone\"")
        };
        let found = [path.to_owned(), path.join("scenarios")].into_iter().find(is_lowzone);
        let absolute = found.and_then(|folder| folder.canonicalize().ok());
        absolute.map(Self::Path).ok_or_else(|| NewError::NotLowzone { path: path.to_owned() })
    }

    /// The value of the dependency in a Cargo.toml.
    fn dependency(&self) -> String {
        // A TOML text in quotes escapes as JSON does.
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        match self {
            Self::Path(path) => format!("{{ path = {} }}", quoted(&path.to_string_lossy())),
            Self::Git(url) => format!("{{ git = {} }}", quoted(url)),
        }
    }

    /// The versions that lowzone is tested with.
    fn lock_file(&self) -> Option<PathBuf> {
        let Self::Path(path) = self else { return None };
        [path.join("Cargo.lock"), path.join("../Cargo.lock")].into_iter().find(|lock| lock.is_file())
    }
}

fn check_name(name: &str) -> Result<(), NewError> {
    let usable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.chars().all(usable) {
        return Err(NewError::Name { name: name.to_owned() });
    }
    if RESERVED.contains(&name) || name.starts_with("lowzone-") {
        return Err(NewError::Reserved { name: name.to_owned() });
    }
    Ok(())
}

/// Writes the crate into a new folder.
pub(crate) fn write(options: &New) -> Result<ExitCode, CliError> {
    let name = &options.name;
    check_name(name)?;
    let lowzone = Lowzone::of(options.lowzone.as_deref())?;
    let folder = PathBuf::from(name);
    if folder.symlink_metadata().is_ok() {
        return Err(NewError::Exists { path: folder }.into());
    }
    for (file, template) in FILES {
        let text = template.replace("@NAME@", name).replace("@LOWZONE@", &lowzone.dependency());
        put(&folder.join(file), |path| std::fs::write(path, &text))?;
    }
    if let Some(lock) = lowzone.lock_file() {
        put(&folder.join("Cargo.lock"), |path| std::fs::copy(lock, path).map(drop))?;
    }
    let mut out = anstream::stdout();
    writeln!(out, "{name}: a driver, a device, a scenario and a test\n")?;
    for (command, what) in [
        ("cd", name.as_str()),
        ("cargo run -- run", "the scenario once"),
        ("cargo run -- explore first", "every failure in it, one case each"),
        ("cargo test", "the same as a test"),
    ] {
        if command == "cd" {
            writeln!(out, "  cd {what}")?;
        } else {
            writeln!(out, "  {command:<28} {what}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn put(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), NewError> {
    let folder = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    folder.and_then(|()| write(path)).map_err(|source| NewError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cargo_refuses_are_refused() {
        for good in ["x", "my-nic", "my_nic2"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "2x", "-x", "a b", "a/b", "..", "é"] {
            assert!(matches!(check_name(bad), Err(NewError::Name { .. })), "{bad}");
        }
        for reserved in ["fn", "test", "lowzone", "lowzone-device"] {
            assert!(matches!(check_name(reserved), Err(NewError::Reserved { .. })), "{reserved}");
        }
    }

    #[test]
    fn lowzone_is_found_by_its_package_its_workspace_or_an_address() {
        let package = Lowzone::Path(Path::new(SOURCES).canonicalize().unwrap());
        assert_eq!(Lowzone::of(None).unwrap(), package);
        assert_eq!(Lowzone::of(Some(&format!("{SOURCES}/.."))).unwrap(), package);
        assert!(package.lock_file().is_some());
        let git = Lowzone::of(Some("https://example.org/x.git")).unwrap();
        assert_eq!((git.dependency().as_str(), git.lock_file()), ("{ git = \"https://example.org/x.git\" }", None));
        assert!(matches!(Lowzone::of(Some("src")), Err(NewError::NotLowzone { .. })));
        assert_eq!(Lowzone::Path("/a\"b".into()).dependency(), "{ path = \"/a\\\"b\" }");
    }
}
