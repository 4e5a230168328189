//! Which rows a page's table has, and which of them a filter lets through.

use std::collections::VecDeque;

use souk_control::v1;

use crate::{happening, page::Page};

/// A row of a table, by its place in the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// Of the backends.
    Backend(usize),
    /// Of the orphans, which stand below the backends.
    Orphan(usize),
    /// Of the leases.
    Lease(usize),
    /// Of the market.
    Offer(usize),
    /// Of the peers.
    Peer(usize),
    /// Of the usage log.
    Entry(usize),
    /// Of what happened.
    Happening(usize),
}

pub(super) fn visible(
    page: Page,
    snapshot: &v1::Snapshot,
    happenings: &VecDeque<v1::Happening>,
    filter: &str,
) -> Vec<Row> {
    let wanted = Filter::new(filter);
    let find = |texts: &[&str]| wanted.lets(texts);
    match page {
        Page::Overview | Page::Mix => Vec::new(),
        Page::Backends => {
            let backends = some(&snapshot.backends, Row::Backend, |b| find(&[name(b)]));
            let orphans = some(&snapshot.orphans, Row::Orphan, |orphan| {
                find(&[
                    &orphan.lease,
                    &orphan.backend,
                    &orphan.reason,
                    &orphan.state,
                ])
            });
            backends.chain(orphans).collect()
        }
        Page::Leases => some(&snapshot.leases, Row::Lease, |lease| {
            find(&[&lease.lease, &lease.state, &lease.backend])
        })
        .collect(),
        Page::Market => {
            let offers = snapshot.market.iter().flat_map(|market| &market.offers);
            let numbered = offers.enumerate().filter(|(_, offer)| {
                find(&[&offer.node_id, &offer.arch, &offer.price, &offer.capacity])
            });
            numbered.map(|(at, _)| Row::Offer(at)).collect()
        }
        Page::Network => {
            let peers = snapshot.network.iter().flat_map(|network| &network.peers);
            let numbered = peers
                .enumerate()
                .filter(|(_, peer)| find(&[&peer.node_id, &peer.transport]));
            numbered.map(|(at, _)| Row::Peer(at)).collect()
        }
        Page::Log => {
            let entries = snapshot.log.iter().flat_map(|log| &log.entries);
            let numbered = entries
                .enumerate()
                .filter(|(_, entry)| find(&[&entry.kind]));
            numbered.map(|(at, _)| Row::Entry(at)).collect()
        }
        Page::Events => {
            let numbered = happenings.iter().enumerate();
            numbered
                .filter(|(_, happening)| {
                    let (kind, text) = happening::text(happening);
                    find(&[kind, &text])
                })
                .map(|(at, _)| Row::Happening(at))
                .collect()
        }
    }
}

/// What tells a row from the others wherever it stands: its backend and its lease. Only of rows that something can be done to.
pub(super) fn key(row: Row, snapshot: &v1::Snapshot) -> Option<[&str; 2]> {
    match row {
        Row::Backend(at) => Some([name(snapshot.backends.get(at)?), ""]),
        Row::Orphan(at) => {
            let orphan = snapshot.orphans.get(at)?;
            Some([orphan.backend.as_str(), orphan.lease.as_str()])
        }
        Row::Lease(at) => Some(["", snapshot.leases.get(at)?.lease.as_str()]),
        Row::Offer(_) | Row::Peer(_) | Row::Entry(_) | Row::Happening(_) => None,
    }
}

fn name(backend: &v1::Backend) -> &str {
    let state = backend.state.as_ref();
    state.map_or("", |state| state.backend.as_str())
}

fn some<'a, T>(
    all: &'a [T],
    row: fn(usize) -> Row,
    is_wanted: impl Fn(&T) -> bool + 'a,
) -> impl Iterator<Item = Row> + 'a {
    let numbered = all.iter().enumerate();
    numbered
        .filter(move |(_, one)| is_wanted(one))
        .map(move |(at, _)| row(at))
}

/// Words that must all be found, in any of a row's texts, whatever the case.
struct Filter(Vec<String>);

impl Filter {
    fn new(text: &str) -> Self {
        Self(text.split_whitespace().map(str::to_lowercase).collect())
    }

    fn lets(&self, texts: &[&str]) -> bool {
        self.0
            .iter()
            .all(|word| texts.iter().any(|text| text.to_lowercase().contains(word)))
    }
}
