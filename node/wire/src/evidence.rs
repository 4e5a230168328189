//! `evidence`: quotes, reports and collateral in bulk, piece by piece.
//!
//! A piece is raw bytes in a frame of its own. What it is, its digest says; whoever asked knows which digests it looks for.

use minicbor::{Decode, Encode, bytes::ByteVec};

use crate::Malformed;

/// Largest piece, in bytes: collateral with long revocation lists. Larger collateral does not travel.
pub const MAX_PIECE_BYTES: usize = 256 * 1024;

/// Most pieces that are asked for by name.
pub const MAX_ASKED: usize = 32;

/// Longest request, in bytes.
pub const REQUEST_CAP: usize = 8 + 32 * MAX_ASKED;

/// Longest head, in bytes.
pub const HEAD_CAP: usize = 16;

/// A digest as cards name it.
pub type Name = [u8; 32];

/// Asker to server.
#[derive(Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Request {
    /// Digests, one after the other; absent where everything is asked for.
    #[n(0)]
    pub names: Option<ByteVec>,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Status {
    /// Pieces follow.
    #[n(0)]
    Ok,
    /// A bound was reached; nothing follows.
    #[n(1)]
    Busy,
}

/// Server to asker, before the pieces.
#[derive(Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Head {
    /// What became of the request.
    #[n(0)]
    pub status: Status,
    /// Pieces that follow.
    #[n(1)]
    pub pieces: u32,
}

impl Request {
    /// A request for everything.
    #[must_use]
    pub const fn everything() -> Self {
        Self { names: None }
    }

    /// A request for the first [`MAX_ASKED`] of `names`.
    #[must_use]
    pub fn of(names: &[Name]) -> Self {
        let names = &names[..names.len().min(MAX_ASKED)];
        Self {
            names: Some(names.concat().into()),
        }
    }

    /// What is asked for by name; `None` for everything.
    ///
    /// # Errors
    /// [`Malformed`] where it is none, too many, or no whole number of digests.
    pub fn asked(&self) -> Result<Option<Vec<Name>>, Malformed> {
        let Some(bytes) = &self.names else {
            return Ok(None);
        };
        let (names, rest) = bytes.as_chunks::<32>();
        if rest.is_empty() && (1..=MAX_ASKED).contains(&names.len()) {
            Ok(Some(names.to_vec()))
        } else {
            Err(Malformed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_fit_their_cap_and_hold_whole_digests() {
        let names = [[7; 32]; MAX_ASKED + 1];
        let request = Request::of(&names);
        let bytes = crate::encode(&request);
        assert!(bytes.len() <= REQUEST_CAP);
        let read: Request = crate::decode(&bytes).expect("decodes");
        assert_eq!(read.asked(), Ok(Some(names[..MAX_ASKED].to_vec())));
        assert_eq!(Request::everything().asked(), Ok(None));
        for len in [0, 31, 33, 32 * (MAX_ASKED + 1)] {
            let names = Some(vec![0; len].into());
            assert_eq!(Request { names }.asked(), Err(Malformed), "{len} bytes");
        }
    }
}
