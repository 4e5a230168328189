//! What the agent counts itself. Informational: bills rest on what the driver measures from outside.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::control::Control;

/// How often the meters are looked at; they are sent only when they changed.
const PERIOD: Duration = Duration::from_secs(10);

/// Totals since the agent started.
#[derive(Clone, Default)]
pub(crate) struct Meters(Arc<Counters>);

#[derive(Default)]
struct Counters {
    logins: AtomicU64,
    spawned: AtomicU64,
}

impl Meters {
    /// One more connection has authenticated.
    pub(crate) fn login(&self) {
        self.0.logins.fetch_add(1, Relaxed);
    }

    /// One more process was started for the tenant.
    pub(crate) fn spawned(&self) {
        self.0.spawned.fetch_add(1, Relaxed);
    }

    fn totals(&self) -> (u64, u64) {
        (self.0.logins.load(Relaxed), self.0.spawned.load(Relaxed))
    }
}

/// Sends the meters to the driver for as long as the instance lives.
pub(crate) async fn report(meters: Meters, control: Control) {
    let mut sent = (0, 0);
    loop {
        tokio::time::sleep(PERIOD).await;
        let now = meters.totals();
        if now != sent {
            control.meters(now.0, now.1).await;
            sent = now;
        }
    }
}
