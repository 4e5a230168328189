//! What the stream protocols of a node say, as bytes: messages, their caps and their one way in and out, without I/O.
//!
//! ```text
//!  frame body ≤ cap ──decode──► message ──encode──► frame body
//! ```
//!
//! All of it comes from strangers. A body is cut to its cap before it gets here; what decodes has no bytes after it, and
//! encodes to what decodes to the same again. `docs/network.md` lists the forms.

pub mod cards;
pub mod evidence;
pub mod log;
pub mod mailbox;
pub mod relay;

use minicbor::{Decode, Encode};

/// Bytes that are not of the protocol; the fault of whoever sent them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message of the protocol")]
pub struct Malformed;

/// The body of a frame that holds `message`.
///
/// # Panics
/// Never: messages are written to memory.
#[must_use]
pub fn encode<T: Encode<()>>(message: &T) -> Vec<u8> {
    minicbor::to_vec(message).expect("writing to a vector cannot fail")
}

/// The message in the body of a frame; bytes after it are refused.
///
/// # Errors
/// [`Malformed`].
pub fn decode<T>(body: &[u8]) -> Result<T, Malformed>
where
    T: for<'b> Decode<'b, ()>,
{
    let mut decoder = minicbor::Decoder::new(body);
    let message = decoder.decode().map_err(|_| Malformed)?;
    if decoder.position() == body.len() {
        Ok(message)
    } else {
        Err(Malformed)
    }
}
