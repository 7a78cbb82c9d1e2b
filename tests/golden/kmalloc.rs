//! The kmalloc family: classes, alignment, caches, zones, limits.

use lowzone_guest_mem::gfp::__GFP_HIGHMEM;
use lowzone_guest_mem::gfp::{
    __GFP_NOWARN, __GFP_ZERO, GFP_ATOMIC, GFP_DMA, GFP_DMA32, GFP_KERNEL, GFP_KERNEL_ACCOUNT, Gfp,
};
use lowzone_guest_mem::kernel::MachineConfig;
use lowzone_guest_mem::kmalloc::{
    ZERO_SIZE_PTR, kcalloc, kfree, kmalloc, kmalloc_array, kmalloc_size_roundup, krealloc, ksize, kzalloc,
};
use lowzone_guest_mem::page::alloc_pages;
use lowzone_guest_mem::{Cpu, KBuf};

use crate::calm::on;
use crate::gfp::mask;
use crate::table::{Golden, Outputs};

const KMALLOC: Golden = Golden {
    name: "kmalloc",
    text: include_str!("kmalloc.tsv"),
    inputs: &["boot", "how", "size"],
    compare: &["ret", "ksize", "roundup", "align", "zone", "cache"],
};
const BAD: Golden = Golden {
    name: "kmalloc_bad",
    text: include_str!("kmalloc_bad.tsv"),
    inputs: &["boot", "what"],
    compare: &["ret", "zone", "cache", "above4g"],
};
const CLASS: Golden = Golden {
    name: "kmalloc_class",
    text: include_str!("kmalloc_class.tsv"),
    inputs: &["boot", "first", "last"],
    compare: &["ksize"],
};
const GFP: Golden = Golden {
    name: "kmalloc_gfp",
    text: include_str!("kmalloc_gfp.tsv"),
    inputs: &["boot", "gfp", "size"],
    compare: &["zone", "cache", "above4g"],
};
const MISC: Golden = Golden {
    name: "kmalloc_misc",
    text: include_str!("kmalloc_misc.tsv"),
    inputs: &["boot", "what"],
    compare: &["value", "ksize"],
};
const ORDER: Golden = Golden {
    name: "kmalloc_order",
    text: include_str!("kmalloc_order.tsv"),
    inputs: &["boot", "cache"],
    compare: &["next_alloc_is_last_freed"],
};

/// The lowest bit that any of the addresses has.
pub fn alignment(all: &[KBuf]) -> u64 {
    1 << all.iter().fold(0, |bits, buf| bits | buf.phys().get()).trailing_zeros()
}

/// Where a buffer lies, as the tables have it.
fn place(cpu: &Cpu<'_>, buf: &KBuf) -> Outputs {
    let object = cpu.kernel().object_at(buf.phys()).unwrap();
    let large = || format!("large:o{}", object.large_order.unwrap());
    vec![
        ("zone", buf.zone().to_string()),
        ("cache", object.cache.map_or_else(large, str::to_owned)),
        ("above4g", u8::from(buf.phys().get() >= 1 << 32).to_string()),
    ]
}

#[test]
fn golden_kmalloc() {
    KMALLOC.run(|row| {
        let size: usize = row.number("size");
        let gfp = match row.get("how") {
            "ZERO" => GFP_KERNEL | __GFP_ZERO,
            "ATOMIC" => GFP_ATOMIC,
            "DMA" => GFP_KERNEL | GFP_DMA,
            "ACCOUNT" => GFP_KERNEL_ACCOUNT,
            other => mask(other),
        };
        on(MachineConfig::default(), |cpu| {
            let roundup = ("roundup", kmalloc_size_roundup(size).to_string());
            let mut dirty = kmalloc(cpu, size.clamp(1, 8192), gfp).unwrap();
            dirty.write_at(0, &vec![0xff; dirty.len()]).unwrap();
            drop(dirty);
            let count = if size > 8192 { 4 } else { 48 };
            let held: Result<Vec<_>, _> = (0..count).map(|_| kmalloc(cpu, size, gfp | __GFP_NOWARN)).collect();
            let Ok(held) = held else { return vec![("ret", "NULL".to_owned()), ("ksize", "0".to_owned()), roundup] };
            let first = &held[0];
            if first.virt() == ZERO_SIZE_PTR {
                return vec![("ret", "ZERO_SIZE_PTR".to_owned()), ("ksize", ksize(first).to_string()), roundup];
            }
            if gfp.contains(__GFP_ZERO) {
                let mut bytes = vec![1; size];
                first.read_at(0, &mut bytes).unwrap();
                assert_eq!(bytes, vec![0; size], "zeroed");
            }
            let mut outputs = place(cpu, first);
            outputs.retain(|(column, _)| *column != "above4g");
            outputs.extend([
                ("ret", "ptr".to_owned()),
                ("ksize", ksize(first).to_string()),
                ("align", alignment(&held).to_string()),
                roundup,
            ]);
            outputs
        })
    });
}

#[test]
fn golden_kmalloc_bad() {
    BAD.run(|row| {
        on(MachineConfig::default(), |cpu| {
            let last = |size, gfp: Gfp| {
                let all: Vec<_> = (0..600).map(|_| kmalloc(cpu, size, GFP_KERNEL | gfp).unwrap()).collect();
                place(cpu, all.last().unwrap())
            };
            match row.get("what") {
                "oversize_4M+1" => {
                    let failed = kmalloc(cpu, (4 << 20) + 1, GFP_KERNEL).is_err();
                    vec![("ret", if failed { "NULL" } else { "ptr" }.to_owned())]
                }
                "dma32_1024" => last(1024, GFP_DMA32),
                "dma32_65536" => last(65536, GFP_DMA32),
                "highmem_65536" => {
                    let got = kmalloc(cpu, 65536, GFP_KERNEL | __GFP_HIGHMEM).is_ok();
                    vec![("ret", if got { "ptr" } else { "NULL" }.to_owned())]
                }
                "page_DMA|DMA32" => {
                    vec![("ret", alloc_pages(cpu, 0, GFP_KERNEL | GFP_DMA | GFP_DMA32).unwrap().zone().to_string())]
                }
                other => panic!("{other}"),
            }
        })
    });
}

#[test]
fn golden_kmalloc_class() {
    CLASS.run(|row| {
        on(MachineConfig::default(), |cpu| {
            let of = |size: usize| ksize(&kmalloc(cpu, size, GFP_KERNEL).unwrap());
            let (first, last): (usize, usize) = (row.number("first"), row.number("last"));
            assert!((first..=last).all(|size| of(size) == of(first)), "one class");
            assert!(of(last + 1) > of(last) && of(first - 1) < of(first), "and no more");
            vec![("ksize", of(first).to_string())]
        })
    });
}

#[test]
fn golden_kmalloc_gfp() {
    GFP.run(|row| {
        let gfp = match row.get("gfp") {
            "GFP_DMA" => GFP_KERNEL | GFP_DMA,
            other => mask(other),
        };
        on(MachineConfig::default(), |cpu| place(cpu, &kmalloc(cpu, row.number("size"), gfp).unwrap()))
    });
}

#[test]
fn golden_kmalloc_misc() {
    on(MachineConfig::default(), |cpu| {
        let mut chain: Option<KBuf> = None;
        let empty = || kmalloc(cpu, 0, GFP_KERNEL).unwrap();
        let is_ok = |value: bool| u8::from(value).to_string();
        MISC.run(|row| {
            let value = match row.get("what") {
                // What a driver has in place of NULL has no size.
                "ksize_null" => None::<KBuf>.as_ref().map_or(0, ksize).to_string(),
                "ksize_zero_size_ptr" => ksize(&empty()).to_string(),
                "kmalloc0_ptr" => empty().virt().get().to_string(),
                "kcalloc_overflow" => u8::from(kcalloc(cpu, usize::MAX / 2, 3, GFP_KERNEL).is_ok()).to_string(),
                "kmalloc_array_0" => kmalloc_array(cpu, 0, 8, GFP_KERNEL).unwrap().virt().get().to_string(),
                "kfree_null_and_zero" => {
                    drop(None::<KBuf>);
                    kfree(empty());
                    if cpu.kernel().findings().is_empty() { "ok" } else { "findings" }.to_owned()
                }
                "roundup0" => kmalloc_size_roundup(0).to_string(),
                "roundup_over_max" => kmalloc_size_roundup((4 << 20) + 1).to_string(),
                "krealloc_40_to_64_same_ptr" => {
                    let buf = kzalloc(cpu, 40, GFP_KERNEL).unwrap();
                    let at = buf.phys();
                    chain = Some(krealloc(cpu, Some(buf), 64, GFP_KERNEL).unwrap());
                    is_ok(chain.as_ref().unwrap().phys() == at)
                }
                "krealloc_64_to_65_moved" => {
                    let at = chain.as_ref().unwrap().phys();
                    chain = Some(krealloc(cpu, chain.take(), 65, GFP_KERNEL | __GFP_ZERO).unwrap());
                    is_ok(chain.as_ref().unwrap().phys() != at)
                }
                "krealloc_zero_tail_after_64" => {
                    let (buf, mut byte) = (chain.as_ref().unwrap(), [1]);
                    buf.read_at(64, &mut byte).unwrap();
                    return vec![("value", format!("{:02x}", byte[0])), ("ksize", ksize(buf).to_string())];
                }
                "krealloc_shrink_same_ptr" => {
                    let at = chain.as_ref().unwrap().phys();
                    let buf = krealloc(cpu, chain.take(), 10, GFP_KERNEL).unwrap();
                    let outputs = vec![("value", is_ok(buf.phys() == at)), ("ksize", ksize(&buf).to_string())];
                    chain = Some(buf);
                    return outputs;
                }
                "krealloc_to_0" => krealloc(cpu, chain.take(), 0, GFP_KERNEL).unwrap().virt().get().to_string(),
                "krealloc_null_ksize" => ksize(&krealloc(cpu, None, 10, GFP_KERNEL).unwrap()).to_string(),
                other => panic!("{other}"),
            };
            vec![("value", value)]
        });
    });
}

#[test]
fn golden_kmalloc_order() {
    ORDER.run(|row| {
        assert_eq!(row.get("cache"), "kmalloc-2k");
        on(MachineConfig::default(), |cpu| {
            let all: Vec<_> = (0..200).map(|_| kmalloc(cpu, 2048, GFP_KERNEL).unwrap()).collect();
            let at: Vec<_> = all.iter().map(|buf| buf.phys().get()).collect();
            let same_slab = at.windows(2).filter(|pair| pair[0] >> 15 == pair[1] >> 15);
            let ascending = same_slab.clone().filter(|pair| pair[1] == pair[0] + 2048).count();
            assert_eq!((same_slab.count(), ascending), (187, 187), "in a fresh cache all ascend");
            all.into_iter().for_each(kfree);
            let next = kmalloc(cpu, 2048, GFP_KERNEL).unwrap();
            vec![("next_alloc_is_last_freed", u8::from(next.phys().get() == at[199]).to_string())]
        })
    });
}
