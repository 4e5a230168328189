//! Token buckets: the one form of rate limit of the network.
//!
//! A bucket that all use is shared out by where they connect from ([`SharedBucket`]): each may have used three times what is left.
//! So one origin alone gets three quarters of a burst, many that want all get equal parts, and one that wants little gets it.
//!
//! Threat: a stranger with many identities who fills the record of rates, so that it grows, or that others lose theirs.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

use super::origin::Origin;

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

/// Times what is left that an origin may have used: a burst of one neighbour after a partition is let in, and some room stays.
const GREED: f64 = 3.0;

/// One bucket for all, shared out between origins: `burst` events at once and `per_second` over time, together.
#[derive(Debug)]
pub(super) struct SharedBucket {
    per_second: f64,
    burst: f64,
    /// What each origin has used and time has not given back, always more than nothing: no more entries than events, and no
    /// more sum than `burst`.
    used: HashMap<Origin, f64>,
    used_by_all: f64,
    at: Instant,
}

impl SharedBucket {
    /// A bucket of which nothing is used.
    pub(super) fn new(per_second: f64, burst: f64, now: Instant) -> Self {
        Self {
            per_second,
            burst,
            used: HashMap::new(),
            used_by_all: 0.0,
            at: now,
        }
    }

    /// Takes a token for somebody at `origin` if there is one and its share is not used.
    pub(super) fn try_take(&mut self, origin: Origin, now: Instant) -> bool {
        self.give_back(now);
        let left = self.burst - self.used_by_all;
        let used = self.used.get(&origin).copied().unwrap_or(0.0);
        let allowed = left >= 1.0 && used < GREED * left;
        if allowed {
            self.used.insert(origin, used + 1.0);
            self.used_by_all += 1.0;
        }
        allowed
    }

    /// Gives back what has become free since, in equal parts: what one does not need is the others'.
    fn give_back(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        let mut free = elapsed * self.per_second;
        // Whole tokens at a time: a flood asks far more often than that, and each time would look at all origins.
        if free < 1.0 {
            return;
        }
        self.at = now;
        while free > 0.0 && !self.used.is_empty() {
            let part = free / self.used.len() as f64;
            free = 0.0;
            self.used.retain(|_, used| {
                free += (part - *used).max(0.0);
                *used -= part;
                *used > 0.0
            });
        }
        self.used_by_all = self.used.values().sum();
    }
}

/// One bucket for each peer, each address, or each of something else.
#[derive(Debug)]
pub(crate) struct Rates<K> {
    per_second: f64,
    burst: f64,
    buckets: HashMap<K, TokenBucket>,
}

impl<K: Copy + Eq + Hash> Rates<K> {
    pub(crate) fn new(per_second: f64, burst: f64) -> Self {
        Self {
            per_second,
            burst,
            buckets: HashMap::new(),
        }
    }

    /// Takes a token of `of` if there is one.
    pub(crate) fn try_take(&mut self, of: K, now: Instant) -> bool {
        self.bucket(of, now)
            .is_none_or(|bucket| bucket.try_take(now))
    }

    /// Takes a token of `of`, on credit if need be, and says how long it has to wait for it.
    pub(super) fn take(&mut self, of: K, now: Instant) -> Duration {
        self.bucket(of, now)
            .map_or(Duration::ZERO, |bucket| bucket.take(now))
    }

    /// Where [`MAX_RECORDED`] others have used theirs up, a newcomer goes unrecorded: all together are bounded elsewhere, a stranger by
    /// the fresh identity and the connection that each takes, a holder by the rate of all holders.
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
    fn a_shared_bucket_gives_no_more_than_burst_plus_rate_whoever_asks() {
        let start = Instant::now();
        let mut bucket = SharedBucket::new(10.0, 100.0, start);
        let asked = (0..10_000u64).filter(|n| {
            let now = start + Duration::from_millis(*n);
            bucket.try_take(Origin::numbered(n % 7), now)
        });
        let allowed = asked.count();
        assert!((170..=200).contains(&allowed), "{allowed} in ten seconds");
        assert!(bucket.used.values().sum::<f64>() <= 100.0);
    }

    #[test]
    fn origins_that_want_all_get_equal_parts_and_one_that_wants_little_gets_it() {
        let start = Instant::now();
        let mut bucket = SharedBucket::new(10.0, 100.0, start);
        let mut got = [0; 3];
        for ms in 0..60_000u64 {
            let now = start + Duration::from_millis(ms);
            for (origin, got) in (0..2).zip(&mut got) {
                *got += u32::from(bucket.try_take(Origin::numbered(origin), now));
            }
            if ms % 1_000 == 0 {
                got[2] += u32::from(bucket.try_take(Origin::numbered(9), now));
            }
        }
        assert_eq!(got[2], 60);
        assert!(got[0].abs_diff(got[1]) <= 40 && got[0] > 250, "{got:?}");
    }

    #[test]
    fn origins_that_are_gone_leave_nothing_behind() {
        let start = Instant::now();
        let mut bucket = SharedBucket::new(10.0, 100.0, start);
        for n in 0..50 {
            assert!(bucket.try_take(Origin::numbered(n), start));
        }
        assert!(bucket.try_take(Origin::numbered(99), start + Duration::from_secs(10)));
        assert_eq!(bucket.used.len(), 1);
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
