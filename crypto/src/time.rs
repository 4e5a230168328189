//! Instants and intervals as they stand in signed objects: Unix seconds, half-open, with one accepted skew.

use std::fmt;

use minicbor::{Decode, Decoder, Encode, decode};

/// How far the clocks of two honest nodes may be apart, in seconds, before one refuses the other's objects.
pub const MAX_SKEW_S: u64 = 120;

/// An instant in seconds since 1970-01-01 00:00 UTC, without leap seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// This instant, later by `seconds`; stops at the largest instant.
    #[must_use]
    pub const fn plus_s(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds))
    }

    /// This instant, earlier by `seconds`; stops at 1970.
    #[must_use]
    pub const fn minus_s(self, seconds: u64) -> Self {
        Self(self.0.saturating_sub(seconds))
    }

    /// Seconds from `earlier` to this instant; zero where `earlier` is later.
    #[must_use]
    pub const fn since_s(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The instant rounded down to a multiple of `bucket_s` seconds; a `bucket_s` of zero changes nothing.
    #[must_use]
    pub const fn bucket(self, bucket_s: u64) -> Self {
        match self.0.checked_rem(bucket_s) {
            Some(rest) => Self(self.0 - rest),
            None => self,
        }
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A half-open, non-empty interval `[from, to)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode)]
#[cbor(map)]
pub struct Window {
    #[n(0)]
    from: UnixTime,
    #[n(1)]
    to: UnixTime,
}

/// An interval that ends before it begins, or is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("window [{from}, {to}) is empty")]
pub struct WindowError {
    /// Its beginning.
    pub from: UnixTime,
    /// Its end.
    pub to: UnixTime,
}

impl Window {
    /// The interval from `from` up to, and without, `to`.
    ///
    /// # Errors
    /// [`WindowError`] unless `from < to`.
    pub const fn new(from: UnixTime, to: UnixTime) -> Result<Self, WindowError> {
        if from.0 < to.0 {
            Ok(Self { from, to })
        } else {
            Err(WindowError { from, to })
        }
    }

    /// First instant inside.
    #[must_use]
    pub const fn from(&self) -> UnixTime {
        self.from
    }

    /// First instant after it.
    #[must_use]
    pub const fn to(&self) -> UnixTime {
        self.to
    }

    /// Length in seconds, at least one.
    #[must_use]
    pub const fn length_s(&self) -> u64 {
        self.to.0 - self.from.0
    }

    /// Whether `now` lies inside, by one's own clock.
    #[must_use]
    pub const fn contains(&self, now: UnixTime) -> bool {
        self.from.0 <= now.0 && now.0 < self.to.0
    }

    /// Whether `now` lies inside when the clock of who made the window may be off by [`MAX_SKEW_S`].
    #[must_use]
    pub const fn accepts(&self, now: UnixTime) -> bool {
        self.from.0 <= now.plus_s(MAX_SKEW_S).0 && now.0 < self.to.plus_s(MAX_SKEW_S).0
    }

    /// Whether `other` lies wholly inside.
    #[must_use]
    pub const fn covers(&self, other: &Self) -> bool {
        self.from.0 <= other.from.0 && other.to.0 <= self.to.0
    }
}

impl<'b, C> Decode<'b, C> for Window {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, decode::Error> {
        #[derive(Decode)]
        #[cbor(map)]
        struct Wire {
            #[n(0)]
            from: UnixTime,
            #[n(1)]
            to: UnixTime,
        }
        let at = d.position();
        let Wire { from, to } = Wire::decode(d, ctx)?;
        Self::new(from, to).map_err(|_| decode::Error::message("empty window").at(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cbor;

    fn window(from: u64, to: u64) -> Window {
        Window::new(UnixTime(from), UnixTime(to)).expect("from < to")
    }

    #[test]
    fn a_window_holds_its_beginning_and_not_its_end() {
        let w = window(1_000, 2_000);
        assert!(!w.contains(UnixTime(999)));
        assert!(w.contains(UnixTime(1_000)));
        assert!(w.contains(UnixTime(1_999)));
        assert!(!w.contains(UnixTime(2_000)));
    }

    #[test]
    fn skew_widens_a_window_by_120_seconds_on_both_sides_and_no_more() {
        let w = window(1_000, 2_000);
        assert!(!w.accepts(UnixTime(879)));
        assert!(w.accepts(UnixTime(880)));
        assert!(w.accepts(UnixTime(2_119)));
        assert!(!w.accepts(UnixTime(2_120)));
    }

    #[test]
    fn an_empty_or_reversed_window_cannot_be_made_or_decoded() {
        assert!(Window::new(UnixTime(5), UnixTime(5)).is_err());
        assert!(Window::new(UnixTime(6), UnixTime(5)).is_err());
        assert!(cbor::decode::<Window>(&[0xa2, 0x00, 0x05, 0x01, 0x05], 16).is_err());
        assert!(cbor::decode::<Window>(&[0xa2, 0x00, 0x05, 0x01, 0x06], 16).is_ok());
    }

    #[test]
    fn arithmetic_stops_at_the_ends_of_time() {
        assert_eq!(UnixTime(u64::MAX).plus_s(1), UnixTime(u64::MAX));
        assert_eq!(UnixTime(3).minus_s(4), UnixTime(0));
        assert_eq!(UnixTime(3).since_s(UnixTime(9)), 0);
        assert_eq!(UnixTime(1_234).bucket(300), UnixTime(1_200));
        assert_eq!(UnixTime(1_234).bucket(0), UnixTime(1_234));
    }
}
