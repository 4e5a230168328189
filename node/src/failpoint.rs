//! Points at which a test may end the node, and bugs that it may plant; both in test builds only.
//!
//! ```text
//!   failpoint!(DrainRowWritten)
//!      │ in a process     counted, written to SOUK_FAILPOINT_HITS; the nth of SOUK_FAILPOINT=NAME:n is a SIGKILL
//!      └ in a simulation  told to the simulator of this thread, which may unwind
//! ```
//!
//! Without the feature `failpoints` the macro is empty and nothing of this module is compiled. A release build with the
//! feature does not compile (`lib.rs`). The crate `fail` is not used: its names are free texts, and it neither kills a
//! process as the kernel does nor writes down what was reached, which is how an unreached point is found.
//!
//! Threat: a way to end a node from outside that stays in what is shipped.

/// A step of a lease that a test may end the node at; nothing in other builds.
#[cfg(feature = "failpoints")]
macro_rules! failpoint {
    ($point:ident) => {
        $crate::failpoint::hit($crate::failpoint::Failpoint::$point)
    };
}
#[cfg(not(feature = "failpoints"))]
macro_rules! failpoint {
    ($point:ident) => {};
}
pub(crate) use failpoint;

/// Whether a bug is planted; `false` at compile time in other builds.
#[cfg(feature = "planted-bugs")]
macro_rules! planted {
    ($bug:ident) => {
        $crate::failpoint::is_planted($crate::failpoint::PlantedBug::$bug)
    };
}
#[cfg(not(feature = "planted-bugs"))]
macro_rules! planted {
    ($bug:ident) => {
        false
    };
}
pub(crate) use planted;

#[cfg(feature = "planted-bugs")]
pub use self::bugs::{BUG_VARIABLE, PlantedBug, is_planted, plant};
#[cfg(feature = "failpoints")]
pub use self::points::{
    Failpoint, HITS_VARIABLE, KILL_VARIABLE, Watcher, hit, is_simulated, watch,
};

#[cfg(feature = "failpoints")]
mod points {
    use std::{
        cell::RefCell,
        env,
        fs::{File, OpenOptions},
        io::Write as _,
        rc::Rc,
        sync::{
            OnceLock,
            atomic::{AtomicU32, Ordering},
        },
    };

    /// Names the point to die at: `NAME:n`, at the nth time, from 1.
    pub const KILL_VARIABLE: &str = "SOUK_FAILPOINT";
    /// Names the file that every hit is appended to, one name a line.
    pub const HITS_VARIABLE: &str = "SOUK_FAILPOINT_HITS";

    macro_rules! points {
        ($($(#[doc = $doc:literal])+ $point:ident = $name:literal, $in_processes:literal;)+) => {
            /// A step of a lease, in the order of its life.
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
            pub enum Failpoint {
                $($(#[doc = $doc])+ $point,)+
            }

            impl Failpoint {
                /// All of them.
                pub const ALL: &[Self] = &[$(Self::$point),+];

                /// Its name outside of this program.
                #[must_use]
                pub const fn name(self) -> &'static str {
                    match self { $(Self::$point => $name),+ }
                }

                /// Whether real processes reach it in ordinary leases; the others need faults that only a simulation makes.
                #[must_use]
                pub const fn is_reached_by_processes(self) -> bool {
                    match self { $(Self::$point => $in_processes),+ }
                }

                /// The point of that name.
                #[must_use]
                pub fn named(name: &str) -> Option<Self> {
                    Self::ALL.iter().copied().find(|point| point.name() == name)
                }
            }
        };
    }

    points! {
        /// The store is open, and nothing of it has been taken up.
        StoreOpened = "store-opened", true;
        /// Every lease of the journal has its task again.
        Recovered = "recovered", true;
        /// The router has accepted an envelope; there is no row.
        EnvelopeAccepted = "envelope-accepted", true;
        /// About to write the first row.
        BeforeAcceptRow = "before-accept-row", true;
        /// The first row is durable.
        AcceptRowWritten = "accept-row-written", true;
        /// About to write the intent.
        BeforeIntentRow = "before-intent-row", true;
        /// The intent is durable; no backend was called.
        IntentRowWritten = "intent-row-written", true;
        /// About to call the backend for an instance.
        BeforeProvision = "before-provision", true;
        /// The backend has answered; nobody has heard it.
        AfterProvision = "after-provision", true;
        /// The instance has greeted; about to write it down.
        BeforeInstanceRow = "before-instance-row", true;
        /// The instance is in the journal.
        InstanceRowWritten = "instance-row-written", true;
        /// The SURB of a receipt is journalled as spent.
        ReceiptSurbSpent = "receipt-surb-spent", true;
        /// A receipt has left.
        ReceiptSent = "receipt-sent", true;
        /// About to write a counter or a reading.
        BeforeUpdateRow = "before-update-row", true;
        /// A counter or a reading is durable.
        UpdateRowWritten = "update-row-written", true;
        /// About to write that the lease drains.
        BeforeDrainRow = "before-drain-row", true;
        /// That the lease drains is durable.
        DrainRowWritten = "drain-row-written", true;
        /// About to call the backend to remove the instance.
        BeforeTerminate = "before-terminate", true;
        /// The backend has answered; nobody has heard it.
        AfterTerminate = "after-terminate", true;
        /// About to close the lease and append its entry.
        BeforeClose = "before-close", true;
        /// The closed row and the entry are durable.
        Closed = "closed", true;
        /// A transaction is put together and not committed.
        BeforeCommit = "before-commit", true;
        /// A transaction is durable; who asked for it has not heard so.
        Committed = "committed", true;
        /// About to write tiles.
        BeforeTiles = "before-tiles", true;
        /// A bundle is written, its tiles are not.
        BundleWritten = "bundle-written", true;
        /// All tiles are durable; nothing is signed.
        TilesWritten = "tiles-written", true;
        /// The signed checkpoint is in the store, its file is not.
        CheckpointRowWritten = "checkpoint-row-written", true;
        /// The file of the checkpoint is there.
        CheckpointPublished = "checkpoint-published", true;
        /// The SURB of a statement is journalled as spent.
        StatementSurbSpent = "statement-surb-spent", true;
        /// A statement has left.
        StatementSent = "statement-sent", true;
        /// The SURB of another reply is journalled as spent.
        ReplySurbSpent = "reply-surb-spent", false;
        /// Another reply has left.
        ReplySent = "reply-sent", false;
        /// About to keep the holder's agreement.
        BeforeAcknowledgement = "before-acknowledgement", true;
        /// The holder's agreement is durable.
        Acknowledged = "acknowledged", true;
        /// An instance of no open lease was found; about to remove it.
        BeforeReap = "before-reap", false;
        /// It is removed.
        AfterReap = "after-reap", false;
        /// About to forget a closed lease.
        BeforeForget = "before-forget", false;
        /// A closed lease is forgotten.
        Forgotten = "forgotten", false;
    }

    /// Who is told of hits in this thread, in place of the process; it may unwind.
    pub type Watcher = Rc<dyn Fn(Failpoint)>;

    thread_local! {
        static WATCHER: RefCell<Option<Watcher>> = const { RefCell::new(None) };
    }

    /// Tells `watcher` of every hit in this thread from now on, or nobody.
    pub fn watch(watcher: Option<Watcher>) {
        WATCHER.replace(watcher);
    }

    /// Whether this thread belongs to a simulation: nothing may be left to other threads then.
    #[must_use]
    pub fn is_simulated() -> bool {
        WATCHER.with_borrow(Option::is_some)
    }

    /// Takes note of a hit, and ends the process where that was asked for.
    pub fn hit(point: Failpoint) {
        match WATCHER.with_borrow(Clone::clone) {
            Some(watcher) => watcher(point),
            None => plan().hit(point),
        }
    }

    /// What the environment asks of this process.
    struct Plan {
        hits: Option<File>,
        kill: Option<(Failpoint, u32)>,
        reached: AtomicU32,
    }

    fn plan() -> &'static Plan {
        static PLAN: OnceLock<Plan> = OnceLock::new();
        PLAN.get_or_init(|| {
            #[cfg(feature = "planted-bugs")]
            super::bugs::of_process();
            let hits = env::var_os(HITS_VARIABLE).map(|path| {
                let opened = OpenOptions::new().create(true).append(true).open(&path);
                opened.unwrap_or_else(|error| refuse(&format!("{}: {error}", path.display())))
            });
            let kill = env::var(KILL_VARIABLE).ok().map(|text| {
                parse(&text).unwrap_or_else(|| {
                    refuse(&format!("{KILL_VARIABLE}={text}: no such failpoint"))
                })
            });
            Plan {
                hits,
                kill,
                reached: AtomicU32::new(0),
            }
        })
    }

    /// `NAME:n`.
    fn parse(text: &str) -> Option<(Failpoint, u32)> {
        let (name, nth) = text.split_once(':')?;
        Some((
            Failpoint::named(name)?,
            nth.parse().ok().filter(|nth| *nth > 0)?,
        ))
    }

    /// A test that asks for what there is not must not pass by never dying.
    pub(super) fn refuse(why: &str) -> ! {
        tracing::error!("{why}");
        std::process::exit(64);
    }

    impl Plan {
        fn hit(&self, point: Failpoint) {
            if let Some(mut file) = self.hits.as_ref() {
                // One write to a file that only grows: lines of several threads do not mix.
                let line = format!("{}\n", point.name());
                if let Err(error) = file.write_all(line.as_bytes()) {
                    refuse(&format!("a hit was not recorded: {error}"));
                }
            }
            if let Some((wanted, nth)) = self.kill
                && wanted == point
                && self.reached.fetch_add(1, Ordering::SeqCst) + 1 == nth
            {
                die();
            }
        }
    }

    /// Ends this process as the kernel does: nothing runs after it.
    fn die() -> ! {
        use rustix::process::{Signal, getpid, kill_process};
        // It cannot fail for oneself; were it to, the abort below has no destructors either.
        let _ = kill_process(getpid(), Signal::KILL);
        std::process::abort()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn every_point_has_a_name_of_its_own() {
            for point in Failpoint::ALL {
                assert_eq!(Failpoint::named(point.name()), Some(*point));
            }
            assert_eq!(parse("closed:2"), Some((Failpoint::Closed, 2)));
            for wrong in ["closed", "closed:0", "nowhere:1", "closed:x"] {
                assert_eq!(parse(wrong), None, "{wrong}");
            }
        }

        /// What the next test has another process do.
        #[test]
        fn a_point_is_passed() {
            hit(Failpoint::StoreOpened);
        }

        #[test]
        fn a_process_that_is_asked_for_what_there_is_not_ends() {
            let mut asks = vec![
                (KILL_VARIABLE, "closed:1", 0),
                (KILL_VARIABLE, "closed", 64),
            ];
            #[cfg(feature = "planted-bugs")]
            {
                use super::super::BUG_VARIABLE;
                asks.push((BUG_VARIABLE, "double-append", 0));
                asks.push((BUG_VARIABLE, "double-apend", 64));
            }
            for (variable, value, status) in asks {
                let ended = std::process::Command::new(env::current_exe().expect("Linux says"))
                    .args(["--exact", "failpoint::points::tests::a_point_is_passed"])
                    .env(variable, value)
                    .output()
                    .expect("it starts");
                assert_eq!(ended.status.code(), Some(status), "{variable}={value}");
            }
        }
    }
}

#[cfg(feature = "planted-bugs")]
mod bugs {
    use std::{cell::Cell, env, sync::OnceLock};

    /// Names the bug that a process has.
    pub const BUG_VARIABLE: &str = "SOUK_PLANTED_BUG";

    /// A bug that the proof must find, each the opposite of one promise.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum PlantedBug {
        /// The backend is asked for an instance before any row of its lease is written.
        ActBeforeIntent,
        /// Closing and log entry are two transactions, so that a crash between them appends twice.
        DoubleAppend,
        /// That a lease drains is not written.
        LostDraining,
        /// The receipt leaves before the instance is in the journal.
        ReceiptBeforeJournal,
        /// Instances that nobody owns are left alone.
        ForgetsReaping,
    }

    impl PlantedBug {
        /// All of them.
        pub const ALL: &[Self] = &[
            Self::ActBeforeIntent,
            Self::DoubleAppend,
            Self::LostDraining,
            Self::ReceiptBeforeJournal,
            Self::ForgetsReaping,
        ];

        /// Its name outside of this program.
        #[must_use]
        pub const fn name(self) -> &'static str {
            match self {
                Self::ActBeforeIntent => "act-before-intent",
                Self::DoubleAppend => "double-append",
                Self::LostDraining => "lost-draining",
                Self::ReceiptBeforeJournal => "receipt-before-journal",
                Self::ForgetsReaping => "forgets-reaping",
            }
        }

        /// The bug of that name.
        #[must_use]
        pub fn named(name: &str) -> Option<Self> {
            Self::ALL.iter().copied().find(|bug| bug.name() == name)
        }
    }

    thread_local! {
        static PLANTED: Cell<Option<PlantedBug>> = const { Cell::new(None) };
    }

    /// Plants a bug in what this thread runs, or takes it out.
    pub fn plant(bug: Option<PlantedBug>) {
        PLANTED.set(bug);
    }

    /// Whether a bug is planted, in this thread or by the environment of the process.
    #[must_use]
    pub fn is_planted(bug: PlantedBug) -> bool {
        PLANTED.get() == Some(bug) || of_process() == Some(bug)
    }

    /// The bug that the environment asks of this process; the process ends where there is no such bug.
    pub(super) fn of_process() -> Option<PlantedBug> {
        static OF_PROCESS: OnceLock<Option<PlantedBug>> = OnceLock::new();
        *OF_PROCESS.get_or_init(|| {
            let name = env::var(BUG_VARIABLE).ok()?;
            let bug = PlantedBug::named(&name);
            if bug.is_none() {
                super::points::refuse(&format!("{BUG_VARIABLE}={name}: no such bug"));
            }
            bug
        })
    }
}
