//! Several nodes in one process, with real cores, real files and links in memory that lose packets.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use souk_crypto::NetworkParams;
use souk_sphinx::{
    EpochClock, Frame, HopAddress, Session, Surb, TagSource, Topology,
    delay::MixDelay,
    message::{Admission, Class, Message, MessageId, Outgoing, Reply},
    packet::Hop,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::*;

/// Links in memory: every node's queue of frames, a share of frames that is lost, and nodes that are cut off.
#[derive(Default)]
struct Wires {
    queues: Mutex<HashMap<HopAddress, mpsc::Sender<Arrival>>>,
    mailboxes: Mutex<HashMap<HopAddress, mpsc::Sender<Frame>>>,
    lost_in_1000: AtomicU64,
    cut_off: Mutex<Option<HopAddress>>,
    seen: Mutex<Vec<(HopAddress, Frame)>>,
    rng: Mutex<Option<StdRng>>,
}

impl Wires {
    fn loses(&self) -> bool {
        let mut rng = self.rng.lock().expect("no test panicked");
        let rng = rng.get_or_insert_with(|| StdRng::seed_from_u64(7));
        rng.next_u64() % 1000 < self.lost_in_1000.load(Ordering::Relaxed)
    }
}

/// The wires as one node sees them.
struct Port {
    wires: Arc<Wires>,
    node: HopAddress,
    /// The mailboxes at this node.
    holds: Vec<HopAddress>,
}

impl Links for Port {
    fn has_link(&self, to: &HopAddress) -> bool {
        let queues = self.wires.queues.lock().expect("no test panicked");
        queues.contains_key(to)
    }

    fn try_send(&self, to: HopAddress, frame: Frame) -> Result<(), LinkRefused> {
        let wires = &self.wires;
        wires
            .seen
            .lock()
            .expect("no test panicked")
            .push((to, frame.clone()));
        let cut_off = *wires.cut_off.lock().expect("no test panicked");
        if wires.loses() || cut_off == Some(to) || cut_off == Some(self.node) {
            return Ok(());
        }
        let queues = wires.queues.lock().expect("no test panicked");
        let queue = queues.get(&to).ok_or(LinkRefused::NoLink)?;
        let arrival = Arrival {
            frame,
            from: SOURCE,
        };
        queue.try_send(arrival).map_err(|_| LinkRefused::Full)
    }
}

impl Mailboxes for Port {
    fn try_deposit(&self, mailbox: HopAddress, frame: Frame) -> Deposit {
        if !self.holds.contains(&mailbox) {
            return Deposit::Unknown(frame);
        }
        let mailboxes = self.wires.mailboxes.lock().expect("no test panicked");
        match mailboxes[&mailbox].try_send(frame) {
            Ok(()) => Deposit::Held,
            Err(_) => Deposit::Full,
        }
    }
}

/// Where all frames come from here.
const SOURCE: TagSource = TagSource(1);

const MAILBOX: HopAddress = HopAddress([0xaa; 32]);
const NODES: u8 = 6;
const ENTRY: HopAddress = HopAddress([0; 32]);
const PROVIDER: HopAddress = HopAddress([NODES - 1; 32]);

struct Network {
    wires: Arc<Wires>,
    messages: mpsc::Receiver<Message>,
    replier: Replier,
    messenger: Messenger,
    counters: Vec<Arc<MixCounters>>,
    mixers: Vec<Mixer>,
    stop: CancellationToken,
}

fn params() -> NetworkParams {
    NetworkParams::new(2, 1_000, 3_600, true).expect("within bounds")
}

impl Network {
    /// Six nodes, the first of them a client's entry, the last a provider.
    fn start(folder: &Path) -> Self {
        let params = params();
        let (clock, delay) = (EpochClock::of(&params), MixDelay::of(&params));
        let wires = Arc::new(Wires::default());
        let stop = CancellationToken::new();
        let (mut hops, mut all_counters, mut mixers) = (Vec::new(), Vec::new(), Vec::new());
        let mut provider = None;
        let epoch = clock.sending(unix_now());
        for n in 0..NODES {
            let node = HopAddress([n; 32]);
            let keys = KeyRing::open(&folder.join(n.to_string()), clock, unix_now())
                .expect("a fresh folder");
            let key = keys.epoch(epoch).expect("current or next").public();
            hops.push(Hop { address: node, key });
            let holds = if node == ENTRY { vec![MAILBOX] } else { vec![] };
            let port = Arc::new(Port {
                wires: wires.clone(),
                node,
                holds,
            });
            let counters = Arc::new(MixCounters::default());
            let mailroom = (node == PROVIDER).then(|| {
                let replier = Replier::new(port.clone(), clock, counters.clone());
                let (bodies, messages) =
                    Mailroom::start(delay, everybody, replier.clone(), stop.clone());
                provider = Some((replier, messages));
                bodies
            });
            let (queue, frames) = mpsc::channel(FRAME_QUEUE);
            wires
                .queues
                .lock()
                .expect("no test panicked")
                .insert(node, queue);
            let parts = MixerParts {
                keys: Arc::new(keys),
                node,
                delay,
                links: port.clone(),
                mailboxes: port,
                frames,
                mailroom,
                counters: counters.clone(),
                peelers: 1,
            };
            mixers.push(Mixer::start(parts, &stop));
            all_counters.push(counters);
        }
        let (mailbox, frames) = mpsc::channel(1024);
        wires
            .mailboxes
            .lock()
            .expect("no test panicked")
            .insert(MAILBOX, mailbox);
        let (replier, messages) = provider.expect("the last node");
        let session = Session::new(ENTRY, MAILBOX, delay, &mut StdRng::seed_from_u64(1));
        let (_, topology) = watch::channel(Arc::new(Topology::new(epoch, hops)));
        let client = HopAddress([0xcc; 32]);
        let links = Arc::new(Port {
            wires: wires.clone(),
            node: client,
            holds: vec![],
        });
        let messenger = Messenger::start(MessengerParts {
            session,
            links,
            frames,
            topology,
            clock,
        });
        Self {
            wires,
            messages,
            replier,
            messenger,
            counters: all_counters,
            mixers,
            stop,
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        for mixer in &self.mixers {
            mixer.stopped().await;
        }
    }

    fn total(&self, counter: impl Fn(&MixCounters) -> &Counter) -> u64 {
        self.counters
            .iter()
            .map(|counters| counter(counters).total())
            .sum()
    }
}

fn message(class: Class) -> Outgoing {
    Outgoing {
        id: MessageId::random(&mut rand::rng()),
        destination: PROVIDER,
        class,
        admission: Admission::NONE,
        bytes: vec![42; class.capacity()],
    }
}

/// A request with SURBs inside arrives whole, and its reply comes back through the mailbox at the entry.
#[tokio::test]
async fn a_message_goes_through_and_its_reply_comes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut network = Network::start(folder.path());
    let (surbs, mut replies) = network
        .messenger
        .reply_surbs(2, PROVIDER)
        .await
        .expect("routes");
    let request = Outgoing {
        bytes: surbs.iter().flat_map(Surb::to_bytes).collect(),
        ..message(Class::Medium)
    };
    let (sent, arrived) = tokio::join!(network.messenger.send(request), network.messages.recv());
    sent.expect("acknowledged");
    let arrived = arrived.expect("delivered").bytes;
    for surb in arrived.chunks(souk_sphinx::surb::SURB_LEN) {
        let surb = Surb::from_bytes(surb).expect("as sent");
        let reply = Reply::new(b"a receipt".to_vec()).expect("fits");
        network.replier.reply(surb, &reply).expect("sent");
    }
    for _ in 0..2 {
        assert_eq!(
            replies.next().await.expect("a reply").into_bytes(),
            b"a receipt"
        );
    }
    assert_eq!(replies.next().await, None, "all SURBs are used");
    assert_eq!(
        network.total(|c| &c.replays) + network.total(|c| &c.bad_header),
        0
    );
    network.stop().await;
}

/// Every fiftieth frame is lost on each link; then one of four mixes is cut off: each message arrives, and once.
#[tokio::test]
async fn messages_survive_loss_and_a_mix_that_goes_away() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut network = Network::start(folder.path());
    for (lost, cut_off) in [(20, None), (0, Some(HopAddress([2; 32])))] {
        network.wires.lost_in_1000.store(lost, Ordering::Relaxed);
        *network.wires.cut_off.lock().expect("no test panicked") = cut_off;
        let (sent, arrived) = tokio::join!(
            network.messenger.send(message(Class::Medium)),
            network.messages.recv()
        );
        let whole = vec![42; Class::Medium.capacity()];
        assert_eq!(arrived.expect("delivered").bytes, whole);
        // The last acknowledgement may be lost; the sender then does not know.
        assert!(matches!(sent, Ok(()) | Err(SendError::NotAcknowledged)));
        assert!(
            network.messages.try_recv().is_err(),
            "the message was delivered twice"
        );
    }
    network.stop().await;
}

/// Whoever recorded all frames sends them again, to the running nodes and after a restart: nothing moves.
#[tokio::test]
async fn recorded_packets_do_not_pass_again_even_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut network = Network::start(folder.path());
    let (sent, arrived) = tokio::join!(
        network.messenger.send(message(Class::Small)),
        network.messages.recv()
    );
    sent.expect("acknowledged");
    arrived.expect("delivered");
    let recorded = std::mem::take(&mut *network.wires.seen.lock().expect("no test panicked"));
    assert!(recorded.len() >= 7, "four links there and three back");
    network.stop().await;

    for _ in 0..2 {
        let network = Network::start(folder.path());
        for (to, frame) in &recorded {
            let port = Port {
                wires: network.wires.clone(),
                node: *to,
                holds: vec![],
            };
            port.try_send(*to, frame.clone()).expect("queued");
        }
        let count = recorded.len() as u64;
        while network.total(|c| &c.frames_in) < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        network.stop.cancel();
        for mixer in &network.mixers {
            mixer.stopped().await;
        }
        assert_eq!(network.total(|c| &c.replays), count);
        assert_eq!(
            network.total(|c| &c.forwarded) + network.total(|c| &c.final_packets),
            0
        );
    }
}

/// Random bytes, packets for other keys and epochs that are not open are counted and change nothing.
#[tokio::test]
async fn packets_that_are_not_for_this_node_are_dropped_and_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let network = Network::start(folder.path());
    let clock = EpochClock::of(&params());
    let now = clock.at(unix_now());
    let queue = network.wires.queues.lock().expect("no test panicked")[&ENTRY].clone();
    let packet =
        souk_sphinx::Packet::from_bytes(&[7; souk_sphinx::packet::PACKET_LEN]).expect("one size");
    for epoch in [now, souk_sphinx::Epoch(now.0 + 9)] {
        let packet = packet.clone();
        let arrival = Arrival {
            frame: Frame { epoch, packet },
            from: SOURCE,
        };
        queue.send(arrival).await.expect("running");
    }
    while network.total(|c| &c.bad_header) + network.total(|c| &c.wrong_epoch) < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(
        (
            network.total(|c| &c.bad_header),
            network.total(|c| &c.wrong_epoch)
        ),
        (1, 1)
    );
    network.stop().await;
}

/// Bodies of packets that end at a node: messages of one fragment with SURBs that start at `first`.
fn small_message(n: u64, first: HopAddress) -> Box<souk_sphinx::packet::Body> {
    let rng = &mut StdRng::seed_from_u64(n);
    let key = souk_sphinx::MixSecret::generate(rng).public();
    let route = souk_sphinx::Route::new(vec![Hop {
        address: first,
        key,
    }])
    .expect("one hop");
    let epoch = EpochClock::of(&params()).sending(unix_now());
    let (ack, _) = Surb::make(&route, &[Duration::ZERO], epoch, rng).expect("one delay");
    let message = MessageId::random(rng);
    let part = Box::new([0; souk_sphinx::message::PART_LEN]);
    let admission = Admission::NONE;
    let fragment = souk_sphinx::message::Fragment {
        message,
        class: Class::Small,
        index: 0,
        admission,
        ack,
        part,
    };
    fragment.to_body()
}

/// What acknowledges for the provider, by frames that end in the queue of the entry.
fn replies_to_entry(queue: mpsc::Sender<Arrival>) -> (NetworkParams, Arc<MixCounters>, Replier) {
    let wires = Arc::new(Wires::default());
    wires
        .queues
        .lock()
        .expect("no test panicked")
        .insert(ENTRY, queue);
    let port = Arc::new(Port {
        wires,
        node: PROVIDER,
        holds: vec![],
    });
    let params = params();
    let counters = Arc::new(MixCounters::default());
    let replier = Replier::new(port, EpochClock::of(&params), counters.clone());
    (params, counters, replier)
}

/// Nobody reads the messages: only those with a place in the queue are acknowledged, the others are sent again.
#[tokio::test]
async fn messages_without_a_place_are_not_acknowledged() {
    let (queue, _acks) = mpsc::channel(1024);
    let (params, counters, replier) = replies_to_entry(queue);
    let stop = CancellationToken::new();
    let (bodies, mut messages) =
        Mailroom::start(MixDelay::of(&params), everybody, replier, stop.clone());
    let places = MESSAGE_QUEUE as u64;
    for n in 0..places + 5 {
        bodies.send(small_message(n, ENTRY)).await.expect("running");
    }
    while counters.messages.total() + counters.fragments_refused.total() < places + 5 {
        tokio::task::yield_now().await;
    }
    assert_eq!(counters.acks_sent.total(), places);
    assert_eq!(counters.fragments_refused.total(), 5);

    messages.recv().await.expect("the first one");
    bodies
        .send(small_message(places, ENTRY))
        .await
        .expect("running");
    while counters.messages.total() == places {
        tokio::task::yield_now().await;
    }
    assert_eq!(counters.acks_sent.total(), places + 1);
    stop.cancel();
}

/// What the gate does not let in is counted apart and gets no acknowledgement; what it lets in is read.
#[tokio::test]
async fn messages_that_are_not_admitted_are_counted_and_not_acknowledged() {
    let (queue, _acks) = mpsc::channel(16);
    let (params, counters, replier) = replies_to_entry(queue);
    let stop = CancellationToken::new();
    let mut is_open = false;
    let every_other = move |_: MessageId, _: Class, _: &Admission| {
        is_open = !is_open;
        is_open
    };
    let (bodies, mut messages) =
        Mailroom::start(MixDelay::of(&params), every_other, replier, stop.clone());
    for n in 0..3 {
        bodies.send(small_message(n, ENTRY)).await.expect("running");
    }
    for _ in 0..2 {
        messages.recv().await.expect("admitted");
    }
    drop(bodies);
    assert!(messages.recv().await.is_none());
    assert_eq!(
        (
            counters.not_admitted.total(),
            counters.acks_sent.total(),
            counters.fragments_refused.total()
        ),
        (1, 2, 0)
    );
    stop.cancel();
}

/// A requester who hands out SURBs that lead nowhere costs itself the reply, and nothing else.
#[tokio::test]
async fn surbs_that_lead_nowhere_are_refused() {
    let port = Arc::new(Port {
        wires: Arc::default(),
        node: PROVIDER,
        holds: vec![],
    });
    let clock = EpochClock::of(&params());
    let counters = Arc::new(MixCounters::default());
    let replier = Replier::new(port, clock, counters.clone());
    let rng = &mut StdRng::seed_from_u64(1);
    let key = souk_sphinx::MixSecret::generate(rng).public();
    let hop = Hop {
        address: HopAddress([99; 32]),
        key,
    };
    let route = souk_sphinx::Route::new(vec![hop]).expect("one hop");
    let reply = Reply::new(vec![1]).expect("fits");
    let now = clock.at(unix_now());
    let mut reply_in = |epoch| {
        let (surb, _) = Surb::make(&route, &[Duration::ZERO], epoch, rng).expect("one delay");
        replier.reply(surb, &reply)
    };
    assert_eq!(reply_in(now), Err(ReplyRefused::Link(LinkRefused::NoLink)));
    let (over, ahead) = (souk_sphinx::Epoch(now.0 - 2), souk_sphinx::Epoch(now.0 + 2));
    assert_eq!(reply_in(over), Err(ReplyRefused::Expired));
    assert_eq!(reply_in(ahead), Err(ReplyRefused::Expired));
    assert_eq!(counters.replies_dropped.total(), 3);
}

/// A gate that is open.
fn everybody(_: MessageId, _: Class, _: &Admission) -> bool {
    true
}
