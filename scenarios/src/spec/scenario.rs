//! A whole scenario, typed.
//!
//! Neighbours: [`super::load`], which makes one from text, and the runner. Left out: anything that runs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::explore::place::Strike;

use super::{Device, Driver, Expect, Explore, Faults, Machine, NamedMachine, Need, On, OnMachine, Step};

/// A lowzone scenario: a machine, its devices and a driver, what is done with them, and what must be seen.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a scenario")]
pub struct Scenario {
    /// What it shows, in one line.
    pub story: String,
    /// What its story depends on, "lockstep" or "sees_dma"; where there is no such thing it is refused. Default none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<Need>,
    /// The machine. Default: 6 GiB of RAM, 3 of them below 4 GiB, 2 CPUs.
    #[serde(default)]
    pub machine: Machine,
    /// The devices, in the order of their PCI slots. Default: none.
    #[serde(default)]
    pub device: Vec<Device>,
    /// The driver's options.
    #[serde(default)]
    pub driver: Driver,
    /// What is done, in order; at least one.
    #[serde(default)]
    pub step: Vec<Step>,
    /// What is made to fail, as by Linux's fault injection: a table for each class, such as [fault.slab].
    #[serde(default, skip_serializing_if = "Faults::is_empty")]
    pub fault: Faults,
    /// What a campaign found it to fail with, in the words of its tokens, such as "slab:io#3" or "schedule#17"; its
    /// oracle then judges the run, and the expect table is not looked at. Default none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub strikes: Vec<Strike>,
    /// What must be seen.
    #[serde(default)]
    pub expect: Expect,
    /// What is seen on named machines instead, or why its story can't be told there.
    #[serde(default, skip_serializing_if = "On::is_empty")]
    pub on: On,
    /// How a campaign shortens it.
    #[serde(default)]
    pub explore: Explore,
}

impl Scenario {
    /// The same, as it is told on a named machine; else why it can't be told there.
    ///
    /// # Errors
    /// The reason that its file gives.
    pub fn on(mut self, machine: NamedMachine) -> Result<Self, String> {
        match self.on.of(machine) {
            None => Ok(self),
            Some(OnMachine { expect: Some(expect), .. }) => {
                self.expect = expect.clone();
                Ok(self)
            }
            Some(OnMachine { why, .. }) => Err(why.clone()),
        }
    }

    /// The device of this name.
    pub fn device(&self, name: &str) -> Option<&Device> {
        self.device.iter().find(|device| device.name == name)
    }
}
