//! A client's half: sends messages, and hands each reply to whoever waits for it.
//!
//! ```text
//!  Messenger ──commands──► task with the Session ──frames──► Links ─► entry
//!  Replies ◄──by SURB────────┘        ▲
//!                     frames of the mailbox
//! ```

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::rngs::StdRng;
use souk_sphinx::{
    EpochClock, Frame, HopAddress, Session, Surb, SurbId, Topology,
    message::{Done, MessageId, Outgoing, Reply, SubmitError},
    session::{Event, SessionError},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::yield_now,
    time::{MissedTickBehavior, interval},
};

use super::{counters::Counter, links::Links, unix_now};

/// Commands that wait; each comes from a caller who waits for its outcome.
const COMMAND_QUEUE: usize = 32;

/// How often SURBs of dead epochs are forgotten.
const RETIREMENT: Duration = Duration::from_secs(30);

/// What a messenger works with.
pub struct MessengerParts {
    /// The session; its entry holds its mailbox.
    pub session: Session,
    /// The link to the entry.
    pub links: Arc<dyn Links>,
    /// What is collected from the mailbox.
    pub frames: mpsc::Receiver<Frame>,
    /// The nodes of the epoch that is built for now.
    pub topology: watch::Receiver<Arc<Topology>>,
    /// The clock of the epochs.
    pub clock: EpochClock,
}

/// Sends messages of one session. It ends when all its handles are dropped, or the mailbox's frames end.
#[derive(Clone, Debug)]
pub struct Messenger {
    commands: mpsc::Sender<Command>,
    tampered: Arc<Counter>,
}

impl Messenger {
    /// Starts the session's task.
    #[must_use]
    pub fn start(parts: MessengerParts) -> Self {
        let (commands, to_do) = mpsc::channel(COMMAND_QUEUE);
        let tampered = Arc::new(Counter::default());
        let task = Task {
            session: parts.session,
            links: parts.links,
            topology: parts.topology,
            clock: parts.clock,
            rng: rand::make_rng(),
            waiting: HashMap::new(),
            replies: HashMap::new(),
            tampered: tampered.clone(),
        };
        tokio::spawn(task.run(to_do, parts.frames));
        Self { commands, tampered }
    }

    /// Sends a message and returns when its destination has acknowledged all of it.
    ///
    /// It is sent again over fresh routes where packets were lost; with a mean delay of 50 ms it is given up after 24 s.
    ///
    /// # Errors
    /// [`SendError`]; after [`SendError::NotAcknowledged`] the message may have arrived all the same.
    pub async fn send(&self, message: Outgoing) -> Result<(), SendError> {
        let (done, outcome) = oneshot::channel();
        self.command(Command::Send { message, done }).await?;
        outcome.await.map_err(|_| MessengerClosed)?
    }

    /// Makes `count` SURBs for `correspondent`, and the end at which its replies come out.
    ///
    /// # Errors
    /// [`SendError::NoRoute`] if the network is too small or too many replies are awaited.
    pub async fn reply_surbs(
        &self,
        count: usize,
        correspondent: HopAddress,
    ) -> Result<(Vec<Surb>, Replies), SendError> {
        let (replies, received) = mpsc::channel(count.max(1));
        let (made, outcome) = oneshot::channel();
        self.command(Command::ReplySurbs {
            count,
            correspondent,
            replies,
            made,
        })
        .await?;
        let surbs = outcome.await.map_err(|_| MessengerClosed)??;
        let (ids, surbs) = surbs.into_iter().unzip();
        let replies = Replies {
            ids,
            received,
            commands: self.commands.clone(),
        };
        Ok((surbs, replies))
    }

    /// Frames of the mailbox that were changed on the way. Somebody may be marking packets: change the entry if there are
    /// many.
    #[must_use]
    pub fn tampered(&self) -> u64 {
        self.tampered.total()
    }

    async fn command(&self, command: Command) -> Result<(), MessengerClosed> {
        self.commands
            .send(command)
            .await
            .map_err(|_| MessengerClosed)
    }
}

/// The replies to one set of SURBs. Dropping it forgets the SURBs that were not used.
#[derive(Debug)]
pub struct Replies {
    ids: Vec<SurbId>,
    received: mpsc::Receiver<Reply>,
    commands: mpsc::Sender<Command>,
}

impl Replies {
    /// The next reply; `None` when the messenger has ended or all SURBs were used or died.
    pub async fn next(&mut self) -> Option<Reply> {
        self.received.recv().await
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        let ids = std::mem::take(&mut self.ids);
        // If the queue is full the SURBs die with their epoch.
        if self.commands.try_send(Command::Forget(ids)).is_err() {
            tracing::trace!("SURBs are left to their epoch");
        }
    }
}

#[derive(Debug)]
enum Command {
    Send {
        message: Outgoing,
        done: oneshot::Sender<Result<(), SendError>>,
    },
    ReplySurbs {
        count: usize,
        correspondent: HopAddress,
        replies: mpsc::Sender<Reply>,
        made: oneshot::Sender<Result<Vec<(SurbId, Surb)>, SendError>>,
    },
    Forget(Vec<SurbId>),
}

struct Task {
    session: Session,
    links: Arc<dyn Links>,
    topology: watch::Receiver<Arc<Topology>>,
    clock: EpochClock,
    rng: StdRng,
    waiting: HashMap<MessageId, oneshot::Sender<Result<(), SendError>>>,
    replies: HashMap<SurbId, mpsc::Sender<Reply>>,
    tampered: Arc<Counter>,
}

impl Task {
    async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut frames: mpsc::Receiver<Frame>,
    ) {
        let mut retirement = interval(RETIREMENT);
        retirement.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let next_due = self.session.next_due();
            let due = async {
                match next_due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.handle_command(command),
                    None => return,
                },
                frame = frames.recv() => match frame {
                    Some(frame) => self.handle_frame(&frame),
                    None => return,
                },
                _ = retirement.tick() => self.retire(),
                () = due => {}
            }
            self.transmit().await;
            self.report();
        }
    }

    fn handle_command(&mut self, command: Command) {
        // Whoever asked may have gone; the outcome is dropped then.
        match command {
            Command::Send { message, done } => match self.submit(message) {
                Ok(id) => drop(self.waiting.insert(id, done)),
                Err(error) => drop(done.send(Err(error))),
            },
            Command::ReplySurbs {
                count,
                correspondent,
                replies,
                made,
            } => {
                let topology = self.topology.borrow().clone();
                let surbs = self.session.reply_surbs(
                    Instant::now(),
                    count,
                    correspondent,
                    &topology,
                    &mut self.rng,
                );
                if let Ok(surbs) = &surbs {
                    self.replies
                        .extend(surbs.iter().map(|(id, _)| (*id, replies.clone())));
                }
                drop(made.send(surbs.map_err(SendError::NoRoute)));
            }
            Command::Forget(ids) => {
                for id in ids {
                    self.session.forget(Instant::now(), id);
                    self.replies.remove(&id);
                }
            }
        }
    }

    fn submit(&mut self, message: Outgoing) -> Result<MessageId, SendError> {
        let topology = self.topology.borrow().clone();
        let id = message.id;
        self.session
            .check_route(message.destination, &topology, &mut self.rng)
            .map_err(SendError::NoRoute)?;
        self.session.submit(Instant::now(), message)?;
        Ok(id)
    }

    fn handle_frame(&mut self, frame: &Frame) {
        if let Err(refused) = self.session.handle_frame(frame) {
            if refused.is_integrity() {
                self.tampered.add(1);
            }
            tracing::debug!(%refused, "a packet of the mailbox is dropped");
        }
    }

    async fn transmit(&mut self) {
        loop {
            let topology = self.topology.borrow().clone();
            match self
                .session
                .poll_transmit(Instant::now(), &topology, &mut self.rng)
            {
                Ok(Some(outbound)) => {
                    if let Err(refused) = self.links.try_send(outbound.to, outbound.frame) {
                        tracing::debug!(%refused, "the entry is not reached; the fragment is sent again later");
                    }
                }
                Ok(None) => return,
                Err(error) => tracing::debug!(%error, "a fragment has no route now"),
            }
            // A packet takes most of a millisecond to build; others run in between.
            yield_now().await;
        }
    }

    fn report(&mut self) {
        while let Some(event) = self.session.poll_event(Instant::now()) {
            match event {
                Event::Reply { surb, reply } => {
                    if let Some(replies) = self.replies.remove(&surb) {
                        // There is room for one reply to each SURB; whoever waited may have gone.
                        drop(replies.try_send(reply));
                    }
                }
                Event::Done(done) => {
                    let (id, outcome) = match done {
                        Done::Delivered(id) => (id, Ok(())),
                        Done::Failed(id) => (id, Err(SendError::NotAcknowledged)),
                    };
                    if let Some(waiting) = self.waiting.remove(&id) {
                        drop(waiting.send(outcome));
                    }
                }
            }
        }
    }

    fn retire(&mut self) {
        let retired = self.session.retire_before(self.clock.oldest(unix_now()));
        for id in retired {
            self.replies.remove(&id);
        }
    }
}

/// Why a message was not sent, or is not known to have arrived.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The message was not taken.
    #[error("the message was not taken")]
    Submit(#[from] SubmitError),
    /// There is no route there or back.
    #[error("there is no route to the destination and back")]
    NoRoute(#[source] SessionError),
    /// All attempts were used up.
    #[error("the destination did not acknowledge the message")]
    NotAcknowledged,
    /// The session has ended.
    #[error("the message was not sent")]
    Closed(#[from] MessengerClosed),
}

/// The session has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session with the mix network has ended")]
pub struct MessengerClosed;
