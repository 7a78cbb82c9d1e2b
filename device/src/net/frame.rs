//! Packets that can be checked to the byte: each says its number, and length and content follow from it.
//!
//! An Ethernet header of the local experimental type, the number, then words of a pattern. Who sends and who receives
//! need only agree on a seed. Neighbours: `worker`'s source makes them; whoever receives checks them.

use thiserror::Error;

/// The shortest packet.
pub const LEAST: usize = 64;
/// The longest packet: 1500 bytes behind an Ethernet header.
pub const MOST: usize = 1514;
/// Where the pattern begins.
const PATTERN: usize = 24;
/// IEEE's local experimental type, then two bytes of padding.
const TYPE: [u8; 4] = [0x88, 0xb5, 0, 0];
/// Two stations of no maker.
const STATIONS: [u8; 12] = [0x52, 0x54, 0, 0x4c, 0x5a, 1, 0x52, 0x54, 0, 0x4c, 0x5a, 2];

/// A packet that is not as it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Not one of these packets at all.
    #[error("a packet of {len} bytes that nobody sent")]
    Foreign {
        /// Its length.
        len: usize,
    },
    /// Of another length than was sent.
    #[error("packet {number} has {len} bytes, it was sent with {sent}")]
    Length {
        /// The packet.
        number: u64,
        /// Its length.
        len: usize,
        /// What it should be.
        sent: usize,
    },
    /// With another byte than was sent.
    #[error("packet {number} differs at byte {at}")]
    Byte {
        /// The packet.
        number: u64,
        /// The first byte that differs, or one shortly before it.
        at: usize,
    },
}

/// A well-mixed word (splitmix64).
const fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

const fn start(seed: u64, number: u64) -> u64 {
    mix(mix(seed.wrapping_add(STEP)) ^ number.wrapping_mul(STEP))
}

/// How long the packet of this number is: between [`LEAST`] and [`MOST`].
pub fn len(seed: u64, number: u64) -> usize {
    let span = (MOST - LEAST + 1) as u64;
    LEAST + usize::try_from(mix(start(seed, number)) % span).unwrap_or(0)
}

/// The packet of this number, at the beginning of `room`.
///
/// ```
/// use lowzone_device::net::frame::{MOST, check, len, make};
///
/// let mut room = [0; MOST];
/// let packet = make(7, 3, &mut room);
/// assert_eq!((packet.len(), check(7, packet)), (len(7, 3), Ok(3)));
/// packet[40] ^= 1;
/// assert!(check(7, packet).is_err());
/// ```
pub fn make(seed: u64, number: u64, room: &mut [u8; MOST]) -> &mut [u8] {
    let packet = &mut room[..len(seed, number)];
    packet[..12].copy_from_slice(&STATIONS);
    packet[12..16].copy_from_slice(&TYPE);
    packet[16..PATTERN].copy_from_slice(&number.to_le_bytes());
    let mut word = start(seed, number);
    for part in packet[PATTERN..].chunks_mut(8) {
        word = word.wrapping_add(STEP);
        part.copy_from_slice(&mix(word).to_le_bytes()[..part.len()]);
    }
    packet
}

/// The number of a packet that is as it was sent, to the byte.
///
/// # Errors
/// [`FrameError`]: it is not.
pub fn check(seed: u64, packet: &[u8]) -> Result<u64, FrameError> {
    let foreign = FrameError::Foreign { len: packet.len() };
    if packet.len() < LEAST || packet[..12] != STATIONS || packet[12..16] != TYPE {
        return Err(foreign);
    }
    let number = u64::from_le_bytes(packet[16..PATTERN].try_into().map_err(|_| foreign)?);
    let sent = len(seed, number);
    if packet.len() != sent {
        return Err(FrameError::Length { number, len: packet.len(), sent });
    }
    let mut word = start(seed, number);
    for (at, part) in (PATTERN..).step_by(8).zip(packet[PATTERN..].chunks(8)) {
        word = word.wrapping_add(STEP);
        if mix(word).to_le_bytes()[..part.len()] != *part {
            return Err(FrameError::Byte { number, at });
        }
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_cover_the_range_and_every_byte_is_checked() {
        let lengths: Vec<_> = (0..20_000).map(|number| len(1, number)).collect();
        assert_eq!((lengths.iter().min(), lengths.iter().max()), (Some(&LEAST), Some(&MOST)));
        for number in 0..50 {
            let mut room = [0; MOST];
            let packet = make(9, number, &mut room);
            for at in 0..packet.len() {
                packet[at] ^= 0x10;
                assert!(check(9, packet).is_err(), "byte {at} of packet {number}");
                packet[at] ^= 0x10;
            }
            assert_eq!(check(9, packet), Ok(number));
            assert!(check(9, &packet[..packet.len() - 1]).is_err() && check(8, packet).is_err());
        }
    }
}
