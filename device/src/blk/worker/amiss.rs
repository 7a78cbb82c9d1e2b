//! What a block queue's worker gets wrong on purpose.
//!
//! The script is asked once for each request, before the last thing the device does for it; the answer stays with the
//! request and is carried out when it is finished. Neighbours: [`crate::misbehave`] says what and when, [`super`]
//! does everything else.

use vm_memory::GuestMemory;

use super::super::request::{IOERR, Piece, Request};
use super::BlkWorker;
use crate::misbehave::{LATE, Mishap};
use crate::tap::Tap;
use crate::virtio::{Ring, RingError};

impl<M: GuestMemory, T: Tap> BlkWorker<M, T> {
    /// Counts the completion of `request`, whose last piece of data is `last`, and draws its lot; once. True if that
    /// is a fault, which has then taken place.
    pub(super) fn draw(&self, request: &mut Request, last: Option<Piece>) -> bool {
        if request.drawn {
            return false;
        }
        request.drawn = true;
        request.mishap = self.common.script.draw();
        let fault = request.mishap == Some(Mishap::DmaFault);
        if fault {
            self.feign_fault(request, last);
        }
        fault
    }

    /// Fails `request` as if the platform had refused `last`, or the header if it has no data to move.
    fn feign_fault(&self, request: &mut Request, last: Option<Piece>) {
        let header = request.chain.descs.first().map(|segment| (segment.addr, segment.len, segment.write));
        let refused = last.map(|piece| (piece.addr, piece.len, request.fills_memory())).or(header);
        if let Some((addr, len, write)) = refused {
            self.mem.feign_fault(addr, usize::try_from(len).unwrap_or(usize::MAX), write);
            self.note_fault();
        }
        request.fail();
    }

    /// Finishes `request` as its lot has it.
    pub(super) fn finish(&mut self, ring: &mut Ring, mut request: Request, now: u64) -> Result<(), RingError> {
        let head = request.chain.head;
        match request.mishap.take() {
            None | Some(Mishap::DmaFault) => self.publish(ring, request),
            Some(Mishap::IoError) => {
                request.status = IOERR;
                self.publish(ring, request)
            }
            Some(Mishap::CompletionLate) => {
                self.held.push_back((now.saturating_add(LATE), request));
                Ok(())
            }
            Some(Mishap::CompletionNever) => {
                ring.recycle(request.chain);
                Ok(())
            }
            Some(Mishap::CompletionTwice) => {
                let len = self.conclude(&request);
                ring.publish(&self.mem, head, len)?;
                ring.publish(&self.mem, head, len)?;
                self.release(ring, request);
                Ok(())
            }
            Some(Mishap::WrongId) => {
                let len = self.conclude(&request);
                ring.forge(&self.mem, ring.stranger(&request.chain), len)?;
                self.release(ring, request);
                Ok(())
            }
            Some(Mishap::WrongLength) => {
                self.conclude(&request);
                ring.publish(&self.mem, head, request.room().saturating_add(1))?;
                self.release(ring, request);
                Ok(())
            }
            Some(Mishap::NeedsReset) => {
                self.stop();
                Ok(())
            }
        }
    }

    /// Lets go of what was held back until `now`, to be finished as it should have been.
    pub(super) fn let_go(&mut self, now: u64) {
        while let Some((_, request)) = self.held.pop_front_if(|(due, _)| *due <= now) {
            self.landed.push_back(request);
        }
    }
}

#[cfg(test)]
mod tests;
