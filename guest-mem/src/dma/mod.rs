//! The DMA half of the kernel: directions, the bounce pool, and the lab's book of live mappings.
//!
//! Neighbours: [`crate::addr`] for the address spaces, [`crate::site`] for owners.

pub mod direction;
pub mod mapping;
pub mod swiotlb;
