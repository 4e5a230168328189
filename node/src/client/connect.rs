//! Getting onto the network: the market, an entry that is kept for a while, a mailbox there, and a mix session.
//!
//! ```text
//!  Visitor (market) ── connect ─► Connected (entry, mailbox, session) ── close ─► the mailbox is free again
//! ```
//!
//! Who only looks stays a [`Visitor`]: an entry has few mailboxes for one address.
//!
//! Threats: an entry that is the provider as well and sees both ends, so none is taken at which this client has a lease, as far as
//! there are others (which one is kept: [`super::entries`]); a session that can be joined to an earlier one by its identity or its
//! mailbox, so both are drawn anew.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use rand::seq::SliceRandom as _;
use souk_crypto::{NodeId, UnixTime};
use souk_market::{
    card::{Role, VerifiedCard},
    quorum::Market,
};
use souk_sphinx::{
    EpochClock, Group, Hop, HopAddress, MixPublic, Session, Topology, delay::MixDelay, route::MIXES,
};
use tokio::{
    sync::{OnceCell, mpsc, watch},
    task::JoinHandle,
    time::interval,
};

use super::{
    Client, JudgeError, Judgements, Lease, MarketError, Progress, Stage, StateError, Watch,
    entries::Entries, evidence, market, unix_now,
};
use crate::{
    mix::{MailboxCollector, Messenger, MessengerParts},
    net::{self, Client as NetClient, ConnectError as PeerError, MailboxError},
};

/// Entries that are tried, beside those on record, before giving up.
const ENTRY_ATTEMPTS: usize = 3;
/// Frames between mailbox and session; the session is quick, so this is one batch and some room.
const FRAME_QUEUE: usize = 32;
/// How often it is looked whether an epoch has begun; epochs overlap by far more.
const TOPOLOGY_LOOK: Duration = Duration::from_secs(5);

/// How long a client that ends waits for its entry to take the mailbox back: it ends in any case, and nothing is lost.
const RELEASE_PATIENCE: Duration = Duration::from_secs(1);

/// A client that knows the market, and sends nothing.
#[derive(Debug)]
pub struct Visitor {
    pub(super) client: Client,
    pub(super) market: Arc<Market>,
    net: NetClient,
    judged: OnceCell<Judgements>,
}

/// A client on the network. What it knows of leases is in the client's folder. Dropping it ends the session; [`Self::close`] also
/// gives its mailbox back.
#[derive(Debug)]
pub struct Connected {
    pub(super) visitor: Visitor,
    pub(super) messenger: Messenger,
    entry: NodeId,
    /// Collects for the messenger, and ends after it.
    collecting: JoinHandle<()>,
}

/// Why a client did not get onto the network.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Its folder.
    #[error("the client's folder cannot be used")]
    State(#[from] StateError),
    /// It is not known which mixes are believed.
    #[error("the mixes cannot be judged")]
    Judge(#[from] JudgeError),
    /// Too few mixes are believed.
    #[error(
        "{attested} of {mixes} mixes have evidence that the policy accepts, and a route needs an entry and two more; `souk market --policy` tells why"
    )]
    TooFewAttested {
        /// Mixes that are believed.
        attested: usize,
        /// Mixes of the market.
        mixes: usize,
    },
    /// No card can be an entry.
    #[error("none of the {cards} cards is an entry with a mix key for epoch {epoch}")]
    NoEntry {
        /// Cards of the market.
        cards: usize,
        /// The epoch.
        epoch: u32,
    },
    /// An entry that was tried last was not reached.
    #[error("no entry could be reached")]
    Entry(#[source] PeerError),
    /// The entry that was tried last gave no mailbox.
    #[error("no entry gave a mailbox")]
    Mailbox(#[source] MailboxError),
}

impl Visitor {
    pub(super) async fn new(client: Client, watch: Watch<'_>) -> Result<Self, MarketError> {
        let net = NetClient::start(&client.net_config());
        let market = market::gather(&net, &client.config, unix_now(), watch).await?;
        Ok(Self {
            client,
            market: Arc::new(market),
            net,
            judged: OnceCell::new(),
        })
    }

    /// What may be rented, and who mixes.
    #[must_use]
    pub fn market(&self) -> &Market {
        &self.market
    }

    /// The identity under which this client is on the network; it ends with this process.
    #[must_use]
    pub fn local(&self) -> NodeId {
        self.net.peers().local()
    }

    /// Dials a node of the market at the addresses of its card, from this machine.
    ///
    /// # Errors
    /// [`PeerError`]; [`PeerError::NoAddress`] also where the market has no card of it.
    pub async fn dial(&self, node: NodeId) -> Result<(), PeerError> {
        let listed = self.market.card(&node);
        let addresses = listed.map_or_else(Vec::new, |listed| market::addresses(&listed.card));
        self.net.peers().connect(node, &addresses).await
    }

    /// What the policy of this client says of the nodes whose cards name evidence; `None` without a policy.
    ///
    /// # Errors
    /// [`JudgeError`].
    pub async fn judgements(&self) -> Result<Option<&Judgements>, JudgeError> {
        let client = &self.client;
        let Some(wanted) = &client.config.evidence else {
            return Ok(None);
        };
        let judge = || async {
            let policy = wanted.read(client.home())?;
            let (config, home) = (&client.config, &client.home);
            let judged =
                evidence::judge(&self.net, config, home, &self.market, policy, unix_now()).await;
            Ok::<_, JudgeError>(judged?)
        };
        self.judged.get_or_try_init(judge).await.map(Some)
    }

    /// Chooses an entry and opens a mix session through it. Nobody talks to a provider over that provider: where there is another entry,
    /// it is none of `providers`, and none at which this client has a lease that is not over.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(
        self,
        providers: &[NodeId],
        watch: Watch<'_>,
    ) -> Result<Connected, ConnectError> {
        let (client, net, market) = (&self.client, &self.net, &self.market);
        let clock = EpochClock::of(&client.config.params);
        let wanted = client.config.evidence.as_ref();
        let over = match wanted.is_some_and(|wanted| wanted.attested_mixes) {
            true => self.judgements().await?,
            false => None,
        };
        let over = over.map(|judgements| judgements.accepted().collect());
        let renewal = Renewal {
            market: Arc::clone(market),
            clock,
            over,
        };
        let topology = renewal.topology(unix_now());
        let attested = topology.mixes().len();
        if renewal.over.is_some() && attested <= MIXES {
            let cards = market.cards.iter();
            let mixes = cards.filter(|listed| listed.card.has_role(Role::Mix));
            return Err(ConnectError::TooFewAttested {
                attested,
                mixes: mixes.count(),
            });
        }

        let (card, mailbox) = open_entry(client, net, &renewal, &topology, providers).await?;
        let entry = card.node;
        watch(Progress::Entry { node: entry });
        net.links()
            .set_links(vec![(entry, market::addresses(&card))]);

        let delay = MixDelay::of(&client.config.params);
        let session = Session::new(hop(&entry), mailbox.address(), delay, &mut rand::rng());
        let (frames, collected) = mpsc::channel(FRAME_QUEUE);
        let (new_topology, topology) = watch::channel(Arc::new(topology));
        let messenger = Messenger::start(MessengerParts {
            session,
            links: Arc::new(net.links().clone()),
            frames: collected,
            topology,
            clock,
        });
        let collecting = tokio::spawn(async move {
            tokio::select! {
                // Its end ends the session with the frames: who waits for a reply learns it.
                ended = mailbox.run(frames) => if let Err(error) = ended {
                    tracing::warn!(%error, "the entry is lost");
                },
                () = renewal.run(new_topology) => {}
            }
        });
        Ok(Connected {
            visitor: self,
            messenger,
            entry,
            collecting,
        })
    }
}

impl Connected {
    /// What may be rented, and who mixes.
    #[must_use]
    pub fn market(&self) -> &Market {
        &self.visitor.market
    }

    /// Ends the session and gives its mailbox back: else it takes a place at the entry until that needs it. Where packets were changed on
    /// their way, that is noted beside the entry.
    pub async fn close(self) {
        let is_tampered = self.tampered() > 0;
        let Self {
            visitor,
            messenger,
            entry,
            collecting,
        } = self;
        drop(messenger);
        if tokio::time::timeout(RELEASE_PATIENCE, collecting)
            .await
            .is_err()
        {
            tracing::debug!("the entry does not take the mailbox back in time");
        }
        if is_tampered
            && let Err(error) = Entries::note_tampered(&visitor.client.home, entry, unix_now())
        {
            tracing::warn!(%error, "changed packets cannot be noted beside the entry");
        }
        drop(visitor);
    }

    /// The node through which this client sends and receives.
    #[must_use]
    pub fn entry(&self) -> NodeId {
        self.entry
    }

    /// The identity under which this client is on the network; it ends with this session.
    #[must_use]
    pub fn local(&self) -> NodeId {
        self.visitor.local()
    }

    /// Packets that were changed on their way to the mailbox. An entry behind which that happens in several sessions is left; a mix or the
    /// provider may have done it as well.
    #[must_use]
    pub fn tampered(&self) -> u64 {
        self.messenger.tampered()
    }
}

/// A node's address in the mix is its id.
pub(super) fn hop(node: &NodeId) -> HopAddress {
    HopAddress(*node.as_bytes())
}

/// Opens a mailbox at the kept entry, or at another one.
async fn open_entry(
    client: &Client,
    net: &NetClient,
    renewal: &Renewal,
    topology: &Topology,
    providers: &[NodeId],
) -> Result<(Arc<VerifiedCard>, MailboxCollector), ConnectError> {
    let now = unix_now();
    let mut entries = Entries::read(&client.home, now)?;
    let mut avoided = open_providers(client, now)?;
    avoided.extend(providers);
    // An entry that this command does not trust is not away.
    avoided.extend(entries.nodes().filter(|node| !renewal.trusts(node)));
    let candidates = candidates(renewal, topology, &entries, &avoided);
    let attempts = entries.nodes().count() + ENTRY_ATTEMPTS;
    let mut error = ConnectError::NoEntry {
        cards: renewal.market.cards.len(),
        epoch: topology.epoch().0,
    };
    for card in candidates.into_iter().take(attempts) {
        match open_at(net, &card).await {
            Ok(mailbox) => {
                let before = entries.clone();
                entries.note_reached(card.node, &avoided, now);
                if entries != before {
                    entries.write(&client.home)?;
                }
                return Ok((card, mailbox));
            }
            Err(failed) => error = failed,
        }
    }
    // Where nobody is reached, the fault may be here: no entry is noted as away.
    Err(error)
}

/// Providers of leases that are not over, which this client may still have to talk to.
pub(super) fn open_providers(
    client: &Client,
    now: UnixTime,
) -> Result<BTreeSet<NodeId>, StateError> {
    let is_open = |lease: &Lease| !matches!(lease.stage(now), Stage::Closed | Stage::Refused(_));
    let leases = client.leases()?.into_iter().flatten();
    let open = leases.filter(is_open);
    Ok(open.map(|lease| lease.provider()).collect())
}

/// Entries in the order in which they are tried: those on record, then others at random, and what is to be avoided last. Of the others
/// one that is also a provider comes last, because nobody can rent from the own entry.
fn candidates(
    renewal: &Renewal,
    topology: &Topology,
    entries: &Entries,
    avoided: &BTreeSet<NodeId>,
) -> Vec<Arc<VerifiedCard>> {
    let usable = |card: &&Arc<VerifiedCard>| {
        card.has_role(Role::Entry)
            && !card.addresses.is_empty()
            && topology.node(hop(&card.node)).is_some()
            && renewal.trusts(&card.node)
    };
    let cards = renewal.market.cards.iter().map(|listed| &listed.card);
    let mut found: Vec<_> = cards.filter(usable).cloned().collect();
    found.shuffle(&mut rand::rng());
    found.sort_by_key(|card| {
        let order = entries.order(card.node, avoided);
        (order, card.has_role(Role::Provider))
    });
    found
}

async fn open_at(net: &NetClient, card: &VerifiedCard) -> Result<MailboxCollector, ConnectError> {
    let (peers, addresses) = (net.peers(), market::addresses(card));
    peers
        .connect(card.node, &addresses)
        .await
        .map_err(ConnectError::Entry)?;
    MailboxCollector::open(peers.clone(), card.node, addresses)
        .await
        .map_err(ConnectError::Mailbox)
}

/// What the session knows of the nodes, renewed when an epoch begins.
struct Renewal {
    market: Arc<Market>,
    clock: EpochClock,
    /// Nodes that may mix, where not all may.
    over: Option<BTreeSet<NodeId>>,
}

impl Renewal {
    /// Whether packets may go through a node that mixes, or into the network at it.
    fn trusts(&self, node: &NodeId) -> bool {
        self.over.as_ref().is_none_or(|over| over.contains(node))
    }

    /// Every node that has a mix key for the epoch that is built for at `now`. A provider has one to be the last hop of what is
    /// sent to it; whether packets go through a node says its role.
    fn topology(&self, now: UnixTime) -> Topology {
        let epoch = self.clock.sending(now);
        let node = |card: &VerifiedCard| {
            let key = card.sub_keys().mix_key(epoch.0)?;
            // A weak key is the fault of its node, which then carries nothing.
            let key = MixPublic::from_bytes(*key.key.as_bytes()).ok()?;
            Some(Hop {
                address: hop(&card.node),
                key,
            })
        };
        let hops_of = |mixes: bool| {
            let cards = self.market.cards.iter().map(|listed| &listed.card);
            let mixing = |card: &VerifiedCard| card.has_role(Role::Mix) && self.trusts(&card.node);
            let wanted = cards.filter(move |card| mixing(card) == mixes);
            wanted.filter_map(|card| node(card))
        };
        let cards = self.market.cards.iter().map(|listed| &listed.card);
        let operators = cards.filter_map(|card| Some((hop(&card.node), Group(card.operator?.0))));
        Topology::new(epoch, hops_of(true))
            .with_ends(hops_of(false))
            .with_groups(operators)
    }

    async fn run(self, topology: watch::Sender<Arc<Topology>>) {
        let mut looks = interval(TOPOLOGY_LOOK);
        loop {
            looks.tick().await;
            let now = unix_now();
            if topology.borrow().epoch() != self.clock.sending(now) {
                topology.send_replace(Arc::new(self.topology(now)));
            }
        }
    }
}

impl Client {
    /// Private addresses pass where the network is for tests.
    pub(super) fn net_config(&self) -> net::ClientConfig {
        net::ClientConfig {
            network: self.config.network.clone(),
            allow_private_addresses: self.config.params.is_test(),
        }
    }
}
