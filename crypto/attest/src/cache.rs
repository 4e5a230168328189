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
