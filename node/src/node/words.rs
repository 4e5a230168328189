//! What the others seem to say of our clock, by what they send.
//!
//! Nodes cost nothing, so they are not counted: each [`Source`] has one word, its last. Honest neighbours pass on only what is of
//! their time, every minute, so their word is soon a good one again, whatever a stranger sends.

use std::collections::BTreeMap;

use souk_crypto::UnixTime;
use souk_market::shares::Source;

/// A word counts for so long, in seconds: as long as a card can be the last thing that a node said.
const WORD_LIFE_S: u64 = 12 * 3_600;
/// Most sources; when full, the oldest word goes.
const MAX_WORDS: usize = 1_024;

/// How our clock stands to that of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OurClock {
    Fits,
    Behind,
    Ahead,
}

/// The last word of each source.
#[derive(Debug, Default)]
pub(super) struct Words(BTreeMap<Source, (OurClock, UnixTime)>);

impl Words {
    pub(super) fn hear(&mut self, now: UnixTime, source: Source, clock: OurClock) {
        if source == Source::Own {
            return;
        }
        if self.0.len() >= MAX_WORDS && !self.0.contains_key(&source) {
            self.0.retain(|_, (_, at)| counts(now, *at));
            let oldest = self.0.iter().min_by_key(|(_, (_, at))| *at);
            let oldest = oldest.map(|(source, _)| *source);
            if let Some(oldest) = oldest.filter(|_| self.0.len() >= MAX_WORDS) {
                self.0.remove(&oldest);
            }
        }
        self.0.insert(source, (clock, now));
    }

    /// What is to be said about our own clock, if most say so.
    pub(super) fn warning(&self, now: UnixTime) -> Option<String> {
        let count = |wanted| {
            let said = self.0.values();
            said.filter(|(clock, at)| *clock == wanted && counts(now, *at))
                .count()
        };
        let (fits, behind, ahead) = (
            count(OurClock::Fits),
            count(OurClock::Behind),
            count(OurClock::Ahead),
        );
        if behind + ahead <= fits {
            return None;
        }
        let side = if behind >= ahead {
            "behind"
        } else {
            "ahead of"
        };
        Some(format!(
            "the clock of this machine seems to be {side} that of others (by the word of {} of {} neighbours): what they send is not of its time; set it, by NTP for example",
            behind + ahead,
            behind + ahead + fits,
        ))
    }
}

/// Whether a word of then still counts. One from the future was said before the clock was set back.
fn counts(now: UnixTime, at: UnixTime) -> bool {
    at <= now && now.since_s(at) < WORD_LIFE_S
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    #[test]
    fn each_source_has_one_word_and_old_ones_are_forgotten() {
        let mut words = Words::default();
        let hear = |words: &mut Words, n, clock, at| words.hear(at, Source::Neighbour(n), clock);
        assert_eq!(words.warning(NOW), None);
        hear(&mut words, 1, OurClock::Fits, NOW);
        for _ in 0..9 {
            hear(&mut words, 2, OurClock::Ahead, NOW);
        }
        words.hear(NOW, Source::Own, OurClock::Ahead);
        assert_eq!(words.warning(NOW), None);
        hear(&mut words, 3, OurClock::Ahead, NOW);
        assert!(words.warning(NOW).is_some_and(|w| w.contains("2 of 3")));
        assert_eq!(words.warning(NOW.plus_s(WORD_LIFE_S)), None);
        assert_eq!(words.warning(NOW.minus_s(60)), None, "the clock was set");
        hear(&mut words, 3, OurClock::Fits, NOW.plus_s(5));
        assert_eq!(words.warning(NOW.plus_s(5)), None);
    }

    #[test]
    fn many_sources_take_a_bounded_room() {
        let mut words = Words::default();
        for n in 0..2 * MAX_WORDS as u64 {
            words.hear(NOW.plus_s(n), Source::Neighbour(n), OurClock::Behind);
        }
        assert_eq!(words.0.len(), MAX_WORDS);
    }
}
