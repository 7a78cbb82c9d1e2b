//! Files to work on: a folder that goes away, images with content, hashes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use lowzone::world::Random;
use sha2::{Digest, Sha256};

/// A folder of one test's own, removed with everything in it when dropped.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Makes one.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("lowzone-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file in it.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// The names of what lies in it, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left in the system's temporary folder harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Bytes that follow from a seed.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Random::new(seed).fill(&mut bytes);
    bytes
}

/// Makes an ext4 file system of `mib` MiB with files in it, or says why it can't.
///
/// # Errors
/// Why there is none: the tool is missing or failed.
pub fn ext4(folder: &Folder, mib: u64) -> Result<PathBuf, String> {
    let content = folder.path().join("content");
    fs::create_dir(&content).unwrap();
    for seed in 0..8_u64 {
        fs::write(content.join(format!("file{seed}")), bytes(seed, 1 << 20)).unwrap();
    }
    let image = folder.path().join("ext4.img");
    fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(&content).arg(&image).status();
    match made {
        Ok(status) if status.success() => Ok(image),
        Ok(status) => Err(format!("mkfs.ext4: {status}")),
        Err(error) => Err(format!("mkfs.ext4: {error}")),
    }
}

/// SHA-256 of a file, computed here.
pub fn sha256(path: &Path) -> String {
    format!("{:x}", Sha256::digest(fs::read(path).unwrap()))
}

/// SHA-256 of a file as the system's `sha256sum` says.
pub fn sha256sum(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().expect("sha256sum is there");
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().next().unwrap_or_default().trim_start_matches('\\').to_owned()
}
