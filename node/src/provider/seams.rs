//! What the provider asks of the rest of the node: the time, a way for replies, relays.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use async_trait::async_trait;
use rand::CryptoRng;
use souk_crypto::{NodeId, UnixTime};
use souk_market::{
    moment::{Boot, ClockWatch, Moment, SteadyTime},
    units::RelayToken,
};
use souk_sphinx::{Surb, message::Reply};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::Intake;
use crate::{
    clock::{boot, steady_now},
    mix::Replier,
    net, unix_now,
};

/// Longest sleep between two looks at the clock of the wall, so that a clock that is set is noticed soon.
const LOOK: Duration = Duration::from_secs(10);

/// The clock of the wall, with a steady one beside it.
#[async_trait]
pub trait Clock: Send + Sync + 'static {
    /// The time.
    fn now(&self) -> UnixTime;

    /// Both clocks. What is given here is a clock that nobody ever sets.
    fn moment(&self) -> Moment {
        let wall = self.now();
        Moment {
            wall,
            steady: SteadyTime(Duration::from_secs(wall.0)),
        }
    }

    /// What the steady clock counts from.
    fn boot(&self) -> Boot {
        Boot([0; 16])
    }

    /// Returns once it is `at` or later, or the clock was set.
    async fn sleep_until(&self, at: UnixTime);
}

/// The clock of this machine.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> UnixTime {
        unix_now()
    }

    fn moment(&self) -> Moment {
        Moment {
            wall: unix_now(),
            steady: steady_now(),
        }
    }

    fn boot(&self) -> Boot {
        boot()
    }

    async fn sleep_until(&self, at: UnixTime) {
        let mut watch = ClockWatch::new(self.boot(), self.moment());
        while self.now() < at && watch.observe(self.moment()).is_none() {
            let left = Duration::from_secs(at.since_s(self.now()));
            // A deadline in whole seconds comes up to a second early by this clock; the last look is then a short one.
            sleep(left.min(LOOK).max(Duration::from_millis(100))).await;
        }
    }
}

/// Takes replies on their way.
pub trait ReplySink: Send + Sync + 'static {
    /// Whether a reply by this SURB could leave, as far as is known. One that cannot is not journalled.
    fn can_use(&self, surb: &Surb) -> bool;

    /// Sends a reply by a SURB that has been journalled as spent. It may get lost; the holder polls then.
    ///
    /// # Errors
    /// Why it was not sent, for the log of the node.
    fn reply(&self, surb: Surb, reply: &Reply) -> Result<(), String>;
}

impl ReplySink for Replier {
    fn can_use(&self, surb: &Surb) -> bool {
        Self::can_use(self, surb)
    }

    fn reply(&self, surb: Surb, reply: &Reply) -> Result<(), String> {
        Self::reply(self, surb, reply).map_err(|e| e.to_string())
    }
}

/// Lets requesters in through the relays that they name.
#[async_trait]
pub trait Relays: Send + Sync + 'static {
    /// Whether this provider could register with the relay: it has a verified card of it.
    fn knows(&self, relay: &NodeId) -> bool;

    /// Lets the holder of a token in for a time, through these relays and no others; returns those that know it by now.
    async fn admit(&self, token: &RelayToken, lifetime: Duration, relays: &[NodeId])
    -> Vec<NodeId>;

    /// Lets nobody in by it any more.
    fn dismiss(&self, token: &RelayToken);
}

/// How long a lease waits for the first of its relays: a dial, and after a restart the cards that say where they are.
const RELAY_PATIENCE: Duration = Duration::from_secs(10);
/// How long it then waits for the others: one relay is enough, and a slow one must not hold up the requester.
const RELAY_GRACE: Duration = Duration::from_millis(100);

#[async_trait]
impl Relays for net::RelayRegistrations {
    fn knows(&self, relay: &NodeId) -> bool {
        Self::knows(self, relay)
    }

    async fn admit(
        &self,
        token: &RelayToken,
        lifetime: Duration,
        relays: &[NodeId],
    ) -> Vec<NodeId> {
        self.add_token(token, lifetime, relays);
        self.relays_with(token, RELAY_PATIENCE, RELAY_GRACE).await
    }

    fn dismiss(&self, token: &RelayToken) {
        self.remove_token(token);
    }
}

/// Tries the doors of instances.
#[async_trait]
pub trait Doors: Send + Sync + 'static {
    /// Whether an SSH server greets there, within a patience of its own.
    async fn greets(&self, ssh: SocketAddr) -> bool;
}

/// Doors that are reached over TCP.
#[derive(Clone, Copy, Debug)]
pub struct TcpDoors;

/// How long an instance that calls itself ready may take to say so over SSH.
const GREETING_PATIENCE: Duration = Duration::from_secs(10);

#[async_trait]
impl Doors for TcpDoors {
    async fn greets(&self, ssh: SocketAddr) -> bool {
        // RFC 4253 §4.2. An agent looks at the first word of a client before it says its own, so this one speaks at once.
        let greeting = async {
            let mut stream = TcpStream::connect(ssh).await.ok()?;
            stream.write_all(b"SSH-2.0-souk\r\n").await.ok()?;
            let mut greeting = [0; 8];
            stream.read_exact(&mut greeting).await.ok()?;
            Some(greeting)
        };
        timeout(GREETING_PATIENCE, greeting).await == Ok(Some(*b"SSH-2.0-"))
    }
}

/// Where ids, keys and salts are drawn from.
pub trait Randomness: Send + Sync + 'static {
    /// A source for the next few draws.
    fn rng(&self) -> Box<dyn CryptoRng>;
}

/// The randomness of this machine.
#[derive(Clone, Copy, Debug)]
pub struct SystemRandomness;

impl Randomness for SystemRandomness {
    fn rng(&self) -> Box<dyn CryptoRng> {
        Box::new(rand::rng())
    }
}

/// How a provider does its work. Every value has a reason in `docs/provider.md`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Between two checkpoints. Fixed, so that no checkpoint tells that a lease was closed just then; short, because the
    /// holder of a closed lease waits for the next one.
    pub checkpoint_period: Duration,
    /// Between two entries with totals of refusals.
    pub totals_period: Duration,
    /// Between two readings of the meters of a lease.
    pub sample_period: Duration,
    /// Between two comparisons of what the backends have with what the journal knows.
    pub reap_period: Duration,
    /// How long an instance is known to have no owner before it is removed.
    pub orphan_grace: Duration,
    /// Between two rounds of forgetting what need not be kept.
    pub forget_period: Duration,
    /// How long an instance may take to come up.
    pub provision_s: u64,
    /// How long the statement of a closed lease can be fetched.
    pub retention_s: u64,
    /// How long nothing is forgotten after a start, and after the clock was set: a wrong time is mostly put right soon, what was
    /// forgotten is not.
    pub doubt: Duration,
    /// Whether it begins by taking new leases.
    pub intake: Intake,
    /// Between two holders who are told, on average, that no new leases are taken: all at once would show how many there are.
    pub notice_pause: Duration,
    /// The address of this host that direct leases are reached at; none refuses them.
    pub direct: Option<IpAddr>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            checkpoint_period: Duration::from_secs(10),
            totals_period: Duration::from_secs(3600),
            sample_period: Duration::from_secs(10),
            reap_period: Duration::from_secs(60),
            orphan_grace: Duration::from_secs(120),
            forget_period: Duration::from_secs(600),
            provision_s: 60,
            retention_s: 30 * 24 * 3600,
            doubt: Duration::from_secs(3600),
            intake: Intake::Open,
            notice_pause: Duration::from_secs(2),
            direct: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncBufReadExt as _, BufReader},
        net::TcpListener,
    };

    use super::*;

    /// An agent that lets a client speak first would else hold every receipt up by its whole patience.
    #[tokio::test]
    async fn a_server_that_waits_for_the_first_word_greets_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = tokio::spawn(async move {
            let mut stream = BufReader::new(listener.accept().await?.0);
            let mut first = String::new();
            stream.read_line(&mut first).await?;
            stream.write_all(b"SSH-2.0-server\r\n").await?;
            std::io::Result::Ok(first)
        });
        assert!(TcpDoors.greets(address).await);
        let first = server.await.expect("no panic").expect("served");
        assert!(
            first.starts_with("SSH-2.0-") && first.ends_with("\r\n"),
            "{first:?}"
        );
    }
}
