//! One form for every signed byte: deterministic CBOR (RFC 8949 §4.2), checked on the bytes.
//!
//! [`decode`] is the only way in for a structure that came from outside:
//!
//! ```text
//! bytes ─► size ≤ cap ─► canonical form ─► minicbor derive ─► nothing critical was left unread ─► value
//! ```
//!
//! Maps have integer keys. A key from 0 to 127 is critical: who does not know it refuses the object. A key of
//! [`FIRST_IGNORABLE_KEY`] or more may be ignored, and stays in the signed bytes that are passed on.
//!
//! Threats: two encodings of one value (one is verified, the other is believed), duplicate keys, nesting that exhausts
//! the stack, a length that exhausts memory, and a field that an old node drops silently although it changes the
//! meaning.

use minicbor::{Decode, Encode};

/// Map keys below this must be understood.
pub const FIRST_IGNORABLE_KEY: u64 = 128;

/// Deepest nesting of arrays and maps that is accepted. Wire version 1 uses six levels; the rest is room.
pub const MAX_DEPTH: usize = 16;

/// Encodes a value whose type derives `Encode` with integer keys in rising order.
///
/// # Panics
/// If the type's `Encode` reports an error of its own, which a derived one never does.
#[must_use]
pub fn encode<T: Encode<()>>(value: &T) -> Vec<u8> {
    // Most structures fit, and a buffer that grows from nothing costs more than the encoding.
    let mut out = Vec::with_capacity(256);
    minicbor::encode(value, &mut out).expect("writing to a Vec cannot fail");
    out
}

/// Decodes one structure of at most `max_bytes`.
///
/// # Errors
/// [`DecodeError`]; all of them are the sender's fault.
pub fn decode<T>(bytes: &[u8], max_bytes: usize) -> Result<T, DecodeError>
where
    T: for<'b> Decode<'b, ()> + Encode<()>,
{
    check_canonical(bytes, max_bytes)?;
    let value: T = minicbor::decode(bytes).map_err(DecodeError::Structure)?;
    let understood = encode(&value);
    // Whatever the derive skipped is missing from the re-encoding. Only ignorable keys may be missing.
    if understood != bytes && without_ignorable_keys(&understood) != without_ignorable_keys(bytes) {
        return Err(DecodeError::NotUnderstood);
    }
    Ok(value)
}

/// Why bytes are not a structure of the wire.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// They are not canonical CBOR, or too large.
    #[error("not canonical CBOR")]
    Canonical(#[from] CanonicalError),
    /// They are canonical CBOR of another shape.
    #[error("unexpected structure")]
    Structure(#[source] minicbor::decode::Error),
    /// They hold a critical key (0 to 127) or a form of a value that this version does not know.
    #[error("holds a critical field that this version does not know")]
    NotUnderstood,
}

/// Why bytes are not exactly one canonical CBOR item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CanonicalError {
    /// More bytes than the kind of object allows.
    #[error("{len} bytes, at most {max} are allowed")]
    TooLarge {
        /// Bytes received.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The item is cut short.
    #[error("item cut short at byte {at}")]
    Truncated {
        /// Where more bytes were expected.
        at: usize,
    },
    /// Bytes follow the item.
    #[error("bytes after the end of the item at byte {at}")]
    Trailing {
        /// First byte too many.
        at: usize,
    },
    /// An integer or a length is not in its shortest form.
    #[error("integer at byte {at} is not in its shortest form")]
    LongInteger {
        /// Its first byte.
        at: usize,
    },
    /// A string, array or map of indefinite length.
    #[error("indefinite length at byte {at}")]
    Indefinite {
        /// Its first byte.
        at: usize,
    },
    /// Keys of a map are not in rising bytewise order, or one stands twice.
    #[error("map key at byte {at} is out of order or repeated")]
    KeyOrder {
        /// First byte of the key.
        at: usize,
    },
    /// Text that is not UTF-8.
    #[error("text at byte {at} is not UTF-8")]
    Utf8 {
        /// First byte of the text.
        at: usize,
    },
    /// A tag, a float, a simple value, or a reserved initial byte: the wire has none.
    #[error("type of item at byte {at} is not used on this wire")]
    Type {
        /// Its first byte.
        at: usize,
    },
    /// Arrays and maps nested deeper than [`MAX_DEPTH`].
    #[error("nested too deep at byte {at}")]
    Depth {
        /// First byte of the item that is too deep.
        at: usize,
    },
}

/// Checks that `bytes` are exactly one item in the deterministic encoding of RFC 8949 §4.2, and at most `max_bytes`.
///
/// Accepted are integers, byte strings, text, arrays, maps, `false`, `true` and `null`.
///
/// # Errors
/// [`CanonicalError`], with the offset of the first violation.
pub fn check_canonical(bytes: &[u8], max_bytes: usize) -> Result<(), CanonicalError> {
    if bytes.len() > max_bytes {
        return Err(CanonicalError::TooLarge {
            len: bytes.len(),
            max: max_bytes,
        });
    }
    let mut reader = Reader { bytes, at: 0 };
    reader.item(MAX_DEPTH)?;
    if reader.at == bytes.len() {
        Ok(())
    } else {
        Err(CanonicalError::Trailing { at: reader.at })
    }
}

/// A copy of canonical `bytes` in which no map, at any depth, has an unsigned key of [`FIRST_IGNORABLE_KEY`] or more.
fn without_ignorable_keys(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut reader = Reader { bytes, at: 0 };
    reader
        .copy_critical(&mut out)
        .expect("the caller has checked or made these bytes");
    out
}

const UNSIGNED: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const SIMPLE: u8 = 7;
const FALSE: u64 = 20;
const NULL: u64 = 22;

struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Reader<'b> {
    fn item(&mut self, depth: usize) -> Result<(), CanonicalError> {
        let at = self.at;
        let (major, argument) = self.head()?;
        match major {
            UNSIGNED | NEGATIVE => Ok(()),
            BYTES => self.take(argument).map(drop),
            TEXT => match std::str::from_utf8(self.take(argument)?) {
                Ok(_) => Ok(()),
                Err(_) => Err(CanonicalError::Utf8 { at }),
            },
            ARRAY | MAP if depth == 0 => Err(CanonicalError::Depth { at }),
            // The count may be absurd: the loop ends with the input, since each item takes at least one byte.
            ARRAY => (0..argument).try_for_each(|_| self.item(depth - 1)),
            MAP => self.map(argument, depth - 1),
            SIMPLE if (FALSE..=NULL).contains(&argument) => Ok(()),
            _ => Err(CanonicalError::Type { at }),
        }
    }

    fn map(&mut self, entries: u64, depth: usize) -> Result<(), CanonicalError> {
        let bytes = self.bytes;
        let mut last: Option<&[u8]> = None;
        for _ in 0..entries {
            let at = self.at;
            self.item(depth)?;
            let key = &bytes[at..self.at];
            if last.is_some_and(|last| last >= key) {
                return Err(CanonicalError::KeyOrder { at });
            }
            last = Some(key);
            self.item(depth)?;
        }
        Ok(())
    }

    /// Major type and argument of the next item.
    fn head(&mut self) -> Result<(u8, u64), CanonicalError> {
        let at = self.at;
        let initial = self.take(1)?[0];
        let (major, info) = (initial >> 5, initial & 0x1f);
        let (argument, shortest) = match info {
            0..=23 => (u64::from(info), true),
            24 => {
                let v = u64::from(self.take(1)?[0]);
                (v, v > 23)
            }
            25 => {
                let v = self.big_endian(2)?;
                (v, v > u64::from(u8::MAX))
            }
            26 => {
                let v = self.big_endian(4)?;
                (v, v > u64::from(u16::MAX))
            }
            27 => {
                let v = self.big_endian(8)?;
                (v, v > u64::from(u32::MAX))
            }
            31 => return Err(CanonicalError::Indefinite { at }),
            _ => return Err(CanonicalError::Type { at }),
        };
        if major == SIMPLE && info > 23 {
            return Err(CanonicalError::Type { at });
        }
        if shortest {
            Ok((major, argument))
        } else {
            Err(CanonicalError::LongInteger { at })
        }
    }

    fn big_endian(&mut self, len: u64) -> Result<u64, CanonicalError> {
        let bytes = self.take(len)?;
        Ok(bytes.iter().fold(0, |v, b| v << 8 | u64::from(*b)))
    }

    fn take(&mut self, len: u64) -> Result<&'b [u8], CanonicalError> {
        let end = usize::try_from(len)
            .ok()
            .and_then(|len| self.at.checked_add(len))
            .filter(|end| *end <= self.bytes.len())
            .ok_or(CanonicalError::Truncated { at: self.at })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn copy_critical(&mut self, out: &mut Vec<u8>) -> Result<(), CanonicalError> {
        let at = self.at;
        let (major, argument) = self.head()?;
        match major {
            ARRAY => {
                out.extend_from_slice(&self.bytes[at..self.at]);
                (0..argument).try_for_each(|_| self.copy_critical(out))
            }
            MAP => {
                let mut kept = Vec::new();
                let mut entries = 0;
                for _ in 0..argument {
                    let mut entry = Vec::new();
                    let ignorable = self.starts_with_ignorable_key();
                    self.copy_critical(&mut entry)?;
                    self.copy_critical(&mut entry)?;
                    if !ignorable {
                        kept.append(&mut entry);
                        entries += 1;
                    }
                }
                minicbor::Encoder::new(&mut *out)
                    .map(entries)
                    .expect("writing to a Vec cannot fail");
                out.append(&mut kept);
                Ok(())
            }
            _ => {
                if matches!(major, BYTES | TEXT) {
                    self.take(argument)?;
                }
                out.extend_from_slice(&self.bytes[at..self.at]);
                Ok(())
            }
        }
    }

    fn starts_with_ignorable_key(&self) -> bool {
        let mut ahead = Reader {
            bytes: self.bytes,
            at: self.at,
        };
        matches!(ahead.head(), Ok((UNSIGNED, key)) if key >= FIRST_IGNORABLE_KEY)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(hex: &str) -> Result<(), CanonicalError> {
        check_canonical(&hex::decode(hex).expect("hex"), 1 << 20)
    }

    #[test]
    fn examples_of_rfc_8949_appendix_a_in_their_shortest_form_pass() {
        for good in [
            "00",
            "17",
            "1818",
            "1864",
            "1903e8",
            "1a000f4240",
            "1b000000e8d4a51000",
            "1bffffffffffffffff",
            "20",
            "29",
            "3863",
            "3903e7",
            "f4",
            "f5",
            "f6",
            "40",
            "4401020304",
            "60",
            "6161",
            "62c3bc",
            "64f0908591",
            "80",
            "83010203",
            "8301820203820405",
            "a0",
            "a201020304",
            "a26161016162820203",
            "826161a161626163",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn each_second_form_of_a_value_is_refused_by_name() {
        use CanonicalError as E;
        for (bad, why) in [
            ("", E::Truncated { at: 0 }),
            ("18", E::Truncated { at: 1 }),
            ("4201", E::Truncated { at: 1 }),
            ("82", E::Truncated { at: 1 }),
            ("0000", E::Trailing { at: 1 }),
            ("1817", E::LongInteger { at: 0 }),
            ("1900ff", E::LongInteger { at: 0 }),
            ("1a0000ffff", E::LongInteger { at: 0 }),
            ("1b00000000ffffffff", E::LongInteger { at: 0 }),
            ("580101", E::LongInteger { at: 0 }),
            ("810018", E::Trailing { at: 2 }),
            ("5f4101ff", E::Indefinite { at: 0 }),
            ("9fff", E::Indefinite { at: 0 }),
            ("bfff", E::Indefinite { at: 0 }),
            ("a201000100", E::KeyOrder { at: 3 }),
            ("a202000100", E::KeyOrder { at: 3 }),
            ("a2616200616100", E::KeyOrder { at: 4 }),
            ("61ff", E::Utf8 { at: 0 }),
            ("f7", E::Type { at: 0 }),
            ("f93c00", E::Type { at: 0 }),
            ("f814", E::Type { at: 0 }),
            ("c001", E::Type { at: 0 }),
            ("1c", E::Type { at: 0 }),
            ("9bffffffffffffffff", E::Truncated { at: 9 }),
            ("5bffffffffffffffff", E::Truncated { at: 9 }),
            ("bbffffffffffffffff", E::Truncated { at: 9 }),
        ] {
            assert_eq!(check(bad), Err(why), "{bad}");
        }
    }

    #[test]
    fn nesting_and_size_are_bounded() {
        let nested = |levels: usize| [vec![0x81; levels], vec![0]].concat();
        assert_eq!(check_canonical(&nested(MAX_DEPTH), 100), Ok(()));
        let too_deep = check_canonical(&nested(MAX_DEPTH + 1), 100);
        assert_eq!(too_deep, Err(CanonicalError::Depth { at: MAX_DEPTH }));
        let too_large = check_canonical(&[0xff; 5], 4);
        assert_eq!(too_large, Err(CanonicalError::TooLarge { len: 5, max: 4 }));
    }

    #[test]
    fn ignorable_keys_are_dropped_at_every_depth_and_nothing_else() {
        let strip =
            |hex_in: &str| hex::encode(without_ignorable_keys(&hex::decode(hex_in).expect("hex")));
        assert_eq!(strip("a20001188002"), "a10001");
        assert_eq!(strip("81a11901000a"), "81a0");
        assert_eq!(strip("a100a2000118ff8100"), "a100a10001");
        // Negative and text keys have no ignorable range.
        assert_eq!(strip("a2387f006161f6"), "a2387f006161f6");
        assert_eq!(strip("a1187f00"), "a1187f00");
    }

    /// Any value in its canonical form.
    fn canonical_value() -> impl Strategy<Value = Vec<u8>> {
        let encode = |f: &dyn Fn(&mut minicbor::Encoder<Vec<u8>>)| {
            let mut e = minicbor::Encoder::new(Vec::new());
            f(&mut e);
            e.into_writer()
        };
        let leaf = prop_oneof![
            any::<u64>().prop_map(move |v| encode(&|e| drop(e.u64(v)))),
            any::<i64>().prop_map(move |v| encode(&|e| drop(e.i64(v)))),
            ".{0,40}".prop_map(move |v| encode(&|e| drop(e.str(&v)))),
            prop::collection::vec(any::<u8>(), 0..300)
                .prop_map(move |v| encode(&|e| drop(e.bytes(&v)))),
            any::<bool>().prop_map(move |v| encode(&|e| drop(e.bool(v)))),
        ];
        leaf.prop_recursive(4, 32, 8, move |inner| {
            let array = prop::collection::vec(inner.clone(), 0..8);
            let map = prop::collection::btree_map(any::<u16>(), inner, 0..8);
            prop_oneof![
                array.prop_map(move |items| {
                    let head = encode(&|e| drop(e.array(items.len() as u64)));
                    [head, items.concat()].concat()
                }),
                map.prop_map(move |entries| {
                    let mut out = encode(&|e| drop(e.map(entries.len() as u64)));
                    for (key, value) in entries {
                        out.extend(encode(&|e| drop(e.u16(key))));
                        out.extend(value);
                    }
                    out
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn canonical_values_pass_and_lose_nothing_but_ignorable_keys(value in canonical_value()) {
            prop_assert_eq!(check_canonical(&value, 1 << 20), Ok(()));
            let stripped = without_ignorable_keys(&value);
            prop_assert_eq!(check_canonical(&stripped, 1 << 20), Ok(()));
            prop_assert_eq!(without_ignorable_keys(&stripped), stripped);
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if check_canonical(&bytes, 200).is_ok() {
                let stripped = without_ignorable_keys(&bytes);
                prop_assert!(check_canonical(&stripped, 200).is_ok());
            }
        }
    }
}
