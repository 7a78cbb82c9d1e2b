//! Stand-in until the real one lands.
#![allow(missing_docs)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Mishap { CompletionLate, CompletionTwice, CompletionNever, WrongId, WrongLength, IoError, DmaFault, NeedsReset }
impl Mishap {
    pub const ALL: [Self; 8] = [Self::CompletionLate, Self::CompletionTwice, Self::CompletionNever, Self::WrongId, Self::WrongLength, Self::IoError, Self::DmaFault, Self::NeedsReset];
    pub const fn name(self) -> &'static str { match self { Self::CompletionLate => "completion-late", Self::CompletionTwice => "completion-twice", Self::CompletionNever => "completion-never", Self::WrongId => "wrong-id", Self::WrongLength => "wrong-length", Self::IoError => "io-error", Self::DmaFault => "dma-fault", Self::NeedsReset => "needs-reset" } }
}
#[derive(Debug, Default)]
pub struct Script;
impl Script {
    pub fn new() -> Self { Self }
    pub fn plan(&self, _nth: u64, _what: Mishap, _persistent: bool) {}
    pub fn clear(&self) {}
    pub fn completions(&self) -> u64 { 0 }
    pub fn struck(&self) -> bool { false }
}
