//! Where an export goes: a file that has its name only when it is whole, standard output, or what is no regular file.
//!
//! A new file is made beside the one that it will be and takes its name at the end; whatever ends before leaves neither
//! half a file nor another file changed. Neighbours: `export`. Left out: what is written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::ExportError;

/// A file that is being written and has not its name yet; it is removed if it never gets it.
struct Fresh {
    temporary: PathBuf,
    path: PathBuf,
    named: bool,
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if !self.named {
            // Nobody can be told, and the name that matters was not touched.
            drop(fs::remove_file(&self.temporary));
        }
    }
}

/// Whether two paths lead to one file that is there.
pub(crate) fn same(a: &Path, b: &Path) -> bool {
    let place = |path: &Path| fs::metadata(path).ok().map(|data| (data.dev(), data.ino()));
    place(a).is_some_and(|at| place(b) == Some(at))
}

enum Target {
    Stdout,
    File(File),
}

/// Where an export goes.
pub(crate) struct Output {
    /// What errors call it.
    name: String,
    target: Target,
    fresh: Option<Fresh>,
}

impl Output {
    /// Opens what `-o` names, for something that is made of `inputs`.
    pub(crate) fn open(path: &Path, inputs: &[&Path], binary: bool) -> Result<Self, ExportError> {
        if path == Path::new("-") {
            if binary && io::stdout().is_terminal() {
                return Err(ExportError::Terminal);
            }
            return Ok(Self { name: "standard output".to_owned(), target: Target::Stdout, fresh: None });
        }
        let name = path.display().to_string();
        let fail = |source| ExportError::Write { name: name.clone(), source };
        let known = fs::metadata(path).ok();
        if inputs.iter().any(|input| same(path, input)) {
            return Err(ExportError::Same { name });
        }
        if known.is_some_and(|known| !known.is_file()) {
            let file = OpenOptions::new().write(true).open(path).map_err(fail)?;
            return Ok(Self { target: Target::File(file), fresh: None, name });
        }
        // A link stays one: what it leads to is replaced.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mut temporary = path.clone().into_os_string();
        temporary.push(format!(".{}.part", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary).map_err(fail)?;
        Ok(Self { target: Target::File(file), fresh: Some(Fresh { temporary, path, named: false }), name })
    }

    /// A writer that goes there from beginning to end.
    pub(crate) fn stream(&self) -> Result<Box<dyn Write>, ExportError> {
        Ok(match &self.target {
            Target::Stdout => Box::new(BufWriter::new(io::stdout())),
            Target::File(file) => Box::new(BufWriter::with_capacity(1 << 16, file.try_clone().map_err(self.fail())?)),
        })
    }

    /// The file itself, for what is not written from beginning to end.
    pub(crate) fn file(&self) -> Result<File, ExportError> {
        let Target::File(file) = &self.target else { return Err(ExportError::Seek { name: self.name.clone() }) };
        let mut file = file.try_clone().map_err(self.fail())?;
        file.stream_position().map_err(|_| ExportError::Seek { name: self.name.clone() })?;
        Ok(file)
    }

    /// Makes an error of one of the system's.
    pub(crate) fn fail(&self) -> impl Fn(io::Error) -> ExportError + use<> {
        let name = self.name.clone();
        move |source| ExportError::Write { name: name.clone(), source }
    }

    /// It is whole: it gets its name.
    pub(crate) fn finish(mut self) -> Result<(), ExportError> {
        let fail = self.fail();
        if let Some(fresh) = &mut self.fresh {
            fs::rename(&fresh.temporary, &fresh.path).map_err(fail)?;
            fresh.named = true;
        }
        Ok(())
    }
}
