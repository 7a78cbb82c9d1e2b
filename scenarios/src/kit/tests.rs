//! A program with kinds of its own: how its scenarios are checked, and what the lab sees of its driver.

use std::sync::Arc;

use lowzone_device::misbehave::{Mishap, Script};
use lowzone_driver::blk::{BlkDriver, BlkOptions, Disk};
use lowzone_driver::bus::Bdf;
use lowzone_driver::pci::{PciDevice, PciId};
use lowzone_driver::{Driver, ProbeError};
use lowzone_guest_mem::Cpu;

use super::*;
use crate::expect;
use crate::explore::case::{Keep, Prepared, Verdict};
use crate::explore::inventory::{Inventory, InventoryError};
use crate::explore::place::Strike;
use crate::lab::{Control, Lab, LabError, Verify};

/// The stock driver, but from its `lies_from`th exercise on it says that it went well, and it didn't.
struct Liar {
    inner: BlkDriver,
    lies_from: u64,
}

impl Driver for Liar {
    fn name(&self) -> &'static str {
        "liar"
    }

    fn ids(&self) -> &'static [PciId] {
        self.inner.ids()
    }

    fn probe(&self, cpu: &Cpu<'_>, device: &Arc<PciDevice>) -> Result<(), ProbeError> {
        self.inner.probe(cpu, device)
    }

    fn remove(&self, cpu: &Cpu<'_>, device: &PciDevice) {
        self.inner.remove(cpu, device);
    }

    fn shutdown(&self, cpu: &Cpu<'_>, device: &PciDevice) {
        self.inner.shutdown(cpu, device);
    }
}

impl LabDriver for Liar {
    fn exercise(&self, cpu: &Cpu<'_>, device: &PciDevice, nth: u64) -> Result<u64, ExerciseError> {
        match self.inner.exercise(cpu, device, nth) {
            // It takes a failure for a success.
            Err(_) => Err(ExerciseError::WrongData { expected: 1, seen: 0 }),
            Ok(_) if nth >= self.lies_from => Err(ExerciseError::WrongData { expected: 2, seen: 0 }),
            good => good,
        }
    }

    fn disk(&self, at: Bdf) -> Option<Arc<Disk>> {
        self.inner.disk(at)
    }
}

fn liar(spec: &DriverSpec) -> Result<Arc<dyn LabDriver>, MakeError> {
    let lies_from = spec.options.number("lies_from", u64::MAX)?;
    Ok(Arc::new(Liar { inner: BlkDriver::new(BlkOptions::default()), lies_from }))
}

/// The stock device without a slot, and with a script of one line.
fn bolted(env: &DeviceEnv<'_>) -> Result<Plugged, MakeError> {
    let made = (stock::DEVICES[0].make)(env)?;
    Ok(Plugged { slot: None, script: Some(Arc::new(Script::of(&[Mishap::IoError]))), counters: None, ..made })
}

const KIT: Kit =
    Kit::new("mine").drivers(&[DriverKind { kind: Kind::new("liar").options(&["lies_from"]), make: liar }]).devices(&[
        DeviceKind { kind: Kind::new("bolted").disks(), make: bolted },
        DeviceKind { kind: Kind::new("bare"), make: bolted },
    ]);

fn source(driver: &str, device: &str, steps: &str) -> Source {
    let text = format!(
        "story = 's'\n[driver]\n{driver}\n[[device]]\nname = 'a'\n{device}\n\
         step = [{{ probe = {{}} }}, {steps}, {{ remove = {{}} }}]\n"
    );
    // A key of the root goes before the tables.
    let (head, step) = text.split_at(text.find("step = ").unwrap());
    let (story, tables) = head.split_at(head.find('[').unwrap());
    Source { name: "x.toml".to_owned(), text: format!("{story}{step}{tables}") }
}

const DISK: &str = "kind = 'virtio-blk'\nsize = '64K'";
const WORK: &str = "{ exercise = { device = 'a', times = 6 } }";

fn scenario(driver: &str, device: &str, steps: &str) -> Scenario {
    KIT.load(&source(driver, device, steps), &[]).unwrap_or_else(|error| panic!("{error}"))
}

fn run(scenario: &Scenario) -> crate::result::RunResult {
    let control = Arc::new(Control::default());
    Lab::with_kit(&KIT, "x", scenario.clone(), 1, Verify::Bytes, control).unwrap().run()
}

#[test]
fn the_stock_kinds_are_what_a_scenario_is_checked_against_without_a_kit() {
    assert_eq!(Kit::STOCK.kinds(), Kinds::default());
    assert_eq!(Kit::STOCK.default_scenario(), "block/low-zone");
    assert_eq!(KIT.default_scenario(), "block/low-zone");
}

#[test]
fn ones_own_kind_goes_before_a_stock_one_of_the_same_name() {
    const OWN: &[DriverKind] =
        &[DriverKind { kind: Kind::new("virtio-blk").options(&["mine"]).disks(), make: stock::DRIVERS[0].make }];
    let kit = Kit::new("x").drivers(OWN);
    assert_eq!(kit.driver("virtio-blk").unwrap().kind.options, ["mine"]);
    assert_eq!(kit.kinds().drivers[0].options, ["mine"]);
    assert!(kit.device("virtio-blk").is_some() && kit.device("other").is_none());
    assert!(kit.source("block/low-zone").is_none(), "a kit has its own scenarios only");
}

#[test]
fn kinds_and_their_options_are_checked_where_they_stand() {
    let complaint = |driver: &str, device: &str, steps: &str| {
        let error = KIT.load(&source(driver, device, steps), &[]).unwrap_err();
        format!("{error} / {}", error.problem().help().unwrap_or_default())
    };
    for (driver, device, steps, wanted) in [
        ("kind = 'lier'", DISK, WORK, "x.toml:4:8: unknown value 'lier' of 'kind' / did you mean 'liar'?"),
        ("", "kind = 'bear'\nsize = 512", WORK, "x.toml:7:8: unknown value 'bear' of 'kind' / did you mean 'bare'?"),
        (
            "kind = 'liar'\noptions = { lies = 1 }",
            DISK,
            WORK,
            "x.toml:5:13: unknown key 'lies' / did you mean 'lies_from'?",
        ),
        (
            "kind = 'liar'",
            "kind = 'bare'\nsize = '8M'",
            WORK,
            "x.toml:8:8: device 'a' is of kind \"bare\", which stores no data / leave it out",
        ),
        (
            "kind = 'liar'",
            DISK,
            "{ io = { device = 'a' } }",
            "x.toml:2:32: 'io' needs disks, and driver \"liar\" makes none / take exercise = { device = \"…\" }",
        ),
    ] {
        assert_eq!(complaint(driver, device, steps), wanted);
    }
    let stock = crate::spec::load(&source("kind = 'liar'", DISK, WORK), &[]).unwrap_err();
    assert_eq!(stock.to_string(), "x.toml:4:8: unknown value 'liar' of 'kind'");
}

#[test]
fn an_option_is_set_from_outside_and_refused_by_its_reader() {
    let source = source("kind = 'liar'", DISK, WORK);
    let load = |set: &str| KIT.load(&source, &[Set::parse(set).unwrap()]);
    let scenario = load("driver.options.lies_from=3").unwrap();
    assert_eq!(scenario.driver.options.number("lies_from", 0), Ok(3));
    let error = load("driver.options.lies=3").unwrap_err();
    assert_eq!(error.to_string(), "--set driver.options.lies=3: unknown key 'lies'");
    let text = load("driver.options.lies_from=soon").unwrap();
    let error = Lab::with_kit(&KIT, "x", text, 1, Verify::Bytes, Arc::default()).err().unwrap();
    assert!(matches!(error, LabError::Driver { .. }), "{error}");
    assert_eq!(error.to_string(), "driver liar: option 'lies_from' is \"soon\"; it must be a whole number");
}

#[test]
fn an_exercise_counts_what_went_well_and_what_did_not() {
    let good = run(&scenario("", DISK, WORK));
    assert_eq!(expect::check(&scenario("", DISK, WORK).expect, &good), []);
    let row = &good.exercises[0];
    assert_eq!((row.label.as_str(), row.done, row.failed, row.wrong, row.bytes), ("exercise 2", 6, 0, 0, 6 * 8192));
    assert_eq!((good.bytes(), good.devices[0].requests), (6 * 8192, 12));
    let lying = scenario("kind = 'liar'\noptions = { lies_from = 4 }", DISK, WORK);
    let result = run(&lying);
    assert_eq!((result.exercises[0].done, result.exercises[0].wrong, result.failed_requests), (4, 2, 0));
    let wrong = expect::check(&lying.expect, &result);
    assert_eq!((wrong[0].what.as_str(), wrong[0].seen.as_str()), ("results of exercise 2", "2 wrong"));
    let early = "{ remove = {} }, { probe = {} }, { exercise = { device = 'a', label = 'again', times = 1 } }";
    assert_eq!(run(&scenario("", DISK, early)).exercises[0].label, "again");
}

#[test]
fn a_campaign_tells_a_false_success_from_a_failure() {
    let strike = |text: &str| -> Vec<Strike> { vec![text.parse().unwrap()] };
    let prepared = |driver: &str| Prepared::with_kit(&KIT, "x", &scenario(driver, DISK, WORK), 1);
    let honest = prepared("");
    assert!(matches!(&honest.scenario.step[1], crate::spec::Step::Exercise(work) if work.times == 4));
    assert_eq!(honest.judge(&strike("io-error#1")).unwrap().verdict, Verdict::FailedRight);
    assert_eq!(honest.judge(&strike("slab:exercise#0")).unwrap().verdict, Verdict::FailedRight);
    let outcome = prepared("kind = 'liar'").judge(&strike("io-error#1")).unwrap();
    assert_eq!(outcome.verdict, Verdict::Wrong);
    assert_eq!(outcome.why, ["false success: 1 results of exercise 2 are wrong"]);
    let always = prepared("kind = 'liar'\noptions = { lies_from = 0 }");
    assert!(matches!(Inventory::count(&always), Err(InventoryError::NotClean(_))));
}

#[test]
fn what_a_device_cannot_do_is_not_asked_of_it() {
    let count = |device: &str| {
        let prepared = Prepared::with_kit(&KIT, "x", &scenario("", device, WORK), 1);
        (Inventory::count(&prepared).unwrap(), prepared.observe(&[], Keep::default()).unwrap().result)
    };
    let (bolted, result) = count("kind = 'bolted'\nsize = '64K'");
    assert!(bolted.strikes().iter().all(|strike| strike.class() != "removal"));
    assert_eq!((bolted.mishaps.as_slice(), result.devices[0].requests), (&[Mishap::IoError][..], 0));
    let (stock, _) = count(DISK);
    assert!(stock.removable && stock.strikes().iter().any(|strike| strike.class() == "removal"));
    assert_eq!(stock.mishaps, Mishap::ALL);
}

#[test]
fn the_schema_file_for_editors_is_the_programs_own() {
    let file: serde_json::Value = serde_json::from_str(include_str!("../../lowzone.schema.json")).unwrap();
    assert_eq!(file, crate::spec::schema_with(&Kit::STOCK.kinds()), "write it anew: lowzone schema");
}
