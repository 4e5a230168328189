//! The receiver's half: admission, reassembly within bounds, acknowledgements.
//!
//! ```text
//!  fragment ─► of a done message? ─yes─► ack again
//!      │no
//!      ├─► of an open one? ─no─► admission? room? ─no─► dropped, counted
//!      ▼
//!  open ──last fragment──► done: deliver, ack twice
//!    ├──nothing new for a while──► ack what is here, twice
//!    └──PARTIAL_AGE──► forgotten
//! ```
//!
//! The threats: a stranger who opens messages and never ends them, and a resend that crosses an acknowledgement and would
//! deliver the message twice. Count, bytes and age are bounded. A full table refuses what is new, so that nobody can
//! push out a message that goes on; but one that has come to a halt makes room, or a few packets a second would keep
//! everybody out. A message of one fragment needs no place at all.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::{
    Ack, Admission, Class, Fragment, FragmentError, LENGTH_PREFIX, MessageId, PART_LEN, Received,
};
use crate::delay::MixDelay;
use crate::packet::Body;
use crate::surb::Surb;

/// How long a message may stay incomplete: twice what a sender with a mean delay of 50 ms keeps trying.
pub const PARTIAL_AGE: Duration = Duration::from_secs(60);

/// Messages that may be incomplete at once.
pub const MAX_PARTIALS: usize = 512;

/// Bytes that incomplete messages may take: 512 of the middle class, or 229 of the largest.
pub const MAX_PARTIAL_BYTES: usize = 8 << 20;

/// How long a message that is done is remembered, so that repeats are acknowledged and not delivered.
const DONE_AGE: Duration = Duration::from_secs(120);

/// Messages that are remembered as done: 136 a second over [`DONE_AGE`]. The oldest go first when there are more;
/// a repeat would then be delivered again, and the layer above knows its requests by their ids.
const MAX_DONE: usize = 16_384;

/// Ack SURBs kept of an incomplete message: enough to find routes that differ among them.
const ACKS_KEPT: usize = 4;

/// Ack SURBs that an acknowledgement is sent with, so that one dead mix does not lose it.
const ACK_COPIES: usize = 2;

/// What an incomplete message takes besides its bytes: its SURBs and its place in the tables.
const PARTIAL_OVERHEAD: usize = ACKS_KEPT * 512 + 512;

/// Decides which messages are let in.
pub trait Gate {
    /// Whether memory may be given to the message `id` now, for what it shows. It is asked once for each message that
    /// is let in, and with each fragment of one that is not. Of a message of one fragment, `whole` is what it holds, with zeros behind.
    fn admit(
        &mut self,
        now: Instant,
        id: MessageId,
        class: Class,
        admission: &Admission,
        whole: Option<&[u8]>,
    ) -> bool;
}

impl<F: FnMut(MessageId, Class, &Admission) -> bool> Gate for F {
    fn admit(
        &mut self,
        _: Instant,
        id: MessageId,
        class: Class,
        admission: &Admission,
        _: Option<&[u8]>,
    ) -> bool {
        self(id, class, admission)
    }
}

/// A message that is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its id.
    pub id: MessageId,
    /// Its class.
    pub class: Class,
    /// What it showed to be let in.
    pub admission: Admission,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// An acknowledgement to be sent: spend the SURB on [`Ack::to_body`].
#[derive(Debug)]
pub struct AckOut {
    /// With what to send it.
    pub surb: Surb,
    /// What it says.
    pub ack: Ack,
}

/// What a fragment led to.
#[derive(Debug, Default)]
pub struct Handled {
    /// The message that it completed.
    pub message: Option<Message>,
    /// The acknowledgement to be sent: the same over several routes.
    pub acks: Vec<AckOut>,
}

/// Why a fragment was dropped. Its sender is at fault, whom nobody knows; it is counted and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It means nothing.
    #[error("the fragment is malformed")]
    Malformed(#[source] FragmentError),
    /// What it showed is not enough.
    #[error("the message was not admitted")]
    NotAdmitted,
    /// Too many messages are incomplete.
    #[error("too many messages are incomplete")]
    Full,
    /// It contradicts other fragments of its message.
    #[error("the fragment contradicts others of its message")]
    Contradiction,
    /// The message's own length, or the zeros behind it, are wrong.
    #[error("the message is padded wrongly")]
    Padding,
}

/// The messages of a receiver that are incomplete, and those it remembers as done.
#[derive(Debug)]
pub struct Inbox {
    partials: HashMap<MessageId, Partial>,
    partial_bytes: usize,
    done: HashSet<MessageId>,
    done_order: VecDeque<(Instant, MessageId)>,
    report_after: Duration,
    halted_after: Duration,
}

impl Inbox {
    /// An inbox whose reports follow the mean delay of the network.
    #[must_use]
    pub fn new(delay: MixDelay) -> Self {
        Self {
            partials: HashMap::new(),
            partial_bytes: 0,
            done: HashSet::new(),
            done_order: VecDeque::new(),
            // The slowest of 24 fragments over three hops, and a little for peeling; before the sender's clock ends.
            report_after: delay.mean() * 8 + Duration::from_millis(400),
            // A sender that learned nothing sends again after 16 means and a second; then its way, and some more.
            halted_after: delay.mean() * 24 + Duration::from_millis(1_400),
        }
    }

    /// Takes the body of a packet that ended here.
    ///
    /// # Errors
    /// [`Refused`]; the fragment is dropped.
    pub fn handle_fragment(
        &mut self,
        now: Instant,
        body: &Body,
        gate: &mut dyn Gate,
    ) -> Result<Handled, Refused> {
        self.forget_old(now);
        let fragment = Fragment::from_body(body).map_err(Refused::Malformed)?;
        let (id, class) = (fragment.message, fragment.class);
        if self.done.contains(&id) {
            let ack = Ack {
                message: id,
                class,
                received: class.full(),
            };
            return Ok(Handled {
                message: None,
                acks: vec![AckOut {
                    surb: fragment.ack,
                    ack,
                }],
            });
        }
        if !self.partials.contains_key(&id) {
            self.open(now, &fragment, gate)?;
        }
        let partial = self.partials.get_mut(&id).expect("it was opened");
        partial.add(now, fragment, self.report_after)?;
        if partial.received != class.full() {
            return Ok(Handled::default());
        }
        let mut partial = self.close(id).expect("it is open");
        self.remember_done(now, id);
        let acks = partial.acknowledge(id);
        // It is done even if it is padded wrongly: its packets arrived, and more of them will not help.
        let bytes = unpad(partial.stream).ok_or(Refused::Padding)?;
        Ok(Handled {
            message: Some(Message {
                id,
                class,
                admission: partial.admission,
                bytes,
            }),
            acks,
        })
    }

    /// The next report on a message of which nothing new came for a while: the same over several routes.
    pub fn poll_report(&mut self, now: Instant) -> Option<Vec<AckOut>> {
        self.forget_old(now);
        let (id, partial) = self
            .partials
            .iter_mut()
            .find(|(_, partial)| partial.report_due.is_some_and(|d| d <= now))?;
        partial.report_due = None;
        Some(partial.acknowledge(*id))
    }

    /// When a report is due or a message is forgotten next.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        let reports = self
            .partials
            .values()
            .filter_map(|partial| partial.report_due);
        let ends = self
            .partials
            .values()
            .map(|partial| partial.opened + PARTIAL_AGE);
        reports.chain(ends).min()
    }

    /// Messages that are incomplete.
    #[must_use]
    pub fn partials(&self) -> usize {
        self.partials.len()
    }

    /// Bytes accounted to incomplete messages, at most [`MAX_PARTIAL_BYTES`].
    #[must_use]
    pub fn partial_bytes(&self) -> usize {
        self.partial_bytes
    }

    /// Messages that are remembered as done.
    #[must_use]
    pub fn remembered(&self) -> usize {
        self.done.len()
    }

    fn open(
        &mut self,
        now: Instant,
        fragment: &Fragment,
        gate: &mut dyn Gate,
    ) -> Result<(), Refused> {
        // First, so that nobody makes room for a message that is not let in.
        let (id, class) = (fragment.message, fragment.class);
        let whole = (class.fragments() == 1).then(|| &fragment.part[LENGTH_PREFIX..]);
        if !gate.admit(now, id, class, &fragment.admission, whole) {
            return Err(Refused::NotAdmitted);
        }
        let cost = cost(fragment.class);
        // One fragment is a whole message, which is closed again before this call ends.
        let stays = fragment.class.fragments() > 1;
        if stays && self.is_full(cost) {
            self.drop_halted(now);
        }
        if stays && self.is_full(cost) {
            return Err(Refused::Full);
        }
        self.partial_bytes += cost;
        let partial = Partial {
            opened: now,
            went_on: now,
            report_due: None,
            class: fragment.class,
            admission: fragment.admission.clone(),
            received: Received::default(),
            stream: vec![0; fragment.class.fragments() * PART_LEN],
            acks: VecDeque::new(),
        };
        self.partials.insert(fragment.message, partial);
        Ok(())
    }

    fn is_full(&self, cost: usize) -> bool {
        self.partials.len() >= MAX_PARTIALS || self.partial_bytes + cost > MAX_PARTIAL_BYTES
    }

    /// Forgets the message that has come to a halt with the fewest fragments, if there is one. Of the largest class one
    /// makes room for any other; a small one may not, and then the next packet tries again.
    fn drop_halted(&mut self, now: Instant) {
        let halted = |partial: &Partial| partial.went_on + self.halted_after <= now;
        let least = self
            .partials
            .iter()
            .filter(|(_, partial)| halted(partial))
            .min_by_key(|(_, p)| (p.received.bits().count_ones(), p.went_on))
            .map(|(id, _)| *id);
        least.and_then(|id| self.close(id));
    }

    fn close(&mut self, id: MessageId) -> Option<Partial> {
        let partial = self.partials.remove(&id)?;
        self.partial_bytes -= cost(partial.class);
        Some(partial)
    }

    fn remember_done(&mut self, now: Instant, id: MessageId) {
        if self.done_order.len() >= MAX_DONE
            && let Some((_, oldest)) = self.done_order.pop_front()
        {
            self.done.remove(&oldest);
        }
        self.done.insert(id);
        self.done_order.push_back((now, id));
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some((since, id)) = self.done_order.front().copied()
            && since + DONE_AGE <= now
        {
            self.done_order.pop_front();
            self.done.remove(&id);
        }
        let old = |partial: &Partial| partial.opened + PARTIAL_AGE <= now;
        let ids: Vec<MessageId> = self
            .partials
            .iter()
            .filter(|(_, p)| old(p))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.close(id);
        }
    }
}

#[derive(Debug)]
struct Partial {
    opened: Instant,
    /// When something new of it came; a repeat is nothing new.
    went_on: Instant,
    report_due: Option<Instant>,
    class: Class,
    admission: Admission,
    received: Received,
    stream: Vec<u8>,
    acks: VecDeque<Surb>,
}

impl Partial {
    fn add(
        &mut self,
        now: Instant,
        fragment: Fragment,
        report_after: Duration,
    ) -> Result<(), Refused> {
        if fragment.class != self.class || fragment.admission != self.admission {
            return Err(Refused::Contradiction);
        }
        let place = &mut self.stream[usize::from(fragment.index) * PART_LEN..][..PART_LEN];
        if self.received.has(fragment.index) {
            if place != &fragment.part[..] {
                return Err(Refused::Contradiction);
            }
        } else {
            place.copy_from_slice(&fragment.part[..]);
            self.went_on = now;
            self.received = self.received.with(Received::one(fragment.index));
        }
        // A repeat shows that an acknowledgement was lost, so it asks for a report as well.
        self.report_due = Some(now + report_after);
        if self.acks.len() == ACKS_KEPT {
            self.acks.pop_front();
        }
        self.acks.push_back(fragment.ack);
        Ok(())
    }

    /// Says what is here with the newest SURBs, of which no two begin at the same node if it can be helped.
    fn acknowledge(&mut self, id: MessageId) -> Vec<AckOut> {
        let ack = Ack {
            message: id,
            class: self.class,
            received: self.received,
        };
        let mut acks: Vec<AckOut> = Vec::with_capacity(ACK_COPIES);
        while acks.len() < ACK_COPIES {
            let is_other = |surb: &Surb| {
                let first = surb.first_hop();
                acks.iter().all(|out| out.surb.first_hop() != first)
            };
            let newest = self.acks.len().saturating_sub(1);
            let at = self.acks.iter().rposition(is_other).unwrap_or(newest);
            let Some(surb) = self.acks.remove(at) else {
                break;
            };
            acks.push(AckOut { surb, ack });
        }
        acks
    }
}

/// Bytes accounted to an incomplete message: all that it may come to, from its first fragment on.
fn cost(class: Class) -> usize {
    class.fragments() * PART_LEN + PARTIAL_OVERHEAD
}

/// The bytes of a complete message, if its length fits and zeros follow them.
fn unpad(mut stream: Vec<u8>) -> Option<Vec<u8>> {
    let (prefix, rest) = stream.split_first_chunk::<LENGTH_PREFIX>()?;
    let len = usize::try_from(u32::from_be_bytes(*prefix)).ok()?;
    let padding = rest.get(len..)?;
    if padding.iter().any(|byte| *byte != 0) {
        return None;
    }
    stream.drain(..LENGTH_PREFIX);
    stream.truncate(len);
    Some(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::epoch::Epoch;
    use crate::keys::MixSecret;
    use crate::packet::{Hop, HopAddress};
    use crate::route::Route;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use std::sync::OnceLock;

    const DELAY: MixDelay = MixDelay::new(Duration::from_millis(50), Duration::from_secs(10));

    fn surb_over(first: u8) -> Surb {
        let rng = &mut StdRng::seed_from_u64(1);
        let hop = Hop {
            address: HopAddress([first; 32]),
            key: MixSecret::generate(rng).public(),
        };
        let route = Route::new(vec![hop]).expect("one hop");
        let made = Surb::make(&route, &[Duration::ZERO], Epoch(1), rng);
        made.expect("one delay").0
    }

    fn surb() -> Surb {
        static BYTES: OnceLock<[u8; crate::surb::SURB_LEN]> = OnceLock::new();
        let bytes = BYTES.get_or_init(|| surb_over(1).to_bytes());
        Surb::from_bytes(bytes).expect("just written")
    }

    fn fragment(id: u8, class: Class, index: u8) -> Box<Body> {
        fragment_with(id, class, index, surb())
    }

    fn fragment_with(id: u8, class: Class, index: u8, ack: Surb) -> Box<Body> {
        let mut part = Box::new([0; PART_LEN]);
        if index == 0 {
            part[..LENGTH_PREFIX + 1].copy_from_slice(&[0, 0, 0, 1, id]);
        }
        let message = MessageId([id; 16]);
        Fragment {
            message,
            class,
            index,
            admission: Admission::NONE,
            ack,
            part,
        }
        .to_body()
    }

    fn open(_: MessageId, _: Class, _: &Admission) -> bool {
        true
    }

    proptest! {
        /// Fragments in any order, repeated as often as it may be: the message is delivered once, and each
        /// acknowledgement says what is here and no more.
        #[test]
        fn fragments_in_any_order_and_number_deliver_once(order in proptest::collection::vec(0u8..8, 1..80)) {
            let now = Instant::now();
            let mut inbox = Inbox::new(DELAY);
            let (mut here, mut delivered) = (0u32, 0);
            for index in order {
                let handled = inbox.handle_fragment(now, &fragment(5, Class::Medium, index), &mut open).expect("fine");
                here |= 1 << index;
                if let Some(message) = handled.message {
                    prop_assert_eq!(message.bytes, vec![5]);
                    delivered += 1;
                }
                prop_assert_eq!(!handled.acks.is_empty(), here == 255);
                prop_assert!(handled.acks.iter().all(|out| out.ack.received.bits() == 255));
            }
            prop_assert_eq!(delivered, u32::from(here == 255));
            prop_assert_eq!(inbox.partial_bytes() == 0, here == 255);
        }

        /// Whatever arrives: the accounted memory stays within its bounds, and is all given back in the end.
        #[test]
        fn memory_stays_within_its_bounds(steps in proptest::collection::vec((any::<u8>(), 0u8..3, 0u8..24, 0u64..20), 1..300)) {
            let start = Instant::now();
            let mut inbox = Inbox::new(DELAY);
            let mut now = start;
            for (id, class, index, wait) in steps {
                now += Duration::from_secs(wait);
                // Refusals are part of the point; the bounds hold whatever is refused.
                let _ = inbox.handle_fragment(now, &fragment(id, Class::ALL[usize::from(class)], index), &mut open);
                prop_assert!(inbox.partials() <= MAX_PARTIALS && inbox.partial_bytes() <= MAX_PARTIAL_BYTES);
            }
            prop_assert!(inbox.poll_report(now + PARTIAL_AGE).is_none());
            prop_assert_eq!((inbox.partials(), inbox.partial_bytes()), (0, 0));
        }
    }

    #[test]
    fn no_memory_is_given_before_admission() {
        let mut inbox = Inbox::new(DELAY);
        let mut shut = |_: MessageId, _: Class, _: &Admission| false;
        let refused =
            inbox.handle_fragment(Instant::now(), &fragment(1, Class::Large, 0), &mut shut);
        assert_eq!(refused.err(), Some(Refused::NotAdmitted));
        assert_eq!((inbox.partials(), inbox.partial_bytes()), (0, 0));
    }

    #[test]
    fn a_full_table_refuses_the_new_and_completes_the_old() {
        let now = Instant::now();
        let mut inbox = Inbox::new(DELAY);
        let mut opened = 0u8;
        while inbox
            .handle_fragment(now, &fragment(opened, Class::Large, 0), &mut open)
            .is_ok()
        {
            opened += 1;
        }
        assert!(
            opened > 200 && inbox.partial_bytes() <= MAX_PARTIAL_BYTES,
            "{opened}"
        );
        for index in 1..24 {
            let handled = inbox
                .handle_fragment(now, &fragment(0, Class::Large, index), &mut open)
                .expect("open");
            assert_eq!(handled.message.is_some(), index == 23);
        }
    }

    fn fill(inbox: &mut Inbox, now: Instant) {
        let mut id = 0;
        while inbox
            .handle_fragment(now, &fragment(id, Class::Large, 0), &mut open)
            .is_ok()
        {
            id += 1;
        }
    }

    #[test]
    fn a_full_table_still_takes_messages_of_one_fragment() {
        let now = Instant::now();
        let mut inbox = Inbox::new(DELAY);
        fill(&mut inbox, now);
        let handled = inbox.handle_fragment(now, &fragment(255, Class::Small, 0), &mut open);
        assert!(handled.expect("needs no place").message.is_some());
        assert!(inbox.partial_bytes() <= MAX_PARTIAL_BYTES);
    }

    #[test]
    fn messages_that_halted_make_room_and_those_that_go_on_do_not() {
        let start = Instant::now();
        let mut inbox = Inbox::new(DELAY);
        fill(&mut inbox, start);
        let later = start + inbox.halted_after;
        inbox
            .handle_fragment(later, &fragment(7, Class::Large, 1), &mut open)
            .expect("goes on");
        // A repeat keeps no place.
        inbox
            .handle_fragment(later, &fragment(8, Class::Large, 0), &mut open)
            .expect("is open");
        let before = inbox.partials();
        let newcomers = 250..=255;
        for id in newcomers.clone() {
            inbox
                .handle_fragment(later, &fragment(id, Class::Large, 0), &mut open)
                .expect("takes the place of one that halted");
        }
        assert_eq!(inbox.partials(), before);
        let is_open = |id: u8| inbox.partials.contains_key(&MessageId([id; 16]));
        assert!(is_open(7) && newcomers.clone().all(is_open));
    }

    #[test]
    fn a_stalled_message_is_reported_once_until_something_comes() {
        let now = Instant::now();
        let mut inbox = Inbox::new(DELAY);
        inbox
            .handle_fragment(now, &fragment(1, Class::Medium, 3), &mut open)
            .expect("room");
        assert!(inbox.poll_report(now).is_none());
        let due = inbox.next_due().expect("a report");
        assert_eq!(reported(inbox.poll_report(due)), [1 << 3]);
        assert!(inbox.poll_report(due).is_none());
    }

    fn reported(report: Option<Vec<AckOut>>) -> Vec<u32> {
        let acks = report.expect("a report");
        acks.iter().map(|out| out.ack.received.bits()).collect()
    }

    #[test]
    fn a_report_goes_out_by_two_first_hops_where_the_surbs_have_them() {
        let now = Instant::now();
        let mut inbox = Inbox::new(DELAY);
        for (index, first) in [(0, 7), (1, 8), (2, 8), (3, 8)] {
            let body = fragment_with(1, Class::Medium, index, surb_over(first));
            inbox.handle_fragment(now, &body, &mut open).expect("room");
        }
        let report = inbox.poll_report(now + PARTIAL_AGE / 2).expect("a report");
        let hops: Vec<u8> = report.iter().map(|out| out.surb.first_hop().0[0]).collect();
        assert_eq!(hops, [8, 7]);
        assert_eq!(reported(Some(report)), [0b1111, 0b1111]);
    }

    #[test]
    fn contradicting_fragments_change_nothing() {
        let now = Instant::now();
        let mut inbox = Inbox::new(DELAY);
        inbox
            .handle_fragment(now, &fragment(1, Class::Medium, 0), &mut open)
            .expect("room");
        let mut other = fragment(1, Class::Medium, 0);
        *other.last_mut().expect("a body") = 9;
        let refused = inbox.handle_fragment(now, &other, &mut open);
        assert_eq!(refused.err(), Some(Refused::Contradiction));
        let refused = inbox.handle_fragment(now, &fragment(1, Class::Large, 1), &mut open);
        assert_eq!(refused.err(), Some(Refused::Contradiction));
    }

    #[test]
    fn lengths_past_the_end_and_padding_that_is_not_zero_are_refused() {
        let id = MessageId([1; 16]);
        for start in [[0, 0, 5, 200, 0], [0, 0, 0, 0, 1]] {
            let mut part = Box::new([0; PART_LEN]);
            part[..5].copy_from_slice(&start);
            let class = Class::Small;
            let body = Fragment {
                message: id,
                class,
                index: 0,
                admission: Admission::NONE,
                ack: surb(),
                part,
            }
            .to_body();
            let refused = Inbox::new(DELAY).handle_fragment(Instant::now(), &body, &mut open);
            assert_eq!(refused.err(), Some(Refused::Padding));
        }
    }
}
