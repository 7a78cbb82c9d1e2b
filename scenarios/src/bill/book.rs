//! The book behind a bill: records in as they are made, sums out.
//!
//! It remembers what is live (mappings, objects of kmalloc), not what was. Every record of the run passes through it, so
//! the rings of the flight recorder and what they overwrite don't matter. Neighbours: the parent, whose rows it fills;
//! `trace::event`, which puts details together. Left out: objects of a driver's own caches, whose records have no slack.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use lowzone_guest_mem::PhysAddr;
use lowzone_guest_mem::dma::DmaDevice;
use lowzone_guest_mem::dma::cache::ARCH_DMA_MINALIGN;
use lowzone_guest_mem::dma::swiotlb::SLOT_SIZE;
use lowzone_guest_mem::kernel::{Kernel, MachineConfig};
use lowzone_guest_mem::kmalloc::kmalloc_size_roundup;
use lowzone_guest_mem::trace::{Kind, Producer, Record, Shape, Sink, owner_of};

use super::{Bill, Cost, DeviceBill, PoolRow, SiteBill, Wider};
use crate::trace::event::{Event, Raw};

const PAGE: u64 = 4096;

/// A device's sums, or one of its sites'.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    cost: Cost,
    slots_now: u64,
    pages_now: u64,
    /// The highest bus address of a buffer that bounced.
    highest: Option<u64>,
}

/// A mapping whose end is to come.
#[derive(Clone, Copy, Debug)]
struct Live {
    dev: u16,
    site: u64,
    slots: u64,
    pages: u64,
}

/// What a map call made.
struct Made {
    live: Live,
    len: u64,
    shape: Option<Shape>,
    /// The last byte of the buffer on the bus.
    last: u64,
    /// The slack of the object that it lies in, if it was not mapped before.
    slack: Option<u64>,
}

/// A live object of kmalloc.
#[derive(Clone, Copy, Debug)]
struct Object {
    asked: u64,
    class: u64,
    mapped: bool,
}

/// The sums so far.
#[derive(Debug)]
struct Book {
    config: MachineConfig,
    pending: Option<Event>,
    objects: BTreeMap<u64, Object>,
    live: BTreeMap<u64, Live>,
    devices: BTreeMap<u16, Account>,
    sites: BTreeMap<(u16, u64), Account>,
}

/// A book that the recorder fills while the lab keeps it.
#[derive(Clone)]
pub(crate) struct SharedBook(Arc<Mutex<Book>>);

impl SharedBook {
    /// An empty book of a machine.
    pub(crate) fn new(kernel: &Kernel) -> Self {
        Self(Arc::new(Mutex::new(Book {
            config: *kernel.config(),
            pending: None,
            objects: BTreeMap::new(),
            live: BTreeMap::new(),
            devices: BTreeMap::new(),
            sites: BTreeMap::new(),
        })))
    }

    /// The bill of these devices.
    pub(crate) fn bill<'a>(&self, kernel: &Kernel, devices: impl Iterator<Item = (&'a str, &'a DmaDevice)>) -> Bill {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        book.settle();
        let pool = kernel.swiotlb_view().map(|pool| {
            let stats = pool.stats();
            PoolRow { slots: stats.total, slot_bytes: SLOT_SIZE, high_water: stats.high_water }
        });
        let devices = devices.map(|(name, dma)| book.device(name, dma)).collect();
        Bill { pool, forced: book.config.swiotlb_force, devices }
    }
}

impl Sink for SharedBook {
    fn page(&mut self, page: &[(Producer, Record)]) {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        page.iter().for_each(|(who, record)| book.take(Raw::of(*who, record)));
    }
}

impl Account {
    fn made(&mut self, made: &Made, forced: bool) {
        let Made { live, len, shape, last, slack } = *made;
        let cost = &mut self.cost;
        if live.pages > 0 {
            cost.coherent += 1;
            cost.coherent_bytes += len;
            cost.coherent_pages += live.pages;
            cost.coherent_waste += live.pages * PAGE - len;
            self.pages_now += live.pages;
            cost.coherent_pages_at_once = cost.coherent_pages_at_once.max(self.pages_now);
            return;
        }
        cost.maps += 1;
        cost.objects += u64::from(slack.is_some());
        cost.object_waste += slack.unwrap_or(0);
        if shape.is_some_and(|shape| shape.bounced) {
            cost.bounces += 1;
            cost.bounced += len;
            cost.copied_in += len;
            cost.slots += live.slots;
            cost.slot_waste += live.slots * SLOT_SIZE - len;
            self.slots_now += live.slots;
            cost.slots_at_once = cost.slots_at_once.max(self.slots_now);
            self.highest = self.highest.max((!forced).then_some(last));
        }
    }

    fn wider(&self) -> Option<Wider> {
        let Cost { bounces: maps, copied_in, copied_back, slots, .. } = self.cost;
        let bits = 64 - self.highest?.leading_zeros();
        Some(Wider { bits, maps, bytes: copied_in + copied_back, slots })
    }
}

impl Book {
    fn take(&mut self, raw: Raw) {
        match &mut self.pending {
            Some(event) if raw.is_detail() && event.raw.who == raw.who => event.add(&raw),
            _ if raw.is_detail() => {}
            _ => {
                self.settle();
                self.pending = Some(Event::new(0, raw));
            }
        }
    }

    /// Books the event that has all its details.
    fn settle(&mut self) {
        let Some(event) = self.pending.take() else { return };
        let (raw, copied) = (event.raw, u64::from(event.copied));
        match event.kind() {
            Some(Kind::Kmalloc) if raw.addr != 0 => self.allocated(raw.addr, raw.len),
            Some(Kind::Kfree) => drop(self.objects.remove(&raw.addr)),
            Some(Kind::DmaMapPage | Kind::DmaMapSg | Kind::DmaMapResource | Kind::DmaAlloc) if raw.tag != 0 => {
                self.made(&event);
            }
            Some(Kind::DmaMapPage | Kind::DmaMapSg | Kind::DmaMapResource) => {
                let site = (raw.dev, event.by.unwrap_or(0));
                self.devices.entry(raw.dev).or_default().cost.refused += 1;
                self.sites.entry(site).or_default().cost.refused += 1;
            }
            Some(Kind::DmaSyncForDevice | Kind::DmaSyncSgForDevice) => {
                self.change(raw.tag, |account, _| account.cost.copied_in += copied);
            }
            Some(Kind::DmaSyncForCpu | Kind::DmaSyncSgForCpu) => {
                self.change(raw.tag, |account, _| account.cost.copied_back += copied);
            }
            Some(Kind::DmaUnmapPage | Kind::DmaUnmapSg | Kind::DmaUnmapResource | Kind::DmaFree) => {
                self.change(raw.tag, |account, live| {
                    account.cost.copied_back += copied;
                    account.slots_now -= live.slots;
                    account.pages_now -= live.pages;
                });
                self.live.remove(&raw.tag);
            }
            _ => {}
        }
    }

    fn allocated(&mut self, at: u64, len: u32) {
        let asked = usize::try_from(len).unwrap_or(usize::MAX);
        let wanted = if self.config.coherent { asked } else { asked.next_multiple_of(ARCH_DMA_MINALIGN) };
        let class = kmalloc_size_roundup(wanted) as u64;
        self.objects.insert(at, Object { asked: asked as u64, class, mapped: false });
    }

    fn made(&mut self, event: &Event) {
        let (raw, len) = (event.raw, u64::from(event.raw.len));
        let (phys, shape, site) = event.mapping.unwrap_or_default();
        let (buffer, _) = event.buffer.unwrap_or_default();
        let is = |what: fn(&Shape) -> bool| shape.as_ref().is_some_and(what);
        let slots = if is(|shape| shape.bounced) { (phys % SLOT_SIZE + len).div_ceil(SLOT_SIZE) } else { 0 };
        let pages = if is(|shape| shape.coherent) { len.div_ceil(PAGE).next_power_of_two() } else { 0 };
        let live = Live { dev: raw.dev, site, slots, pages };
        let last = buffer.saturating_add(self.config.dma_offset).saturating_add(len.saturating_sub(1));
        let slack = if pages == 0 { self.first_mapping_of(PhysAddr::new(buffer)) } else { None };
        let made = Made { live, len, shape, last, slack };
        let forced = self.config.swiotlb_force;
        self.devices.entry(live.dev).or_default().made(&made, forced);
        self.sites.entry((live.dev, site)).or_default().made(&made, forced);
        self.live.insert(raw.tag, live);
    }

    /// The slack of the object that holds a byte, the first time that it is asked for.
    fn first_mapping_of(&mut self, at: PhysAddr) -> Option<u64> {
        let (&begin, object) = self.objects.range_mut(..=at.get()).next_back()?;
        let first = at.get() - begin < object.asked.max(1) && !std::mem::replace(&mut object.mapped, true);
        first.then(|| object.class - object.asked)
    }

    /// Changes the accounts of a live mapping.
    fn change(&mut self, id: u64, change: impl Fn(&mut Account, &Live)) {
        let Some(live) = self.live.get(&id) else { return };
        let accounts = self.devices.get_mut(&live.dev).into_iter().chain(self.sites.get_mut(&(live.dev, live.site)));
        accounts.for_each(|account| change(account, live));
    }

    fn device(&self, name: &str, dma: &DmaDevice) -> DeviceBill {
        let (index, counters) = (dma.index(), dma.counters());
        let account = self.devices.get(&index).copied().unwrap_or_default();
        let sites = self.sites.range((index, 0)..=(index, u64::MAX)).map(|(&(_, site), account)| SiteBill {
            site: owner_of(site).to_string(),
            cost: account.cost,
            wider: account.wider(),
        });
        let mut sites: Vec<_> = sites.collect();
        let price = |cost: &Cost| (cost.copied_in + cost.copied_back, cost.coherent_pages, cost.maps);
        sites.sort_by(|a, b| price(&b.cost).cmp(&price(&a.cost)).then_with(|| a.site.cmp(&b.site)));
        let Cost { maps, refused, copied_in, copied_back, slots, coherent, .. } = account.cost;
        let unbooked =
            (counters.bounced_bytes.checked_sub(copied_in + copied_back), counters.bounced_slots.checked_sub(slots));
        let same = (maps, refused, coherent) == (counters.maps, counters.map_failures, counters.coherent);
        DeviceBill {
            device: name.to_owned(),
            cost: account.cost,
            unbooked_bytes: unbooked.0.unwrap_or(0),
            unbooked_slots: unbooked.1.unwrap_or(0),
            whole: same && unbooked.0.is_some() && unbooked.1.is_some(),
            wider: account.wider(),
            sites,
        }
    }
}
