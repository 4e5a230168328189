//! Newtypes over 32 public bytes: hexadecimal as text, a byte string on the wire.

/// Implements what every such newtype has; its constructor stays with the type.
macro_rules! public_32_bytes {
    ($name:ident) => {
        impl $name {
            /// Its bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }

        impl<C> minicbor::Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.bytes(&self.0)?.ok()
            }
        }

        impl<'b, C> minicbor::Decode<'b, C> for $name {
            fn decode(
                d: &mut minicbor::Decoder<'b>,
                _: &mut C,
            ) -> Result<Self, minicbor::decode::Error> {
                let at = d.position();
                let wrong = |_| minicbor::decode::Error::message("expected 32 bytes").at(at);
                d.bytes()?.try_into().map(Self).map_err(wrong)
            }
        }
    };
}

pub(crate) use public_32_bytes;

/// The bytes of exactly 64 lowercase hexadecimal digits.
pub(crate) fn parse_hex_32(text: &str) -> Option<[u8; 32]> {
    let lower = !text.bytes().any(|b| b.is_ascii_uppercase());
    let mut bytes = [0; 32];
    (lower && hex::decode_to_slice(text, &mut bytes).is_ok()).then_some(bytes)
}
