//! The destination's half: puts messages together, acknowledges them, and spends SURBs on replies.
//!
//! ```text
//!  bodies ─► room in the queue of messages? ─no─► dropped: its sender resends
//!                │yes
//!                ▼
//!              Inbox ─┬─► messages ─► the layer above ─► Replier ─► Links
//!                     └─► acks ─────────────────────────────┘
//! ```
//!
//! A message is acknowledged once it has its place in the queue and not before, so an acknowledged one is not lost to a
//! busy reader.

use std::{sync::Arc, time::Instant};

use souk_sphinx::{
    EpochClock, Surb,
    delay::MixDelay,
    message::{AckOut, Gate, Inbox, Message, Refused, Reply},
    packet::Body,
    surb::SurbError,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    counters::MixCounters,
    links::{LinkRefused, Links},
    unix_now,
};

/// Complete messages that wait to be read: 2.3 MB of the largest class.
pub const MESSAGE_QUEUE: usize = 64;

/// Packets that wait to be put together: 0.5 MB.
const BODY_QUEUE: usize = 256;

/// Reads the packets that end at this node.
#[derive(Debug)]
pub struct Mailroom;

impl Mailroom {
    /// Starts reading. The sender goes to the mixer, the receiver to whom the messages are for; dropping either ends it.
    #[must_use]
    pub fn start(
        delay: MixDelay,
        gate: impl Gate + Send + 'static,
        replier: Replier,
        stop: CancellationToken,
    ) -> (mpsc::Sender<Box<Body>>, mpsc::Receiver<Message>) {
        let (bodies, to_read) = mpsc::channel(BODY_QUEUE);
        let (messages, complete) = mpsc::channel(MESSAGE_QUEUE);
        let reader = Reader {
            inbox: Inbox::new(delay),
            gate: Box::new(gate),
            messages,
            replier,
        };
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = reader.run(to_read) => {}
            }
        });
        (bodies, complete)
    }
}

struct Reader {
    inbox: Inbox,
    gate: Box<dyn Gate + Send>,
    messages: mpsc::Sender<Message>,
    replier: Replier,
}

impl Reader {
    async fn run(mut self, mut bodies: mpsc::Receiver<Box<Body>>) {
        loop {
            let next_due = self.inbox.next_due();
            let due = async {
                match next_due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                body = bodies.recv() => match body {
                    Some(body) => self.read(&body),
                    None => return,
                },
                () = self.messages.closed() => return,
                () = due => {}
            }
            while let Some(report) = self.inbox.poll_report(Instant::now()) {
                report.into_iter().for_each(|out| self.acknowledge(out));
            }
        }
    }

    fn read(&mut self, body: &Body) {
        let counters = &self.replier.counters;
        let Ok(place) = self.messages.try_reserve() else {
            counters.fragments_refused.add(1);
            return;
        };
        let handled = match self
            .inbox
            .handle_fragment(Instant::now(), body, self.gate.as_mut())
        {
            Ok(handled) => handled,
            Err(Refused::NotAdmitted) => return counters.not_admitted.add(1),
            Err(_) => return counters.fragments_refused.add(1),
        };
        if let Some(message) = handled.message {
            counters.messages.add(1);
            place.send(message);
        }
        for ack in handled.acks {
            self.acknowledge(ack);
        }
    }

    fn acknowledge(&self, out: AckOut) {
        if self.replier.spend(out.surb, &out.ack.to_body()).is_ok() {
            self.replier.counters.acks_sent.add(1);
        }
    }
}

/// Spends SURBs.
#[derive(Clone)]
pub struct Replier {
    links: Arc<dyn Links>,
    clock: EpochClock,
    counters: Arc<MixCounters>,
}

impl Replier {
    /// Sends over `links`; SURBs live as long as the keys of their epoch.
    #[must_use]
    pub fn new(links: Arc<dyn Links>, clock: EpochClock, counters: Arc<MixCounters>) -> Self {
        Self {
            links,
            clock,
            counters,
        }
    }

    /// Sends a reply. It may get lost, as any packet; the requester polls then, with fresh SURBs.
    ///
    /// The caller has journalled [`Surb::fingerprint`] as spent: a SURB used twice sends two packets of one header.
    ///
    /// # Errors
    /// [`ReplyRefused`]; the SURB is gone.
    pub fn reply(&self, surb: Surb, reply: &Reply) -> Result<(), ReplyRefused> {
        self.spend(surb, &reply.to_body())?;
        self.counters.replies_sent.add(1);
        Ok(())
    }

    /// Whether a reply by this SURB could leave: its epoch is open, and there is a link to its first node.
    #[must_use]
    pub fn can_use(&self, surb: &Surb) -> bool {
        self.clock.accepts(surb.epoch(), unix_now()) && self.links.has_link(&surb.first_hop())
    }

    fn spend(&self, surb: Surb, body: &Body) -> Result<(), ReplyRefused> {
        let sent = self.try_spend(surb, body);
        if sent.is_err() {
            self.counters.replies_dropped.add(1);
        }
        sent
    }

    fn try_spend(&self, surb: Surb, body: &Body) -> Result<(), ReplyRefused> {
        if !self.clock.accepts(surb.epoch(), unix_now()) {
            return Err(ReplyRefused::Expired);
        }
        let (first, frame) = surb.send_with(body)?;
        Ok(self.links.try_send(first, frame)?)
    }
}

impl std::fmt::Debug for Replier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replier")
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}

/// Why a reply was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyRefused {
    /// No mix opens packets of its epoch: it is over, or too far ahead.
    #[error("the SURB's epoch is not open")]
    Expired,
    /// The requester's fault.
    #[error("the SURB cannot be used")]
    Surb(#[from] SurbError),
    /// The first node of the SURB's route is not reached; the requester chose it.
    #[error("the first node of the SURB's route is not reached")]
    Link(#[from] LinkRefused),
}
