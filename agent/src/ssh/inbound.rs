//! What a connection has sent and the instance's programs have not taken yet.
//!
//! The SSH library acknowledges data when it arrives, not when it is used, and reads nothing while a callback waits. So
//! the agent keeps a queue for each channel and decides in the callback how long reading may wait:
//!
//! ```text
//!  queue of the channel ≤ SOFT          read on
//!  more, connection ≤ HARD              wait for room, for output of ours that wants out, or for PAUSE
//!  connection > HARD                    wait for room or for output
//!  connection > MAX                     the client ignores its windows: disconnect
//! ```
//!
//! Output ends a wait because it leaves through the same loop: a program that reads nothing until its output is taken
//! would otherwise block for ever, and the client with it. While a queue is above SOFT its window is renewed by
//! [`TRICKLE`] bytes only, so that a client that keeps to the protocol stops by itself near SOFT + [`WINDOW`].

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// Receive window of a channel, in bytes: at 100 ms through relays it carries 20 MB/s.
pub(super) const WINDOW: u32 = 2 << 20;

/// Window that a channel gets while its program does not read, in bytes: the smallest that the library renews again.
pub(super) const TRICKLE: u32 = 2;

/// A channel whose queue is longer makes reading wait, in bytes.
const SOFT: usize = 256 << 10;

/// A connection that has more queued makes reading wait without end, in bytes: above what all channels together may
/// send within their windows, so that only clients that ignore windows, or many stalled channels, get here.
const HARD: usize = 96 << 20;

/// More than this is queued only for a client that ignores its windows, in bytes.
const MAX: usize = 128 << 20;

/// Longest wait for a stalled channel before the others of the connection have their turn.
const PAUSE: Duration = Duration::from_millis(50);

/// Shortest wait after the few bytes of a trickle, so that a stalled channel costs no CPU.
const TRICKLE_PAUSE: Duration = Duration::from_millis(5);

/// The queues of one connection; `Id` is the number of a channel.
pub(super) struct Inbound<Id> {
    queues: Mutex<HashMap<Id, Arc<Queue>>>,
    totals: Arc<Totals>,
    closed: CancellationToken,
}

/// What one channel has sent.
pub(super) struct Queue {
    state: Mutex<QueueState>,
    filled: Notify,
    totals: Arc<Totals>,
    closed: CancellationToken,
}

#[derive(Default)]
struct QueueState {
    chunks: VecDeque<Bytes>,
    bytes: usize,
    ended: bool,
    refused: bool,
}

struct Totals {
    queued: AtomicUsize,
    sending: AtomicUsize,
    changed: Notify,
}

/// The client sent more than its windows allow.
#[derive(Debug, thiserror::Error)]
#[error("more than {MAX} bytes are queued for programs that do not read")]
pub(super) struct Overrun;

/// Output of ours is on its way for as long as this lives.
pub(super) struct Sending(Arc<Totals>);

impl<Id: Copy + Eq + Hash> Inbound<Id> {
    /// No channels; everything ends when the connection does.
    pub(super) fn new(connection: &CancellationToken) -> Self {
        Self {
            queues: Mutex::default(),
            totals: Arc::new(Totals {
                queued: AtomicUsize::new(0),
                sending: AtomicUsize::new(0),
                changed: Notify::new(),
            }),
            closed: connection.clone(),
        }
    }

    /// The queue of a channel, made where there is none yet.
    pub(super) fn queue(&self, id: Id) -> Arc<Queue> {
        self.queues()
            .entry(id)
            .or_insert_with(|| {
                Arc::new(Queue {
                    state: Mutex::default(),
                    filled: Notify::new(),
                    totals: self.totals.clone(),
                    closed: self.closed.child_token(),
                })
            })
            .clone()
    }

    /// The channel is closed: what is queued is dropped, and whoever waits on it is told.
    pub(super) fn close(&self, id: Id) {
        if let Some(queue) = self.queues().remove(&id) {
            queue.refuse();
            queue.closed.cancel();
        }
    }

    /// The client will send nothing more on the channel.
    pub(super) fn end(&self, id: Id) {
        if let Some(queue) = self.queues().get(&id) {
            queue.state().ended = true;
            queue.filled.notify_one();
        }
    }

    /// Takes what has arrived, and waits as the header of this module says.
    ///
    /// # Errors
    /// [`Overrun`] if the connection must end.
    pub(super) async fn push(&self, id: Id, data: Bytes) -> Result<(), Overrun> {
        let Some(queue) = self.queues().get(&id).cloned() else {
            return Ok(());
        };
        let len = data.len();
        let total = queue.put(data);
        if total > MAX {
            return Err(Overrun);
        }
        if queue.has_room() && total <= HARD {
            return Ok(());
        }
        let arrived = Instant::now();
        let not_before = arrived
            + if len <= TRICKLE as usize {
                TRICKLE_PAUSE
            } else {
                Duration::ZERO
            };
        loop {
            let changed = self.totals.changed.notified();
            let total = self.totals.queued.load(SeqCst);
            let pressed = total > HARD;
            let now = Instant::now();
            if (queue.has_room() && !pressed) || queue.closed.is_cancelled() {
                return Ok(());
            }
            if now >= not_before
                && (self.totals.sending.load(SeqCst) > 0 || (!pressed && now >= arrived + PAUSE))
            {
                return Ok(());
            }
            let look_again = if now < not_before {
                not_before
            } else {
                arrived.max(now) + PAUSE
            };
            tokio::select! {
                () = changed => {}
                () = sleep_until(look_again) => {}
                () = queue.closed.cancelled() => {}
            }
        }
    }

    /// The window that a channel gets next, in bytes.
    pub(super) fn window(&self, id: Id) -> u32 {
        match self.queues().get(&id) {
            Some(queue) if !queue.has_room() => TRICKLE,
            _ => WINDOW,
        }
    }

    fn queues(&self) -> MutexGuard<'_, HashMap<Id, Arc<Queue>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// The next bytes; `None` at their end, or when the channel is closed.
    pub(super) async fn next(&self) -> Option<Bytes> {
        loop {
            {
                let mut state = self.state();
                if let Some(chunk) = state.chunks.pop_front() {
                    state.bytes -= chunk.len();
                    drop(state);
                    self.totals.queued.fetch_sub(chunk.len(), SeqCst);
                    self.totals.changed.notify_one();
                    return Some(chunk);
                }
                if state.ended || state.refused {
                    return None;
                }
            }
            tokio::select! {
                () = self.filled.notified() => {}
                () = self.closed.cancelled() => return None,
            }
        }
    }

    /// Nobody reads any more: what is queued and what still comes is dropped.
    pub(super) fn refuse(&self) {
        let mut state = self.state();
        state.refused = true;
        state.chunks.clear();
        let dropped = std::mem::take(&mut state.bytes);
        drop(state);
        self.totals.queued.fetch_sub(dropped, SeqCst);
        self.totals.changed.notify_one();
        self.filled.notify_one();
    }

    /// Ends when the channel or its connection does.
    pub(super) fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// Says that output wants out, until the returned value is dropped.
    pub(super) fn sending(&self) -> Sending {
        self.totals.sending.fetch_add(1, SeqCst);
        self.totals.changed.notify_one();
        Sending(self.totals.clone())
    }

    fn put(&self, data: Bytes) -> usize {
        let mut state = self.state();
        if state.refused || data.is_empty() {
            return self.totals.queued.load(SeqCst);
        }
        let len = data.len();
        state.bytes += len;
        state.chunks.push_back(data);
        let total = self.totals.queued.fetch_add(len, SeqCst) + len;
        drop(state);
        self.filled.notify_one();
        total
    }

    fn has_room(&self) -> bool {
        self.state().bytes <= SOFT
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.sending.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u32 = 1;
    const B: u32 = 2;

    fn inbound() -> (Inbound<u32>, CancellationToken) {
        let connection = CancellationToken::new();
        (Inbound::new(&connection), connection)
    }

    fn chunk() -> Bytes {
        Bytes::from(vec![7; 32 << 10])
    }

    async fn fill(inbound: &Inbound<u32>, id: u32) {
        while inbound.queue(id).has_room() {
            inbound.push(id, chunk()).await.expect("bounded");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_come_out_in_order_and_then_the_end() {
        let (inbound, _connection) = inbound();
        let queue = inbound.queue(A);
        for text in ["one", "two"] {
            inbound
                .push(A, Bytes::from_static(text.as_bytes()))
                .await
                .expect("room");
        }
        inbound.end(A);
        assert_eq!(queue.next().await.as_deref(), Some(&b"one"[..]));
        assert_eq!(queue.next().await.as_deref(), Some(&b"two"[..]));
        assert_eq!(queue.next().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_channel_slows_reading_and_gets_only_a_trickle() {
        let (inbound, _connection) = inbound();
        inbound.queue(B);
        fill(&inbound, A).await;
        let before = Instant::now();
        inbound.push(A, chunk()).await.expect("bounded");
        assert!(before.elapsed() >= PAUSE);
        assert_eq!(inbound.window(A), TRICKLE);
        assert_eq!(inbound.window(B), WINDOW);
        let before = Instant::now();
        inbound.push(B, chunk()).await.expect("room");
        assert!(before.elapsed().is_zero(), "another channel waits");
    }

    #[tokio::test(start_paused = true)]
    async fn output_that_wants_out_ends_the_wait_but_a_trickle_still_pauses() {
        let (inbound, _connection) = inbound();
        let queue = inbound.queue(A);
        fill(&inbound, A).await;
        let sending = queue.sending();
        let before = Instant::now();
        inbound.push(A, chunk()).await.expect("bounded");
        assert!(before.elapsed().is_zero());
        inbound
            .push(A, Bytes::from_static(b"xy"))
            .await
            .expect("bounded");
        assert!(before.elapsed() >= TRICKLE_PAUSE && before.elapsed() < PAUSE);
        drop(sending);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_ignores_its_windows_is_cut_off_and_bounded() {
        let (inbound, _connection) = inbound();
        let queue = inbound.queue(A);
        let _sending = queue.sending();
        let mut pushed = 0;
        while inbound.push(A, chunk()).await.is_ok() {
            pushed += 32 << 10;
            assert!(pushed <= MAX);
        }
        assert!(pushed > HARD);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_connection_waits_until_something_is_read() {
        let (inbound, _connection) = inbound();
        let inbound = Arc::new(inbound);
        let queue = inbound.queue(A);
        let sending = queue.sending();
        while inbound.totals.queued.load(SeqCst) <= HARD {
            inbound.push(A, chunk()).await.expect("below the maximum");
        }
        drop(sending);
        let pusher = tokio::spawn({
            let inbound = inbound.clone();
            async move { inbound.push(A, chunk()).await }
        });
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(!pusher.is_finished());
        for _ in 0..3 {
            queue.next().await.expect("queued");
        }
        pusher.await.expect("no panic").expect("room again");
    }

    #[tokio::test(start_paused = true)]
    async fn closing_releases_the_bytes_and_everybody_who_waits() {
        let (inbound, connection) = inbound();
        let queue = inbound.queue(A);
        fill(&inbound, A).await;
        inbound.close(A);
        assert_eq!(inbound.totals.queued.load(SeqCst), 0);
        assert_eq!(queue.next().await, None);
        assert!(queue.closed().is_cancelled());

        let other = inbound.queue(B);
        connection.cancel();
        assert_eq!(other.next().await, None);
        inbound
            .push(A, chunk())
            .await
            .expect("unknown channels are ignored");
    }
}
