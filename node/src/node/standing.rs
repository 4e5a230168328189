//! How this node stands to new leases, written before it is acted on.
//!
//! ```text
//!  operator ─► Desk ─► file ─► provider (takes none, ends the rest), card (nothing on offer), at last the retirement
//! ```
//!
//! Threat: a node that is killed in between, and takes leases again that its operator does not want. The file comes first; one
//! that is damaged reads as *draining*, which gives nothing away and ends nothing.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use souk_crypto::{NetworkId, NodeId, SignError, Signed, UnixTime};
use souk_market::{
    retirement::{RetirementError, Succession, VerifiedRetirement, agree_to_succeed},
    standing::{Due, Leaving, Standing, StandingError},
};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::keys::Keys;
use crate::{
    durable,
    provider::{Clock, Intake, Provider},
};

/// How often it is looked, while the node leaves, whether a deadline has come or the last lease has ended.
const LOOK: Duration = Duration::from_secs(1);

/// Half of a BLAKE3 hash over what follows it: against accidents.
const CHECKSUM_LEN: usize = 16;
const DOMAIN: &str = "souk/1/node/standing";

/// Why the file could not be read at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
pub struct StandingFileError {
    /// The file.
    path: PathBuf,
    /// The cause.
    #[source]
    source: io::Error,
}

/// Why the standing was not changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChangeError {
    /// It makes no sense now.
    #[error(transparent)]
    Standing(#[from] StandingError),
    /// What the heir signed does not fit.
    #[error("the agreement of the successor cannot be used")]
    Agreement(#[source] RetirementError),
    /// It names another heir.
    #[error("the agreement is signed by another node than the successor that was named")]
    OtherSuccessor,
    /// It could not be signed.
    #[error("cannot agree to succeed")]
    Sign(#[source] SignError),
    /// It could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The one place where the standing of a node is changed.
pub(super) struct Desk {
    file: PathBuf,
    network: NetworkId,
    keys: Arc<Keys>,
    standing: watch::Sender<Standing>,
    /// One change at a time, from the look at the old standing to the new one on the disk.
    turn: Mutex<()>,
    clock: Arc<dyn Clock>,
}

impl Desk {
    /// Reads how the node stood when it was last told.
    pub(super) fn open(
        file: PathBuf,
        network: NetworkId,
        keys: Arc<Keys>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StandingFileError> {
        let standing = match fs::read(&file) {
            Ok(bytes) => unframe(&bytes).unwrap_or_else(|| {
                tracing::error!(file = %file.display(), "the file is damaged: the node takes no leases until it is told to (`souk node resume`)");
                Standing::Draining(Leaving {
                    since: clock.now(),
                    deadline: None,
                    clock: None,
                    last_closed: None,
                })
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Standing::Open,
            Err(source) => return Err(StandingFileError { path: file, source }),
        };
        Ok(Self {
            file,
            network,
            keys,
            standing: watch::Sender::new(standing),
            turn: Mutex::default(),
            clock,
        })
    }

    /// The standing, and those to come.
    pub(super) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Takes no new leases; ends the open ones at the deadline, if there is one.
    pub(super) async fn drain(&self, deadline: Option<UnixTime>) -> Result<(), ChangeError> {
        self.change(|standing, now| Ok(standing.drain(now, deadline)?))
            .await
    }

    /// Takes leases again.
    pub(super) async fn resume(&self) -> Result<(), ChangeError> {
        self.change(|standing, _| Ok(standing.resume()?)).await
    }

    /// Drains, and ends the node for ever once no lease is open. `successor` is the heir and what it signed.
    pub(super) async fn retire(
        &self,
        deadline: Option<UnixTime>,
        successor: Option<(NodeId, Signed<Succession>)>,
    ) -> Result<(), ChangeError> {
        if let Some((heir, agreement)) = &successor {
            // Told now, and not when the last lease has ended.
            let trial = self.retirement(Some(agreement.clone()), self.clock.now());
            if trial.map_err(ChangeError::Agreement)?.successor() != Some(*heir) {
                return Err(ChangeError::OtherSuccessor);
            }
        }
        let agreement = successor.map(|(_, agreement)| agreement);
        self.change(|standing, now| Ok(standing.retire(now, deadline, agreement.clone())?))
            .await
    }

    /// Agrees to take over from another node that retires.
    pub(super) fn agree(&self, old: NodeId) -> Result<Signed<Succession>, ChangeError> {
        agree_to_succeed(old, &self.keys.node, self.clock.now(), &self.network)
            .map_err(ChangeError::Sign)
    }

    /// Does what the standing asks for, until `stop` is cancelled. `sells` says whether there is or will be a provider; until it
    /// works, nobody knows what is open.
    pub(super) async fn run(
        self: Arc<Self>,
        mut provider: watch::Receiver<Option<Provider>>,
        sells: bool,
        stop: CancellationToken,
    ) {
        let mut standing = self.standing();
        loop {
            let written = standing.borrow_and_update().clone();
            let now_stands = written.settled(self.clock.boot(), self.clock.moment());
            if now_stands != written
                && let Err(error) = self.change(|standing, _| Ok(standing.clone())).await
            {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "a deadline was not moved with the clock"
                );
            }
            let works = provider.borrow().clone();
            if let Some(provider) = &works {
                provider.set_intake(intake(&now_stands));
            }
            if works.is_some() || !sells {
                self.act(&now_stands, works.as_ref()).await;
            }
            let look = async {
                match now_stands.leaving() {
                    Some(_) => tokio::time::sleep(LOOK).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = look => {}
                Ok(()) = standing.changed() => {}
                Ok(()) = provider.changed() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn act(&self, standing: &Standing, provider: Option<&Provider>) {
        // In this order: a lease that closes in between is seen twice rather than never.
        let leases = provider.map(Provider::leases).unwrap_or_default();
        let closed = provider.and_then(Provider::last_closed);
        let done = match standing.poll(self.clock.now(), leases.len(), closed) {
            None => return,
            Some(Due::EndLeases) => {
                for lease in leases {
                    if let Some(provider) = provider {
                        // One that is ending already is not ended twice.
                        provider.withdraw(lease.lease).await;
                    }
                }
                return;
            }
            Some(Due::Write(next)) => self.change_from(standing, next).await,
            Some(Due::Retire(succession)) => match self.retirement(succession, self.clock.now()) {
                Ok(tombstone) => {
                    let next = Standing::Retired(tombstone.as_bytes().to_vec());
                    self.change_from(standing, next).await
                }
                Err(error) => Err(ChangeError::Agreement(error)),
            },
        };
        if let Err(error) = done {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the node could not go on to leave; it is tried again"
            );
        }
    }

    /// Goes on from a standing, unless the operator has changed it since.
    async fn change_from(&self, from: &Standing, next: Standing) -> Result<(), ChangeError> {
        self.change(|standing, _| {
            Ok(if standing == from {
                next.clone()
            } else {
                standing.clone()
            })
        })
        .await
    }

    async fn change(
        &self,
        change: impl FnOnce(&Standing, UnixTime) -> Result<Standing, ChangeError>,
    ) -> Result<(), ChangeError> {
        let _turn = self.turn.lock().await;
        let (boot, now) = (self.clock.boot(), self.clock.moment());
        let settled = self.standing.borrow().settled(boot, now);
        let next = change(&settled, now.wall)?.settled(boot, now);
        write(&self.file, &next).map_err(|source| ChangeError::Write {
            path: self.file.clone(),
            source,
        })?;
        let before = self.standing.borrow().clone();
        if next != before {
            if next.as_str() != before.as_str() {
                tracing::info!(
                    standing = next.as_str(),
                    "the node changes how it stands to new leases"
                );
            }
            self.standing.send_replace(next);
        }
        Ok(())
    }

    fn retirement(
        &self,
        succession: Option<Signed<Succession>>,
        at: UnixTime,
    ) -> Result<VerifiedRetirement, RetirementError> {
        VerifiedRetirement::sign(&self.keys.node, at, succession, &self.network)
    }
}

/// What the provider does with new leases.
pub(super) fn intake(standing: &Standing) -> Intake {
    let ends_by = standing.deadline();
    match standing {
        Standing::Open => Intake::Open,
        Standing::Draining(_) => Intake::Draining { ends_by },
        Standing::Retiring(..) | Standing::Retired(_) => Intake::Retiring { ends_by },
    }
}

fn write(file: &Path, standing: &Standing) -> io::Result<()> {
    let body = minicbor::to_vec(standing).expect("a Vec takes all bytes");
    let mut bytes = checksum(&body).to_vec();
    bytes.extend(body);
    durable::replace(file, &bytes)
}

fn unframe(bytes: &[u8]) -> Option<Standing> {
    let (sum, body) = bytes.split_at_checked(CHECKSUM_LEN)?;
    (sum == checksum(body)).then(|| minicbor::decode(body).ok())?
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_LEN] {
    let hash = blake3::Hasher::new_derive_key(DOMAIN)
        .update(body)
        .finalize();
    *hash
        .as_bytes()
        .first_chunk()
        .expect("a hash is longer than its half")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use async_trait::async_trait;
    use souk_crypto::NetworkParams;
    use souk_market::moment::{ClockStep, Moment, SteadyTime};

    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn network() -> NetworkId {
        let params = NetworkParams::new(50, 10_000, 3_600, true).expect("in bounds");
        NetworkId::new("test", &params).expect("a name")
    }

    fn desk(folder: &Path) -> Desk {
        let keys = Arc::new(Keys::open(folder, NOW).expect("keys"));
        desk_by(folder, keys, Arc::default())
    }

    fn desk_by(folder: &Path, keys: Arc<Keys>, clock: Arc<SetClock>) -> Desk {
        Desk::open(folder.join("standing"), network(), keys, clock).expect("opens")
    }

    /// A clock that stands still, and that can be set.
    #[derive(Default)]
    struct SetClock(AtomicI64);

    #[async_trait]
    impl Clock for SetClock {
        fn now(&self) -> UnixTime {
            ClockStep(self.0.load(Ordering::SeqCst)).shift(NOW)
        }

        fn moment(&self) -> Moment {
            Moment {
                wall: self.now(),
                steady: SteadyTime(Duration::from_secs(5_000)),
            }
        }

        async fn sleep_until(&self, _: UnixTime) {
            std::future::pending::<()>().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_was_set_before_a_drain_moves_nothing_and_one_set_after_it_does() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let keys = Arc::new(Keys::open(folder.path(), NOW).expect("keys"));
        let clock = Arc::new(SetClock::default());
        let set = |by: i64| clock.0.store(by, Ordering::SeqCst);
        let desk = Arc::new(desk_by(folder.path(), Arc::clone(&keys), clock.clone()));
        let stop = CancellationToken::new();
        let running =
            tokio::spawn(Arc::clone(&desk).run(watch::channel(None).1, false, stop.clone()));
        tokio::time::sleep(LOOK * 3).await;
        set(-7_200);
        tokio::time::sleep(LOOK * 3).await;
        let given = NOW.minus_s(3_600);
        desk.drain(Some(given)).await.expect("drains");
        tokio::time::sleep(LOOK * 3).await;
        assert_eq!(desk.standing().borrow().deadline(), Some(given));
        set(-10_800);
        tokio::time::sleep(LOOK * 3).await;
        let moved = given.minus_s(3_600);
        assert_eq!(desk.standing().borrow().deadline(), Some(moved));
        stop.cancel();
        running.await.expect("no panic");
        // Nobody looked when it was set again.
        set(0);
        let again = Arc::new(desk_by(folder.path(), keys, clock.clone()));
        let stop = CancellationToken::new();
        let running =
            tokio::spawn(Arc::clone(&again).run(watch::channel(None).1, false, stop.clone()));
        tokio::time::sleep(LOOK * 3).await;
        let back = NOW.plus_s(3_600);
        assert_eq!(again.standing().borrow().deadline(), Some(back));
        stop.cancel();
        running.await.expect("no panic");
    }

    #[tokio::test]
    async fn a_drain_survives_the_process_and_a_resume_too() {
        let folder = tempfile::tempdir().expect("temporary folder");
        desk(folder.path())
            .drain(Some(NOW.plus_s(60)))
            .await
            .expect("drains");
        let again = desk(folder.path());
        assert_eq!(again.standing().borrow().deadline(), Some(NOW.plus_s(60)));
        again.resume().await.expect("resumes");
        assert!(desk(folder.path()).standing().borrow().takes_leases());
    }

    #[tokio::test]
    async fn a_damaged_file_takes_no_leases_and_ends_none() {
        let folder = tempfile::tempdir().expect("temporary folder");
        desk(folder.path()).drain(Some(NOW)).await.expect("drains");
        let file = folder.path().join("standing");
        let whole = fs::read(&file).expect("there");
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&file, &bytes).expect("written");
            let found = desk(folder.path()).standing().borrow().clone();
            assert!(!found.takes_leases() && found.deadline().is_none());
        }
        fs::write(&file, b"").expect("written");
        assert!(!desk(folder.path()).standing().borrow().takes_leases());
    }

    #[tokio::test]
    async fn a_node_without_leases_retires_at_once_with_the_heir_that_agreed() {
        let (old, new) = (
            tempfile::tempdir().expect("one"),
            tempfile::tempdir().expect("two"),
        );
        let keys = Arc::new(Keys::open(old.path(), NOW).expect("keys"));
        let clock = Arc::new(SetClock::default());
        let (old, heir) = (desk_by(old.path(), keys, clock.clone()), desk(new.path()));
        let agreement = heir.agree(old.keys.node.public()).expect("agrees");
        let heir_id = heir.keys.node.public();
        let other = old
            .retire(None, Some((old.keys.node.public(), agreement.clone())))
            .await;
        assert!(matches!(other, Err(ChangeError::OtherSuccessor)));
        old.retire(None, Some((heir_id, agreement)))
            .await
            .expect("retires");
        clock.0.store(2, Ordering::SeqCst);
        let old = Arc::new(old);
        let stop = CancellationToken::new();
        let running =
            tokio::spawn(Arc::clone(&old).run(watch::channel(None).1, false, stop.clone()));
        let mut standing = old.standing();
        let retired = standing
            .wait_for(|now| matches!(now, Standing::Retired(_)))
            .await;
        let Standing::Retired(bytes) = retired.expect("open").clone() else {
            unreachable!("it was waited for");
        };
        let tombstone = VerifiedRetirement::open(&bytes, &network()).expect("signed");
        assert_eq!(tombstone.successor(), Some(heir_id));
        stop.cancel();
        running.await.expect("no panic");
    }
}
