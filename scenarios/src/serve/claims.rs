//! What a message claims, looked at on the socket before the `vhost` crate takes it.
//!
//! The crate checks how many files came with a message, and the numbers of memory regions and rings, but says no more
//! than "invalid message". Here they are checked first, so that what is wrong can be told. Neighbours:
//! [`super::session`] calls, [`super::memory`] and [`super::queue`] have the errors. Left out: a body whose files came
//! apart from it, which can't be seen this early; the crate judges that.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::ops::RangeInclusive;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use vhost::vhost_user::message::FrontendReq;

use super::error::ServeError;
use super::memory::{MemoryError, SLOTS, Wanted};
use super::queue::QueueError;

/// Bytes of a header.
const HEADER: usize = 12;
/// Bytes of a table before its regions; so many are before the region of ADD_MEM_REG, too.
const TABLE: usize = 8;
/// Bytes of a region: guest address, size, address in the peer, offset in the file.
const REGION: usize = 32;
/// The most files that the system lets travel together.
const FILES: usize = 253;
/// The bit of a doorbell's message that says that no file comes with it.
const NO_FILE: u64 = 1 << 8;

/// Looks at the message that is next on the socket, of which all is there.
pub(super) fn check(peer: &UnixStream, code: FrontendReq, size: usize) -> Result<(), ServeError> {
    let end = HEADER + size;
    let mut bytes = vec![0; end + 1];
    let (got, has) = peek(peer, &mut bytes)?;
    // A look ends behind the first bytes that files came with: one that goes further has seen the next message's.
    let (body, fewest) = (bytes.get(HEADER..got.min(end)).unwrap_or(&[]), if got > end { 0 } else { has });
    let whole = body.len() == size;
    if whole {
        contents(code, body)?;
    }
    let few = usize::MAX;
    let wanted = match code {
        FrontendReq::SET_MEM_TABLE => first(body).map_or(0..=few, |(regions, _)| exactly(regions)),
        FrontendReq::ADD_MEM_REG | FrontendReq::SET_BACKEND_REQ_FD => 1..=1,
        // Older front ends send one, which means nothing.
        FrontendReq::REM_MEM_REG => 0..=1,
        FrontendReq::SET_VRING_KICK | FrontendReq::SET_VRING_CALL | FrontendReq::SET_VRING_ERR => {
            word(body, 0).map_or(0..=few, |word| exactly(u32::from(word & NO_FILE == 0)))
        }
        _ => 0..=0,
    };
    if wanted.contains(&has) || wanted.contains(&fewest) {
        return Ok(());
    }
    Err(ServeError::Files { name: format!("{code:?}"), has: fewest, wanted: *wanted.end() })
}

fn exactly(count: u32) -> RangeInclusive<usize> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    count..=count
}

/// The first bytes of the next message, and how many files come with them. Nothing is taken off the socket.
fn peek(peer: &UnixStream, bytes: &mut [u8]) -> Result<(usize, usize), ServeError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
    let got = loop {
        match recvmsg(peer, &mut [IoSliceMut::new(bytes)], &mut control, flags) {
            Ok(seen) => break seen.bytes,
            Err(Errno::INTR) => {}
            Err(error) => return Err(ServeError::system("the connection")(error.into())),
        }
    };
    // What is seen is one's own copy of each, closed here.
    let files = control.drain().map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => files.count(),
        _ => 0,
    });
    Ok((got, files.sum()))
}

/// The numbers of a whole body.
fn contents(code: FrontendReq, body: &[u8]) -> Result<(), ServeError> {
    match code {
        FrontendReq::SET_MEM_TABLE => table(body),
        FrontendReq::ADD_MEM_REG => region(body.get(TABLE..).unwrap_or(&[])),
        FrontendReq::SET_VRING_ADDR => places(body),
        _ => Ok(()),
    }
}

fn table(body: &[u8]) -> Result<(), ServeError> {
    let size = body.len();
    let (claims, regions) = first(body).unwrap_or((0, 0..0));
    let room = regions.len() / REGION;
    if claims == 0 || room > SLOTS || exactly(claims) != (room..=room) || !regions.len().is_multiple_of(REGION) {
        return Err(MemoryError::Table { claims, size }.into());
    }
    body.get(regions).unwrap_or(&[]).chunks(REGION).try_for_each(region)
}

/// How many regions a table claims to have, and where they would be.
fn first(body: &[u8]) -> Option<(u32, std::ops::Range<usize>)> {
    let claims = body.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes))?;
    (body.len() >= TABLE).then_some((claims, TABLE..body.len()))
}

fn region(bytes: &[u8]) -> Result<(), ServeError> {
    let Some(((guest, size), (user, offset))) =
        word(bytes, 0).zip(word(bytes, 8)).zip(word(bytes, 16).zip(word(bytes, 24)))
    else {
        // Its length is wrong, which the crate refuses.
        return Ok(());
    };
    Ok(Wanted { guest, user, size, offset }.plain().map(drop)?)
}

/// Addresses of rings that no ring can have.
fn places(body: &[u8]) -> Result<(), ServeError> {
    let index = body.first_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    let index = usize::try_from(index).unwrap_or(usize::MAX);
    for (what, from, align) in [("descriptor table", 8, 16), ("used ring", 16, 4), ("available ring", 24, 2)] {
        if let Some(at) = word(body, from).filter(|at| !at.is_multiple_of(align)) {
            return Err(ServeError::Queue { index, source: QueueError::Align { what, at, align } });
        }
    }
    Ok(())
}

fn word(bytes: &[u8], from: usize) -> Option<u64> {
    bytes.get(from..).and_then(<[u8]>::first_chunk).map(|bytes| u64::from_le_bytes(*bytes))
}
