//! A requester's session: sends messages over fresh routes, and opens what comes back to its mailbox.
//!
//! ```text
//!  submit ─► Outbox ─► fragment + ack SURB ─► packet ─► entry
//!  reply_surbs ─► in the message            frames of the mailbox ─► peel ─► recover ─┬─► Event::Reply
//!                                                                                     └─► ack ─► Outbox
//! ```
//!
//! A session has an X25519 key and a random mailbox address of its own and is the last hop of everything that comes
//! back, so its entry holds only packets that are still sealed, and no peer id stands in a SURB. The session lives and
//! dies with the process.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use rand_core::CryptoRng;

use crate::delay::MixDelay;
use crate::epoch::Epoch;
use crate::keys::{MixPublic, MixSecret};
use crate::link::Frame;
use crate::message::{
    Done, Fragment, FragmentError, MessageId, Outbox, Outgoing, Reply, ReplyBody, SUSPICION,
    SubmitError, Transmit, time_in_flight,
};
use crate::packet::{BuildError, Hop, HopAddress, PeelError, Peeled, build, peel};
use crate::route::{MIXES, Route, RouteError};
use crate::surb::{Recovery, Surb, SurbId};
use crate::topology::Topology;

/// Replies that a session may wait for at once: a few for each lease that it holds.
///
/// They are the user's own, so the bound only guards against a loop in the layer above.
pub const MAX_AWAITED_REPLIES: usize = 1024;

/// Mixes that a session suspects at once: those of the last eight SURBs that were not answered.
///
/// Few on purpose: a correspondent that does not answer chooses by it what is avoided, and in a network of many mixes
/// eight pairs are too few to lead the next replies over mixes of its own.
pub const MAX_SUSPECTS: usize = 8 * MIXES;

/// How long a mix stays suspected that no reply came back over: five minutes, after which it may be there again.
pub const SUSPECTED_FOR: Duration = Duration::from_secs(300);

/// A frame to be handed to a neighbour.
#[derive(Debug)]
pub struct Outbound {
    /// The neighbour.
    pub to: HopAddress,
    /// The frame.
    pub frame: Frame,
}

/// What a session tells the layer above.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A reply came with the SURB of this id.
    Reply {
        /// The SURB.
        surb: SurbId,
        /// What the correspondent sent.
        reply: Reply,
    },
    /// A message is done.
    Done(Done),
}

/// A requester's half of the mix.
#[derive(Debug)]
pub struct Session {
    secret: MixSecret,
    mailbox: HopAddress,
    entry: HopAddress,
    delay: MixDelay,
    outbox: Outbox,
    awaited: HashMap<SurbId, Awaited>,
    replies_awaited: usize,
    /// Sets of reply SURBs that were made so far.
    sets: u64,
    /// Mixes that a reply should have come back over and did not, oldest first, each with when its SURB was made.
    suspects: VecDeque<(Instant, HopAddress)>,
    events: VecDeque<Event>,
}

#[derive(Debug)]
struct Awaited {
    recovery: Recovery,
    /// The mixes that it comes over.
    over: [HopAddress; MIXES],
    what: What,
}

/// What comes with a SURB.
#[derive(Clone, Copy, Debug)]
enum What {
    /// The acknowledgement of this message.
    Ack(MessageId),
    /// A reply.
    Reply {
        /// The SURBs that were made together: a correspondent may answer with any of them.
        set: u64,
        made: Instant,
        /// One of the set came back, so this one was perhaps never used.
        is_answered: bool,
    },
}

impl Session {
    /// A new session behind the node `entry`, which holds `mailbox` for it.
    pub fn new(
        entry: HopAddress,
        mailbox: HopAddress,
        delay: MixDelay,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Self {
        Self {
            secret: MixSecret::generate(rng),
            mailbox,
            entry,
            delay,
            outbox: Outbox::new(delay),
            awaited: HashMap::new(),
            replies_awaited: 0,
            sets: 0,
            suspects: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// The address under which the entry holds what comes back.
    #[must_use]
    pub fn mailbox(&self) -> HopAddress {
        self.mailbox
    }

    /// The node that this session sends and receives through.
    #[must_use]
    pub fn entry(&self) -> HopAddress {
        self.entry
    }

    /// The key of the session's own hop.
    #[must_use]
    pub fn key(&self) -> MixPublic {
        self.secret.public()
    }

    /// Moves the session to another entry, with a mailbox of another address, so that the two entries have nothing to
    /// compare. What still comes back to the old one can be handed in as before.
    pub fn move_to(&mut self, entry: HopAddress, mailbox: HopAddress) {
        self.entry = entry;
        self.mailbox = mailbox;
    }

    /// Makes `count` SURBs with which `correspondent` can reply.
    ///
    /// They go over the mixes that are suspected least, and over different ones as far as there are enough.
    ///
    /// # Errors
    /// [`SessionError`] if there is no route, or too many replies are awaited.
    pub fn reply_surbs(
        &mut self,
        now: Instant,
        count: usize,
        correspondent: HopAddress,
        topology: &Topology,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<Vec<(SurbId, Surb)>, SessionError> {
        if self.replies_awaited + count > MAX_AWAITED_REPLIES {
            return Err(SessionError::TooManyReplies);
        }
        self.sets += 1;
        let what = What::Reply {
            set: self.sets,
            made: now,
            is_answered: false,
        };
        let mut avoid = self.suspected(now);
        let mut surbs = Vec::with_capacity(count);
        for _ in 0..count {
            let route = self.reply_route(topology, correspondent, &avoid, rng)?;
            avoid.extend(mixes_back(&route));
            let surb = self.surb(&route, what, topology.epoch(), rng)?;
            self.replies_awaited += 1;
            surbs.push(surb);
        }
        Ok(surbs)
    }

    /// Whether there are routes to `destination` and back.
    ///
    /// # Errors
    /// [`SessionError`] says what is missing.
    pub fn check_route(
        &self,
        destination: HopAddress,
        topology: &Topology,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<(), SessionError> {
        self.forward_route(topology, destination, &[], rng)?;
        self.reply_route(topology, destination, &[], rng)?;
        Ok(())
    }

    /// Takes a message to be sent.
    ///
    /// # Errors
    /// [`SubmitError`]; the message is dropped.
    pub fn submit(&mut self, now: Instant, message: Outgoing) -> Result<(), SubmitError> {
        self.outbox.submit(now, message)
    }

    /// The next packet to be sent now.
    ///
    /// # Errors
    /// [`SessionError`] if there is no route to where a fragment goes; the attempt is used up by it.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        topology: &Topology,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<Option<Outbound>, SessionError> {
        let Some(transmit) = self.outbox.poll_transmit(now) else {
            return Ok(None);
        };
        self.packet(transmit, topology, rng).map(Some)
    }

    /// Takes a frame out of the mailbox.
    ///
    /// # Errors
    /// [`FrameRefused`]; the frame is dropped. [`FrameRefused::is_integrity`] tells the ones to be counted against
    /// the entry.
    pub fn handle_frame(&mut self, frame: &Frame) -> Result<(), FrameRefused> {
        // A replay finds no recovery material any more, so the session needs no tags.
        let peeled = peel(&self.secret, &frame.packet, |_| Ok(())).map_err(FrameRefused::Peel)?;
        let Peeled::Reply { id, sealed, .. } = peeled else {
            return Err(FrameRefused::NotAReply);
        };
        let awaited = self.awaited.get(&id).ok_or(FrameRefused::Unknown)?;
        let body = awaited
            .recovery
            .recover(sealed)
            .map_err(FrameRefused::Peel)?;
        let (over, what) = (awaited.over, awaited.what);
        self.take(id);
        // Whatever it says, it passed these mixes.
        self.suspects.retain(|(_, node)| !over.contains(node));
        match (
            ReplyBody::from_body(&body).map_err(FrameRefused::Malformed)?,
            what,
        ) {
            (ReplyBody::Reply(reply), What::Reply { set, .. }) => {
                self.note_answered(set);
                self.events.push_back(Event::Reply { surb: id, reply });
            }
            (ReplyBody::Ack(ack), What::Ack(message)) if ack.message == message => {
                self.outbox.handle_ack(ack, &over);
            }
            _ => return Err(FrameRefused::Mismatched),
        }
        Ok(())
    }

    /// What happened next, for the layer above.
    pub fn poll_event(&mut self, now: Instant) -> Option<Event> {
        while let Some(done) = self.outbox.poll_done(now) {
            self.events.push_back(Event::Done(done));
            let outbox = &self.outbox;
            self.awaited.retain(|_, awaited| match awaited.what {
                What::Ack(message) => outbox.is_pending(message),
                What::Reply { .. } => true,
            });
        }
        self.events.pop_front()
    }

    /// When [`Self::poll_transmit`] or [`Self::poll_event`] has something next.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.outbox.next_due()
    }

    /// Forgets the SURBs of epochs before `oldest`, which no mix opens any more, and says which they were.
    pub fn retire_before(&mut self, oldest: Epoch) -> Vec<SurbId> {
        let is_dead = |awaited: &Awaited| awaited.recovery.epoch() < oldest;
        let dead: Vec<SurbId> = self
            .awaited
            .iter()
            .filter(|(_, awaited)| is_dead(awaited))
            .map(|(id, _)| *id)
            .collect();
        for id in &dead {
            self.take(*id);
        }
        dead
    }

    /// Forgets a SURB that nobody will use any more, such as an unused one of a lease that ended.
    ///
    /// Where none of those made together was answered in the time that an answer takes, its mixes are suspected.
    pub fn forget(&mut self, now: Instant, id: SurbId) {
        let Some(Awaited {
            over,
            what:
                What::Reply {
                    made,
                    is_answered: false,
                    ..
                },
            ..
        }) = self.take(id)
        else {
            return;
        };
        if now.saturating_duration_since(made) < time_in_flight(self.delay, 0) {
            return;
        }
        self.suspects.extend(over.map(|node| (made, node)));
        let too_many = self.suspects.len().saturating_sub(MAX_SUSPECTS);
        self.suspects.drain(..too_many);
    }

    /// SURBs that may still come back.
    #[must_use]
    pub fn awaited(&self) -> usize {
        self.awaited.len()
    }

    fn take(&mut self, id: SurbId) -> Option<Awaited> {
        let awaited = self.awaited.remove(&id)?;
        if matches!(awaited.what, What::Reply { .. }) {
            self.replies_awaited -= 1;
        }
        Some(awaited)
    }

    /// The rest of a set is not to blame for its silence.
    fn note_answered(&mut self, answered: u64) {
        for awaited in self.awaited.values_mut() {
            if let What::Reply {
                set, is_answered, ..
            } = &mut awaited.what
            {
                *is_answered |= *set == answered;
            }
        }
    }

    /// Names each mix as often as it is suspected now.
    fn suspected(&mut self, now: Instant) -> Vec<HopAddress> {
        self.suspects
            .retain(|(since, _)| now.saturating_duration_since(*since) < SUSPECTED_FOR);
        let named = |(_, node): &(Instant, HopAddress)| std::iter::repeat_n(*node, SUSPICION);
        self.suspects.iter().flat_map(named).collect()
    }

    fn packet(
        &mut self,
        transmit: Transmit,
        topology: &Topology,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<Outbound, SessionError> {
        let (to, tried) = (transmit.destination, &transmit.tried);
        let forward = self.forward_route(topology, to, &tried.forward, rng)?;
        let back = self.reply_route(topology, to, &tried.back, rng)?;
        // The ends are the same for every attempt; the mixes between them are what the next one avoids.
        let forward_mixes = [forward.hops()[1].address, forward.hops()[2].address];
        let back_mixes = mixes_back(&back);
        let (_, ack) = self.surb(&back, What::Ack(transmit.message), topology.epoch(), rng)?;
        self.outbox
            .went_over(transmit.message, transmit.index, forward_mixes, back_mixes);
        let fragment = Fragment {
            message: transmit.message,
            class: transmit.class,
            index: transmit.index,
            admission: transmit.admission,
            ack,
            part: transmit.part,
        };
        let delays = self.delay.sample_route(forward.hops().len(), rng);
        let packet = build(&forward, &fragment.to_body(), &delays, rng)?;
        Ok(Outbound {
            to: forward.first().address,
            frame: Frame {
                epoch: topology.epoch(),
                packet,
            },
        })
    }

    fn forward_route(
        &self,
        topology: &Topology,
        destination: HopAddress,
        avoid: &[HopAddress],
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<Route, SessionError> {
        let destination = topology
            .node(destination)
            .ok_or(SessionError::UnknownDestination)?;
        let entry = topology
            .node(self.entry)
            .ok_or(SessionError::UnknownEntry)?;
        Ok(Route::forward(entry, topology, destination, avoid, rng)?)
    }

    fn reply_route(
        &self,
        topology: &Topology,
        correspondent: HopAddress,
        avoid: &[HopAddress],
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<Route, SessionError> {
        let entry = topology
            .node(self.entry)
            .ok_or(SessionError::UnknownEntry)?;
        let mailbox = Hop {
            address: self.mailbox,
            key: self.secret.public(),
        };
        Ok(Route::reply(
            entry,
            topology,
            mailbox,
            correspondent,
            avoid,
            rng,
        )?)
    }

    fn surb(
        &mut self,
        route: &Route,
        what: What,
        epoch: Epoch,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<(SurbId, Surb), SessionError> {
        let delays = self.delay.sample_route(route.hops().len(), rng);
        let (surb, recovery) = Surb::make(route, &delays, epoch, rng)?;
        let id = recovery.id();
        self.awaited.insert(
            id,
            Awaited {
                recovery,
                over: mixes_back(route),
                what,
            },
        );
        Ok((id, surb))
    }
}

/// The mixes of the way back; behind them come the entry and the mailbox.
fn mixes_back(route: &Route) -> [HopAddress; MIXES] {
    [route.hops()[0].address, route.hops()[1].address]
}

/// Why a session could not send.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The destination has no verified card with keys of this epoch.
    #[error("the destination is not among the nodes of this epoch")]
    UnknownDestination,
    /// The entry has no verified card with keys of this epoch.
    #[error("the entry is not among the nodes of this epoch")]
    UnknownEntry,
    /// The network is too small.
    #[error("no route")]
    Route(#[from] RouteError),
    /// The packet could not be built.
    #[error("no packet")]
    Build(#[from] BuildError),
    /// The bound on awaited replies is reached.
    #[error("more than {MAX_AWAITED_REPLIES} replies are awaited")]
    TooManyReplies,
}

/// Why a frame out of the mailbox was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameRefused {
    /// It cannot be opened.
    #[error("the packet cannot be opened")]
    Peel(#[source] PeelError),
    /// It is not a reply: nobody but a SURB's user can reach a session.
    #[error("the packet is not a reply")]
    NotAReply,
    /// Its SURB is not awaited, or no longer.
    #[error("the reply is not awaited")]
    Unknown,
    /// The correspondent sent something that means nothing.
    #[error("the reply is malformed")]
    Malformed(#[source] FragmentError),
    /// A reply where an acknowledgement belongs, or the reverse.
    #[error("the reply answers something else")]
    Mismatched,
}

impl FrameRefused {
    /// Whether the packet was changed on the way. Somebody who marks packets so can recognise them: count it against
    /// the entry, and change the entry when it happens often.
    #[must_use]
    pub fn is_integrity(&self) -> bool {
        matches!(self, Self::Peel(PeelError::Header | PeelError::Payload))
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    const FLIGHT: Duration = Duration::from_secs(3);
    const PROVIDER: HopAddress = HopAddress([9; 32]);

    fn session(rng: &mut StdRng) -> (Session, Topology) {
        let hop = |n| Hop {
            address: HopAddress([n; 32]),
            key: MixSecret::generate(rng).public(),
        };
        let topology = Topology::new(Epoch(1), (0..10).map(hop));
        let delay = MixDelay::new(Duration::from_millis(50), Duration::from_secs(10));
        let mailbox = HopAddress([0xaa; 32]);
        (
            Session::new(HopAddress([0; 32]), mailbox, delay, rng),
            topology,
        )
    }

    #[test]
    fn nothing_goes_through_a_node_that_is_no_mix() {
        let rng = &mut StdRng::seed_from_u64(1);
        let (mut session, mixes) = session(rng);
        let end = |n| Hop {
            address: HopAddress([n; 32]),
            key: MixSecret::generate(rng).public(),
        };
        // Far more providers than mixes, as a market has.
        let ends: Vec<_> = (100..200).map(end).collect();
        let (end, provider) = (ends[0].address, ends[1].address);
        let topology = mixes.clone().with_ends(ends);
        assert!(topology.node(end).is_some());
        for _ in 0..100 {
            let forward = session.forward_route(&topology, provider, &[], rng);
            let forward = forward.expect("a route");
            let (last, through) = forward.hops().split_last().expect("four hops");
            assert_eq!(last.address, provider);
            assert!(through.iter().all(|hop| mixes.node(hop.address).is_some()));
            let made = session.reply_surbs(Instant::now(), 1, provider, &topology, rng);
            let (id, _) = made.expect("a route")[0];
            let over = session.awaited[&id].over;
            assert!(over.iter().all(|mix| mixes.node(*mix).is_some()));
        }
    }

    #[test]
    fn mixes_are_suspected_for_a_while_where_a_whole_set_was_not_answered() {
        let rng = &mut StdRng::seed_from_u64(1);
        let (mut session, topology) = session(rng);
        let start = Instant::now();
        let mut ids = |session: &mut Session| {
            let made = session.reply_surbs(start, 2, PROVIDER, &topology, rng);
            let made = made.expect("routes").into_iter();
            made.map(|(id, _)| id).collect::<Vec<_>>()
        };
        let soon = ids(&mut session);
        session.forget(start, soon[0]);
        assert_eq!(session.suspects.len(), 0, "no time for an answer yet");

        let answered = ids(&mut session);
        session.note_answered(session.sets);
        session.forget(start + FLIGHT, answered[0]);
        assert_eq!(session.suspects.len(), 0, "another of the set came back");

        let silent = ids(&mut session);
        let over = session.awaited[&silent[1]].over;
        session.forget(start + FLIGHT, silent[1]);
        let named = session.suspected(start + FLIGHT);
        assert_eq!(named, over.map(|node| [node; SUSPICION]).concat());
        assert!(session.suspected(start + SUSPECTED_FOR).is_empty());
    }

    #[test]
    fn no_more_than_the_newest_mixes_are_suspected() {
        let rng = &mut StdRng::seed_from_u64(2);
        let (mut session, topology) = session(rng);
        let start = Instant::now();
        for _ in 0..2 * MAX_SUSPECTS {
            let made = session.reply_surbs(start, 1, PROVIDER, &topology, rng);
            let id = made.expect("routes")[0].0;
            let over = session.awaited[&id].over;
            session.forget(start + FLIGHT, id);
            assert!(session.suspects.len() <= MAX_SUSPECTS);
            assert!(
                session
                    .suspects
                    .iter()
                    .rev()
                    .take(MIXES)
                    .all(|(_, node)| over.contains(node))
            );
        }
        assert_eq!(session.suspects.len(), MAX_SUSPECTS);
        assert_eq!(session.awaited(), 0);
    }
}
