//! The sender's half: which fragment is sent when, until all are acknowledged or the attempts are used up.
//!
//! ```text
//!  fragment:  due ──poll_transmit──► in flight ──acked──► done
//!              ▲                        │ its time is over, attempts left
//!              └────────────────────────┘ (none left: the message failed)
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::{Ack, Admission, Class, LENGTH_PREFIX, MAX_RESENDS, MessageId, PART_LEN, Received};
use crate::delay::MixDelay;
use crate::packet::HopAddress;

/// Messages that wait for their acknowledgements at once: 32, about 1.2 MB of the largest class.
///
/// They are the user's own, so the bound only guards against a loop in the layer above.
pub const MAX_OUTGOING: usize = 32;

/// Sending and answering take this long beyond the mixing delays: links, peeling, and a slow disk at each hop.
const LATENCY_ALLOWANCE: Duration = Duration::from_secs(1);

/// How long a fragment is in flight, in mean delays: three hops each way, and the slowest of 24 fragments.
const FLIGHT_MEANS: u32 = 16;

/// A message to be sent.
#[derive(Debug)]
pub struct Outgoing {
    /// Its id, drawn by the layer above because an admission may be bound to it.
    pub id: MessageId,
    /// The node that it is for.
    pub destination: HopAddress,
    /// Its class; the bytes must fit.
    pub class: Class,
    /// What it shows to be let in.
    pub admission: Admission,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A fragment whose time to be sent has come.
#[derive(Debug)]
pub struct Transmit {
    /// The message.
    pub message: MessageId,
    /// The class of the message.
    pub class: Class,
    /// The fragment.
    pub index: u8,
    /// The node that it is for.
    pub destination: HopAddress,
    /// What the message shows to be let in.
    pub admission: Admission,
    /// The fragment's bytes.
    pub part: Box<[u8; PART_LEN]>,
    /// What earlier attempts at this fragment went over.
    pub tried: Tried,
}

/// The mixes of earlier attempts, named the more often the more they are suspected. Whether the way there or the way
/// back failed, nobody knows, so they are blamed separately; a dead node would hide behind the others otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    /// Mixes on the way of this fragment to the destination.
    pub forward: Vec<HopAddress>,
    /// Mixes on the ways of all acknowledgements of the message: any of them speaks for all fragments, so their ways
    /// spread over the mixes.
    pub back: Vec<HopAddress>,
}

/// A failed attempt over a mix that nothing is known of counts as much as this many over one that was seen to be there
/// a moment ago: the latter is more likely a packet lost on a link.
pub(crate) const SUSPICION: usize = 3;

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// All fragments were acknowledged.
    Delivered(MessageId),
    /// The attempts were used up first. It may still have arrived.
    Failed(MessageId),
}

/// The messages of a sender that are not done.
#[derive(Debug)]
pub struct Outbox {
    messages: BTreeMap<MessageId, Pending>,
    done: VecDeque<Done>,
    delay: MixDelay,
}

impl Outbox {
    /// An outbox whose resend clock follows the mean delay of the network.
    #[must_use]
    pub fn new(delay: MixDelay) -> Self {
        Self {
            messages: BTreeMap::new(),
            done: VecDeque::new(),
            delay,
        }
    }

    /// Takes a message; all its fragments are due at once.
    ///
    /// # Errors
    /// [`SubmitError`]; the message is dropped.
    pub fn submit(&mut self, now: Instant, message: Outgoing) -> Result<(), SubmitError> {
        let (len, capacity) = (message.bytes.len(), message.class.capacity());
        if len > capacity {
            return Err(SubmitError::TooLong { len, capacity });
        }
        if self.messages.len() >= MAX_OUTGOING {
            return Err(SubmitError::Full);
        }
        if self.messages.contains_key(&message.id) {
            return Err(SubmitError::Repeated);
        }
        let mut stream = Vec::with_capacity(capacity + LENGTH_PREFIX);
        stream.extend_from_slice(
            &u32::try_from(len)
                .expect("a class holds less than 4 GiB")
                .to_be_bytes(),
        );
        stream.extend_from_slice(&message.bytes);
        stream.resize(capacity + LENGTH_PREFIX, 0);
        let flight = Flight {
            due: now,
            sent: 0,
            tried: Vec::new(),
        };
        let pending = Pending {
            destination: message.destination,
            class: message.class,
            admission: message.admission,
            stream,
            acked: Received::default(),
            alive: BTreeSet::new(),
            back: Vec::new(),
            flights: vec![flight; message.class.fragments()],
        };
        self.messages.insert(message.id, pending);
        Ok(())
    }

    /// The next fragment to be sent now. It counts as sent from here on, whether or not it can be.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        self.fail_overdue(now);
        let delay = self.delay;
        self.messages
            .iter_mut()
            .find_map(|(id, pending)| pending.poll_transmit(now, *id, delay))
    }

    /// Notes over which mixes a fragment and its ack SURB went, so that the next ones go over others.
    pub fn went_over(
        &mut self,
        message: MessageId,
        index: u8,
        forward: impl IntoIterator<Item = HopAddress>,
        back: impl IntoIterator<Item = HopAddress>,
    ) {
        let pending = self.messages.get_mut(&message);
        let Some(pending) = pending else { return };
        if let Some(flight) = pending.flights.get_mut(usize::from(index)) {
            flight.tried.extend(forward);
            pending.back.extend(back);
        }
    }

    /// Takes an acknowledgement that came back `over` these mixes, which shows that they are there.
    pub fn handle_ack(&mut self, ack: Ack, over: &[HopAddress]) {
        let Some(pending) = self.messages.get_mut(&ack.message) else {
            return;
        };
        if pending.class != ack.class {
            return;
        }
        pending.note_alive(ack.received, over);
        pending.acked = pending.acked.with(ack.received);
        if pending.acked == pending.class.full() {
            self.messages.remove(&ack.message);
            self.done.push_back(Done::Delivered(ack.message));
        }
    }

    /// The next message that is done.
    pub fn poll_done(&mut self, now: Instant) -> Option<Done> {
        self.fail_overdue(now);
        self.done.pop_front()
    }

    /// When a fragment is due or a message has failed next; [`Self::poll_done`] may have something before.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.messages.values().flat_map(Pending::dues).min()
    }

    /// Whether a message waits for its acknowledgements.
    #[must_use]
    pub fn is_pending(&self, message: MessageId) -> bool {
        self.messages.contains_key(&message)
    }

    fn fail_overdue(&mut self, now: Instant) {
        let failed: Vec<MessageId> = self
            .messages
            .iter()
            .filter(|(_, pending)| pending.is_overdue(now))
            .map(|(id, _)| *id)
            .collect();
        for id in failed {
            self.messages.remove(&id);
            self.done.push_back(Done::Failed(id));
        }
    }
}

#[derive(Debug)]
struct Pending {
    destination: HopAddress,
    class: Class,
    admission: Admission,
    stream: Vec<u8>,
    acked: Received,
    /// Mixes that a fragment or an acknowledgement has certainly passed; at most four for each packet sent.
    alive: BTreeSet<HopAddress>,
    /// Mixes that ack SURBs went over since they were last seen to be there; at most two for each packet sent.
    back: Vec<HopAddress>,
    flights: Vec<Flight>,
}

/// Where a fragment stands: sent this often, and due again (or given up) then.
#[derive(Clone, Debug)]
struct Flight {
    due: Instant,
    sent: u32,
    /// Mixes that it went over since they were last seen to be there; at most two for each attempt.
    tried: Vec<HopAddress>,
}

impl Pending {
    /// The fragments that are not acknowledged.
    fn open(&self) -> impl Iterator<Item = (u8, &Flight)> {
        (0u8..)
            .zip(&self.flights)
            .filter(|(index, _)| !self.acked.has(*index))
    }

    fn dues(&self) -> impl Iterator<Item = Instant> {
        self.open().map(|(_, flight)| flight.due)
    }

    fn is_overdue(&self, now: Instant) -> bool {
        self.open()
            .any(|(_, flight)| flight.sent > MAX_RESENDS && flight.due <= now)
    }

    /// Learns which mixes are there: those that the acknowledgement passed, and those of fragments that arrived. Of
    /// fragments sent more than once nobody knows how they did.
    fn note_alive(&mut self, received: Received, over: &[HopAddress]) {
        let mut seen: BTreeSet<HopAddress> = over.iter().copied().collect();
        for (index, flight) in (0u8..).zip(&self.flights) {
            if received.has(index) && flight.sent == 1 {
                seen.extend(&flight.tried);
            }
        }
        // What failed before is forgiven; what fails from now on counts again, since a mix can go away.
        for flight in &mut self.flights {
            flight.tried.retain(|node| !seen.contains(node));
        }
        self.back.retain(|node| !seen.contains(node));
        self.alive.append(&mut seen);
    }

    /// Names each mix as often as it is suspected.
    fn suspected(&self, tried: &[HopAddress]) -> Vec<HopAddress> {
        let weight = |node: &HopAddress| match self.alive.contains(node) {
            true => 1,
            false => SUSPICION,
        };
        let named = |node: &HopAddress| std::iter::repeat_n(*node, weight(node));
        tried.iter().flat_map(named).collect()
    }

    fn poll_transmit(
        &mut self,
        now: Instant,
        message: MessageId,
        delay: MixDelay,
    ) -> Option<Transmit> {
        let (index, _) = self
            .open()
            .find(|(_, flight)| flight.due <= now && flight.sent <= MAX_RESENDS)?;
        let at = usize::from(index);
        let flight = &mut self.flights[at];
        flight.due = now + time_in_flight(delay, flight.sent);
        flight.sent += 1;
        let part = self.stream[at * PART_LEN..][..PART_LEN]
            .try_into()
            .expect("a full fragment");
        Some(Transmit {
            message,
            class: self.class,
            index,
            destination: self.destination,
            admission: self.admission.clone(),
            part: Box::new(part),
            tried: Tried {
                forward: self.suspected(&self.flights[at].tried),
                back: self.suspected(&self.back),
            },
        })
    }
}

/// How long to wait for the acknowledgement of an attempt; half as long again after each.
pub(crate) fn time_in_flight(delay: MixDelay, sent_before: u32) -> Duration {
    let first = delay.mean() * FLIGHT_MEANS + LATENCY_ALLOWANCE;
    (0..sent_before).fold(first, |time, _| time * 3 / 2)
}

/// Why a message was not taken. The fault is the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// It does not fit its class.
    #[error("a message of {len} bytes in a class that holds {capacity}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// What the class holds.
        capacity: usize,
    },
    /// Too many are not done.
    #[error("{MAX_OUTGOING} messages wait for their acknowledgements already")]
    Full,
    /// Its id is that of another.
    #[error("a message with that id waits already")]
    Repeated,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn outbox() -> Outbox {
        Outbox::new(MixDelay::new(
            Duration::from_millis(50),
            Duration::from_secs(10),
        ))
    }

    fn message(class: Class) -> Outgoing {
        Outgoing {
            id: MessageId([1; 16]),
            destination: HopAddress([2; 32]),
            class,
            admission: Admission::NONE,
            bytes: vec![3; class.capacity()],
        }
    }

    proptest! {
        /// Whichever acknowledgements arrive: each fragment is sent at most five times, acknowledged ones are not sent
        /// again, and the message ends exactly once.
        #[test]
        fn attempts_are_bounded_and_every_message_ends_once(acks in proptest::collection::vec(0u32..256, 0..12)) {
            let start = Instant::now();
            let mut outbox = outbox();
            outbox.submit(start, message(Class::Medium)).expect("room");
            let (mut sent, mut acked, mut ends, mut now) = ([0u32; 8], 0u32, Vec::new(), start);
            let mut acks = acks.into_iter();
            while let Some(due) = outbox.next_due() {
                now = now.max(due);
                while let Some(transmit) = outbox.poll_transmit(now) {
                    prop_assert_eq!(acked & (1 << transmit.index), 0, "an acknowledged fragment was sent again");
                    sent[usize::from(transmit.index)] += 1;
                }
                if let (Some(bits), true) = (acks.next(), outbox.is_pending(MessageId([1; 16]))) {
                    acked |= bits;
                    outbox.handle_ack(Ack { message: MessageId([1; 16]), class: Class::Medium, received: Received(bits) }, &[]);
                }
                ends.extend(std::iter::from_fn(|| outbox.poll_done(now)));
            }
            ends.extend(std::iter::from_fn(|| outbox.poll_done(now)));
            prop_assert!(sent.iter().all(|count| (1..=1 + MAX_RESENDS).contains(count)), "{:?}", sent);
            let expected =
                if acked == 255 { Done::Delivered(MessageId([1; 16])) } else { Done::Failed(MessageId([1; 16])) };
            prop_assert_eq!(ends, vec![expected]);
        }
    }

    #[test]
    fn all_fragments_are_due_at_once_and_again_only_after_their_flight() {
        let start = Instant::now();
        let mut outbox = outbox();
        outbox.submit(start, message(Class::Large)).expect("room");
        assert_eq!(
            std::iter::from_fn(|| outbox.poll_transmit(start)).count(),
            24
        );
        assert_eq!(outbox.next_due(), Some(start + Duration::from_millis(1800)));
        assert!(
            outbox
                .poll_transmit(start + Duration::from_millis(1799))
                .is_none()
        );
    }

    #[test]
    fn a_resend_is_told_what_the_earlier_attempts_went_over() {
        let start = Instant::now();
        let mut outbox = outbox();
        outbox.submit(start, message(Class::Small)).expect("room");
        outbox.poll_transmit(start).expect("due");
        outbox.went_over(
            MessageId([1; 16]),
            0,
            [HopAddress([9; 32])],
            [HopAddress([8; 32])],
        );
        let again = outbox
            .poll_transmit(start + Duration::from_secs(2))
            .expect("due again");
        let tried = Tried {
            forward: vec![HopAddress([9; 32]); SUSPICION],
            back: vec![HopAddress([8; 32]); SUSPICION],
        };
        assert_eq!(again.tried, tried);
    }

    #[test]
    fn a_mix_that_was_seen_is_forgiven_and_may_fail_again() {
        let start = Instant::now();
        let mut outbox = outbox();
        let id = MessageId([1; 16]);
        outbox.submit(start, message(Class::Medium)).expect("room");
        let (arrived, lost, silent) = (
            HopAddress([7; 32]),
            HopAddress([8; 32]),
            HopAddress([9; 32]),
        );
        for index in 0..8 {
            outbox.poll_transmit(start).expect("due");
            let forward = if index == 0 {
                [arrived, lost]
            } else {
                [lost, silent]
            };
            outbox.went_over(id, index, forward, [lost]);
        }
        let ack = Ack {
            message: id,
            class: Class::Medium,
            received: Received(1),
        };
        outbox.handle_ack(ack, &[]);
        let later = start + Duration::from_secs(2);
        let again = outbox.poll_transmit(later).expect("due again");
        assert_eq!(again.index, 1);
        assert_eq!(
            again.tried,
            Tried {
                forward: vec![silent; SUSPICION],
                back: vec![]
            }
        );
        outbox.went_over(id, 1, [arrived], []);
        let third = std::iter::from_fn(|| outbox.poll_transmit(later + Duration::from_secs(3)))
            .find(|transmit| transmit.index == 1);
        let tried = third.expect("due again").tried.forward;
        assert_eq!(tried, [vec![silent; SUSPICION], vec![arrived]].concat());
    }

    #[test]
    fn an_acknowledgement_speaks_for_the_mixes_that_it_passed() {
        let start = Instant::now();
        let mut outbox = outbox();
        let id = MessageId([1; 16]);
        outbox.submit(start, message(Class::Medium)).expect("room");
        let (there, silent) = (HopAddress([8; 32]), HopAddress([9; 32]));
        for index in 0..8 {
            outbox.poll_transmit(start).expect("due");
            outbox.went_over(id, index, [there, silent], [there]);
        }
        let ack = Ack {
            message: id,
            class: Class::Medium,
            received: Received(0),
        };
        outbox.handle_ack(ack, &[there]);
        let again = outbox
            .poll_transmit(start + Duration::from_secs(2))
            .expect("due again");
        assert_eq!(
            again.tried,
            Tried {
                forward: vec![silent; SUSPICION],
                back: vec![]
            }
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut outbox = outbox();
        let now = Instant::now();
        let mut long = message(Class::Small);
        long.bytes.push(0);
        assert_eq!(
            outbox.submit(now, long),
            Err(SubmitError::TooLong {
                len: 1479,
                capacity: 1478
            })
        );
        assert_eq!(outbox.submit(now, message(Class::Small)), Ok(()));
        assert_eq!(
            outbox.submit(now, message(Class::Small)),
            Err(SubmitError::Repeated)
        );
    }
}
