//! What happened, in words.

use souk_control::v1::{self, happening::What};

use crate::text::count;

/// The kind, and what happened.
pub(crate) fn text(happening: &v1::Happening) -> (&'static str, String) {
    let Some(what) = &happening.what else {
        return (
            "other",
            "something that this program does not know".to_owned(),
        );
    };
    match what {
        What::Started(_) => ("node", "the node began to work".to_owned()),
        What::Lease(v1::LeaseChanged {
            lease,
            state,
            backend,
        }) => ("lease", format!("{lease} is {state} at {backend}")),
        What::Refused(v1::Refused { reason, count: n }) => {
            ("refusal", format!("{} refused: {reason}", count(*n)))
        }
        What::Standing(change) => ("node", format!("the node is {} now", change.standing)),
        What::Card(card) => ("card", format!("card {} was made", card.sequence)),
        What::Checkpoint(checkpoint) => (
            "log",
            format!("checkpoint over {} entries", count(checkpoint.size)),
        ),
        What::Backend(v1::BackendListed { backend, listed }) => {
            let can = if *listed { "can" } else { "cannot" };
            ("backend", format!("{backend} {can} be listed"))
        }
        What::Paused(v1::BackendPaused { backend, paused }) => {
            let how = if *paused { "is paused" } else { "goes on" };
            ("backend", format!("{backend} {how}"))
        }
        What::Orphans(v1::OrphansChanged { backend, orphans }) => (
            "backend",
            format!("{orphans} instances at {backend} have no owner"),
        ),
        What::Peers(peers) => ("network", format!("{} nodes are connected", peers.peers)),
    }
}
