//! The numbers, names and zones of allocation masks.

use lowzone_guest_mem::gfp::{self, Gfp};

use crate::table::Golden;

const NUMBERS: Golden =
    Golden { name: "gfp", text: include_str!("gfp.tsv"), inputs: &["boot", "name"], compare: &["hex", "text"] };

macro_rules! masks {
    ($($name:ident)*) => { [$((stringify!($name), gfp::$name)),*] };
}

const MASKS: [(&str, Gfp); 36] = masks! {
    __GFP_DMA __GFP_HIGHMEM __GFP_DMA32 __GFP_MOVABLE __GFP_RECLAIMABLE __GFP_HIGH __GFP_IO __GFP_FS __GFP_ZERO
    __GFP_ATOMIC __GFP_DIRECT_RECLAIM __GFP_KSWAPD_RECLAIM __GFP_WRITE __GFP_NOWARN __GFP_RETRY_MAYFAIL __GFP_NOFAIL
    __GFP_NORETRY __GFP_MEMALLOC __GFP_COMP __GFP_NOMEMALLOC __GFP_HARDWALL __GFP_THISNODE __GFP_ACCOUNT
    GFP_ATOMIC GFP_KERNEL GFP_KERNEL_ACCOUNT GFP_NOWAIT GFP_NOIO GFP_NOFS GFP_USER GFP_DMA GFP_DMA32 GFP_HIGHUSER
    GFP_HIGHUSER_MOVABLE GFP_TRANSHUGE_LIGHT GFP_TRANSHUGE
};

/// The mask of a C expression such as `GFP_KERNEL | __GFP_ZERO`.
pub fn mask(expression: &str) -> Gfp {
    let single = |name: &str| MASKS.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("{name}")).1;
    expression.split('|').map(|name| single(name.trim())).fold(Gfp::empty(), |all, one| all | one)
}

#[test]
fn golden_gfp() {
    NUMBERS.run(|row| {
        let gfp = mask(row.get("name"));
        vec![("hex", format!("{:#x}", gfp.bits())), ("text", gfp.to_string())]
    });
}
