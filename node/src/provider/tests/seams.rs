//! The clock of a test, and relays that answer as it says.

use std::{sync::Mutex, time::Duration};

use async_trait::async_trait;
use souk_crypto::{NodeId, UnixTime};
use souk_market::{
    moment::{ClockWatch, Moment},
    units::RelayToken,
};
use tokio::sync::watch;

use super::super::{Clock, Relays};

pub(super) struct TestClock(pub(super) watch::Sender<Moment>);

#[async_trait]
impl Clock for TestClock {
    fn now(&self) -> UnixTime {
        self.0.borrow().wall
    }

    fn moment(&self) -> Moment {
        *self.0.borrow()
    }

    async fn sleep_until(&self, at: UnixTime) {
        let mut now = self.0.subscribe();
        let mut watch = ClockWatch::new(self.boot(), self.moment());
        let due = now.wait_for(|now| now.wall >= at || watch.observe(*now).is_some());
        if due.await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The network's relays: those that the provider has a card of, and of these the ones that answer, at once.
#[derive(Default)]
pub(super) struct TestRelays {
    pub(super) known: Mutex<Vec<NodeId>>,
    pub(super) silent: Mutex<Vec<NodeId>>,
    /// Who was asked to let a token in, for every call.
    pub(super) asked: Mutex<Vec<Vec<NodeId>>>,
    /// Tokens that are let in now.
    pub(super) admitted: Mutex<Vec<RelayToken>>,
}

#[async_trait]
impl Relays for TestRelays {
    fn knows(&self, relay: &NodeId) -> bool {
        self.known.lock().expect("not poisoned").contains(relay)
    }

    async fn admit(&self, token: &RelayToken, _: Duration, relays: &[NodeId]) -> Vec<NodeId> {
        self.asked
            .lock()
            .expect("not poisoned")
            .push(relays.to_vec());
        self.admitted
            .lock()
            .expect("not poisoned")
            .push(token.clone());
        let silent = self.silent.lock().expect("not poisoned");
        let answers = relays
            .iter()
            .filter(|r| self.knows(r) && !silent.contains(r));
        answers.copied().collect()
    }

    fn dismiss(&self, token: &RelayToken) {
        let mut admitted = self.admitted.lock().expect("not poisoned");
        admitted.retain(|other| other != token);
    }
}
