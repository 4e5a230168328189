//! One end of a session, apart from what carries it.
//!
//! ```text
//!  near ─ handle_bytes ─► outbox ─ next_frame ─► carrier        positions of what leaves:   passed ≤ sent ≤ limit
//!  near ◄─── deliver ─── inbox ◄─ handle_frame ─ carrier        positions of what comes:    told ≤ passed ≤ received
//! ```
//!
//! Positions count the bytes of one direction from its beginning; its end counts as one more, so that it is kept, sent again
//! and acknowledged as they are.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::{Frame, MAX_DATA, WINDOW};

/// What has been passed on is told in portions of this size: a fraction of the window, so that a stream that flows never
/// waits for it.
const PORTION: u64 = WINDOW as u64 / 8;

/// One end.
#[derive(Debug, Default)]
pub struct Session {
    leaving: Leaving,
    coming: Coming,
}

/// From the near side to the peer.
#[derive(Debug, Default)]
struct Leaving {
    /// What the peer has not passed on yet; at most [`WINDOW`].
    outbox: VecDeque<u8>,
    /// The position of the first byte of the outbox.
    passed: u64,
    /// What the carrier of now has been given.
    sent: u64,
    /// Where the end stands, once the near side has ended.
    end: Option<u64>,
}

/// From the peer to the near side.
#[derive(Debug, Default)]
struct Coming {
    /// What the near side has not taken yet; at most [`WINDOW`].
    inbox: VecDeque<u8>,
    received: u64,
    passed: u64,
    /// What the peer knows of `passed`; none on a new carrier.
    told: Option<u64>,
    /// Where the end stands, once the peer has ended.
    end: Option<u64>,
}

/// A frame or a greeting that fits no state of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other end broke the session")]
pub struct Violation;

impl Session {
    /// How far this end has received, for the greeting.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.coming.received
    }

    /// A new carrier takes the session up, and the peer has received so far.
    ///
    /// # Errors
    /// [`Violation`] where it cannot have.
    pub fn handle_attached(&mut self, received: u64) -> Result<(), Violation> {
        let leaving = &mut self.leaving;
        if received < leaving.passed || received > leaving.limit() {
            return Err(Violation);
        }
        leaving.sent = received;
        self.coming.told = None;
        Ok(())
    }

    /// How many bytes the near side may give.
    #[must_use]
    pub fn room(&self) -> usize {
        match self.leaving.end {
            Some(_) => 0,
            None => WINDOW - self.leaving.outbox.len(),
        }
    }

    /// The near side gives bytes, no more than there is [`room`](Self::room) for.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.room());
        self.leaving.outbox.extend(bytes);
    }

    /// The near side gives no more.
    pub fn handle_end(&mut self) {
        let leaving = &mut self.leaving;
        leaving
            .end
            .get_or_insert(leaving.passed + leaving.outbox.len() as u64);
    }

    /// The peer says something.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn handle_frame(&mut self, frame: &Frame) -> Result<(), Violation> {
        match frame {
            Frame::Data(bytes) => self.coming.handle_data(bytes),
            Frame::End => self.coming.handle_end(),
            Frame::Passed(position) => self.leaving.handle_passed(*position),
        }
    }

    /// What is to be said next over the carrier.
    pub fn next_frame(&mut self) -> Option<Frame> {
        self.coming
            .next_frame()
            .or_else(|| self.leaving.next_frame())
    }

    /// What the near side is to be given.
    #[must_use]
    pub fn deliverable(&self) -> &[u8] {
        self.coming.inbox.as_slices().0
    }

    /// The near side has taken so many bytes.
    pub fn handle_delivered(&mut self, count: usize) {
        let coming = &mut self.coming;
        coming.passed += coming.inbox.drain(..count).count() as u64;
    }

    /// Whether the near side is to be told, and now is, that no more bytes follow.
    pub fn deliver_end(&mut self) -> bool {
        let coming = &mut self.coming;
        let is_due = coming.end == Some(coming.passed);
        if is_due {
            coming.passed += 1;
        }
        is_due
    }

    /// Whether both directions have ended and both ends know it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let (leaving, coming) = (&self.leaving, &self.coming);
        let knows_all = leaving.end.is_some_and(|end| leaving.passed > end);
        let has_passed_all = coming.end.is_some_and(|end| coming.passed > end);
        knows_all && has_passed_all && coming.told == Some(coming.passed)
    }

    /// Whether the peer has ended, and all that it ever sent has come.
    #[must_use]
    pub fn has_all(&self) -> bool {
        self.coming.end.is_some()
    }
}

impl Leaving {
    /// The position behind everything.
    fn limit(&self) -> u64 {
        match self.end {
            Some(end) => end + 1,
            None => self.passed + self.outbox.len() as u64,
        }
    }

    fn handle_passed(&mut self, position: u64) -> Result<(), Violation> {
        if position < self.passed || position > self.sent {
            return Err(Violation);
        }
        let bytes = (position - self.passed).min(self.outbox.len() as u64);
        // It is at most the length of the outbox.
        self.outbox.drain(..bytes as usize);
        self.passed = position;
        Ok(())
    }

    fn next_frame(&mut self) -> Option<Frame> {
        if self.end == Some(self.sent) {
            self.sent += 1;
            return Some(Frame::End);
        }
        let start = usize::try_from(self.sent.checked_sub(self.passed)?).ok()?;
        let count = self.outbox.len().saturating_sub(start).min(MAX_DATA);
        if count == 0 {
            return None;
        }
        self.sent += count as u64;
        let bytes: Vec<u8> = self.outbox.range(start..start + count).copied().collect();
        Some(Frame::Data(Bytes::from(bytes)))
    }
}

impl Coming {
    fn handle_data(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        if self.end.is_some() || self.inbox.len() + bytes.len() > WINDOW {
            return Err(Violation);
        }
        self.inbox.extend(bytes);
        self.received += bytes.len() as u64;
        Ok(())
    }

    fn handle_end(&mut self) -> Result<(), Violation> {
        if self.end.is_some() {
            return Err(Violation);
        }
        self.end = Some(self.received);
        self.received += 1;
        Ok(())
    }

    fn next_frame(&mut self) -> Option<Frame> {
        let is_due = match self.told {
            None => true,
            Some(told) => {
                let has_ended = self.end.is_some_and(|end| self.passed > end);
                self.passed - told >= PORTION || has_ended && told < self.passed
            }
        };
        is_due.then(|| {
            self.told = Some(self.passed);
            Frame::Passed(self.passed)
        })
    }
}
