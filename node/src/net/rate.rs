//! Token buckets: the one form of rate limit of the network.
//!
//! Threat: a stranger with many identities who fills the record of rates, so that it grows, or that others lose theirs.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// Those whose rate is remembered.
const MAX_RECORDED: usize = 4_096;

/// Allows `burst` events at once and `per_second` over time.
#[derive(Clone, Debug)]
pub(crate) struct TokenBucket {
    per_second: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl TokenBucket {
    /// A full bucket. `per_second` must be positive and `burst` at least one.
    pub(crate) fn new(per_second: f64, burst: f64, now: Instant) -> Self {
        debug_assert!(per_second > 0.0 && burst >= 1.0, "the bucket never fills");
        Self {
            per_second,
            burst,
            tokens: burst,
            at: now,
        }
    }

    /// Takes a token if there is one.
    pub(crate) fn try_take(&mut self, now: Instant) -> bool {
        self.refill(now);
        let allowed = self.tokens >= 1.0;
        if allowed {
            self.tokens -= 1.0;
        }
        allowed
    }

    /// Takes a token now and says how long the caller must wait before it uses it.
    pub(super) fn take(&mut self, now: Instant) -> Duration {
        self.refill(now);
        self.tokens -= 1.0;
        Duration::from_secs_f64((-self.tokens / self.per_second).max(0.0))
    }

    /// Whether forgetting this bucket would change nothing.
    pub(super) fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.tokens >= self.burst
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        self.tokens = (self.tokens + elapsed.as_secs_f64() * self.per_second).min(self.burst);
    }
}

/// One bucket for each peer, or for each address.
#[derive(Debug)]
pub(super) struct Rates<K> {
    per_second: f64,
    burst: f64,
    buckets: HashMap<K, TokenBucket>,
}

impl<K: Copy + Eq + Hash> Rates<K> {
    pub(super) fn new(per_second: f64, burst: f64) -> Self {
        Self {
            per_second,
            burst,
            buckets: HashMap::new(),
        }
    }

    /// Takes a token of `of` if there is one.
    pub(super) fn try_take(&mut self, of: K, now: Instant) -> bool {
        self.bucket(of, now)
            .is_none_or(|bucket| bucket.try_take(now))
    }

    /// Takes a token of `of`, on credit if need be, and says how long it has to wait for it.
    pub(super) fn take(&mut self, of: K, now: Instant) -> Duration {
        self.bucket(of, now)
            .map_or(Duration::ZERO, |bucket| bucket.take(now))
    }

    /// Where [`MAX_RECORDED`] others have used theirs up, a newcomer goes unrecorded: it costs a fresh identity and a
    /// connection each time, and those are bounded elsewhere.
    fn bucket(&mut self, of: K, now: Instant) -> Option<&mut TokenBucket> {
        if self.buckets.len() >= MAX_RECORDED {
            self.buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        if self.buckets.len() >= MAX_RECORDED && !self.buckets.contains_key(&of) {
            return None;
        }
        let (per_second, burst) = (self.per_second, self.burst);
        let fresh = || TokenBucket::new(per_second, burst, now);
        Some(self.buckets.entry(of).or_insert_with(fresh))
    }
}

#[cfg(test)]
mod tests {
    use libp2p::PeerId;

    use super::*;

    #[test]
    fn never_allows_more_than_burst_plus_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(10.0, 5.0, start);
        let allowed = (0..1_000u64)
            .filter(|ms| bucket.try_take(start + Duration::from_millis(*ms)))
            .count();
        assert!((14..=15).contains(&allowed), "{allowed} in one second");
    }

    #[test]
    fn a_debt_is_waited_for() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(10.0, 1.0, start);
        assert_eq!(bucket.take(start), Duration::ZERO);
        assert_eq!(bucket.take(start), Duration::from_millis(100));
        assert_eq!(bucket.take(start), Duration::from_millis(200));
    }

    #[test]
    fn strangers_cannot_grow_the_record() {
        let (mut rates, now) = (Rates::new(1.0, 1.0), Instant::now());
        for _ in 0..2 * MAX_RECORDED {
            assert!(rates.try_take(PeerId::random(), now));
        }
        assert_eq!(rates.buckets.len(), MAX_RECORDED);
    }

    #[test]
    fn a_clock_that_stands_still_gives_nothing() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1e9, 1.0, start);
        assert!(bucket.try_take(start));
        assert!(!bucket.try_take(start));
    }
}
