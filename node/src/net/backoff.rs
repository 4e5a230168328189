//! Waiting longer after each failure.

use std::time::Duration;

use rand::{Rng, RngExt as _};

/// Pauses that double from `min` to `max`, each cut by a random part so that nodes that lost each other at the same time do
/// not all come back at the same time.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max,
            next: min,
        }
    }

    /// The pause before the next attempt.
    pub(crate) fn pause(&mut self, rng: &mut impl Rng) -> Duration {
        let pause = self.next.mul_f64(rng.random_range(0.5..1.0));
        self.next = (self.next * 2).min(self.max);
        pause
    }

    /// Something held for `held`; if that was long, the next failure counts as the first.
    pub(crate) fn handle_success(&mut self, held: Duration) {
        if held >= self.max {
            self.next = self.min;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    #[test]
    fn pauses_grow_to_the_limit_and_start_anew_after_a_long_success() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(30));
        let mut rng = StdRng::seed_from_u64(1);
        let mut backoff = Backoff::new(min, max);
        let pauses: Vec<_> = (0..20).map(|_| backoff.pause(&mut rng)).collect();
        assert!(pauses[0] < min && pauses[19] >= max / 2 && pauses.iter().all(|p| *p < max));
        backoff.handle_success(Duration::from_secs(1));
        assert!(backoff.pause(&mut rng) >= max / 2);
        backoff.handle_success(max);
        assert!(backoff.pause(&mut rng) < min);
    }
}
