//! Evidence against logs, of one node each.
//!
//! Threat: nodes cost nothing, and neither does evidence against nodes that were made up for it. So a full table is shared out
//! between those who brought the nodes ([`crate::shares`]): who brings many more pushes out its own, the latest card first, and before
//! these such against nodes that have no card here, of which nobody rents. The age of the card counts and not that of the evidence: else
//! who means to lie would fill the table first.

use std::sync::Arc;

use souk_crypto::NodeId;

use super::MAX_CONTRADICTIONS;
use crate::{
    log::Contradiction,
    shares::{self, Arrivals, Brought, Source},
};

/// How a node stands to this one.
pub(super) enum Known {
    /// What is known against it is kept in any case.
    Relied,
    /// It has a card here, which came from there and then.
    Card(Brought),
    /// It has no card here.
    Unknown,
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Accused {
    /// Oldest first.
    held: Vec<Against>,
    arrivals: Arrivals,
}

#[derive(Debug)]
struct Against {
    evidence: Arc<Contradiction>,
    brought: Brought,
    is_told: bool,
}

impl Accused {
    /// Takes evidence that `source` brought; says whether it was news and has its place.
    pub(super) fn add(
        &mut self,
        evidence: Contradiction,
        source: Source,
        known: impl Fn(&NodeId) -> Known,
    ) -> bool {
        if self.of(&evidence.node()).is_some() {
            return false;
        }
        self.held.push(Against {
            evidence: Arc::new(evidence),
            brought: self.arrivals.next(source),
            is_told: false,
        });
        let added = self.held.len() - 1;
        if added < MAX_CONTRADICTIONS {
            return true;
        }
        let goes = |(at, against): (usize, &Against)| {
            let brought = against.brought;
            match known(&against.evidence.node()) {
                Known::Relied => None,
                Known::Card(card) => Some((at, card)),
                Known::Unknown => Some((at, brought.first_to_go())),
            }
        };
        let others = self.held.iter().enumerate().filter_map(goes);
        let gone = shares::latest_of_most(others).unwrap_or(added);
        self.held.remove(gone);
        gone != added
    }

    /// Evidence against one node.
    pub(super) fn of(&self, node: &NodeId) -> Option<&Arc<Contradiction>> {
        self.all().find(|evidence| evidence.node() == *node)
    }

    /// All of it, oldest first.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Contradiction>> {
        self.held.iter().map(|against| &against.evidence)
    }

    /// Whether some was not told yet.
    pub(super) fn has_news(&self) -> bool {
        self.held.iter().any(|against| !against.is_told)
    }

    /// The oldest that was not told yet.
    pub(super) fn poll(&mut self) -> Option<Arc<Contradiction>> {
        let untold = self.held.iter_mut().find(|against| !against.is_told)?;
        untold.is_told = true;
        Some(Arc::clone(&untold.evidence))
    }
}
