//! The gate in front of a provider's memory: which messages of strangers are put together at all.
//!
//! ```text
//!                                           yes ─► rate of this lease, rate of all open (or all closed) leases ─► in
//!  first fragment ─► one packet? ─yes─► of a request that was accepted?                   │ past it
//!                        │no                no ──► rate of other single packets ─► in ◄───┘
//!                        │                                               past it: out
//!                        └─► the card asks for work? ─► good? ─► rate of longer messages ─► in
//!                                                        └no: out                       past it: out
//! ```
//!
//! A message of one packet is complete at once and holds no memory; its unsealing costs time, so it has a rate. One of
//! several packets (an envelope) holds memory until it is complete or a minute has passed. Where the card asks anonymous
//! requesters for work, every longer message shows as much, bound to its id: who vouches stands inside the sealed message.
//!
//! Threat: strangers who open messages to fill the provider's memory or time. The rates are apart, so that no flood of strangers
//! stops a holder from ending its lease: the id of a request stands before what is sealed, inside of the mix packet, where no stranger
//! sees it. Whoever knows one (its holder, and who signed the voucher for it) uses up the rate of that lease alone, and competes with
//! strangers past it. Closed leases, which anybody may collect, take nothing from open ones. And work comes first, so that what is
//! worthless uses up no rate.

use std::time::Instant;

use souk_crypto::{NetworkId, NodeId, UnixTime};
use souk_market::{
    card::Policy,
    sealed::claimed_request,
    units::RequestId,
    work::{MessageTo, MessageWork},
};
use souk_sphinx::message::{Admission, Class, Gate, MessageId};

use super::Requests;
use crate::net::{Rates, TokenBucket};

/// Messages of one packet let in each second about open leases: an unsealing each, and as many leases as may be open ask every few
/// seconds.
const HOLDERS_PER_SECOND: f64 = 80.0;
/// And at once: as many as may be incomplete.
const HOLDERS_BURST: f64 = 512.0;
/// About all closed leases: how they ended is asked once or twice.
const RESTING_PER_SECOND: f64 = 25.0;
/// And at once.
const RESTING_BURST: f64 = 128.0;
/// Of one of these requests: a holder polls, ends and repeats itself every few seconds.
const HOLDER_PER_SECOND: f64 = 2.0;
/// And at once.
const HOLDER_BURST: f64 = 32.0;
/// Other messages of one packet let in each second. There is no answer to any; a few may overtake the envelope that they follow.
const SINGLE_PER_SECOND: f64 = 50.0;
/// And at once.
const SINGLE_BURST: f64 = 128.0;
/// Longer messages let in each second, far above what admission accepts of leases: an unsealing, two signatures.
const LONG_PER_SECOND: f64 = 50.0;
/// And at once: half of those that may be incomplete, so that one burst leaves room.
const LONG_BURST: f64 = 256.0;

/// Decides by rate, and by work where the card asks for it.
#[derive(Debug)]
pub struct MessageGate {
    network: NetworkId,
    provider: NodeId,
    work_bits: u8,
    clock: fn() -> UnixTime,
    requests: Requests,
    holders: TokenBucket,
    resting: TokenBucket,
    of_holder: Rates<RequestId>,
    single: TokenBucket,
    long: TokenBucket,
}

impl MessageGate {
    /// The gate of `provider`, whose card has this `policy`, and which has accepted these `requests`. Work is dated by `clock`.
    #[must_use]
    pub fn new(
        network: NetworkId,
        provider: NodeId,
        policy: &Policy,
        requests: Requests,
        clock: fn() -> UnixTime,
        now: Instant,
    ) -> Self {
        Self {
            network,
            provider,
            work_bits: work_bits(policy),
            clock,
            requests,
            holders: TokenBucket::new(HOLDERS_PER_SECOND, HOLDERS_BURST, now),
            resting: TokenBucket::new(RESTING_PER_SECOND, RESTING_BURST, now),
            of_holder: Rates::new(HOLDER_PER_SECOND, HOLDER_BURST),
            single: TokenBucket::new(SINGLE_PER_SECOND, SINGLE_BURST, now),
            long: TokenBucket::new(LONG_PER_SECOND, LONG_BURST, now),
        }
    }

    fn shows_work(&self, id: MessageId, admission: &Admission) -> bool {
        if self.work_bits == 0 {
            return true;
        }
        let to = MessageTo {
            network: self.network.clone(),
            provider: self.provider,
            message: id.to_bytes(),
        };
        admission.kind() == MessageWork::ADMISSION
            && MessageWork::from_bytes(admission.bytes())
                .is_some_and(|work| work.is_good(&to, (self.clock)(), self.work_bits))
    }
}

impl Gate for MessageGate {
    fn admit(
        &mut self,
        now: Instant,
        id: MessageId,
        class: Class,
        admission: &Admission,
        whole: Option<&[u8]>,
    ) -> bool {
        match class {
            Class::Small => {
                let is_within = whole.and_then(claimed_request).is_some_and(|request| {
                    let all = match self.requests.is_open(&request) {
                        Some(true) => &mut self.holders,
                        Some(false) => &mut self.resting,
                        None => return false,
                    };
                    self.of_holder.try_take(request, now) && all.try_take(now)
                });
                is_within || self.single.try_take(now)
            }
            Class::Medium | Class::Large => {
                self.shows_work(id, admission) && self.long.try_take(now)
            }
        }
    }
}

/// Bits of work that a message of several packets shows to a provider with this policy; 0 for none.
pub(crate) fn work_bits(policy: &Policy) -> u8 {
    policy.anonymous.map_or(0, |limits| limits.work_bits)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::{SeedableRng as _, rngs::StdRng};
    use souk_crypto::{NetworkParams, NodeKey};
    use souk_market::{
        card::AnonymousLimits,
        sealed::FRAME_VERSION,
        units::{DurationS, LeaseId, Resources},
    };

    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);
    const BITS: u8 = 8;

    fn gate(work_bits: u8, now: Instant) -> MessageGate {
        let params = NetworkParams::new(50, 10_000, 3_600, true).expect("in bounds");
        let policy = Policy {
            anonymous: Some(AnonymousLimits {
                max_concurrent: 1,
                max_duration: DurationS(60),
                max_resources: Resources::ZERO,
                max_per_hour: 1,
                work_bits,
            }),
            ..Policy::default()
        };
        let network = NetworkId::new("test", &params).expect("a name");
        let provider = NodeKey::generate(&mut StdRng::seed_from_u64(1)).public();
        MessageGate::new(network, provider, &policy, Requests::default(), || NOW, now)
    }

    fn work(gate: &MessageGate, id: MessageId, at: UnixTime) -> Admission {
        let to = MessageTo {
            network: gate.network.clone(),
            provider: gate.provider,
            message: id.to_bytes(),
        };
        let work = MessageWork::find(&to, at, BITS).to_bytes();
        Admission::new(MessageWork::ADMISSION, work.to_vec()).expect("short")
    }

    /// Messages without work of this class that come in at once.
    fn let_in(gate: &mut MessageGate, now: Instant, class: Class) -> usize {
        let id = MessageId::from_bytes([1; 16]);
        (0..2_000)
            .filter(|_| gate.admit(now, id, class, &Admission::NONE, None))
            .count()
    }

    /// Messages of one packet about a request let in, of so many at once.
    fn about(gate: &mut MessageGate, now: Instant, request: RequestId, count: usize) -> usize {
        let id = MessageId::from_bytes([1; 16]);
        let mut whole = vec![FRAME_VERSION];
        whole.extend(request.0);
        whole.extend([7; 200]);
        (0..count)
            .filter(|_| gate.admit(now, id, Class::Small, &Admission::NONE, Some(&whole)))
            .count()
    }

    #[test]
    fn strangers_open_no_more_than_the_rate_allows() {
        let start = Instant::now();
        let mut gate = gate(0, start);
        assert_eq!(let_in(&mut gate, start, Class::Medium), 256);
        assert_eq!(let_in(&mut gate, start, Class::Large), 0);
        let later = start + Duration::from_secs(1);
        assert_eq!(let_in(&mut gate, later, Class::Large), 50);
    }

    #[test]
    fn a_flood_of_envelopes_stops_no_poll() {
        let start = Instant::now();
        let mut gate = gate(0, start);
        let_in(&mut gate, start, Class::Medium);
        assert_eq!(let_in(&mut gate, start, Class::Small), 128);
    }

    #[test]
    fn no_flood_of_single_packets_stops_the_holder_of_a_lease_but_its_own() {
        let start = Instant::now();
        let mut gate = gate(0, start);
        let [flooding, other, unknown] = [1, 2, 3].map(|n| RequestId([n; 32]));
        gate.requests.insert(flooding, LeaseId([1; 16]));
        gate.requests.insert(other, LeaseId([2; 16]));
        // Strangers, also with ids that they made up.
        let_in(&mut gate, start, Class::Small);
        assert_eq!(about(&mut gate, start, unknown, 10), 0);
        assert_eq!(about(&mut gate, start, other, 10), 10);
        // A holder, beside whom strangers leave nothing.
        assert_eq!(about(&mut gate, start, flooding, 2_000), 32);
        assert_eq!(about(&mut gate, start, other, 10), 10);
        let later = start + Duration::from_secs(5);
        let_in(&mut gate, later, Class::Small);
        assert_eq!(about(&mut gate, later, flooding, 2_000), 10);
        // Past its rate it competes with strangers, as whoever writes its id on nonsense leaves it to.
        let alone = later + Duration::from_secs(1);
        assert_eq!(about(&mut gate, alone, flooding, 2_000), 2 + 50);
        // Once its lease is forgotten it is a stranger.
        let_in(&mut gate, alone, Class::Small);
        gate.requests.remove(&other);
        assert_eq!(about(&mut gate, alone, other, 1), 0);
    }

    #[test]
    fn closed_leases_take_nothing_from_open_ones() {
        let start = Instant::now();
        let mut gate = gate(0, start);
        let_in(&mut gate, start, Class::Small);
        let closed = (0..100).map(|n| RequestId([n; 32]));
        let let_in: usize = closed
            .map(|request| {
                gate.requests.insert(request, LeaseId([1; 16]));
                gate.requests.close(&request);
                about(&mut gate, start, request, 32)
            })
            .sum();
        assert_eq!(let_in, 128);
        let open = RequestId([200; 32]);
        gate.requests.insert(open, LeaseId([2; 16]));
        assert_eq!(about(&mut gate, start, open, 32), 32);
    }

    #[test]
    fn all_holders_together_have_a_rate() {
        let start = Instant::now();
        let mut gate = gate(0, start);
        let_in(&mut gate, start, Class::Small);
        let holders = (0..100).map(|n| RequestId([n; 32]));
        let let_in: usize = holders
            .map(|request| {
                gate.requests.insert(request, LeaseId([1; 16]));
                about(&mut gate, start, request, 32)
            })
            .sum();
        assert_eq!(let_in, 512);
    }

    #[test]
    fn a_message_that_holds_memory_shows_work_for_its_own_id() {
        let start = Instant::now();
        let mut gate = gate(BITS, start);
        let (id, other) = (
            MessageId::from_bytes([1; 16]),
            MessageId::from_bytes([2; 16]),
        );
        let shown = work(&gate, id, NOW);
        assert!(gate.admit(start, id, Class::Medium, &shown, None));
        assert!(!gate.admit(start, other, Class::Medium, &shown, None));
        let old = work(&gate, id, NOW.minus_s(3_600));
        assert!(!gate.admit(start, id, Class::Medium, &old, None));
        let of_another_kind = Admission::new(9, shown.bytes().to_vec()).expect("short");
        assert!(!gate.admit(start, id, Class::Medium, &of_another_kind, None));
        assert!(gate.admit(start, id, Class::Small, &Admission::NONE, None));
    }

    #[test]
    fn what_shows_no_work_uses_up_no_rate() {
        let start = Instant::now();
        let mut gate = gate(BITS, start);
        assert_eq!(let_in(&mut gate, start, Class::Medium), 0);
        let id = MessageId::from_bytes([1; 16]);
        let shown = work(&gate, id, NOW);
        assert!(gate.admit(start, id, Class::Medium, &shown, None));
    }
}
