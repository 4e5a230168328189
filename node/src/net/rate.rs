//! A token bucket: the one form of rate limit of this crate.

use std::time::{Duration, Instant};

/// Allows `burst` events at once and `per_second` over time.
#[derive(Clone, Debug)]
pub(super) struct TokenBucket {
    per_second: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl TokenBucket {
    /// A full bucket. `per_second` must be positive and `burst` at least one.
    pub(super) fn new(per_second: f64, burst: f64, now: Instant) -> Self {
        debug_assert!(per_second > 0.0 && burst >= 1.0, "the bucket never fills");
        Self {
            per_second,
            burst,
            tokens: burst,
            at: now,
        }
    }

    /// Takes a token if there is one.
    pub(super) fn try_take(&mut self, now: Instant) -> bool {
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

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        self.tokens = (self.tokens + elapsed.as_secs_f64() * self.per_second).min(self.burst);
    }
}

#[cfg(test)]
mod tests {
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
    fn a_clock_that_stands_still_gives_nothing() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1e9, 1.0, start);
        assert!(bucket.try_take(start));
        assert!(!bucket.try_take(start));
    }
}
