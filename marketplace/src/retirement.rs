//! The end of a node: a tombstone that outlives its cards, and the handing over to another node.
//!
//! Both are signed by node keys, not by card keys: who stole a card key can say wrong things for a while, but cannot
//! end the node. A succession is signed by the heir and stands inside the retirement that the old node signs, so
//! neither can name the other alone.

use std::sync::Arc;

use souk_crypto::{
    MAX_SKEW_S, NetworkId, NodeId, NodeKey, SignError, Signed, UnixTime, Verified,
    domain::{self, SignDomain},
    keys,
    sign::{self, Object, OpenError},
};

use crate::wire::wire_map;

/// How long a tombstone is kept after it was made, in seconds; longer than any card lives.
pub const TOMBSTONE_LIFE_S: u64 = 30 * 86_400;

wire_map! {
    /// The agreement of an heir, signed by its node key.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Succession {
        /// Who hands over.
        0 => pub old: NodeId,
        /// Who takes over.
        1 => pub new: NodeId,
        /// When it was agreed.
        2 => pub at: UnixTime,
    }
}

wire_map! {
    /// The end of a node, signed by its node key.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Retirement {
        /// Who ends.
        0 => pub node: NodeId,
        /// When.
        1 => pub at: UnixTime,
        /// Who takes over.
        2 => pub succession: Option<Signed<Succession>>,
    }
}

/// A retirement whose signatures were checked.
#[derive(Clone, Debug)]
pub struct VerifiedRetirement {
    retirement: Verified<Retirement>,
    successor: Option<NodeId>,
}

/// Why bytes are not a retirement.
#[derive(Debug, thiserror::Error)]
pub enum RetirementError {
    /// It does not open.
    #[error("the retirement does not open")]
    Open(#[source] OpenError),
    /// It could not be signed.
    #[error("the retirement could not be signed")]
    Sign(#[source] SignError),
    /// It was signed by another node.
    #[error("the retirement is signed by another node")]
    OtherNode,
    /// The agreement of the heir does not open.
    #[error("the succession does not open")]
    Succession(#[source] OpenError),
    /// The agreement is of another node, or with another one.
    #[error("the succession is not between these nodes")]
    OtherSuccession,
}

impl RetirementError {
    /// Whether a later version of souk could have made the retirement; who passes it on is not to blame then.
    #[must_use]
    pub const fn may_be_of_later_version(&self) -> bool {
        match self {
            Self::Open(error) | Self::Succession(error) => error.may_be_of_later_version(),
            Self::Sign(_) | Self::OtherNode | Self::OtherSuccession => false,
        }
    }
}

impl VerifiedRetirement {
    /// Opens a signed retirement.
    ///
    /// # Errors
    /// [`RetirementError`]; all of them are the fault of who made or sent the bytes.
    pub fn open(bytes: &[u8], network: &NetworkId) -> Result<Self, RetirementError> {
        Self::checked(
            sign::open(bytes, network).map_err(RetirementError::Open)?,
            network,
        )
    }

    /// Ends a node. `succession` is what the heir signed.
    ///
    /// # Errors
    /// [`RetirementError`] where the succession does not fit.
    pub fn sign(
        key: &NodeKey,
        at: UnixTime,
        succession: Option<Signed<Succession>>,
        network: &NetworkId,
    ) -> Result<Self, RetirementError> {
        let retirement = Retirement {
            node: key.public(),
            at,
            succession,
        };
        Self::checked(
            sign::sign(retirement, key, network).map_err(RetirementError::Sign)?,
            network,
        )
    }

    fn checked(
        retirement: Verified<Retirement>,
        network: &NetworkId,
    ) -> Result<Self, RetirementError> {
        if *retirement.signer() != retirement.node {
            return Err(RetirementError::OtherNode);
        }
        let successor = match &retirement.succession {
            None => None,
            Some(signed) => {
                let succession = signed.open(network).map_err(RetirementError::Succession)?;
                let between = succession.old == retirement.node
                    && succession.new != retirement.node
                    && *succession.signer() == succession.new;
                if !between {
                    return Err(RetirementError::OtherSuccession);
                }
                Some(succession.new)
            }
        };
        Ok(Self {
            retirement,
            successor,
        })
    }

    /// Who ended.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.retirement.node
    }

    /// When.
    #[must_use]
    pub fn at(&self) -> UnixTime {
        self.retirement.at
    }

    /// Who took over, by the word of both.
    #[must_use]
    pub fn successor(&self) -> Option<NodeId> {
        self.successor
    }

    /// Whether it lies further ahead than any honest clock could say.
    #[must_use]
    pub fn is_future(&self, now: UnixTime) -> bool {
        now.plus_s(MAX_SKEW_S) < self.retirement.at
    }

    /// Whether it may be forgotten.
    #[must_use]
    pub fn is_over(&self, now: UnixTime) -> bool {
        now >= self.retirement.at.plus_s(TOMBSTONE_LIFE_S)
    }

    pub(crate) fn shared_bytes(&self) -> &Arc<[u8]> {
        self.retirement.signed().shared_bytes()
    }

    /// Its bytes, to be stored or passed on.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.retirement.signed().as_bytes()
    }
}

/// Agrees to take over from `old`.
///
/// # Errors
/// [`SignError`], which a succession never causes.
pub fn agree_to_succeed(
    old: NodeId,
    key: &NodeKey,
    at: UnixTime,
    network: &NetworkId,
) -> Result<Signed<Succession>, SignError> {
    let succession = Succession {
        old,
        new: key.public(),
        at,
    };
    sign::sign(succession, key, network).map(|verified| verified.signed().clone())
}

impl Object for Succession {
    type Signer = keys::Node;
    const DOMAIN: SignDomain<keys::Node> = domain::SUCCESSION;
}

impl Object for Retirement {
    type Signer = keys::Node;
    const DOMAIN: SignDomain<keys::Node> = domain::RETIREMENT;
}
