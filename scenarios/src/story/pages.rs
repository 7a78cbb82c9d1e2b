//! `pages`: blocks, single pages, exact sizes, many at once; what a block's pages are worth on their own.
//!
//! The mistake: a block freed twice by its address, as `free_pages` lets a C driver do; Linux says nothing.

use lowzone_guest_mem::addr::PAGE_SIZE;
use lowzone_guest_mem::gfp::{__GFP_NOWARN, __GFP_ZERO, GFP_KERNEL};
use lowzone_guest_mem::page::{
    __get_dma_pages, __get_free_page, alloc_pages, alloc_pages_bulk, alloc_pages_exact, get_page, misuse, page_count,
    split_page,
};
use lowzone_guest_mem::zone::ZoneKind;

use super::{StoryError, Telling};

/// Tells it.
pub(super) fn tell(telling: &Telling<'_, '_>) -> Result<(), StoryError> {
    let cpu = telling.cpu();
    let counts = |at: lowzone_guest_mem::PhysAddr| {
        let counts = (0..4).map(|page| page_count(cpu, at.wrapping_add(page * PAGE_SIZE)).to_string());
        counts.collect::<Vec<_>>().join(" ")
    };
    let block = alloc_pages(cpu, 2, GFP_KERNEL)?;
    let at = block.phys();
    telling.expect("references of a block of 4 pages", "1 0 0 0", counts(at))?;
    let further = get_page(&block);
    drop(block);
    telling.expect("freed, with a further reference to the first page", "1 0 0 0", counts(at))?;
    drop(further);
    telling.expect("the reference given back", "0 0 0 0", counts(at))?;

    let block = alloc_pages(cpu, 2, GFP_KERNEL)?;
    let at = block.phys();
    let singles = split_page(cpu, block);
    telling.expect("references after split_page", "1 1 1 1", counts(at))?;
    drop(singles);

    let exact = alloc_pages_exact(cpu, 20_000, GFP_KERNEL)?;
    telling.expect("alloc_pages_exact(20000): pages kept of the block of 8", 5, exact.pages().len())?;
    telling.expect("alloc_pages_bulk(32): pages", 32, alloc_pages_bulk(cpu, 32, GFP_KERNEL).len())?;
    telling.expect("__get_dma_pages(1): zone", ZoneKind::Dma, __get_dma_pages(cpu, 1, GFP_KERNEL)?.zone())?;
    telling.expect(
        "order 11, 8 MiB",
        "refused",
        if alloc_pages(cpu, 11, GFP_KERNEL | __GFP_NOWARN).is_ok() { "given" } else { "refused" },
    )?;

    let mut page = __get_free_page(cpu, GFP_KERNEL)?;
    page.write_at(0, b"secret")?;
    let freed = page.phys();
    drop(page);
    let mut bytes = [0; 6];
    let again = __get_free_page(cpu, GFP_KERNEL)?;
    again.read_at(0, &mut bytes)?;
    telling.expect("the page freed last is the next one", true, again.phys() == freed)?;
    telling.fact("what it holds then", String::from_utf8_lossy(&bytes));
    drop(again);
    __get_free_page(cpu, GFP_KERNEL | __GFP_ZERO)?.read_at(0, &mut bytes)?;
    telling.expect("and with __GFP_ZERO", "0 0 0 0 0 0", bytes.map(|byte| byte.to_string()).join(" "))?;

    if telling.makes("double-free") {
        let block = alloc_pages(cpu, 3, GFP_KERNEL)?;
        let at = block.phys();
        drop(block);
        misuse::free_pages(cpu, at, 3);
    }
    Ok(())
}
