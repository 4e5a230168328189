//! What stands in the body of a packet: a fragment on the way out; a reply or an acknowledgement on the way back.
//!
//! ```text
//!  fragment   1 ‖ message id 16 ‖ class u8 ‖ index u8 ‖ admission type u8, length u8, bytes 128 ‖ ack SURB 400 ‖ part
//!  reply      2 ‖ length u16 ‖ bytes ‖ zeros
//!  ack        3 ‖ message id 16 ‖ class u8 ‖ received u32 ‖ zeros
//! ```
//!
//! Every field has a fixed place; unused bytes are zero and are checked to be.

use super::{Admission, Class, MAX_ADMISSION_LEN, MessageId, Received};
use crate::packet::{Body, USABLE_LEN};
use crate::surb::{SURB_LEN, Surb, SurbError};

const FRAGMENT: u8 = 1;
const REPLY: u8 = 2;
const ACK: u8 = 3;

const ID_AT: usize = 1;
const CLASS_AT: usize = 17;
const INDEX_AT: usize = 18;
const ADMISSION_KIND_AT: usize = 19;
const ADMISSION_LEN_AT: usize = 20;
const ADMISSION_AT: usize = 21;
const SURB_AT: usize = ADMISSION_AT + MAX_ADMISSION_LEN;
const PART_AT: usize = SURB_AT + SURB_LEN;
const REPLY_AT: usize = 3;
const RECEIVED_AT: usize = 18;
const ACK_END: usize = RECEIVED_AT + 4;

/// Bytes of the message in each fragment.
pub const PART_LEN: usize = USABLE_LEN - PART_AT;

const _: () = assert!(PART_LEN == 1482);

/// One fragment of a message.
#[derive(Debug)]
pub struct Fragment {
    /// The message that it belongs to.
    pub message: MessageId,
    /// The class of the message.
    pub class: Class,
    /// Its place in the message, below the number of fragments of the class.
    pub index: u8,
    /// What the message shows to be let in.
    pub admission: Admission,
    /// With what the receiver acknowledges.
    pub ack: Surb,
    /// Its bytes of the message.
    pub part: Box<[u8; PART_LEN]>,
}

impl Fragment {
    /// Writes the fragment.
    #[must_use]
    pub fn to_body(&self) -> Box<Body> {
        let mut body = Box::new([0; USABLE_LEN]);
        body[0] = FRAGMENT;
        body[ID_AT..CLASS_AT].copy_from_slice(&self.message.0);
        body[CLASS_AT] = u8::try_from(self.class.fragments()).expect("at most 24");
        body[INDEX_AT] = self.index;
        body[ADMISSION_KIND_AT] = self.admission.kind;
        let admission = self.admission.bytes();
        body[ADMISSION_LEN_AT] = u8::try_from(admission.len()).expect("at most 128");
        body[ADMISSION_AT..ADMISSION_AT + admission.len()].copy_from_slice(admission);
        body[SURB_AT..PART_AT].copy_from_slice(&self.ack.to_bytes());
        body[PART_AT..].copy_from_slice(&*self.part);
        body
    }

    /// Reads a fragment.
    ///
    /// # Errors
    /// [`FragmentError`]; its sender is at fault, whom nobody knows.
    pub fn from_body(body: &Body) -> Result<Self, FragmentError> {
        if body[0] != FRAGMENT {
            return Err(FragmentError::Kind { got: body[0] });
        }
        let class = Class::from_fragments(body[CLASS_AT]).ok_or(FragmentError::Class {
            got: body[CLASS_AT],
        })?;
        let index = body[INDEX_AT];
        if usize::from(index) >= class.fragments() {
            return Err(FragmentError::Index {
                got: index,
                fragments: class.fragments(),
            });
        }
        let used = usize::from(body[ADMISSION_LEN_AT]);
        if used > MAX_ADMISSION_LEN {
            return Err(FragmentError::Admission { got: used });
        }
        let (admission, padding) = body[ADMISSION_AT..SURB_AT].split_at(used);
        zeros(padding)?;
        Ok(Self {
            message: MessageId(array(body, ID_AT)),
            class,
            index,
            admission: Admission {
                kind: body[ADMISSION_KIND_AT],
                bytes: admission.to_vec(),
            },
            ack: Surb::from_bytes(&body[SURB_AT..PART_AT]).map_err(FragmentError::Surb)?,
            part: Box::new(array(body, PART_AT)),
        })
    }
}

/// A reply of the layer above: at most [`Reply::CAPACITY`] bytes, padded to one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply(Vec<u8>);

impl Reply {
    /// Bytes that a reply holds.
    pub const CAPACITY: usize = USABLE_LEN - REPLY_AT;

    /// A reply of these bytes; `None` if there are more than [`Self::CAPACITY`].
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        (bytes.len() <= Self::CAPACITY).then_some(Self(bytes))
    }

    /// Its bytes.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Writes the reply.
    #[must_use]
    pub fn to_body(&self) -> Box<Body> {
        let mut body = Box::new([0; USABLE_LEN]);
        body[0] = REPLY;
        let len = u16::try_from(self.0.len()).expect("at most the capacity");
        body[1..REPLY_AT].copy_from_slice(&len.to_be_bytes());
        body[REPLY_AT..REPLY_AT + self.0.len()].copy_from_slice(&self.0);
        body
    }
}

/// An acknowledgement: all fragments of a message that are here, cumulatively.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The message.
    pub message: MessageId,
    /// Its class.
    pub class: Class,
    /// The fragments that are here.
    pub received: Received,
}

impl Ack {
    /// Writes the acknowledgement.
    #[must_use]
    pub fn to_body(&self) -> Box<Body> {
        let mut body = Box::new([0; USABLE_LEN]);
        body[0] = ACK;
        body[ID_AT..CLASS_AT].copy_from_slice(&self.message.0);
        body[CLASS_AT] = u8::try_from(self.class.fragments()).expect("at most 24");
        body[RECEIVED_AT..ACK_END].copy_from_slice(&self.received.0.to_be_bytes());
        body
    }
}

/// What comes back by SURB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyBody {
    /// A reply of the layer above.
    Reply(Reply),
    /// An acknowledgement of fragments.
    Ack(Ack),
}

impl ReplyBody {
    /// Reads what came back.
    ///
    /// # Errors
    /// [`FragmentError`]; the one who used the SURB is at fault.
    pub fn from_body(body: &Body) -> Result<Self, FragmentError> {
        match body[0] {
            REPLY => {
                let len = usize::from(u16::from_be_bytes([body[1], body[2]]));
                if len > Reply::CAPACITY {
                    return Err(FragmentError::Length { got: len });
                }
                let (bytes, padding) = body[REPLY_AT..].split_at(len);
                zeros(padding)?;
                Ok(Self::Reply(Reply(bytes.to_vec())))
            }
            ACK => {
                let class = Class::from_fragments(body[CLASS_AT]).ok_or(FragmentError::Class {
                    got: body[CLASS_AT],
                })?;
                let received = u32::from_be_bytes(array(body, RECEIVED_AT));
                if received & !class.full().0 != 0 {
                    return Err(FragmentError::Padding);
                }
                zeros(&body[ACK_END..])?;
                Ok(Self::Ack(Ack {
                    message: MessageId(array(body, ID_AT)),
                    class,
                    received: Received(received),
                }))
            }
            got => Err(FragmentError::Kind { got }),
        }
    }
}

/// A body that means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FragmentError {
    /// Not something that travels this way.
    #[error("a body of kind {got} does not travel this way")]
    Kind {
        /// The kind byte.
        got: u8,
    },
    /// No class has that many fragments.
    #[error("no class has {got} fragments")]
    Class {
        /// The class byte.
        got: u8,
    },
    /// Past the end of the message.
    #[error("fragment {got} of a message of {fragments}")]
    Index {
        /// The index byte.
        got: u8,
        /// Fragments of the class.
        fragments: usize,
    },
    /// Longer than an admission may be.
    #[error("an admission of {got} bytes; at most {MAX_ADMISSION_LEN} are allowed")]
    Admission {
        /// The length in bytes.
        got: usize,
    },
    /// Longer than what is there.
    #[error("a length of {got} bytes, more than there is")]
    Length {
        /// The length in bytes.
        got: usize,
    },
    /// Bytes that must be zero are not.
    #[error("unused bytes are not zero")]
    Padding,
    /// The ack SURB cannot be read.
    #[error("the SURB for the acknowledgement is unusable")]
    Surb(#[source] SurbError),
}

fn zeros(padding: &[u8]) -> Result<(), FragmentError> {
    if padding.iter().all(|byte| *byte == 0) {
        Ok(())
    } else {
        Err(FragmentError::Padding)
    }
}

/// The `N` bytes of `body` from `at`.
fn array<const N: usize>(body: &Body, at: usize) -> [u8; N] {
    body[at..at + N]
        .try_into()
        .expect("fields lie inside the body")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever is read is written back as it was: there is one spelling for each fragment, reply and ack.
        #[test]
        fn bodies_have_one_spelling(
            head in proptest::collection::vec(any::<u8>(), ACK_END),
            kind in 0u8..5,
            class in prop_oneof![Just(1u8), Just(8), Just(24), any::<u8>()],
            used in 0usize..USABLE_LEN,
            admission in 0u8..140,
        ) {
            let mut body = [0; USABLE_LEN];
            body[..ACK_END].copy_from_slice(&head);
            body[PART_AT - 1 - used % 500..used.max(PART_AT)].fill(7);
            (body[0], body[CLASS_AT], body[ADMISSION_LEN_AT]) = (kind, class, admission);
            if let Ok(fragment) = Fragment::from_body(&body) {
                prop_assert_eq!(&*fragment.to_body(), &body);
            }
            match ReplyBody::from_body(&body) {
                Ok(ReplyBody::Reply(reply)) => prop_assert_eq!(&*reply.to_body(), &body),
                Ok(ReplyBody::Ack(ack)) => prop_assert_eq!(&*ack.to_body(), &body),
                Err(_) => {}
            }
        }

        #[test]
        fn replies_come_back_as_they_were(bytes in proptest::collection::vec(any::<u8>(), 0..=Reply::CAPACITY)) {
            let reply = Reply::new(bytes).expect("within the capacity");
            prop_assert_eq!(ReplyBody::from_body(&reply.to_body()), Ok(ReplyBody::Reply(reply)));
        }

        #[test]
        fn acks_come_back_as_they_were(id: [u8; 16], bits in 0u32..1 << 24) {
            let ack = Ack { message: MessageId(id), class: Class::Large, received: Received(bits) };
            prop_assert_eq!(ReplyBody::from_body(&ack.to_body()), Ok(ReplyBody::Ack(ack)));
        }
    }

    #[test]
    fn acks_cannot_claim_fragments_that_the_class_lacks() {
        let ack = Ack {
            message: MessageId([1; 16]),
            class: Class::Small,
            received: Received(2),
        };
        assert_eq!(
            ReplyBody::from_body(&ack.to_body()),
            Err(FragmentError::Padding)
        );
    }

    #[test]
    fn replies_past_the_capacity_are_refused() {
        assert!(Reply::new(vec![0; Reply::CAPACITY]).is_some());
        assert!(Reply::new(vec![0; Reply::CAPACITY + 1]).is_none());
    }
}
