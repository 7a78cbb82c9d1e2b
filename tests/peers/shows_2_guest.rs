//! A Linux guest under QEMU on our device: what it writes it reads back, and its bounces are seen from both sides.
//!
//! The guest's own console gives the verdict and the device's trace the addresses; the guest's clock, wrong under
//! emulation, gives nothing. Neighbours: `guest.sh`, which makes kernel and initrd; `init.sh`, which runs in the guest.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use lowzone::trace::Reader;
use lowzone_guest_mem::trace::Kind;
use lowzone_tests::image::Folder;
use lowzone_tests::peer;

use crate::server::Server;

/// A loaded machine takes tens of seconds.
const LIMIT: Duration = Duration::from_secs(300);
/// Headers have 16 bytes and states one; data comes in sectors.
const SECTOR: u32 = 512;

/// Ends QEMU with the test.
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The folder with the guest's kernel and initrd.
fn guest() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
        let target = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().to_owned();
        let made = Command::new(folder.join("guest.sh")).env("CARGO_TARGET_DIR", &target).output().unwrap();
        assert!(made.status.success(), "guest.sh: {}", String::from_utf8_lossy(&made.stderr));
        target.join("guest")
    })
}

/// Boots once; what the console said, or nothing in time.
fn boot(server: &Server, platform: bool, force: bool) -> Option<String> {
    let log = server.folder.path().join("console");
    let append = "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check";
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg", "-cpu", "max", "-machine", "q35,memory-backend=ram", "-m", "6G", "-smp", "1"]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-object"]);
    command.arg("memory-backend-memfd,id=ram,size=6G,share=on");
    command.arg("-serial").arg(format!("file:{}", log.display()));
    command.arg("-kernel").arg(guest().join("vmlinux")).arg("-initrd").arg(guest().join("initrd.gz"));
    command.arg("-append").arg(format!("{append}{}", if force { " swiotlb=force" } else { "" }));
    command.arg("-chardev").arg(format!("socket,id=c0,path={}", server.socket().display()));
    let platform = if platform { ",iommu_platform=on" } else { "" };
    command.arg("-device");
    command.arg(format!("vhost-user-blk-pci,chardev=c0,num-queues=1,disable-legacy=on{platform}"));
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap();
    let (mut emulator, begun) = (Emulator(child), Instant::now());
    while emulator.0.try_wait().unwrap().is_none() {
        if begun.elapsed() > LIMIT {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(std::fs::read_to_string(log).unwrap())
}

/// What was seen of one guest, from both sides.
struct Seen {
    bounced: u64,
    /// Accesses to data below 4 GiB and above.
    below: u64,
    above: u64,
    /// The end of the highest.
    highest: u64,
}

fn run(platform: bool, force: bool) -> Seen {
    let folder = Folder::new();
    let trace = folder.path().join("guest.lzt");
    let serve = || Server::start(["--memory", "64M", "--trace", trace.to_str().unwrap()]);
    let mut server = serve();
    // A machine that gives it no time is not the guest's fault: once more, and only then.
    let console = boot(&server, platform, force).or_else(|| {
        server = serve();
        boot(&server, platform, force)
    });
    let console = console.expect("no guest ended in time, twice");
    for verified in ["direct", "ext4", "rebind"] {
        assert!(console.contains(&format!("LOWZONE VERIFY {verified} ")), "{verified}: {console}");
    }
    assert!(console.contains("LOWZONE END"), "{console}");
    let bounced = console.lines().find_map(|line| line.strip_prefix("LOWZONE BOUNCED "));
    let bounced = bounced.and_then(|count| count.trim().parse().ok()).unwrap_or_else(|| panic!("{console}"));
    let (outcome, _) = server.stop();
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
    let mut seen = Seen { bounced, below: 0, above: 0, highest: 0 };
    let mut reader = Reader::open(&trace).unwrap();
    while let Some(event) = reader.next_event().unwrap() {
        let data = matches!(event.kind(), Some(Kind::PortRead | Kind::PortWrite)) && event.raw.len >= SECTOR;
        if data {
            let end = event.raw.addr + u64::from(event.raw.len);
            *(if end > 1 << 32 { &mut seen.above } else { &mut seen.below }) += 1;
            seen.highest = seen.highest.max(end);
        }
    }
    println!(
        "bit 33 {platform}, swiotlb=force {force}: {bounced} bounced, data {} below 4 GiB and {} above, up to {:#x}",
        seen.below, seen.above, seen.highest
    );
    assert!(seen.below + seen.above > 1000, "the trace lists the guest's DMA");
    seen
}

#[test]
fn shows_2_a_guest_that_must_bounce_never_hands_over_high_memory() {
    if !peer::qemu() {
        return;
    }
    let seen = run(true, true);
    assert!(seen.bounced > 0);
    assert_eq!(seen.above, 0, "up to {:#x}", seen.highest);
}

#[test]
fn shows_2_a_guest_without_bit_33_hands_over_what_it_has() {
    if !peer::qemu() {
        return;
    }
    let seen = run(false, true);
    assert_eq!(seen.bounced, 0);
    assert!(seen.above > 0);
}
