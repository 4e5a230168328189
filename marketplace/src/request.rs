//! What a holder can say about its lease once the envelope is out: end it, ask how it stands, extend it, have its evidence
//! sent, and acknowledge its final statement.
//!
//! Every request is signed by the holder key and carries a counter that rises, so nothing else can end a lease and no
//! old request can be played again. Each brings fresh SURBs: the provider has no other way to answer.
//!
//! The counter-signature of a statement is the signed [`HolderRequest`] itself; the provider keeps its bytes beside
//! the log.

use minicbor::{
    Decode, Decoder, Encode, Encoder,
    decode::Error as CborError,
    encode::{Error as EncodeError, Write},
};
use souk_crypto::{
    HolderPublicKey, NetworkId, NodeId, Verified,
    domain::{self, SignDomain},
    keys,
    sign::{self, Invalid, Object, OpenError},
};

use crate::{
    envelope::{MAX_SURBS, Surb},
    units::{Counter, Digest, DurationS, Money, RequestId},
    wire::{List, definite, wire_map},
};

/// What the holder wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// End the lease now.
    End,
    /// Say how it stands, and send again what may have been lost.
    Poll,
    /// Let it run for longer.
    TopUp {
        /// By so much.
        duration: DurationS,
        /// The most that may be charged in all.
        max_total: Money,
    },
    /// The final statement was received and is right.
    Acknowledge {
        /// BLAKE3 of the statement's bytes.
        statement: Digest,
    },
    /// Send a part of the evidence that the receipt names.
    Evidence {
        /// Which one, from 0.
        part: u8,
    },
}

wire_map! {
    /// A request about a lease that was asked for before.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct HolderRequest {
        /// The key of the envelope.
        0 => pub holder: HolderPublicKey,
        /// Who is asked.
        1 => pub provider: NodeId,
        /// Which request started the lease.
        2 => pub request: RequestId,
        /// Higher than in every request before; at least 1, the envelope being 0.
        3 => pub counter: Counter,
        /// What is wanted.
        4 => pub action: Action,
        /// How the reply travels.
        5 => pub surbs: List<Surb, MAX_SURBS>,
    }
    check = HolderRequest::check;
}

/// Why bytes are not a request of a holder.
#[derive(Debug, thiserror::Error)]
pub enum HolderRequestError {
    /// It does not open.
    #[error("the request does not open")]
    Open(#[source] OpenError),
    /// It was signed by another key than it names.
    #[error("the request is not signed by its holder")]
    OtherKey,
    /// The request id belongs to another holder, provider or network.
    #[error("the request id is not that of the holder and the provider")]
    OtherRequest,
}

impl HolderRequest {
    /// Opens a signed request, and checks that it is its holder's at the provider it names.
    ///
    /// # Errors
    /// [`HolderRequestError`]; all of them are the sender's fault.
    pub fn open(bytes: &[u8], network: &NetworkId) -> Result<Verified<Self>, HolderRequestError> {
        let request: Verified<Self> =
            sign::open(bytes, network).map_err(HolderRequestError::Open)?;
        if *request.signer() != request.holder {
            return Err(HolderRequestError::OtherKey);
        }
        if request.request != RequestId::of(network, &request.provider, &request.holder) {
            return Err(HolderRequestError::OtherRequest);
        }
        Ok(request)
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.counter.0 == 0 {
            Err("counter 0 is the envelope's")
        } else {
            Ok(())
        }
    }
}

impl Object for HolderRequest {
    type Signer = keys::Holder;
    const DOMAIN: SignDomain<keys::Holder> = domain::HOLDER_REQUEST;

    fn validate(&self) -> Result<(), Invalid> {
        self.check().map_err(|rule| Invalid::new("counter", rule))
    }
}

impl<C> Encode<C> for Action {
    fn encode<W: Write>(
        &self,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        match self {
            Self::End => e.array(1)?.u8(0)?.ok(),
            Self::Poll => e.array(1)?.u8(1)?.ok(),
            Self::TopUp {
                duration,
                max_total,
            } => {
                e.array(3)?.u8(2)?;
                duration.encode(e, ctx)?;
                max_total.encode(e, ctx)
            }
            Self::Acknowledge { statement } => {
                e.array(2)?.u8(3)?;
                statement.encode(e, ctx)
            }
            Self::Evidence { part } => e.array(2)?.u8(4)?.u8(*part)?.ok(),
        }
    }
}

impl<'b, C> Decode<'b, C> for Action {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, CborError> {
        match (definite(d.array()?)?, d.u8()?) {
            (1, 0) => Ok(Self::End),
            (1, 1) => Ok(Self::Poll),
            (3, 2) => Ok(Self::TopUp {
                duration: DurationS::decode(d, ctx)?,
                max_total: Money::decode(d, ctx)?,
            }),
            (2, 3) => Ok(Self::Acknowledge {
                statement: Digest::decode(d, ctx)?,
            }),
            (2, 4) => Ok(Self::Evidence { part: d.u8()? }),
            _ => Err(CborError::message("not an action of a holder")),
        }
    }
}
