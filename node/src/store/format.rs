//! Which layout the database has, and how an older one becomes this one.
//!
//! The layout is a number in the table `meta`, from 2 on; a database without it has layout 1. It covers which tables there are
//! and of which types; what is inside a row has a version of its own, and optional fields.
//!
//! Threats: a program that is killed while it changes the layout (it is one transaction), and an older program on a newer
//! database, which would take what it does not know for damage ([`Unfit::TooNew`], and nothing is changed).

use std::collections::HashSet;

use redb::{
    Database, ReadableDatabase, ReadableTable, TableDefinition, TableError, TableHandle as _,
    WriteTransaction,
};

use super::{
    frame::{frame, table, unframe},
    writer::{ALL_TABLES, META, SPENT, epoch_bytes, make_sure, make_tables},
};

/// Name of the row that says the layout.
const FORMAT: &str = "format";
/// Makes one layout the next one.
type Step = fn(&WriteTransaction) -> Result<(), redb::Error>;

/// What each older layout needs, from layout 1 on.
const STEPS: [Step; 1] = [spent_rows_get_checksums];
/// The layout that this program reads and writes.
pub(super) const CURRENT: u64 = STEPS.len() as u64 + 1;

/// Why a database is not used.
#[derive(Debug)]
pub(super) enum Unfit {
    /// A newer program wrote it, in this layout.
    TooNew(u64),
    /// It cannot be read or written.
    Redb(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for Unfit {
    fn from(error: E) -> Self {
        Self::Redb(error.into())
    }
}

/// Brings a database to the current layout, in one transaction.
pub(super) fn take_up(db: &Database) -> Result<(), Unfit> {
    let found = match read(db)? {
        Some(CURRENT) => return Ok(()),
        Some(newer) if newer > CURRENT => return Err(Unfit::TooNew(newer)),
        found => found,
    };
    let mut write = db.begin_write()?;
    make_sure(&mut write);
    if let Some(older) = found {
        tracing::info!(from = older, to = CURRENT, "the store gets a newer layout");
        for step in STEPS.iter().skip(older.saturating_sub(1) as usize) {
            step(&write)?;
        }
    }
    {
        let mut buffer = Vec::new();
        let row = frame(&mut buffer, "meta", FORMAT.as_bytes(), |out| {
            out.extend_from_slice(&CURRENT.to_be_bytes());
        });
        write.open_table(META)?.insert(FORMAT, row)?;
    }
    make_tables(&write)?;
    write.commit()?;
    Ok(())
}

/// The layout of a database; none where it is empty.
fn read(db: &Database) -> Result<Option<u64>, Unfit> {
    let transaction = db.begin_read()?;
    let meta = match transaction.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => {
            let is_empty = transaction.list_tables()?.next().is_none();
            return Ok((!is_empty).then_some(1));
        }
        Err(error) => return Err(error.into()),
    };
    let Some(row) = meta.get(FORMAT)? else {
        return Ok(Some(1));
    };
    let body = unframe("meta", FORMAT.as_bytes(), row.value());
    match body.map(|body| body.try_into().map(u64::from_be_bytes)) {
        Ok(Ok(CURRENT)) => {
            // They were made with this row. One that is gone would be made anew, empty, and nobody would know.
            let there: HashSet<_> = transaction
                .list_tables()?
                .map(|table| table.name().to_owned())
                .collect();
            match ALL_TABLES.iter().find(|name| !there.contains(**name)) {
                None => Ok(Some(CURRENT)),
                Some(gone) => {
                    let said = format!("the table {gone} is gone");
                    Err(Unfit::Redb(redb::Error::Corrupted(said)))
                }
            }
        }
        Ok(Ok(format)) if format > 1 => Ok(Some(format)),
        damaged => {
            // One byte must not hold up every lease. Tables of another layout have other types, which redb refuses.
            let error = damaged.err().map(|row| row.to_string());
            tracing::error!(
                error,
                "the row that says the layout of the store is damaged; it is taken for the newest, and written again"
            );
            Ok(None)
        }
    }
}

/// Layout 1 kept bare epochs, of which a flipped one would have let a SURB be used again.
fn spent_rows_get_checksums(write: &WriteTransaction) -> Result<(), redb::Error> {
    const BARE: TableDefinition<[u8; 32], u64> = table("spent-surbs");
    const ASIDE: TableDefinition<[u8; 32], u64> = table("spent-surbs-1");
    match write.rename_table(BARE, ASIDE) {
        Ok(()) => {}
        Err(TableError::TableDoesNotExist(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    {
        let (bare, mut framed) = (write.open_table(ASIDE)?, write.open_table(SPENT)?);
        let mut buffer = Vec::new();
        for spent in bare.iter()? {
            let (surb, epoch) = spent?;
            let surb = surb.value();
            let row = frame(
                &mut buffer,
                "spent-surbs",
                &surb,
                epoch_bytes(epoch.value()),
            );
            framed.insert(surb, row)?;
        }
    }
    write.delete_table(ASIDE)?;
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use souk_market::units::RequestId;

    use super::{
        super::{
            FILE, Found, LogRecord, Spent, Store, StoreError,
            tests::{ROOM, entry, record},
        },
        *,
    };

    /// A store that a program of layout 1 wrote: three leases, the third of them closed, five entries of the log, 200 spent SURBs,
    /// an acknowledgement and a row of `meta`.
    pub(in super::super) const LAYOUT_1: &[u8] =
        include_bytes!("../../../fixtures/store/layout-1.redb");

    /// Everything that is in [`LAYOUT_1`] is there.
    pub(in super::super) async fn check(store: &Store, found: &Found) {
        let mut leases = [1, 2, 3].map(record);
        leases[2].log_index = Some(4);
        assert_eq!(found.leases, leases);
        assert_eq!(found.requests.len(), 3);
        assert_eq!(found.requests[&RequestId([2; 32])].lease.0, [2; 16]);
        assert!(found.corrupt.is_empty() && found.lost.is_empty());
        let log: Vec<LogRecord> = (0..5).map(entry).collect();
        assert_eq!(store.log_records(0, 9).expect("read"), log);
        let lease = found.leases[0].row.lease();
        assert_eq!(
            store.acknowledgement(lease).expect("read"),
            Some(b"agreed".to_vec())
        );
        assert_eq!(store.meta("totals").expect("read"), Some(vec![7]));
        for n in 1..=200 {
            assert_eq!(
                store
                    .spend_surb([n; 32], n.into(), ROOM)
                    .await
                    .expect("written"),
                Spent::Before
            );
        }
        store.forget_spent(200).await.expect("written");
        assert_eq!(
            store.spend_surb([1; 32], 300, ROOM).await.expect("written"),
            Spent::Now
        );
        assert_eq!(
            store
                .spend_surb([200; 32], 300, ROOM)
                .await
                .expect("written"),
            Spent::Before
        );
    }

    fn database(directory: &Path) -> Database {
        Database::create(directory.join(FILE)).expect("opens")
    }

    fn layout_of(directory: &Path) -> Option<u64> {
        read(&database(directory)).expect("readable")
    }

    #[tokio::test]
    async fn a_store_of_layout_1_is_brought_to_this_one_with_all_that_is_in_it() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join(FILE), LAYOUT_1).expect("written");
        assert_eq!(layout_of(directory.path()), Some(1));
        let (store, found) = Store::open(directory.path()).await.expect("opens");
        check(&store, &found).await;
        drop((store, found));
        assert_eq!(layout_of(directory.path()), Some(CURRENT));
    }

    #[tokio::test]
    async fn a_new_store_says_its_layout_and_a_damaged_word_about_it_holds_nobody_up() {
        let directory = tempfile::tempdir().expect("a directory");
        drop(Store::open(directory.path()).await.expect("opens"));
        assert_eq!(layout_of(directory.path()), Some(CURRENT));
        set_format(directory.path(), b"no frame");
        let (store, _) = Store::open(directory.path()).await.expect("opens");
        drop(store);
        assert_eq!(layout_of(directory.path()), Some(CURRENT));
    }

    fn set_format(directory: &Path, row: &[u8]) {
        let write = database(directory).begin_write().expect("a transaction");
        {
            let mut meta = write.open_table(META).expect("there");
            meta.insert(FORMAT, row).expect("written");
        }
        write.commit().expect("durable");
    }

    #[tokio::test]
    async fn a_newer_store_is_refused_with_what_to_do_and_not_changed() {
        let directory = tempfile::tempdir().expect("a directory");
        drop(Store::open(directory.path()).await.expect("opens"));
        let mut buffer = Vec::new();
        let newer = (CURRENT + 1).to_be_bytes();
        let row = frame(&mut buffer, "meta", FORMAT.as_bytes(), |out| {
            out.extend_from_slice(&newer);
        });
        set_format(directory.path(), row);
        let error = Store::open(directory.path()).await.err().expect("refused");
        assert!(
            matches!(error, StoreError::TooNew { found, .. } if found == CURRENT + 1),
            "{error:?}"
        );
        assert!(
            error.to_string().contains("start a newer program"),
            "{error}"
        );
        assert_eq!(layout_of(directory.path()), Some(CURRENT + 1));
    }
}
