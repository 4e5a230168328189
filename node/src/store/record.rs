//! Rows of the store: what a provider keeps of a lease.
//!
//! Threat: who takes the machine reads the rows. Every key in them is of one lease, and none leads to a requester.

use std::net::SocketAddr;

use minicbor::{Decode, Encode};
use souk_crypto::{HolderPublicKey, NetworkId, ReplyPublicKey, UnixTime};
use souk_market::{
    card::EvidenceRef,
    envelope::NamedRelays,
    lifecycle::Row,
    log::{Entry, Opening},
    moment::{ClockMark, ClockStep},
    price::Prices,
    refusal::Reason,
    units::{
        BackendName, CardDigest, DurationS, EnvelopeDigest, HostKey, ImageHash, LeaseId, Limits,
        Money, RelayToken, ReplyKeyHash, RequestId, Resources, Salt, SshPublicKey, Tee, UserName,
    },
};

/// All that a provider keeps of one lease. Nothing in it outlives the lease at the requester: every key is one-time.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LeaseRecord {
    /// What the lifecycle remembers.
    #[n(0)]
    pub row: Row,
    /// What was agreed.
    #[n(1)]
    pub contract: Contract,
    /// The instance, once there is one.
    #[n(2)]
    pub instance: Option<InstanceRecord>,
    /// Why no instance came up.
    #[n(3)]
    pub refusal: Option<Reason>,
    /// Its entry in the usage log, once it is closed.
    #[n(4)]
    pub log_index: Option<u64>,
    /// By which clock the times of this row are meant; none in rows that were written before this was kept.
    #[n(5)]
    pub clock: Option<ClockMark>,
    /// What opens that entry, a second time: where the row of the log is damaged, the statement of the holder comes from here.
    #[n(6)]
    pub opening: Option<StoredOpening>,
    /// What its instance proved, where that was asked for.
    #[n(7)]
    pub evidence: Option<InstanceEvidence>,
    /// The port of this host that leads to a direct lease: its receipt names it, so the next start opens the same.
    #[n(8)]
    pub direct_port: Option<u16>,
}

impl LeaseRecord {
    /// Moves what stands beside the row and is meant by the clock that was set; the lifecycle moves the row.
    pub(crate) fn follow(&mut self, step: ClockStep) {
        if let Some(instance) = &mut self.instance {
            instance.since = step.shift(instance.since);
        }
    }
}

/// What was agreed when a lease was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Contract {
    /// The request that was accepted.
    #[n(0)]
    pub request: RequestId,
    /// Its envelope.
    #[n(1)]
    pub envelope: EnvelopeDigest,
    /// Who may end the lease.
    #[n(2)]
    pub holder: HolderPublicKey,
    /// To which key replies are sealed.
    #[n(3)]
    pub reply_key: ReplyPublicKey,
    /// Its hash, to which replies are bound.
    #[n(4)]
    pub reply_key_hash: ReplyKeyHash,
    /// The card whose offer was accepted.
    #[n(5)]
    pub offer: CardDigest,
    /// Who may log in.
    #[n(6)]
    pub ssh_key: SshPublicKey,
    /// What runs.
    #[n(7)]
    pub image: ImageHash,
    /// How much of the machine.
    #[n(8)]
    pub resources: Resources,
    /// Limits that must be enforced.
    #[n(9)]
    pub required: Limits,
    /// How long.
    #[n(10)]
    pub duration: DurationS,
    /// The prices of the card; none where nothing is charged.
    #[n(11)]
    pub prices: Option<Prices>,
    /// What the whole duration costs.
    #[n(12)]
    pub price: Money,
    /// What a relay has to show to be joined to the instance.
    #[n(13)]
    pub relay_token: RelayToken,
    /// Nobody vouched for the holder.
    #[n(14)]
    pub anonymous: bool,
    /// When the id of the request may be forgotten.
    #[n(15)]
    pub forget_at: UnixTime,
    /// Which backend carries it.
    #[n(16)]
    pub backend: BackendName,
    /// Over which relays its holder comes; none where it comes straight to this host.
    #[n(17)]
    #[cbor(default)]
    pub relays: NamedRelays,
    /// The TEE of which its instance has to bring evidence.
    #[n(18)]
    pub tee: Option<Tee>,
}

/// How an instance is reached.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct InstanceRecord {
    /// Where its SSH server answers, on this host.
    #[n(0)]
    pub ssh: SocketAddr,
    /// The user to log in as.
    #[n(1)]
    pub user: UserName,
    /// Its host key.
    #[n(2)]
    pub host_key: HostKey,
    /// Since when it accepts SSH.
    #[n(3)]
    pub since: UnixTime,
}

/// The evidence of an instance, which verified here.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct InstanceEvidence {
    /// As the receipt names it.
    #[n(0)]
    pub reference: EvidenceRef,
    /// The quote, while the lease is open: its holder fetches it in parts. At most 16 KiB.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub quote: Vec<u8>,
}

/// An entry of the usage log with what only the provider and the holder know.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LogRecord {
    /// The public bytes.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub entry: Vec<u8>,
    /// What opens it, where it is the entry of a lease.
    #[n(1)]
    pub opening: Option<StoredOpening>,
}

/// Opens the entry of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct StoredOpening {
    /// Whose entry it is.
    #[n(0)]
    pub lease: LeaseId,
    /// The salt of the commitment.
    #[n(1)]
    pub salt: Salt,
    /// The bytes of the statement.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub statement: Vec<u8>,
}

impl StoredOpening {
    /// Whether it opens this entry of the log.
    pub(crate) fn opens(&self, entry: &[u8], network: &NetworkId) -> bool {
        let opening = Opening {
            salt: self.salt.clone(),
            statement: self.statement.clone(),
        };
        matches!(Entry::decode(entry), Ok(Entry::Lease(entry)) if entry.commitment == opening.commitment(network))
    }
}

/// A checkpoint that was signed.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct SignedHead {
    /// Entries.
    #[n(0)]
    pub size: u64,
    /// Root over them.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub root: [u8; 32],
    /// The signed note.
    #[n(2)]
    pub note: String,
}

/// What is remembered of an accepted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Accepted {
    /// The lease it became.
    #[n(0)]
    pub lease: LeaseId,
    /// Its envelope: another one under the same id is refused.
    #[n(1)]
    pub envelope: EnvelopeDigest,
    /// When the id of the request may be forgotten.
    #[n(2)]
    pub forget_at: UnixTime,
}
