//! What can be wrong with a scenario, in one sentence each, and what would mend it.
//!
//! Neighbours: `shape`, `explain`, `set` and `check` find problems; `SpecError` says where. Left out: what only
//! shows when a scenario runs (an image that is missing, RAM beyond the host's).

use thiserror::Error;

use super::{FaultError, Size};

/// What is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[allow(missing_docs, reason = "the sentence above each variant says what its numbers are")]
pub enum Problem {
    /// The text is not TOML.
    #[error("not valid TOML: {0}")]
    Toml(String),
    /// A key that its table doesn't have.
    #[error("unknown key '{key}'")]
    UnknownKey { key: String, near: Option<String>, elsewhere: Vec<String>, valid: Vec<String> },
    /// A key that must be there.
    #[error("missing key '{key}'")]
    MissingKey { key: String },
    /// A step with no verb.
    #[error("this step has no verb")]
    NoVerb { verbs: Vec<String> },
    /// A step with several verbs.
    #[error("this step has {} verbs: {}", .verbs.len(), .verbs.join(", "))]
    ManyVerbs { verbs: Vec<String> },
    /// A verb that does not exist.
    #[error("unknown step '{verb}'")]
    UnknownVerb { verb: String, near: Option<String>, verbs: Vec<String> },
    /// A word where others are wanted.
    #[error("unknown value '{value}'{}", of_key(.key))]
    UnknownValue { key: String, value: String, near: Option<String>, valid: Vec<String> },
    /// A value of the wrong type, or one that the type can't hold.
    #[error("wrong value{}: found {found}, expected {expected}", of_key(.key))]
    Mismatch { key: String, found: String, expected: String },
    /// A value that its type refuses, in the words of that type.
    #[error("wrong value{}: {reason}", of_key(.key))]
    WrongValue { key: String, reason: String },
    /// A number outside its limits.
    #[error("'{key}' is {value}; it goes from {min} to {max}")]
    OutOfRange { key: String, value: u64, min: u64, max: u64 },
    /// A number of bytes outside its limits.
    #[error("'{key}' is {value}; it goes from {min} to {max}")]
    SizeOutOfRange { key: String, value: Size, min: Size, max: Size },
    /// A number that is no multiple of another.
    #[error("'{key}' is {value} bytes, which is not a multiple of {of}")]
    NotMultiple { key: String, value: u64, of: u64 },
    /// A number that must be a power of two.
    #[error("'{key}' is {value}, which is not a power of two")]
    NotPowerOfTwo { key: String, value: u64 },
    /// More RAM below 4 GiB than there is RAM.
    #[error("'low' is {low}, but 'ram' is only {ram}")]
    LowBeyondRam { low: Size, ram: Size },
    /// A bounce pool that does not fit below 4 GiB, on 32 bits below 896 MiB.
    #[error("'swiotlb' is {pool}, which does not fit in the {low} of low memory")]
    PoolTooLarge { pool: Size, low: Size },
    /// An empty story, or one of several lines.
    #[error("'story' must be one line, this has {lines}")]
    Story { lines: usize },
    /// A name that steps and paths can't use.
    #[error("'{name}' is no device name: letters, digits, '-' and '_' only")]
    DeviceName { name: String },
    /// Two devices of one name.
    #[error("two devices are called '{name}'")]
    DuplicateDevice { name: String },
    /// More devices than PCI slots.
    #[error("{count} devices, but the bus has {max} slots for them")]
    TooManyDevices { count: usize, max: usize },
    /// A device with nothing behind it.
    #[error("device '{device}' stores its data nowhere")]
    NoStore { device: String },
    /// A store for a device that has no use for one.
    #[error("device '{device}' is of kind \"{kind}\", which stores no data")]
    NeedlessStore { device: String, kind: String },
    /// A step of disks with a driver that makes none.
    #[error("'{verb}' needs disks, and driver \"{driver}\" makes none")]
    NoDisks { verb: &'static str, driver: String },
    /// A transfer with a driver whose devices have no buffer of their own.
    #[error("'{verb}' needs a device with a buffer of its own, and driver \"{driver}\" has none such")]
    NoEngine { verb: &'static str, driver: String },
    /// A step of packets with a driver that has none.
    #[error("'{verb}' needs a network device, and driver \"{driver}\" makes none")]
    NoPackets { verb: &'static str, driver: String },
    /// A device with two or three things behind it.
    #[error("device '{device}' has more than one store: {}", .keys.join(", "))]
    ManyStores { device: String, keys: Vec<String> },
    /// An image that the user must name.
    #[error("device '{device}' needs an image file")]
    ImageUnset { device: String },
    /// A device that does not exist, or for `size_of` comes too late.
    #[error("no device '{device}'{}", if *.earlier { " above this one" } else { "" })]
    NoDevice { device: String, earlier: bool, near: Option<String>, valid: Vec<String> },
    /// A scenario that does nothing.
    #[error("a scenario needs at least one [[step]]")]
    NoSteps,
    /// A step that needs a bound driver, at this place in the list (from 0).
    #[error("step {step} is '{verb}', but the driver is not bound there")]
    NotBound { step: usize, verb: &'static str },
    /// A probe of what is bound already, at this place in the list (from 0).
    #[error("step {step} is 'probe', but the driver is bound already")]
    BoundTwice { step: usize },
    /// Writes and read-backs that don't come in pairs.
    #[error("\"write-read\" needs an even number of requests, this is {requests}")]
    OddRequests { requests: u64 },
    /// A key that belongs to another pattern.
    #[error("'{key}' has no meaning in pattern \"{pattern}\"")]
    OtherPattern { key: &'static str, pattern: &'static str },
    /// A shortest request longer than the longest.
    #[error("'min_bytes' is {min}, more than 'max_bytes', which is {max}")]
    Reversed { min: Size, max: Size },
    /// Coherent memory in a step that maps what it gets.
    #[error("'raw_read' maps its buffer, and coherent memory is never mapped")]
    RawCoherent,
    /// Requests beyond the end of the device.
    #[error("the requests reach to byte {end} of device '{device}', which has {size}")]
    PastEnd { device: String, end: u64, size: u64 },
    /// A step that would write what takes no writes.
    #[error("'{verb}' writes to device '{device}', which is read-only")]
    ReadOnly { verb: &'static str, device: String },
    /// A copy of a device onto itself.
    #[error("a copy from '{device}' to itself")]
    SameDevice { device: String },
    /// A copy that has no room.
    #[error("device '{from}' has {need} bytes, '{to}' only {room}")]
    CopyTooLarge { from: String, to: String, need: u64, room: u64 },
    /// An expectation of a canary that no step places.
    #[error("the canary is expected, but no step places one")]
    NoCanary,
    /// A text that can't be the name of a finding.
    #[error("'{name}' is no name of a finding: lower-case words with '-' between them")]
    FindingName { name: String },
    /// Something made to fail that can't be.
    #[error(transparent)]
    Fault(FaultError),
    /// A `--set` that is not `path=value`.
    #[error("'{text}' is not of the form path=value")]
    SetForm { text: String },
    /// A `--set` to a key that stands, or could stand, in several places.
    #[error("'{key}' could be {} things", .paths.len())]
    SetAmbiguous { key: String, paths: Vec<String> },
    /// A `--set` to something that this file doesn't have.
    #[error("this scenario has no '{path}'")]
    SetNowhere { path: String, near: Option<String> },
}

/// ` of 'key'`, or nothing for a value that has no key.
fn of_key(key: &str) -> String {
    if key.is_empty() { String::new() } else { format!(" of '{key}'") }
}

impl Problem {
    /// What would mend it, where that can be said.
    pub fn help(&self) -> Option<String> {
        let text = match self {
            Self::UnknownKey { near, elsewhere, valid, .. } => match (near, elsewhere.is_empty()) {
                (Some(near), _) => format!("did you mean '{near}'?"),
                (None, false) => format!("it belongs elsewhere: {}", elsewhere.join(", ")),
                (None, true) if valid.is_empty() => "nothing goes in this table".to_owned(),
                (None, true) => format!("valid here: {}", valid.join(", ")),
            },
            Self::UnknownVerb { near, verbs: valid, .. }
            | Self::UnknownValue { near, valid, .. }
            | Self::NoDevice { near, valid, .. } => match near {
                Some(near) => format!("did you mean '{near}'?"),
                None if valid.is_empty() => return None,
                None => format!("there is: {}", valid.join(", ")),
            },
            Self::NoVerb { verbs } => format!("give it one of: {}", verbs.join(", ")),
            Self::ManyVerbs { .. } => "make one [[step]] of each".to_owned(),
            Self::NotPowerOfTwo { value, .. } => {
                let up = value.checked_next_power_of_two().unwrap_or(1 << 63);
                format!("{} and {up} are", up / 2)
            }
            Self::NotMultiple { value, of, .. } => format!("{} is", Size(value.div_ceil(*of).saturating_mul(*of))),
            Self::LowBeyondRam { .. } => "leave 'low' out: it is then at most 'ram'".to_owned(),
            Self::PoolTooLarge { .. } => "make it smaller, or 0 for none".to_owned(),
            Self::NoStore { .. } => "give it 'size', 'image' or 'size_of'".to_owned(),
            Self::NeedlessStore { .. } => "leave it out".to_owned(),
            Self::NoDisks { .. } => "take exercise = { device = \"…\" }".to_owned(),
            Self::NoPackets { .. } => "take driver.kind = \"virtio-net\"".to_owned(),
            Self::NoEngine { .. } => "take driver.kind = \"edu\"".to_owned(),
            Self::ManyStores { .. } => "keep one of them".to_owned(),
            Self::ImageUnset { .. } => "name one: --set image=FILE".to_owned(),
            Self::NotBound { .. } => "put a probe = {} step before it".to_owned(),
            Self::BoundTwice { .. } => "put a remove = {} step before it".to_owned(),
            Self::RawCoherent => "take \"high\" or \"low\"".to_owned(),
            Self::NoCanary => "add a step such as canary = { device = \"vda\" }".to_owned(),
            Self::Fault(error) => return error.help(),
            Self::SetForm { .. } => "for instance --set machine.ram=2G".to_owned(),
            Self::SetAmbiguous { paths, .. } => format!("give the full path: {}", paths.join(", ")),
            Self::SetNowhere { near: Some(near), .. } => format!("did you mean '{near}'?"),
            _ => return None,
        };
        Some(text)
    }
}
