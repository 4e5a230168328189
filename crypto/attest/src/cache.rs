//! Answers about evidence that was seen before, by digest.
//!
//! Threats: a flood of distinct evidence that fills memory, and an answer that outlives what it stands on. The cache holds a
//! fixed number of answers and forgets the oldest; an answer holds from when it was found until the first certificate or
//! list below it ends, and a refusal for [`REFUSAL_LIFE_S`] only, because clocks and lists change.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use souk_crypto::UnixTime;

use crate::{
    digest::{CollateralDigest, EvidenceDigest},
    refusal::Refusal,
    verified::{Collateral, Evidence, Trust, Verified, verify},
};

/// Answers that are kept: evidence and collateral of every node of a large network, at about a kibibyte each.
pub const MAX_ANSWERS: usize = 4_096;

/// How long a refusal is repeated without looking again, in seconds.
pub const REFUSAL_LIFE_S: u64 = 300;

/// What verification said.
pub type Answer = Arc<Result<Verified, Refusal>>;

/// Answers for one [`Trust`].
#[derive(Debug)]
pub struct VerifiedCache {
    trust: Trust,
    answers: HashMap<Key, Entry>,
    order: VecDeque<Key>,
}

type Key = (EvidenceDigest, CollateralDigest);

#[derive(Debug)]
struct Entry {
    found: UnixTime,
    until: UnixTime,
    answer: Answer,
}

impl VerifiedCache {
    /// An empty cache of answers for `trust`.
    #[must_use]
    pub fn new(trust: Trust) -> Self {
        Self {
            trust,
            answers: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// The answer for these digests, if one holds at `now`.
    #[must_use]
    pub fn get(
        &self,
        evidence: EvidenceDigest,
        collateral: CollateralDigest,
        now: UnixTime,
    ) -> Option<Answer> {
        let entry = self.answers.get(&(evidence, collateral))?;
        let holds = entry.found <= now && now <= entry.until;
        holds.then(|| Arc::clone(&entry.answer))
    }

    /// The answer that is kept, or one that is found now and kept.
    pub fn verify(
        &mut self,
        evidence: &Evidence,
        collateral: &Collateral,
        now: UnixTime,
    ) -> Answer {
        let key = (evidence.digest(), collateral.digest());
        if let Some(answer) = self.get(key.0, key.1, now) {
            return answer;
        }
        let answer = Arc::new(verify(evidence, collateral, &self.trust, now));
        let until = match answer.as_ref() {
            Ok(verified) => verified.expires(),
            Err(_) => now.plus_s(REFUSAL_LIFE_S),
        };
        self.keep(
            key,
            Entry {
                found: now,
                until,
                answer: Arc::clone(&answer),
            },
        );
        answer
    }

    /// How many answers it holds; at most [`MAX_ANSWERS`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.answers.len()
    }

    /// Whether it holds no answer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    fn keep(&mut self, key: Key, entry: Entry) {
        if self.answers.insert(key, entry).is_some() {
            return;
        }
        self.order.push_back(key);
        if self.order.len() > MAX_ANSWERS
            && let Some(oldest) = self.order.pop_front()
        {
            self.answers.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;

    use super::*;
    use crate::{
        digest::ReportData,
        soft::{TdxRecipe, TestTdx},
    };

    const ISSUED: UnixTime = UnixTime(1_790_000_000);
    const NOW: UnixTime = UnixTime(1_790_086_400);

    /// One machine, whose quotes differ in what they bind.
    struct Machine(TestTdx);

    impl Machine {
        fn new() -> Self {
            let recipe = TdxRecipe::up_to_date(ISSUED);
            Self(TestTdx::new(recipe, &SystemRandom::new()).expect("it mints"))
        }

        fn cache(&self) -> VerifiedCache {
            VerifiedCache::new(Trust::with_test_roots([self.0.root()]))
        }

        fn quote(&self, number: u64) -> Evidence {
            let mut data = [0; 64];
            data[..8].copy_from_slice(&number.to_be_bytes());
            let quote = self.0.quote(ReportData(data), &SystemRandom::new());
            Evidence::parse(&quote.expect("it signs")).expect("it parses")
        }

        fn collateral(&self) -> Collateral {
            Collateral::Tdx(Box::new(self.0.collateral().clone()))
        }
    }

    fn get(
        cache: &VerifiedCache,
        evidence: &Evidence,
        collateral: &Collateral,
        now: UnixTime,
    ) -> Option<Answer> {
        cache.get(evidence.digest(), collateral.digest(), now)
    }

    #[test]
    fn an_answer_is_given_again_from_when_it_was_found_until_what_it_stands_on_ends() {
        let machine = Machine::new();
        let (quote, collateral, mut cache) =
            (machine.quote(1), machine.collateral(), machine.cache());
        assert!(get(&cache, &quote, &collateral, NOW).is_none());
        let answer = cache.verify(&quote, &collateral, NOW);
        let end = answer.as_ref().as_ref().expect("it verifies").expires();
        for (now, is_there) in [
            (NOW, true),
            (end, true),
            (end.plus_s(1), false),
            (NOW.minus_s(1), false),
        ] {
            let kept = get(&cache, &quote, &collateral, now);
            assert_eq!(kept.is_some(), is_there, "{now}");
            // The very same answer, not one found anew.
            assert!(kept.is_none_or(|kept| Arc::ptr_eq(&kept, &answer)));
        }
        let late = cache.verify(&quote, &collateral, end.plus_s(1));
        let refusal = late.as_ref().as_ref().expect_err("it ended");
        assert_eq!(refusal.reason(), "expired");
        assert_eq!(cache.len(), 1, "one answer a pair of digests");
    }

    #[test]
    fn a_refusal_is_repeated_for_a_while_only() {
        let machine = Machine::new();
        let (quote, collateral, mut cache) =
            (machine.quote(1), machine.collateral(), machine.cache());
        let early = ISSUED.minus_s(REFUSAL_LIFE_S);
        assert!(cache.verify(&quote, &collateral, early).is_err());
        assert!(get(&cache, &quote, &collateral, ISSUED).is_some_and(|answer| answer.is_err()));
        assert!(get(&cache, &quote, &collateral, ISSUED.plus_s(1)).is_none());
        assert!(cache.verify(&quote, &collateral, ISSUED.plus_s(1)).is_ok());
    }

    #[test]
    fn an_answer_is_for_its_evidence_and_its_collateral() {
        let (machine, other) = (Machine::new(), Machine::new());
        let (quote, collateral, mut cache) =
            (machine.quote(1), machine.collateral(), machine.cache());
        assert!(cache.verify(&quote, &collateral, NOW).is_ok());
        assert!(get(&cache, &machine.quote(2), &collateral, NOW).is_none());
        assert!(get(&cache, &quote, &other.collateral(), NOW).is_none());
        assert!(cache.verify(&quote, &other.collateral(), NOW).is_err());
        assert!(cache.verify(&quote, &collateral, NOW).is_ok());
    }

    #[test]
    fn a_flood_of_evidence_pushes_out_the_oldest_and_takes_no_more_room() {
        let machine = Machine::new();
        // Refused for the collateral of another machine: that is found before any signature is checked.
        let (other, mut cache) = (Machine::new().collateral(), machine.cache());
        let first = machine.quote(0);
        for number in 0..=MAX_ANSWERS as u64 {
            let _ = cache.verify(&machine.quote(number), &other, NOW);
            assert!(cache.len() <= MAX_ANSWERS && cache.order.len() <= MAX_ANSWERS);
        }
        assert_eq!(cache.len(), MAX_ANSWERS);
        assert!(get(&cache, &first, &other, NOW).is_none());
    }
}
