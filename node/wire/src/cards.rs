//! `cards`: the whole card set in bulk, in pages.

use bytes::Bytes;
use minicbor::{
    Decode, Encode,
    bytes::{ByteArray, ByteSlice},
};

use crate::Malformed;

/// Largest object, in bytes: a card.
pub const MAX_OBJECT_BYTES: usize = 4_096;

/// Bytes of one page on the wire; a page closes before the object that would not fit.
pub const PAGE_BYTES: usize = 64 * 1024;

/// Objects on one page: what fits when they are as small as a signature lets them be.
pub const MAX_PAGE_OBJECTS: usize = PAGE_BYTES / 64;

/// Longest request, in bytes.
pub const REQUEST_CAP: usize = 16;

/// Longest head, in bytes.
pub const HEAD_CAP: usize = 96;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Wanted {
    /// The head alone.
    #[n(0)]
    Head,
    /// Everything.
    #[n(1)]
    All,
}

/// Asker to server.
#[derive(Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Request {
    /// What is asked for.
    #[n(0)]
    pub wanted: Wanted,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Status {
    /// The head holds.
    #[n(0)]
    Ok,
    /// A bound was reached, and the head is empty.
    #[n(1)]
    Busy,
}

/// Server to asker, before the pages.
#[derive(Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Head {
    /// What became of the request.
    #[n(0)]
    pub status: Status,
    /// Epoch of the card set.
    #[n(1)]
    pub epoch: u64,
    /// Root of the card set of that epoch.
    #[n(2)]
    pub root: ByteArray<32>,
    /// Objects that follow, where everything was asked for.
    #[n(3)]
    pub objects: u32,
}

/// Splits objects into pages that fit [`PAGE_BYTES`].
pub fn pages(mut objects: &[Bytes]) -> impl Iterator<Item = &[Bytes]> {
    // Longest head of a byte string of at most MAX_OBJECT_BYTES, and of the array.
    const STRING_HEAD: usize = 3;
    const ARRAY_HEAD: usize = 3;
    std::iter::from_fn(move || {
        let mut bytes = ARRAY_HEAD;
        let fitting = objects
            .iter()
            .take(MAX_PAGE_OBJECTS)
            .take_while(|object| {
                bytes += STRING_HEAD + object.len();
                bytes <= PAGE_BYTES
            })
            .count();
        let (page, rest) = objects.split_at(fitting);
        objects = rest;
        (!page.is_empty()).then_some(page)
    })
}

/// A page as it travels.
#[must_use]
pub fn encode_page(page: &[Bytes]) -> Vec<u8> {
    let page: Vec<&ByteSlice> = page.iter().map(|object| (&**object).into()).collect();
    crate::encode(&page)
}

/// Adds the objects of a page and returns their bytes. An empty page, or one with more objects than there is `room`, is
/// malformed.
///
/// # Errors
/// [`Malformed`]; `objects` may have grown then.
pub fn decode_page(page: &[u8], room: usize, objects: &mut Vec<Bytes>) -> Result<usize, Malformed> {
    let mut decoder = minicbor::Decoder::new(page);
    let malformed = |_| Malformed;
    let count = decoder.array().map_err(malformed)?.unwrap_or(0);
    if count == 0 || count > room.min(MAX_PAGE_OBJECTS) as u64 {
        return Err(Malformed);
    }
    let mut added = 0;
    for _ in 0..count {
        let object = decoder.bytes().map_err(malformed)?;
        if object.len() > MAX_OBJECT_BYTES {
            return Err(Malformed);
        }
        added += object.len();
        objects.push(Bytes::copy_from_slice(object));
    }
    if decoder.position() == page.len() {
        Ok(added)
    } else {
        Err(Malformed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(pages: &[Vec<u8>], objects: usize) -> Result<Vec<Bytes>, Malformed> {
        let mut read = Vec::new();
        for page in pages {
            let room = objects - read.len();
            decode_page(page, room, &mut read)?;
        }
        Ok(read)
    }

    proptest! {
        #[test]
        fn pages_hold_every_object_once_and_in_order(
            sizes in proptest::collection::vec(0..=MAX_OBJECT_BYTES, 0..200)
        ) {
            let objects: Vec<Bytes> =
                sizes.iter().enumerate().map(|(i, n)| vec![i as u8; *n].into()).collect();
            let pages: Vec<_> = pages(&objects).map(encode_page).collect();
            for page in &pages {
                prop_assert!(page.len() <= PAGE_BYTES);
            }
            prop_assert_eq!(read_all(&pages, objects.len()).unwrap(), objects);
        }

        #[test]
        fn hostile_pages_are_refused_or_bounded(page in proptest::collection::vec(any::<u8>(), 0..512)) {
            let mut objects = Vec::new();
            if let Ok(added) = decode_page(&page, 4, &mut objects) {
                prop_assert!(objects.len() <= 4 && added <= page.len());
            }
        }
    }

    #[test]
    fn more_objects_than_announced_are_malformed() {
        let page = encode_page(&[Bytes::from_static(b"a"), Bytes::from_static(b"b")]);
        assert!(decode_page(&page, 2, &mut Vec::new()).is_ok());
        assert!(decode_page(&page, 1, &mut Vec::new()).is_err());
    }

    #[test]
    fn an_endless_row_of_empty_pages_is_malformed() {
        assert!(decode_page(&encode_page(&[]), 5, &mut Vec::new()).is_err());
    }
}
