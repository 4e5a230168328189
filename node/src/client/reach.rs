//! The way to a rented machine's SSH server, over one of the relays of its receipt, or straight to its provider's port.
//!
//! ```text
//!  ssh ── SessionStream ── session ══ carrier 1: relay or port ══ provider's node ══ agent
//!                             ╚══════ carrier 2, once the first has broken ═══════════╝
//! ```
//!
//! What is opened is a session of [`souk_session`]: where the relay goes away or the provider's node is started again, it is
//! taken up over whatever leads there, and who is logged in sees a pause. A provider that starts again comes back to its
//! relays within seconds; until then they do not know the token. So for an active lease relays are tried again for
//! [`PATIENCE`], and for a session that stands, as long as the agent keeps it and the lease has not ended.
//!
//! Threat: a relay that joins sessions of one requester. Each carrier has a network identity of its own, and the id of a
//! session is drawn for it alone.

use std::time::{Duration, Instant};

use rand::RngExt as _;
use souk_session::{
    Ending, Hello, LINGER, Malformed, Session, SessionId, Status, Violation, Welcome, carry,
    deliver,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    net::TcpStream,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::{either::Either, sync::CancellationToken};

use crate::{
    net::{self, Backoff, ClientConfig, RelayConnectError, RelayStream, io_through},
    unix_now,
};

use super::{Client, JudgeError, Judgement, Lease, Stage, StateError, Way};

/// For so long ways are tried again that do not lead to the instance, or not yet.
pub const PATIENCE: Duration = Duration::from_secs(15);

const MIN_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// A provider that starts again is known to its relays within seconds. Where they answer for so long that they do not know
/// the lease, it has ended.
const UNKNOWN_FOR: Duration = Duration::from_secs(30);

/// How long a port of a provider may take to answer.
const CONNECT: Duration = Duration::from_secs(10);

/// How long the agent may take to answer a greeting: two ways through a relay.
const GREETING: Duration = Duration::from_secs(10);

/// Bytes between a session and whoever uses it.
const PIPE_BYTES: usize = 64 * 1024;

/// How long the last words of a session may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why an instance could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// The client's folder.
    #[error("the lease could not be read")]
    State(#[from] StateError),
    /// The receipt names no relay that is neither entry nor provider; or, of a direct lease, no address that can be reached.
    #[error(
        "no way in the receipt is usable: each relay is the entry of this client, or the provider's port has no public address; rent again"
    )]
    NoWay,
    /// It cannot be said what the instance runs on.
    #[error("the instance cannot be judged")]
    Judge(#[from] JudgeError),
    /// The instance does not prove what it must.
    #[error("the instance is not believed any more ({reason}: {why})")]
    Unproven {
        /// The name of the first reason.
        reason: &'static str,
        /// What was found.
        why: String,
    },
    /// No relay let us through.
    #[error("no relay leads to the instance")]
    Relay(#[source] RelayConnectError),
    /// The provider's port does not answer.
    #[error("the provider's port does not lead to the instance")]
    Direct(#[source] std::io::Error),
    /// Nothing leads to it any more.
    #[error("the lease has ended")]
    Ended,
    /// The way led to something that is no agent, or to one that takes no session.
    #[error("the instance takes no session")]
    Instance(#[source] GreetError),
}

/// Why the agent of an instance did not take a session.
#[derive(Debug, thiserror::Error)]
pub enum GreetError {
    /// The way to it broke.
    #[error("the connection broke before the instance answered")]
    Cut,
    /// What answers does not speak the protocol of [`souk_session`].
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The two ends disagree on what was sent.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The agent does not know the session any more.
    #[error("the instance has forgotten the session")]
    Unknown,
    /// The agent keeps as many as it can.
    #[error("the instance has too many sessions open; close one")]
    Full,
}

/// What a user who waits should hear.
#[derive(Debug)]
pub enum Notice<'a> {
    /// The instance was not reached, and is tried again for [`PATIENCE`].
    Waits(&'a ReachError),
    /// What carried the session broke. It is taken up again for [`LINGER`].
    Cut,
    /// It goes on.
    Back,
    /// It could not be taken up.
    Lost(&'a ReachError),
}

/// A stream to the SSH server of an instance.
#[derive(Debug)]
pub struct SessionStream {
    stream: DuplexStream,
    farewell: Farewell,
}

/// Ends a session at both ends, so that the instance need not wait whether it is taken up again.
#[derive(Debug)]
pub struct Farewell {
    keeping: JoinHandle<()>,
    is_leaving: CancellationToken,
}

io_through!(SessionStream, stream);

impl SessionStream {
    /// Ends the session.
    pub async fn close(self) {
        let (stream, farewell) = self.into_parts();
        drop(stream);
        farewell.say().await;
    }

    /// The stream for somebody who keeps it, and how the session is ended once it is dropped.
    #[must_use]
    pub fn into_parts(self) -> (DuplexStream, Farewell) {
        (self.stream, self.farewell)
    }
}

impl Farewell {
    /// Waits a moment for the last words to leave. From here on nobody is told of anything.
    pub async fn say(self) {
        self.is_leaving.cancel();
        let _ = timeout(FAREWELL, self.keeping).await;
    }
}

impl Client {
    /// Opens a session with the SSH server of a lease, over a relay that is neither this client's entry nor the provider: each
    /// connection to a relay has a network identity that is made for it alone. That of a direct lease goes to the provider's port. Before
    /// anybody is asked, the evidence of the instance is judged, where the lease requires any.
    ///
    /// # Errors
    /// [`ReachError`], for an active lease after [`PATIENCE`].
    pub async fn session(
        &self,
        lease: &Lease,
        notices: impl Fn(Notice<'_>) + Send + 'static,
    ) -> Result<SessionStream, ReachError> {
        self.believe(lease)?;
        let mut road = Road {
            client: self.clone(),
            lease: lease.name(),
            config: self.net_config(),
            ways: lease.ways(&self.entries()?, self.config.params.is_test())?,
        };
        let start = Instant::now();
        let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
        let mut is_told = false;
        let (id, session, carrier) = loop {
            let mut session = Session::default();
            let id = SessionId(rand::rng().random());
            let error = match road.attach(id, true, &mut session).await {
                Ok(carrier) => break (id, session, carrier),
                Err(error) => error,
            };
            let pause = backoff.pause(&mut rand::rng());
            let is_active = matches!(lease.stage(unix_now()), Stage::Active);
            if !error.may_pass() || !is_active || start.elapsed() + pause > PATIENCE {
                return Err(error);
            }
            if !is_told {
                notices(Notice::Waits(&error));
                is_told = true;
            }
            sleep(pause).await;
        };
        let (stream, near) = duplex(PIPE_BYTES);
        let is_leaving = CancellationToken::new();
        let kept = road.keep(id, session, carrier, near, notices, is_leaving.clone());
        let keeping = tokio::spawn(kept);
        let farewell = Farewell {
            keeping,
            is_leaving,
        };
        Ok(SessionStream { stream, farewell })
    }

    /// Fails where the lease requires evidence and the policy does not accept that of its instance now.
    ///
    /// # Errors
    /// [`ReachError::Unproven`] and [`ReachError::Judge`]; nobody was asked anything.
    pub fn believe(&self, lease: &Lease) -> Result<(), ReachError> {
        match self.judge_instance(lease, unix_now())? {
            Some(Judgement::Refused { reason, why, .. }) => {
                Err(ReachError::Unproven { reason, why })
            }
            Some(Judgement::Accepted { .. }) | None => Ok(()),
        }
    }
}

impl ReachError {
    /// Whether it may be otherwise in a moment.
    fn may_pass(&self) -> bool {
        match self {
            Self::Relay(_) | Self::Direct(_) => true,
            Self::Instance(error) => !matches!(error, GreetError::Full),
            _ => false,
        }
    }

    /// Whether who answered does not know the lease, or not the session.
    fn is_unknown(&self) -> bool {
        matches!(
            self,
            Self::Relay(RelayConnectError::Unknown)
                | Self::Instance(GreetError::Unknown | GreetError::Violation(_))
        )
    }
}

/// What a session is carried over.
type Carrier = Either<RelayStream, TcpStream>;

/// How an instance is reached, again and again.
struct Road {
    client: Client,
    lease: String,
    config: ClientConfig,
    ways: Vec<Way>,
}

impl Road {
    /// Finds a carrier for a session: one round over all ways. The one that is found is the last to be tried next time, so
    /// that a relay which breaks what it carries stands in nobody's way.
    async fn attach(
        &mut self,
        id: SessionId,
        is_new: bool,
        session: &mut Session,
    ) -> Result<Carrier, ReachError> {
        let mut outcome = ReachError::NoWay;
        for at in 0..self.ways.len() {
            let error = match self.go(&self.ways[at]).await {
                Ok(mut carrier) => match greet(&mut carrier, id, is_new, session).await {
                    Ok(()) => {
                        self.ways.rotate_left(at + 1);
                        return Ok(carrier);
                    }
                    Err(error) => ReachError::Instance(error),
                },
                Err(error) => error,
            };
            // Whoever answers knows more than whoever does not.
            if !outcome.is_unknown() {
                outcome = error;
            }
        }
        Err(outcome)
    }

    /// Goes one way as far as the instance's door.
    async fn go(&self, way: &Way) -> Result<Carrier, ReachError> {
        match way {
            Way::Relay(way) => {
                let via = net::connect_via(&self.config, &way.relay, way.provider, &way.token);
                via.await.map(Either::Left).map_err(ReachError::Relay)
            }
            Way::Direct(address) => {
                let connected = timeout(CONNECT, TcpStream::connect(address)).await;
                let stream = connected.unwrap_or_else(|late| Err(late.into()));
                let stream = stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
                stream.map(Either::Right).map_err(ReachError::Direct)
            }
        }
    }

    /// Carries a session over one carrier after another, until it is over.
    async fn keep(
        mut self,
        id: SessionId,
        mut session: Session,
        mut carrier: Carrier,
        mut near: DuplexStream,
        notices: impl Fn(Notice<'_>),
        is_leaving: CancellationToken,
    ) {
        let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
        let lost = loop {
            let since = Instant::now();
            match carry(&mut session, &mut carrier, &mut near).await {
                // What was said last may still be on its way. The agent closes once it has heard that all is over.
                Ending::Over => {
                    let _ = timeout(FAREWELL, carrier.read_u8()).await;
                    return;
                }
                Ending::Cut if is_leaving.is_cancelled() => return,
                Ending::Cut if session.has_all() => break None,
                Ending::Cut => {}
                Ending::Broken => break Some(ReachError::Instance(Violation.into())),
            }
            backoff.handle_success(since.elapsed());
            notices(Notice::Cut);
            let attached = tokio::select! {
                attached = self.attach_again(id, &mut session, &mut backoff) => attached,
                () = is_leaving.cancelled() => return,
            };
            carrier = match attached {
                Ok(carrier) => carrier,
                Err(error) => break Some(error),
            };
            notices(Notice::Back);
        };
        if let Some(error) = lost {
            notices(Notice::Lost(&error));
        }
        deliver(&mut session, &mut near).await;
    }

    /// Finds another carrier for a session that stands, for as long as there is hope.
    async fn attach_again(
        &mut self,
        id: SessionId,
        session: &mut Session,
        backoff: &mut Backoff,
    ) -> Result<Carrier, ReachError> {
        let cut = Instant::now();
        let mut unknown_since = None;
        loop {
            let pause = backoff.pause(&mut rand::rng());
            sleep(pause).await;
            let lease = self.client.find(&self.lease)?;
            if !matches!(lease.stage(unix_now()), Stage::Active) {
                return Err(ReachError::Ended);
            }
            let error = match self.attach(id, false, session).await {
                Ok(carrier) => return Ok(carrier),
                Err(error) => error,
            };
            if error.is_unknown() {
                unknown_since.get_or_insert_with(Instant::now);
            } else {
                unknown_since = None;
            }
            let has_ended = unknown_since.is_some_and(|since| since.elapsed() > UNKNOWN_FOR);
            if !error.may_pass() || has_ended || cut.elapsed() > LINGER {
                return Err(error);
            }
        }
    }
}

/// Greets the agent over a new carrier.
async fn greet(
    carrier: &mut Carrier,
    id: SessionId,
    is_new: bool,
    session: &mut Session,
) -> Result<(), GreetError> {
    let hello = Hello {
        id,
        is_new,
        received: session.received(),
    };
    let mut answer = [0; Welcome::LENGTH];
    let exchange = async {
        carrier.write_all(&hello.encode()).await?;
        carrier.flush().await?;
        carrier.read_exact(&mut answer).await
    };
    if !matches!(timeout(GREETING, exchange).await, Ok(Ok(_))) {
        return Err(GreetError::Cut);
    }
    let welcome = Welcome::decode(&answer)?;
    match welcome.status {
        Status::Ok => Ok(session.handle_attached(welcome.received)?),
        Status::Unknown => Err(GreetError::Unknown),
        Status::Full => Err(GreetError::Full),
    }
}
