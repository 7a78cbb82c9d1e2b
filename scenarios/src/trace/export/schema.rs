//! What each event is called and which fields it has, once for every format that has fields.
//!
//! Names and fields are Linux's where Linux has the event (6.1; `dma:*` of 6.12), with what the lab knows beyond it as
//! further ones: the transaction, who called, zones. What Linux has and a record has not (gfp flags, attributes, the
//! page a buffer lies in) is left out. The lab's own events carry their system in their name (`port_read`), as Linux's do.
//!
//! Neighbours: `value` finds what a field says of an event, `dat` and `text` show it.

use lowzone_guest_mem::trace::Kind;

/// What a field says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Of {
    /// The device's name; `-` for none.
    Device,
    /// The direction of the mapping.
    Dir,
    /// The record's address.
    Addr,
    /// The number of the page at the record's address.
    Pfn,
    /// The order of a block of the record's length.
    Order,
    /// The record's length.
    Len,
    /// The record's tag.
    Tag,
    /// The transaction.
    Tx,
    /// Where the device's bytes lie.
    Phys,
    /// Where the driver's buffer lies.
    Buffer,
    /// The zone of the device's bytes.
    Zone,
    /// The zone of the driver's buffer.
    BufferZone,
    /// Whether the mapping bounced.
    Bounced,
    /// Bytes that the bounce pool copied.
    Copied,
    /// Who called.
    CallSite,
    /// Who allocated the buffer.
    AllocSite,
    /// The finding's name.
    Finding,
    /// The number of a kind that this version doesn't know.
    Kind,
}

/// How a field is stored and shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// 64 bits, decimal.
    Dec,
    /// 32 bits, decimal.
    Dec32,
    /// 64 bits, hexadecimal, as `dma:*` prints addresses.
    Hex,
    /// 64 bits, hexadecimal with a prefix.
    Ptr,
    /// 8 bits, 0 or 1.
    Flag,
    /// `enum dma_data_direction`.
    Dir,
    /// `enum zone_type`, as on x86-64.
    Zone,
    /// A call site: an address of code, and the symbol there.
    Site,
    /// A text.
    Text,
}

/// One field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) form: Form,
    pub(super) of: Of,
}

impl Field {
    /// Whether its name is shown before it: of devices it is not, as in `dma:*`.
    pub(super) fn labelled(&self) -> bool {
        self.name != "device"
    }
}

/// One event.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schema {
    /// What tracefs calls the folder that it lies in.
    pub(super) system: &'static str,
    pub(super) name: &'static str,
    pub(super) fields: &'static [Field],
}

const fn f(name: &'static str, form: Form, of: Of) -> Field {
    Field { name, form, of }
}

const DEVICE: Field = f("device", Form::Text, Of::Device);
const DIR: Field = f("dir", Form::Dir, Of::Dir);
const DMA: Field = f("dma_addr", Form::Hex, Of::Addr);
const SIZE: Field = f("size", Form::Dec, Of::Len);
const PHYS: Field = f("phys_addr", Form::Hex, Of::Phys);
const TX: Field = f("tx", Form::Dec, Of::Tx);
const SITE: Field = f("call_site", Form::Site, Of::CallSite);
const ALLOC_SITE: Field = f("alloc_site", Form::Site, Of::AllocSite);
const ZONE: Field = f("zone", Form::Zone, Of::Zone);
const COPIED: Field = f("bounced_bytes", Form::Dec, Of::Copied);
const PTR: Field = f("ptr", Form::Ptr, Of::Addr);
const BYTES: Field = f("bytes", Form::Dec, Of::Len);
const PFN: Field = f("pfn", Form::Ptr, Of::Pfn);
const ORDER: Field = f("order", Form::Dec32, Of::Order);

const ALLOC: &[Field] = &[SITE, PTR, f("bytes_req", Form::Dec, Of::Len)];
const FREE: &[Field] = &[SITE, PTR, BYTES];
const PAGES: &[Field] = &[PFN, ORDER, BYTES, SITE];
const MAP: &[Field] = &[
    DEVICE,
    DIR,
    DMA,
    SIZE,
    PHYS,
    TX,
    f("bounced", Form::Flag, Of::Bounced),
    ZONE,
    f("buffer", Form::Hex, Of::Buffer),
    f("buffer_zone", Form::Zone, Of::BufferZone),
    SITE,
    ALLOC_SITE,
];
const UNMAP: &[Field] = &[DEVICE, DIR, DMA, SIZE, TX, COPIED, SITE];
const COHERENT: &[Field] = &[DEVICE, DMA, SIZE, PHYS, TX, ZONE, SITE];
const COHERENT_FREE: &[Field] = &[DEVICE, DMA, SIZE, TX, SITE];
const BOUNCED: &[Field] = &[f("dev_name", Form::Text, Of::Device), f("dev_addr", Form::Hex, Of::Addr), SIZE, SITE];
const PORT: &[Field] = &[DEVICE, DMA, SIZE, TX];
const REGISTER: &[Field] =
    &[DEVICE, f("addr", Form::Ptr, Of::Addr), f("width", Form::Dec32, Of::Len), f("value", Form::Ptr, Of::Tag)];
const QUEUE: Field = f("queue", Form::Dec32, Of::Len);
const CHAIN: &[Field] = &[DEVICE, QUEUE, f("head", Form::Dec32, Of::Addr), f("index", Form::Dec32, Of::Tag)];
const GIVE: &[Field] = &[DEVICE, QUEUE, f("head", Form::Dec32, Of::Addr), f("written", Form::Dec, Of::Tag)];
const CALL: &[Field] = &[DEVICE, QUEUE];
const IRQ: &[Field] = &[DEVICE, f("irq", Form::Dec32, Of::Addr)];
const FINDING: &[Field] = &[DEVICE, f("number", Form::Dec32, Of::Len), f("finding", Form::Text, Of::Finding), DMA, TX];
const STEP: &[Field] = &[f("step", Form::Dec32, Of::Addr)];
const OTHER: &[Field] =
    &[f("kind", Form::Dec32, Of::Kind), DEVICE, f("addr", Form::Ptr, Of::Addr), SIZE, f("tag", Form::Ptr, Of::Tag)];

/// The events with their kinds, in the order of the kinds' numbers; `None` stands for every kind of a later version.
pub(super) const EVENTS: &[(Option<Kind>, Schema)] = &[
    of(Kind::Kmalloc, "kmem", "kmalloc", ALLOC),
    of(Kind::Kfree, "kmem", "kfree", FREE),
    of(Kind::MmPageAlloc, "kmem", "mm_page_alloc", PAGES),
    of(Kind::MmPageFree, "kmem", "mm_page_free", PAGES),
    of(Kind::KmemCacheAlloc, "kmem", "kmem_cache_alloc", ALLOC),
    of(Kind::KmemCacheFree, "kmem", "kmem_cache_free", FREE),
    of(Kind::DmaMapPage, "dma", "dma_map_page", MAP),
    of(Kind::DmaUnmapPage, "dma", "dma_unmap_page", UNMAP),
    of(Kind::DmaAlloc, "dma", "dma_alloc", COHERENT),
    of(Kind::DmaFree, "dma", "dma_free", COHERENT_FREE),
    of(Kind::DmaSyncForCpu, "dma", "dma_sync_single_for_cpu", UNMAP),
    of(Kind::DmaSyncForDevice, "dma", "dma_sync_single_for_device", UNMAP),
    of(Kind::SwiotlbBounced, "swiotlb", "swiotlb_bounced", BOUNCED),
    of(Kind::DmaMapSg, "dma", "dma_map_sg", MAP),
    of(Kind::DmaUnmapSg, "dma", "dma_unmap_sg", UNMAP),
    of(Kind::DmaMapResource, "dma", "dma_map_resource", MAP),
    of(Kind::PortRead, "port", "port_read", PORT),
    of(Kind::PortWrite, "port", "port_write", PORT),
    of(Kind::PortViolation, "port", "port_violation", PORT),
    of(Kind::DmaUnmapResource, "dma", "dma_unmap_resource", UNMAP),
    of(Kind::DmaSyncSgForCpu, "dma", "dma_sync_sg_for_cpu", UNMAP),
    of(Kind::DmaSyncSgForDevice, "dma", "dma_sync_sg_for_device", UNMAP),
    of(Kind::MmioRead, "mmio", "mmio_read", REGISTER),
    of(Kind::MmioWrite, "mmio", "mmio_write", REGISTER),
    of(Kind::VirtqAdd, "virtq", "virtq_add", CHAIN),
    of(Kind::VirtqKick, "virtq", "virtq_kick", CHAIN),
    of(Kind::VirtqUsed, "virtq", "virtq_used", CHAIN),
    of(Kind::VirtqTake, "virtq", "virtq_take", CHAIN),
    of(Kind::VirtqGive, "virtq", "virtq_give", GIVE),
    of(Kind::VirtqCall, "virtq", "virtq_call", CALL),
    of(Kind::IrqEntry, "irq", "irq_handler_entry", IRQ),
    of(Kind::IrqExit, "irq", "irq_handler_exit", IRQ),
    of(Kind::Finding, "lowzone", "finding", FINDING),
    of(Kind::Step, "lowzone", "step", STEP),
    (None, OTHER_SCHEMA),
];

const OTHER_SCHEMA: Schema = Schema { system: "lowzone", name: "unknown", fields: OTHER };

const fn of(kind: Kind, system: &'static str, name: &'static str, fields: &'static [Field]) -> (Option<Kind>, Schema) {
    (Some(kind), Schema { system, name, fields })
}

/// The event of a kind's number; `lowzone:unknown` for one that this version doesn't know.
pub(super) fn schema(kind: Option<Kind>) -> &'static Schema {
    let wanted = |(known, _): &&(Option<Kind>, Schema)| kind.is_some() && *known == kind;
    EVENTS.iter().find(wanted).map_or(&OTHER_SCHEMA, |(_, schema)| schema)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_has_a_schema_and_its_name_is_the_kinds() {
        for &kind in Kind::ALL.iter().filter(|kind| !kind.is_detail()) {
            let schema = schema(Some(kind));
            let (system, name) = kind.name().split_once(':').unwrap();
            let prefixed = format!("{system}_{name}");
            assert_eq!(schema.system, system);
            assert!(schema.name == name || schema.name == prefixed, "{kind:?}");
        }
        assert_eq!(schema(None).name, "unknown");
        assert_eq!(schema(Some(Kind::By)).name, "unknown");
    }
}
