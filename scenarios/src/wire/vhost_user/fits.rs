//! Whether a scenario can be told with devices at sockets.
//!
//! Neighbours: `wire::kind`, which asks first. Left out: what a peer's disk holds and offers, which is known only when
//! it is connected.

use crate::spec::{Beyond, Scenario, Step, VIRTIO_BLK};
use crate::wire::kind::Skip;

/// Whether a scenario has virtio block devices alone, and nothing of its story is PCI.
///
/// # Errors
/// [`Skip`]: what it has beside that.
pub(crate) fn fits(scenario: &Scenario) -> Result<(), Skip> {
    let driver = &scenario.driver;
    if scenario.device.iter().any(|device| device.kind != VIRTIO_BLK) || driver.kind != VIRTIO_BLK {
        return Err(Skip::Socket("the device at a socket is of kind 'virtio-blk', and so is its driver"));
    }
    if !driver.bus_master {
        return Err(Skip::Socket("there is no bus-master bit without PCI"));
    }
    if !driver.msix {
        return Err(Skip::Socket("there is no INTx pin without PCI"));
    }
    if scenario.step.iter().any(|step| matches!(step, Step::Exercise(_))) {
        return Err(Skip::Socket("a driver exercises PCI functions only"));
    }
    let promised = driver.dma_mask.max(driver.coherent_bits());
    let reach = if scenario.machine.high_bytes() == 0 { 32 } else { 64 };
    if let Some(device) = scenario.device.iter().find(|device| promised.min(reach) > device.width) {
        let beyond = if device.beyond == Beyond::Wrap { "wrap" } else { "refuse" };
        let (device, width, there) = (device.name.clone(), device.width, "the peer's");
        return Err(Skip::Width { device, promised, width, beyond, there });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Set, Source, load};

    fn skip(name: &str, sets: &[&str]) -> String {
        let sets: Vec<_> = sets.iter().map(|set| Set::parse(set).unwrap()).collect();
        let scenario = load(&Source::embedded(name).unwrap(), &sets).unwrap();
        fits(&scenario).map_or_else(|skip| skip.to_string(), |()| String::new())
    }

    #[test]
    fn block_devices_fit_and_what_else_there_is_is_named() {
        assert_eq!(skip("block/low-zone", &[]), "");
        assert_eq!(skip("block/copy-image", &["image=x"]), "");
        assert!(skip("edu/clamp", &[]).contains("is of kind 'virtio-blk'"));
        assert!(skip("block/no-bus-master", &[]).ends_with("without PCI"));
        assert!(skip("block/low-zone", &["msix=false"]).contains("INTx"));
        assert!(skip("block/too-wide", &[]).ends_with("and the peer's does not"));
        assert_eq!(skip("block/too-wide", &["machine.ram=2G"]), "");
    }
}
