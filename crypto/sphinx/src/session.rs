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
use std::time::Instant;

use rand_core::CryptoRng;

use crate::delay::MixDelay;
use crate::epoch::Epoch;
use crate::keys::{MixPublic, MixSecret};
use crate::link::Frame;
use crate::message::{
    Done, Fragment, FragmentError, MessageId, Outbox, Outgoing, Reply, ReplyBody, SubmitError,
    Transmit,
};
use crate::packet::{BuildError, Hop, HopAddress, PeelError, Peeled, build, peel};
use crate::route::{MIXES, Route, RouteError};
use crate::surb::{Recovery, Surb, SurbId};

/// Replies that a session may wait for at once: a few for each lease that it holds.
///
/// They are the user's own, so the bound only guards against a loop in the layer above.
pub const MAX_AWAITED_REPLIES: usize = 1024;

/// The nodes that packets may go over in one epoch, with their keys: all verified cards, the same for everybody.
#[derive(Clone, Debug)]
pub struct Topology {
    epoch: Epoch,
    nodes: Vec<Hop>,
}

impl Topology {
    /// The nodes of `epoch`, each once; of a node given twice the first is taken.
    #[must_use]
    pub fn new(epoch: Epoch, nodes: impl IntoIterator<Item = Hop>) -> Self {
        let mut nodes: Vec<Hop> = nodes.into_iter().collect();
        nodes.sort_by_key(|hop| hop.address);
        nodes.dedup_by_key(|hop| hop.address);
        Self { epoch, nodes }
    }

    /// The epoch of all keys.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Hop] {
        &self.nodes
    }

    /// The node with this address.
    #[must_use]
    pub fn node(&self, address: HopAddress) -> Option<Hop> {
        self.nodes
            .binary_search_by_key(&address, |hop| hop.address)
            .ok()
            .map(|at| self.nodes[at])
    }
}

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
    events: VecDeque<Event>,
}

#[derive(Debug)]
struct Awaited {
    recovery: Recovery,
    /// What comes is an acknowledgement; a reply otherwise.
    acknowledges: Option<Acknowledged>,
}

/// The message whose acknowledgement is awaited, and the mixes that it comes over.
#[derive(Clone, Copy, Debug)]
struct Acknowledged {
    message: MessageId,
    over: [HopAddress; MIXES],
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
    /// # Errors
    /// [`SessionError`] if there is no route, or too many replies are awaited.
    pub fn reply_surbs(
        &mut self,
        count: usize,
        correspondent: HopAddress,
        topology: &Topology,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<Vec<(SurbId, Surb)>, SessionError> {
        if self.replies_awaited + count > MAX_AWAITED_REPLIES {
            return Err(SessionError::TooManyReplies);
        }
        let mut surbs = Vec::with_capacity(count);
        for _ in 0..count {
            let route = self.reply_route(topology, correspondent, &[], rng)?;
            let surb = self.surb(&route, None, topology.epoch(), rng)?;
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
        let acknowledges = awaited.acknowledges;
        self.forget(id);
        match (
            ReplyBody::from_body(&body).map_err(FrameRefused::Malformed)?,
            acknowledges,
        ) {
            (ReplyBody::Reply(reply), None) => {
                self.events.push_back(Event::Reply { surb: id, reply });
            }
            (ReplyBody::Ack(ack), Some(awaited)) if ack.message == awaited.message => {
                self.outbox.handle_ack(ack, &awaited.over);
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
            self.awaited.retain(|_, awaited| {
                awaited
                    .acknowledges
                    .is_none_or(|awaited| outbox.is_pending(awaited.message))
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
            self.forget(*id);
        }
        dead
    }

    /// Forgets SURBs that nobody will use any more, such as the unused ones of a lease that ended.
    pub fn forget(&mut self, id: SurbId) {
        if self
            .awaited
            .remove(&id)
            .is_some_and(|awaited| awaited.acknowledges.is_none())
        {
            self.replies_awaited -= 1;
        }
    }

    /// SURBs that may still come back.
    #[must_use]
    pub fn awaited(&self) -> usize {
        self.awaited.len()
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
        let back_mixes = [back.hops()[0].address, back.hops()[1].address];
        let acknowledges = Acknowledged {
            message: transmit.message,
            over: back_mixes,
        };
        let (_, ack) = self.surb(&back, Some(acknowledges), topology.epoch(), rng)?;
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
        Ok(Route::forward(
            entry,
            topology.nodes(),
            destination,
            avoid,
            rng,
        )?)
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
            topology.nodes(),
            mailbox,
            correspondent,
            avoid,
            rng,
        )?)
    }

    fn surb(
        &mut self,
        route: &Route,
        acknowledges: Option<Acknowledged>,
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
                acknowledges,
            },
        );
        Ok((id, surb))
    }
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
