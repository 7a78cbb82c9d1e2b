//! What the driver of the long run holds: memory of three kinds, and typed mappings of it behind one trait.

use crate::addr::PhysAddr;
use crate::cpu::Cpu;
use crate::dma::direction::{Bidirectional, Direction, FromDevice, ToDevice};
use crate::dma::sg::{MappedSg, Scattered, SgWindow};
use crate::dma::streaming::{Mapped, Resource, Window};
use crate::kbuf::KBuf;
use crate::kernel::Kernel;
use crate::page::Pages;
use crate::vmalloc::{VBuf, vmalloc_to_page};

/// Memory.
pub(super) enum Mem {
    Buf(KBuf),
    Pages(Pages),
    Area(VBuf),
}

impl Mem {
    /// Where its bytes lie.
    pub(super) fn spans(&self, kernel: &Kernel) -> Vec<(u64, u64)> {
        match self {
            Self::Buf(buf) => vec![(buf.phys().get(), buf.len() as u64)],
            Self::Pages(pages) => vec![(pages.phys().get(), 4096 << pages.order())],
            Self::Area(area) => (0..area.len() as u64)
                .step_by(4096)
                .map(|at| {
                    let phys = vmalloc_to_page(kernel, area.virt().wrapping_add(at)).unwrap();
                    (phys.get(), 4096.min(area.len() as u64 - at))
                })
                .collect(),
        }
    }

    /// The CPU reads; pages of high memory as a kmap would let it.
    pub(super) fn read(&self, kernel: &Kernel, at: usize, to: &mut [u8]) {
        match self {
            Self::Buf(buf) => buf.read_at(at, to).unwrap(),
            Self::Pages(pages) => kernel.ram().read(pages.phys().wrapping_add(at as u64), to).unwrap(),
            Self::Area(area) => area.read_at(at, to).unwrap(),
        }
    }

    pub(super) fn write(&mut self, kernel: &Kernel, at: usize, from: &[u8]) {
        match self {
            Self::Buf(buf) => buf.write_at(at, from).unwrap(),
            Self::Pages(pages) => kernel.ram().write(pages.phys().wrapping_add(at as u64), from).unwrap(),
            Self::Area(area) => area.write_at(at, from).unwrap(),
        }
    }
}

/// Some bytes of the spans, by their place among all of them.
pub(super) fn stretch(spans: &[(u64, u64)], from: usize, len: usize) -> Vec<(u64, u64)> {
    let (mut skip, mut left, mut found) = (from as u64, len as u64, Vec::new());
    for &(at, has) in spans {
        let step = skip.min(has);
        let take = (has - step).min(left);
        if take > 0 {
            found.push((at + step, take));
        }
        (skip, left) = (skip - step, left - take);
    }
    found
}

/// A window: reads and writes where the direction has them; `false` where it hasn't.
pub(super) trait Lent {
    fn read(&self, _at: usize, _to: &mut [u8]) -> bool {
        false
    }
    fn write(&mut self, _at: usize, _from: &[u8]) -> bool {
        false
    }
}

macro_rules! lent {
    ($window:ty, [$($memory:ident)?] $($way:ident)*) => {
        impl$(<$memory>)? Lent for $window {
            $(lent! { $way })*
        }
    };
    (read) => {
        fn read(&self, at: usize, to: &mut [u8]) -> bool {
            self.read_at(at, to).unwrap();
            true
        }
    };
    (write) => {
        fn write(&mut self, at: usize, from: &[u8]) -> bool {
            self.write_at(at, from).unwrap();
            true
        }
    };
}

lent! { Window<'_, '_, ToDevice>, [] write }
lent! { Window<'_, '_, FromDevice>, [] read }
lent! { Window<'_, '_, Bidirectional>, [] read write }
lent! { SgWindow<'_, '_, B, ToDevice>, [B] write }
lent! { SgWindow<'_, '_, B, FromDevice>, [B] read }
lent! { SgWindow<'_, '_, B, Bidirectional>, [B] read write }

/// A mapping that owns its memory.
pub(super) trait Whole {
    fn unmap(self: Box<Self>, cpu: &Cpu<'_>) -> Vec<Mem>;
    /// Opens a window of all of it or a part; `false` if there is none to open.
    fn window(&mut self, _cpu: &Cpu<'_>, _part: Option<(usize, usize)>, _turn: &mut dyn FnMut(&mut dyn Lent)) -> bool {
        false
    }
}

impl<D: Direction> Whole for Mapped<KBuf, D>
where
    for<'a, 'b> Window<'a, 'b, D>: Lent,
{
    fn unmap(self: Box<Self>, cpu: &Cpu<'_>) -> Vec<Mem> {
        vec![Mem::Buf((*self).unmap(cpu))]
    }

    fn window(&mut self, cpu: &Cpu<'_>, part: Option<(usize, usize)>, turn: &mut dyn FnMut(&mut dyn Lent)) -> bool {
        match part {
            Some((from, len)) => turn(&mut self.sync_range_for_cpu(cpu, from, len).unwrap()),
            None => turn(&mut self.sync_for_cpu(cpu)),
        }
        true
    }
}

impl<D: Direction> Whole for Mapped<Pages, D> {
    fn unmap(self: Box<Self>, cpu: &Cpu<'_>) -> Vec<Mem> {
        vec![Mem::Pages((*self).unmap(cpu))]
    }
}

impl<D: Direction> Whole for Mapped<Resource, D> {
    fn unmap(self: Box<Self>, cpu: &Cpu<'_>) -> Vec<Mem> {
        (*self).unmap(cpu);
        Vec::new()
    }
}

/// Memory of a scatterlist.
pub(super) trait Pile: Scattered {
    fn apart(self) -> Vec<Mem>;
}

impl Pile for Vec<KBuf> {
    fn apart(self) -> Vec<Mem> {
        self.into_iter().map(Mem::Buf).collect()
    }
}

impl Pile for Vec<Pages> {
    fn apart(self) -> Vec<Mem> {
        self.into_iter().map(Mem::Pages).collect()
    }
}

impl Pile for VBuf {
    fn apart(self) -> Vec<Mem> {
        vec![Mem::Area(self)]
    }
}

impl<B: Pile, D: Direction> Whole for MappedSg<B, D>
where
    for<'a, 'b> SgWindow<'a, 'b, B, D>: Lent,
{
    fn unmap(self: Box<Self>, cpu: &Cpu<'_>) -> Vec<Mem> {
        (*self).unmap(cpu).apart()
    }

    fn window(&mut self, cpu: &Cpu<'_>, _part: Option<(usize, usize)>, turn: &mut dyn FnMut(&mut dyn Lent)) -> bool {
        turn(&mut self.sync_for_cpu(cpu));
        true
    }
}

/// The CPU's way to RAM, whoever owns it.
pub(super) fn peek(kernel: &Kernel, at: u64, to: &mut [u8]) {
    kernel.ram().read(PhysAddr::new(at), to).unwrap();
}

pub(super) fn poke(kernel: &Kernel, at: u64, from: &[u8]) {
    kernel.ram().write(PhysAddr::new(at), from).unwrap();
}
