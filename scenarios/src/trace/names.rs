//! What the numbers in records mean: sites, scopes, devices, findings, producers, kinds.
//!
//! A reader fills it from a file's tables as they come, the flight recorder's views fill it from the running kernel.
//! Neighbours: `reader`, `row`, `around`.

use std::collections::BTreeMap;

use super::format::{Header, Table};

/// A finding's name and text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FindingName {
    /// The name that scenario files expect.
    pub name: String,
    /// All of it.
    pub text: String,
}

/// The tables of one trace.
#[derive(Clone, Debug, Default)]
pub struct Names {
    cpus: u32,
    kinds: BTreeMap<u16, String>,
    sites: BTreeMap<u32, String>,
    scopes: BTreeMap<u32, String>,
    devices: BTreeMap<u32, (String, String)>,
    findings: BTreeMap<u32, FindingName>,
    refusals: BTreeMap<u32, String>,
}

fn low(word: u64) -> u32 {
    u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0)
}

impl Names {
    /// The tables of a trace that has this header.
    pub fn new(header: &Header) -> Self {
        Self { cpus: header.cpus, kinds: header.kinds.iter().cloned().collect(), ..Self::default() }
    }

    /// Adds an entry; one of an unknown table is ignored.
    pub fn add(&mut self, table: u16, number: u32, text: &str) {
        let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
        // A name is one line, whoever wrote it.
        let one_line = |text: &str| text.replace('\n', "\\n");
        match table {
            t if t == Table::Site as u16 => {
                self.sites.insert(number, one_line(text));
            }
            t if t == Table::Scope as u16 => {
                self.scopes.insert(number, one_line(text));
            }
            t if t == Table::Device as u16 => {
                self.devices.insert(number, (first.to_owned(), one_line(rest)));
            }
            t if t == Table::Finding as u16 => {
                let finding = FindingName { name: first.to_owned(), text: rest.to_owned() };
                self.findings.insert(number, finding);
            }
            t if t == Table::Refusal as u16 => {
                self.refusals.insert(number, text.to_owned());
            }
            _ => {}
        }
    }

    /// Why a request was refused, by the number of its record.
    pub fn refusal(&self, number: u32) -> Option<&str> {
        self.refusals.get(&number).map(String::as_str)
    }

    /// `file:line in scope`; `None` for the empty owner.
    pub fn owner(&self, word: u64) -> Option<String> {
        let (site, scope) = (low(word), low(word >> 32));
        if word == 0 {
            return None;
        }
        let site = self.sites.get(&site).map_or("?", String::as_str);
        Some(match (scope, self.scopes.get(&scope)) {
            (0, _) => site.to_owned(),
            (_, Some(scope)) => format!("{site} in {scope}"),
            (_, None) => format!("{site} in ?"),
        })
    }

    /// A kind's name, from the file if it has one.
    pub fn kind(&self, number: u16) -> String {
        self.kinds.get(&number).cloned().unwrap_or_else(|| format!("kind:{number}"))
    }

    /// All kinds' names.
    pub fn kinds(&self) -> impl Iterator<Item = &str> {
        self.kinds.values().map(String::as_str)
    }

    /// A device's name: the scenario's, or its place on the bus; `None` for no device.
    pub fn device(&self, number: u16) -> Option<String> {
        if number == 0 {
            return None;
        }
        let known = self.devices.get(&u32::from(number));
        let name = known.map(|(place, name)| if name.is_empty() { place } else { name });
        Some(name.cloned().unwrap_or_else(|| format!("device {number}")))
    }

    /// The number of a device by name, place on the bus, or number.
    pub fn device_number(&self, wanted: &str) -> Option<u16> {
        let by_name = self.devices.iter().find(|(_, (place, name))| place == wanted || name == wanted);
        let number = by_name.map(|(&number, _)| number).or_else(|| wanted.parse().ok())?;
        u16::try_from(number).ok()
    }

    /// The numbers of all devices.
    pub(super) fn device_numbers(&self) -> impl Iterator<Item = u16> {
        self.devices.keys().filter_map(|&number| u16::try_from(number).ok())
    }

    /// Every entry of every table, as a file has it.
    pub(super) fn entries(&self) -> impl Iterator<Item = (Table, u32, String)> {
        let plain = |table, texts: &BTreeMap<u32, String>| -> Vec<_> {
            texts.iter().map(|(&number, text)| (table, number, text.clone())).collect()
        };
        let devices =
            self.devices.iter().map(|(&number, (place, name))| (Table::Device, number, format!("{place}\n{name}")));
        let findings =
            self.findings.iter().map(|(&number, of)| (Table::Finding, number, format!("{}\n{}", of.name, of.text)));
        let texts = [(Table::Site, &self.sites), (Table::Scope, &self.scopes), (Table::Refusal, &self.refusals)];
        texts.into_iter().flat_map(move |(table, texts)| plain(table, texts)).chain(devices).chain(findings)
    }

    /// Names and places of all devices.
    pub fn devices(&self) -> impl Iterator<Item = &(String, String)> {
        self.devices.values()
    }

    /// The number of the device whose port makes a record; `None` if a CPU does.
    pub fn device_of(&self, who: u16) -> Option<u16> {
        u32::from(who).checked_sub(self.cpus).and_then(|device| u16::try_from(device).ok())
    }

    /// Who made a record: `cpu1`, or the device's name for its port.
    pub fn producer(&self, who: u16) -> String {
        match self.device_of(who) {
            Some(device) => self.device(device).unwrap_or_else(|| format!("producer {who}")),
            None => format!("cpu{who}"),
        }
    }

    /// A finding by its number.
    pub fn finding(&self, number: u32) -> Option<&FindingName> {
        self.findings.get(&number)
    }
}
