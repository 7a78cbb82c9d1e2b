//! The DMA half of the kernel: directions, mappings, the lab's book of live ones, and the bounce pool.
//!
//! Neighbours: [`crate::addr`] for the address spaces, [`crate::site`] for owners.

pub mod direction;
pub mod ledger;
pub mod mapping;
pub mod swiotlb;
