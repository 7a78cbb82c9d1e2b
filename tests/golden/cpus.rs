//! A machine whose CPUs run a test's own code, in lockstep.

use std::sync::Arc;

use lowzone::wire::InProc;
use lowzone::world::{Body, Exit, Lockstep};
use lowzone_guest_mem::kernel::{Kernel, Machine, MachineConfig};

/// Runs one body on each CPU of a fresh machine, CPU 0 first, then looks at its kernel.
pub fn run<T>(config: MachineConfig, bodies: Vec<Body>, then: impl FnOnce(&'static Kernel) -> T) -> T {
    let machine = Machine::acquire(config).unwrap();
    let bus = Arc::new(InProc::new(machine.kernel_ref(), config.cpus));
    let mut world = Lockstep::new(machine.kernel_ref(), bus, Vec::new(), 1);
    let exits = world.run(bodies);
    assert!(exits.iter().all(|exit| *exit == Exit::Finished), "{exits:?}");
    machine.kernel().validate().unwrap();
    then(machine.kernel())
}
