//! How every object of the market is written: CBOR maps with integer keys, definite lengths and ascending order.
//!
//! Keys 0–127 are critical: a reader that does not know one refuses the object. Keys from 128 up may be ignored. The
//! bytes that were signed are kept and forwarded as they came, so ignoring a key loses nothing.
//!
//! Threat: every byte here was chosen by a stranger. Sizes and the canonical form are checked before anything is
//! decoded ([`souk_crypto::cbor`]), lists carry their bound in their type ([`List`]), and nothing allocates by an
//! announced length.

use std::{fmt, ops::Deref};

use minicbor::{
    Decode, Decoder, Encode, Encoder,
    decode::Error as CborError,
    encode::{Error as EncodeError, Write},
};

/// A list of at most `MAX` items, so that a bound is part of the type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct List<T, const MAX: usize>(Vec<T>);

impl<T, const MAX: usize> List<T, MAX> {
    /// An empty list.
    #[must_use]
    pub const fn empty() -> Self {
        Self(Vec::new())
    }

    /// Takes `items`, or gives `None` when there are more than `MAX`.
    #[must_use]
    pub fn new(items: Vec<T>) -> Option<Self> {
        (items.len() <= MAX).then_some(Self(items))
    }

    /// The items.
    #[must_use]
    pub fn into_vec(self) -> Vec<T> {
        self.0
    }
}

impl<T, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        Self::empty()
    }
}

impl<T, const MAX: usize> Deref for List<T, MAX> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<C, T: Encode<C>, const MAX: usize> Encode<C> for List<T, MAX> {
    fn encode<W: Write>(
        &self,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.array(self.0.len() as u64)?;
        self.0.iter().try_for_each(|item| item.encode(e, ctx))
    }
}

impl<'b, C, T: Decode<'b, C>, const MAX: usize> Decode<'b, C> for List<T, MAX> {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, CborError> {
        let len = definite(d.array()?)?;
        if len > MAX as u64 {
            return Err(CborError::message(format!(
                "a list of {len}, at most {MAX} are allowed"
            )));
        }
        // Grown item by item: an announced length costs the sender its bytes first.
        let mut items = Vec::new();
        for _ in 0..len {
            items.push(T::decode(d, ctx)?);
        }
        Ok(Self(items))
    }
}

/// Between `MIN` and `MAX` bytes whose meaning is somebody else's.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Blob<const MIN: usize, const MAX: usize>(Vec<u8>);

impl<const MIN: usize, const MAX: usize> Blob<MIN, MAX> {
    /// Takes `bytes`, or gives `None` when there are too few or too many.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        (MIN..=MAX).contains(&bytes.len()).then_some(Self(bytes))
    }
}

impl<const MAX: usize> Default for Blob<0, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<const MIN: usize, const MAX: usize> Deref for Blob<MIN, MAX> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl<const MIN: usize, const MAX: usize> fmt::Debug for Blob<MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl<C, const MIN: usize, const MAX: usize> Encode<C> for Blob<MIN, MAX> {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C, const MIN: usize, const MAX: usize> Decode<'b, C> for Blob<MIN, MAX> {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, CborError> {
        let bytes = d.bytes()?;
        if !(MIN..=MAX).contains(&bytes.len()) {
            return Err(CborError::message(format!(
                "{} bytes where {MIN} to {MAX} are allowed",
                bytes.len()
            )));
        }
        Ok(Self(bytes.to_vec()))
    }
}

/// The length of an array or map, which must be announced: indefinite lengths are not canonical.
pub(crate) fn definite(len: Option<u64>) -> Result<u64, CborError> {
    len.ok_or_else(|| CborError::message("indefinite length"))
}

/// Defines a struct and its CBOR map. Each field has its integer key; fields of type `Option` may be absent and are
/// never null. `check = f` names a function `fn(&Self) -> Result<(), &'static str>` for rules across fields.
macro_rules! wire_map {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $( $(#[$fmeta:meta])* $key:literal => $fvis:vis $field:ident : $ty:ty, )*
        }
        $( check = $check:path; )?
    ) => {
        $(#[$meta])*
        $vis struct $name { $( $(#[$fmeta])* $fvis $field: $ty, )* }

        impl<C> minicbor::Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut minicbor::Encoder<W>,
                ctx: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                let absent = [$( <$ty as minicbor::Encode<C>>::is_nil(&self.$field), )*];
                e.map(absent.iter().filter(|absent| !**absent).count() as u64)?;
                $(
                    if !<$ty as minicbor::Encode<C>>::is_nil(&self.$field) {
                        e.u64($key)?;
                        <$ty as minicbor::Encode<C>>::encode(&self.$field, e, ctx)?;
                    }
                )*
                Ok(())
            }
        }

        impl<'b, C> minicbor::Decode<'b, C> for $name {
            fn decode(
                d: &mut minicbor::Decoder<'b>,
                ctx: &mut C,
            ) -> Result<Self, minicbor::decode::Error> {
                $( let mut $field: Option<$ty> = None; )*
                let mut last = None;
                for _ in 0..$crate::wire::definite(d.map()?)? {
                    let key = d.u64()?;
                    if last.replace(key).is_some_and(|last| last >= key) {
                        return Err(minicbor::decode::Error::message(format!(
                            "key {key} of {} is out of order", stringify!($name)
                        )));
                    }
                    match key {
                        $( $key => {
                            let value = <$ty as minicbor::Decode<'b, C>>::decode(d, ctx)?;
                            if <$ty as minicbor::Encode<C>>::is_nil(&value) {
                                return Err(minicbor::decode::Error::message(format!(
                                    "key {key} of {} is null", stringify!($name)
                                )));
                            }
                            $field = Some(value);
                        } )*
                        souk_crypto::cbor::FIRST_IGNORABLE_KEY.. => d.skip()?,
                        _ => return Err(minicbor::decode::Error::message(format!(
                            "critical key {key} of {} is unknown", stringify!($name)
                        ))),
                    }
                }
                let value = Self { $(
                    $field: match $field.or_else(<$ty as minicbor::Decode<'b, C>>::nil) {
                        Some(value) => value,
                        None => return Err(minicbor::decode::Error::message(format!(
                            "key {} of {} is missing", $key, stringify!($name)
                        ))),
                    },
                )* };
                $( $check(&value).map_err(minicbor::decode::Error::message)?; )?
                Ok(value)
            }
        }
    };
}

/// Defines an enum that is written as one unsigned integer; an unknown one is refused.
macro_rules! wire_enum {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident { $( $(#[$vmeta:meta])* $variant:ident = $code:literal => $text:literal, )* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        $vis enum $name { $( $(#[$vmeta])* $variant, )* }

        impl $name {
            /// Every value, in the order of its wire codes.
            pub const ALL: &'static [Self] = &[$( Self::$variant, )*];

            /// The number on the wire.
            #[must_use]
            pub const fn code(self) -> u64 {
                match self { $( Self::$variant => $code, )* }
            }

            /// The value of a number on the wire.
            #[must_use]
            pub const fn from_code(code: u64) -> Option<Self> {
                match code { $( $code => Some(Self::$variant), )* _ => None }
            }

            /// The word that people and `--json` see.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $text, )* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl<C> minicbor::Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.u64(self.code())?.ok()
            }
        }

        impl<'b, C> minicbor::Decode<'b, C> for $name {
            fn decode(
                d: &mut minicbor::Decoder<'b>,
                _: &mut C,
            ) -> Result<Self, minicbor::decode::Error> {
                let code = d.u64()?;
                Self::from_code(code).ok_or_else(|| minicbor::decode::Error::message(format!(
                    "{code} is no {}", stringify!($name)
                )))
            }
        }
    };
}

pub(crate) use {wire_enum, wire_map};
