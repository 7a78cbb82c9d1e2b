//! What a program brings: its scenarios, its drivers, its devices.
//!
//! A [`Kit`] is a table made at compile time. The stock program has [`Kit::STOCK`]; a crate of the user's own makes
//! one of its own and hands it to [`lowzone::main!`](crate::main), and has `run`, `explore`, `replay`, `list` and
//! `schema` for it. The stock kinds are there in every program, so that one's own driver may meet the stock device.
//! Neighbours: `driver` and `device` beside this say what a kind must do; `stock` has the lab's own, `edu` among them; `spec` checks
//! names. Left out: kits that change while the program runs.

mod device;
mod driver;
mod edu;
mod net;
mod stock;

pub use device::{DeviceEnv, DeviceKind, DeviceMemory, MakeError, Plugged};
pub use driver::{DriverKind, ExerciseError, LabDriver};

pub use crate::spec::catalogue::Entry;
pub use crate::spec::{Device as DeviceSpec, Driver as DriverSpec, Kind, OptionError, Options};

use crate::spec::catalogue;
use crate::spec::{Kinds, Scenario, Set, Source, SpecError, StoryKind, load_with};

/// What a program brings.
///
/// ```
/// use lowzone::kit::{Entry, Kit};
///
/// const MINE: Kit = Kit::new("mine").scenarios(&[Entry { name: "first", text: "story = 'x'\nstep = [{ probe = {} }]" }]);
/// assert_eq!(MINE.default_scenario(), "first");
/// assert_eq!(MINE.nearest("frist"), Some("first"));
/// assert!(MINE.driver("virtio-blk").is_some());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Kit {
    name: &'static str,
    scenarios: &'static [Entry],
    drivers: &'static [DriverKind],
    devices: &'static [DeviceKind],
}

impl Kit {
    /// The stock program's.
    pub const STOCK: Self = Self { name: "lowzone", scenarios: catalogue::ENTRIES, drivers: &[], devices: &[] };

    /// An empty kit for the program of this name.
    pub const fn new(name: &'static str) -> Self {
        Self { name, scenarios: &[], drivers: &[], devices: &[] }
    }

    /// The same with these scenarios; the first is the one that `run` takes by default.
    pub const fn scenarios(self, scenarios: &'static [Entry]) -> Self {
        Self { scenarios, ..self }
    }

    /// The same with these kinds of drivers.
    pub const fn drivers(self, drivers: &'static [DriverKind]) -> Self {
        Self { drivers, ..self }
    }

    /// The same with these kinds of devices.
    pub const fn devices(self, devices: &'static [DeviceKind]) -> Self {
        Self { devices, ..self }
    }

    /// The program's name, as its messages show it.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The embedded scenarios.
    pub const fn entries(&self) -> &'static [Entry] {
        self.scenarios
    }

    /// The scenario of a `run` that names none.
    pub fn default_scenario(&self) -> &'static str {
        let first = self.scenarios.first().map_or(catalogue::DEFAULT, |entry| entry.name);
        self.scenarios.iter().map(|entry| entry.name).find(|&name| name == catalogue::DEFAULT).unwrap_or(first)
    }

    /// The embedded scenario of this name.
    pub fn source(&self, name: &str) -> Option<Source> {
        let entry = self.scenarios.iter().find(|entry| entry.name == name)?;
        Some(Source { name: name.to_owned(), text: entry.text.to_owned() })
    }

    /// The name nearest to one that no scenario has.
    pub fn nearest(&self, name: &str) -> Option<&'static str> {
        catalogue::nearest_of(self.scenarios, name)
    }

    /// The kind of driver of this name: the kit's own, or a stock one.
    pub fn driver(&self, name: &str) -> Option<&'static DriverKind> {
        self.drivers.iter().chain(stock::DRIVERS).find(|driver| driver.kind.name == name)
    }

    /// The kind of device of this name: the kit's own, or a stock one.
    pub fn device(&self, name: &str) -> Option<&'static DeviceKind> {
        self.devices.iter().chain(stock::DEVICES).find(|device| device.kind.name == name)
    }

    /// Every kind, the kit's own first.
    pub fn kinds(&self) -> Kinds {
        Kinds {
            drivers: self.drivers.iter().chain(stock::DRIVERS).map(|driver| driver.kind).collect(),
            devices: self.devices.iter().chain(stock::DEVICES).map(|device| device.kind).collect(),
            stories: StoryKind::all(),
        }
    }

    /// Reads and checks a scenario in this program ([`load_with`]).
    ///
    /// # Errors
    /// As [`load_with`].
    pub fn load(&self, source: &Source, sets: &[Set]) -> Result<Scenario, SpecError> {
        load_with(source, sets, &self.kinds())
    }
}

#[cfg(test)]
mod tests;
