//! Replay tags: what a node remembers so that no packet passes it twice, restarts included.
//!
//! ```text
//!            insert                  unwritten                 written
//!  tag ──► in memory ──► in the batch to write ──► driver writes ──► packets of the batch may go on
//!   └─ seen, or epoch full: the packet is dropped
//! ```
//!
//! The threat is somebody who sends a recorded packet again and watches where it comes out. A tag counts as seen
//! from the moment it is inserted, and a packet is passed on only when its tag is on disk: [`ReplayTags::insert`]
//! says whether a tag is new, [`ReplayTags::unwritten`] hands out what the driver has to persist before it acts.
//! At the next start the driver gives back what it wrote with [`ReplayTags::restore`].
//!
//! The other threat is somebody who sends valid packets until an epoch is full, so that nobody else's pass. Tags cannot make
//! room for others, so they are shared out while they are given: a [`TagSource`] gets one as long as it has used less than what
//! is left. Alone it can have half of an epoch; *n* of them that want all get an equal part each and leave as much to the next:
//!
//! ```text
//!  one greedy source     ████████████░░░░░░░░░░░░      1/2 used, 1/2 left
//!  two                   ████████▓▓▓▓▓▓▓▓░░░░░░░░      1/3 each, 1/3 left
//!  n                     1/(n+1) each, 1/(n+1) left
//! ```

use std::collections::{HashMap, HashSet};

use sphinx_packet::constants::REPLAY_TAG_SIZE;

/// Length of a tag on disk in bytes.
pub const TAG_LEN: usize = 8;

/// Tags that one epoch holds unless configured otherwise: what a table of 2²² slots takes, 38 MB when full.
///
/// At an epoch of an hour that is 1,019 packets a second. An epoch that is full accepts no more packets: forgetting
/// tags instead would let replays pass.
pub const TAGS_PER_EPOCH: usize = (1 << 22) / 8 * 7;

/// What identifies a packet at one hop: 8 bytes derived from the secret that the hop shares with its sender.
///
/// A replay has the same tag however its bytes were altered. Tags are cut to 64 bits to save memory. Nobody can aim
/// at the tag of somebody else's packet without knowing its secret, and among the tags of a full epoch an honest
/// packet is dropped by chance once in 2⁴²; a replay never passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReplayTag([u8; TAG_LEN]);

impl ReplayTag {
    pub(crate) fn from_sphinx(tag: &[u8; REPLAY_TAG_SIZE]) -> Self {
        let mut short = [0; TAG_LEN];
        short.copy_from_slice(&tag[..TAG_LEN]);
        Self(short)
    }

    /// Takes a tag that was persisted.
    #[must_use]
    pub fn from_bytes(bytes: [u8; TAG_LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes to persist.
    #[must_use]
    pub fn to_bytes(self) -> [u8; TAG_LEN] {
        self.0
    }
}

/// Sources that are counted apart; those that come later are counted as one.
const MAX_SOURCES: usize = 4_096;

/// Where a packet came from: the same number for all that must share. What it stands for is the caller's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TagSource(pub u64);

/// Why a tag was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TagRefused {
    /// The packet passed here before.
    #[error("the packet passed here before")]
    Seen,
    /// The epoch holds as many tags as it may.
    #[error("the epoch holds as many replay tags as it may")]
    Full,
    /// Its source has used its share of the epoch's tags.
    #[error("its source has used its share of the replay tags of the epoch")]
    ShareUsed,
}

/// The tags of one key epoch.
///
/// Tags wait in memory until [`Self::unwritten`] takes them for the disk; the set itself never shrinks, and is
/// dropped as a whole together with the epoch's key.
#[derive(Debug)]
pub struct ReplayTags {
    seen: HashSet<ReplayTag>,
    unwritten: Vec<ReplayTag>,
    capacity: usize,
    /// Tags by their source, of this process; at most [`MAX_SOURCES`].
    used: HashMap<TagSource, usize>,
    used_by_others: usize,
}

impl ReplayTags {
    /// An epoch without tags that takes at most `capacity`.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self::restore(capacity, [])
    }

    /// An epoch as it was persisted. Tags past `capacity` are kept: forgetting one would let its packet pass again. Whose they
    /// were is not known any more.
    pub fn restore(capacity: usize, tags: impl IntoIterator<Item = ReplayTag>) -> Self {
        Self {
            seen: tags.into_iter().collect(),
            unwritten: Vec::new(),
            capacity,
            used: HashMap::new(),
            used_by_others: 0,
        }
    }

    /// Inserts the tag of a packet from `source` whose header proved genuine.
    ///
    /// # Errors
    /// [`TagRefused`]; the packet is to be dropped.
    pub fn insert(&mut self, tag: ReplayTag, source: TagSource) -> Result<(), TagRefused> {
        if self.seen.contains(&tag) {
            return Err(TagRefused::Seen);
        }
        let left = self.capacity.saturating_sub(self.seen.len());
        if left == 0 {
            return Err(TagRefused::Full);
        }
        let used = self.used_by(source);
        if *used >= left {
            return Err(TagRefused::ShareUsed);
        }
        *used += 1;
        self.seen.insert(tag);
        self.unwritten.push(tag);
        Ok(())
    }

    /// Takes the tags that must be on disk before their packets go on, in the order of their insertion.
    #[must_use]
    pub fn unwritten(&mut self) -> Vec<ReplayTag> {
        std::mem::take(&mut self.unwritten)
    }

    /// Takes tags back that could not be written, ahead of those that have come since: the packets of theirs that wait still
    /// must not go on without them.
    pub fn put_back(&mut self, tags: Vec<ReplayTag>) {
        self.unwritten.splice(0..0, tags);
    }

    fn used_by(&mut self, source: TagSource) -> &mut usize {
        if self.used.len() >= MAX_SOURCES && !self.used.contains_key(&source) {
            return &mut self.used_by_others;
        }
        self.used.entry(source).or_default()
    }

    /// Tags held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// Whether no tag is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONE: TagSource = TagSource(1);

    fn tag(n: u64) -> ReplayTag {
        ReplayTag::from_bytes(n.to_be_bytes())
    }

    /// Sends fresh packets from each of these sources in turn until none gets a tag any more; how many each got.
    fn flood(
        tags: &mut ReplayTags,
        fresh: &mut impl Iterator<Item = u64>,
        sources: u64,
    ) -> Vec<usize> {
        let mut got = vec![0; usize::try_from(sources).expect("few")];
        loop {
            let before = tags.len();
            for (source, got) in (0..sources).zip(&mut got) {
                let tag = tag(fresh.next().expect("without end"));
                *got += usize::from(tags.insert(tag, TagSource(source)).is_ok());
            }
            if tags.len() == before {
                return got;
            }
        }
    }

    #[test]
    fn a_source_that_sends_all_it_can_leaves_tags_to_the_others() {
        let (mut tags, mut fresh) = (ReplayTags::new(1_200), 0..);
        assert_eq!(flood(&mut tags, &mut fresh, 1), [600]);
        let refused = tags.insert(tag(u64::MAX), TagSource(0));
        assert_eq!(refused, Err(TagRefused::ShareUsed));
        // Somebody else in that epoch.
        for _ in 0..100 {
            let tag = tag(fresh.next().expect("without end"));
            assert_eq!(tags.insert(tag, TagSource(9)), Ok(()));
        }
    }

    #[test]
    fn greedy_sources_get_equal_shares_and_leave_one_to_the_next() {
        let (mut tags, mut fresh) = (ReplayTags::new(1_200), 0..);
        let got = flood(&mut tags, &mut fresh, 5);
        assert!(got.iter().all(|got| (199..=201).contains(got)), "{got:?}");
        assert!(1_200 - tags.len() >= 199);
    }

    #[test]
    fn sources_cannot_grow_the_record() {
        let mut tags = ReplayTags::new(TAGS_PER_EPOCH);
        for n in 0..2 * MAX_SOURCES as u64 {
            assert_eq!(tags.insert(tag(n), TagSource(n)), Ok(()));
        }
        assert_eq!(tags.used.len(), MAX_SOURCES);
        assert_eq!(tags.used_by_others, MAX_SOURCES);
    }

    #[test]
    fn tags_that_could_not_be_written_are_written_first_the_next_time() {
        let mut tags = ReplayTags::new(30);
        for n in 0..2 {
            assert_eq!(tags.insert(tag(n), ONE), Ok(()));
        }
        let failed = tags.unwritten();
        assert_eq!(tags.insert(tag(2), ONE), Ok(()));
        tags.put_back(failed);
        assert_eq!(tags.unwritten(), [0, 1, 2].map(tag));
    }

    proptest! {
        /// Whatever order tags come in, and wherever the process dies and restores: none passes twice.
        #[test]
        fn no_tag_passes_twice_across_restarts(
            steps in proptest::collection::vec((0u8..40, any::<bool>(), any::<bool>()), 1..200),
        ) {
            let mut tags = ReplayTags::new(30);
            let mut disk: Vec<ReplayTag> = Vec::new();
            let mut acted = HashSet::new();
            for (tag, write, crash) in steps {
                let tag = ReplayTag::from_bytes([tag; TAG_LEN]);
                let fresh = tags.insert(tag, ONE).is_ok();
                if write {
                    let batch = tags.unwritten();
                    disk.extend(&batch);
                    for tag in batch {
                        prop_assert!(acted.insert(tag), "a packet was passed on twice");
                    }
                } else if fresh {
                    prop_assert!(!acted.contains(&tag));
                }
                if crash {
                    tags = ReplayTags::restore(30, disk.iter().copied());
                }
                prop_assert!(tags.len() <= 30);
            }
        }
    }

    #[test]
    fn a_full_epoch_refuses_new_packets_and_still_knows_the_old() {
        let mut tags = ReplayTags::new(1);
        let (first, second) = (ReplayTag::from_bytes([1; 8]), ReplayTag::from_bytes([2; 8]));
        assert_eq!(tags.insert(first, ONE), Ok(()));
        assert_eq!(tags.insert(second, ONE), Err(TagRefused::Full));
        assert_eq!(tags.insert(first, ONE), Err(TagRefused::Seen));
    }
}
