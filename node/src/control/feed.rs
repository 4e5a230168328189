//! What one watching client is told: snapshots at a bounded rate, and what happened since.
//!
//! ```text
//!  room for a reply? ─no─► wait: nothing is made for who does not read
//!        │yes
//!        ├── something happened, and PACE since the last ──► happenings
//!        └── the period is over ──► snapshot, the same for all who ask within FRESH
//! ```
//!
//! Threats: a client that reads nothing holds one reply and its place, and the node goes on; many clients cost one snapshot, not
//! one each.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, mpsc},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    Operations,
    v1::{self, watch_reply::What},
};

/// Clients that watch at one time, on each socket.
pub(super) const MAX_WATCHERS: usize = 16;
/// Between two snapshots where the client does not say; the shortest and the longest that it may say.
const PERIOD: Duration = Duration::from_secs(1);
const SHORTEST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(60);
/// Between two replies with happenings: however much happens, a client is woken ten times a second.
const PACE: Duration = Duration::from_millis(100);
/// How old a snapshot may be that another client gets.
const FRESH: Duration = Duration::from_millis(200);

/// What is sent to a client.
pub(super) type Reply = Result<v1::WatchReply, Status>;

/// The last snapshot, for all clients.
#[derive(Default)]
pub(super) struct Snapshots(Mutex<Option<(Instant, Arc<v1::Snapshot>)>>);

impl Snapshots {
    async fn take(&self, node: &dyn Operations) -> Arc<v1::Snapshot> {
        let mut last = self.0.lock().await;
        if let Some((made, snapshot)) = &*last
            && made.elapsed() < FRESH
        {
            return Arc::clone(snapshot);
        }
        let snapshot = Arc::new(node.snapshot().await);
        *last = Some((Instant::now(), Arc::clone(&snapshot)));
        snapshot
    }
}

/// What the client asked for, within the bounds.
pub(super) fn period(period_ms: u32) -> Duration {
    match period_ms {
        0 => PERIOD,
        ms => Duration::from_millis(ms.into()).clamp(SHORTEST, LONGEST),
    }
}

/// Tells one client until it leaves or the node stops.
pub(super) async fn run(
    node: Arc<dyn Operations>,
    snapshots: Arc<Snapshots>,
    period: Duration,
    replies: mpsc::Sender<Reply>,
    stop: CancellationToken,
    _place: OwnedSemaphorePermit,
) {
    let mut next = node.happenings().next();
    let mut told = 0;
    let mut snapshot_due = Instant::now();
    let mut happenings_due = Instant::now();
    loop {
        let room = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            room = replies.reserve() => room,
        };
        let Ok(room) = room else { return };
        let waiting = *next.borrow_and_update() > told;
        let now = Instant::now();
        if waiting && happenings_due <= now {
            let (late, missed) = node.happenings().since(told);
            told = late.last().map_or(told, |last| last.sequence + 1);
            happenings_due = now + PACE;
            room.send(reply(What::Happenings(v1::Happenings {
                happenings: late.into_iter().map(Into::into).collect(),
                missed,
            })));
            continue;
        }
        if snapshot_due <= now {
            let snapshot = snapshots.take(&*node).await;
            // From now on, so that one that came late is not followed by several at once.
            snapshot_due = Instant::now() + period;
            room.send(reply(What::Snapshot(Box::new((*snapshot).clone()))));
            continue;
        }
        drop(room);
        tokio::select! {
            () = stop.cancelled() => return,
            () = replies.closed() => return,
            () = sleep_until(snapshot_due) => {}
            () = sleep_until(happenings_due), if waiting => {}
            changed = next.changed(), if !waiting => if changed.is_err() { return },
        }
    }
}

fn reply(what: What) -> Reply {
    Ok(v1::WatchReply { what: Some(what) })
}
