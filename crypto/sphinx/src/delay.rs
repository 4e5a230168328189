//! Mixing delays: how long senders ask hops to wait, and the pool in which a hop lets packets wait.
//!
//! Delays are exponential, so that the packets in a pool are indistinguishable however long they have been there
//! (Loopix, Piotrowska et al. 2017). The mean belongs to the network: a mean of one's own is a fingerprint.
//!
//! The threat to the pool is somebody who fills it. A full pool refuses the *new* packet: letting the ones inside go
//! early would take their mixing from them, which is what the flood would be for. The loss is repaired by a resend.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use rand_core::Rng;
use souk_crypto::NetworkParams;

/// Packets that a pool holds unless configured otherwise: 16,384, about 40 MB.
///
/// With a mean of 50 ms that is a steady 300,000 packets a second, far beyond what a node peels; with every packet
/// parked for a longest delay of 10 s it is 1,638 a second.
pub const POOL_CAPACITY: usize = 16_384;

/// Samples exponential delays with the mean of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MixDelay {
    mean: Duration,
    max: Duration,
}

impl MixDelay {
    /// Delays with this mean, cut at `max`.
    #[must_use]
    pub const fn new(mean: Duration, max: Duration) -> Self {
        Self { mean, max }
    }

    /// The delays of a network.
    #[must_use]
    pub fn of(params: &NetworkParams) -> Self {
        let ms = |value: u32| Duration::from_millis(u64::from(value));
        Self::new(ms(params.mean_delay_ms()), ms(params.max_delay_ms()))
    }

    /// The mean delay at one hop.
    #[must_use]
    pub fn mean(&self) -> Duration {
        self.mean
    }

    /// The longest delay at one hop, whatever a packet's header says.
    #[must_use]
    pub fn max(&self) -> Duration {
        self.max
    }

    /// Draws one delay, at most [`Self::max`].
    pub fn sample(&self, rng: &mut (impl Rng + ?Sized)) -> Duration {
        // 53 random bits give a uniform value in (0, 1]; its logarithm is finite.
        let uniform = ((rng.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        Duration::try_from_secs_f64(-uniform.ln() * self.mean.as_secs_f64())
            .unwrap_or(self.max)
            .min(self.max)
    }

    /// Draws one delay for each of `hops` hops.
    pub fn sample_route(&self, hops: usize, rng: &mut (impl Rng + ?Sized)) -> Vec<Duration> {
        (0..hops).map(|_| self.sample(rng)).collect()
    }
}

/// Holds what waits for its time, and gives it back in the order of due times.
#[derive(Debug)]
pub struct DelayPool<T> {
    waiting: BinaryHeap<Waiting<T>>,
    capacity: usize,
    longest: Duration,
    arrivals: u64,
}

impl<T> DelayPool<T> {
    /// An empty pool for at most `capacity` entries, none of which waits longer than `longest`.
    #[must_use]
    pub fn new(capacity: usize, longest: Duration) -> Self {
        Self {
            waiting: BinaryHeap::new(),
            capacity,
            longest,
            arrivals: 0,
        }
    }

    /// Lets `item` wait from `now` for `delay`, cut to the longest.
    ///
    /// # Errors
    /// Gives `item` back when the pool is full; what waits already is not let go for it.
    pub fn push(&mut self, now: Instant, delay: Duration, item: T) -> Result<(), T> {
        if self.waiting.len() >= self.capacity {
            return Err(item);
        }
        self.arrivals += 1;
        self.waiting.push(Waiting {
            due: now + delay.min(self.longest),
            arrival: self.arrivals,
            item,
        });
        Ok(())
    }

    /// The next entry whose time has come.
    pub fn poll_due(&mut self, now: Instant) -> Option<T> {
        if self.waiting.peek()?.due > now {
            return None;
        }
        self.waiting.pop().map(|waiting| waiting.item)
    }

    /// When [`Self::poll_due`] has something next.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.waiting.peek().map(|waiting| waiting.due)
    }

    /// Entries that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[derive(Debug)]
struct Waiting<T> {
    due: Instant,
    arrival: u64,
    item: T,
}

/// Earliest due time first; among equals the one that came first.
impl<T> Ord for Waiting<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.due, other.arrival).cmp(&(self.due, self.arrival))
    }
}

impl<T> PartialOrd for Waiting<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Waiting<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T> Eq for Waiting<T> {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    const MAX: Duration = Duration::from_secs(10);

    #[test]
    fn delays_are_exponential_with_the_mean_of_the_network() {
        let mut rng = StdRng::seed_from_u64(1);
        let delay = MixDelay::new(Duration::from_millis(50), MAX);
        let samples: Vec<f64> = (0..20_000)
            .map(|_| delay.sample(&mut rng).as_secs_f64())
            .collect();
        let mean = samples.iter().sum::<f64>() / samples.len() as f64;
        let variance =
            samples.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / samples.len() as f64;
        // The deviation of an exponential equals its mean; the bounds are six standard errors wide.
        assert!((0.0479..0.0521).contains(&mean), "mean {mean}");
        assert!(
            (0.046..0.054).contains(&variance.sqrt()),
            "deviation {}",
            variance.sqrt()
        );
    }

    #[test]
    fn no_delay_is_longer_than_the_cap() {
        let mut rng = StdRng::seed_from_u64(2);
        let delay = MixDelay::new(Duration::from_secs(1_000_000), MAX);
        assert!((0..1000).all(|_| delay.sample(&mut rng) <= MAX));
        assert_eq!(
            MixDelay::new(Duration::ZERO, MAX).sample(&mut rng),
            Duration::ZERO
        );
    }

    #[test]
    fn a_full_pool_refuses_the_new_and_lets_nothing_go_early() {
        let start = Instant::now();
        let mut pool = DelayPool::new(1, MAX);
        assert_eq!(pool.push(start, Duration::from_secs(1), 'a'), Ok(()));
        assert_eq!(pool.push(start, Duration::ZERO, 'b'), Err('b'));
        assert_eq!(pool.poll_due(start), None);
        assert_eq!(pool.poll_due(start + Duration::from_secs(1)), Some('a'));
    }

    proptest! {
        /// Nothing leaves before its time, nothing stays past it or past the cap, and nothing is lost.
        #[test]
        fn everything_leaves_in_order_and_on_time(delays_ms in proptest::collection::vec(0u64..20_000, 0..60)) {
            let start = Instant::now();
            let mut pool = DelayPool::new(60, MAX);
            for (index, delay) in delays_ms.iter().enumerate() {
                pool.push(start, Duration::from_millis(*delay), index).expect("there is room");
            }
            let mut left = 0;
            let mut last = start;
            while let Some(due) = pool.next_due() {
                prop_assert!(due >= last && due <= start + MAX);
                let before = due.checked_sub(Duration::from_nanos(1)).expect("monotonic");
                if before > last {
                    prop_assert_eq!(pool.poll_due(before), None);
                }
                let index = pool.poll_due(due).expect("due");
                prop_assert_eq!(due, start + Duration::from_millis(delays_ms[index]).min(MAX));
                last = due;
                left += 1;
            }
            prop_assert_eq!(left, delays_ms.len());
        }
    }
}
