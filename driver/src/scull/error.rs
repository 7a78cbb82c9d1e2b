//! Why a scull device could not be made, written or read.

use lowzone_guest_mem::kbuf::OutOfBounds;
use lowzone_guest_mem::kmem_cache::CreateError;
use lowzone_guest_mem::vmalloc::VmallocError;
use lowzone_guest_mem::zone::AllocError;
use thiserror::Error;

/// What went wrong; nothing is half done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ScullError {
    /// There is no memory for what was to be written.
    #[error("no memory for an item or a quantum: {0}")]
    NoMemory(#[from] AllocError),
    /// There is no memory for a quantum of virtually contiguous pages.
    #[error("no memory for a quantum: {0}")]
    Vmalloc(#[from] VmallocError),
    /// The cache of quanta could not be created.
    #[error(transparent)]
    Cache(#[from] CreateError),
    /// A quantum is not as long as it must be: a fault of this driver.
    #[error("beyond a quantum: {0}")]
    Bounds(#[from] OutOfBounds),
}

impl ScullError {
    /// Linux's number for it.
    pub const fn errno(&self) -> i32 {
        const ENOMEM: i32 = -12;
        const EFAULT: i32 = -14;
        match self {
            Self::NoMemory(_) | Self::Vmalloc(_) => ENOMEM,
            Self::Cache(error) => error.errno(),
            Self::Bounds(_) => EFAULT,
        }
    }
}
