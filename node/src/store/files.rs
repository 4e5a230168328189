//! Tiles and bundles as they follow from the entries, and the folder they lie in.

use std::{
    convert::Infallible,
    fs::{self, File},
    io::{self, Write as _},
    path::PathBuf,
};

use souk_market::log::{
    BundleSource, Frontier, Hash, TILE_HEIGHT, TILE_WIDTH, TilePath, TileSource, TiledNodes,
    bundles_between, encode_bundle, leaf_hash, tiles_between,
};

use super::{PublishError, Store};

/// Entries read from the store at once.
pub(super) const CHUNK: u64 = 16 * TILE_WIDTH;
/// Levels of tiles that a tree can have.
const TILE_LEVELS: u8 = 8;

/// The entries from `start` up to, and without, `end`.
///
/// # Errors
/// [`PublishError`], also where the store has fewer.
pub(super) fn entries(store: &Store, start: u64, end: u64) -> Result<Vec<Vec<u8>>, PublishError> {
    let records = store.log_records(start, end)?;
    let stored = start + records.len() as u64;
    if stored < end {
        return Err(PublishError::Rollback {
            stored,
            signed: end,
        });
    }
    Ok(records.into_iter().map(|record| record.entry).collect())
}

/// A tree that grows from the left to the right, with the files that it makes on the way.
#[derive(Debug)]
pub(super) struct Derived {
    frontier: Frontier,
    rows: Rows,
}

impl Derived {
    /// The empty tree.
    pub(super) fn new() -> Self {
        Self {
            frontier: Frontier::new(),
            rows: Rows::new(),
        }
    }

    /// The tree of a frontier, whose tiles are in the directory.
    ///
    /// # Errors
    /// [`PublishError::Tile`] where one that is not full does not lead to the frontier: what grows out of it would take the
    /// damage on.
    pub(super) fn load(directory: &Directory, frontier: Frontier) -> Result<Self, PublishError> {
        let size = frontier.size();
        let rows = Rows::load(directory, size)?;
        // Each hash that is kept is below one of the peaks.
        let found = Frontier::load(&TiledNodes::new(&rows, size), size)
            .map_err(|e| PublishError::Tile(e.to_string()))?;
        if found != frontier {
            return Err(PublishError::Tile(format!(
                "the last ones of {size} entries do not lead to their root"
            )));
        }
        Ok(Self { frontier, rows })
    }

    pub(super) fn size(&self) -> u64 {
        self.frontier.size()
    }

    pub(super) fn into_frontier(self) -> Frontier {
        self.frontier
    }

    /// Grows by a chunk, towards the tree of `size`: reads its entries, and gives away each file that this tree has and that
    /// became complete.
    pub(super) fn step(
        &mut self,
        size: u64,
        read: impl FnOnce(u64, u64) -> Result<Vec<Vec<u8>>, PublishError>,
        mut give: impl FnMut(&TilePath, &[u8]) -> Result<(), PublishError>,
    ) -> Result<(), PublishError> {
        let old = self.size();
        // The first bundle may begin with entries that the tree has already.
        let start = old - old % TILE_WIDTH;
        let end = size.min(start + CHUNK);
        let entries = read(start, end)?;
        for (path, entries) in bundles_between(old, end).zip(entries.chunks(TILE_WIDTH as usize)) {
            let bundle = encode_bundle(entries.iter().map(Vec::as_slice));
            give(
                &path,
                &bundle.map_err(|e| PublishError::Tile(e.to_string()))?,
            )?;
        }
        let Self { frontier, rows } = self;
        for entry in &entries[(old - start) as usize..] {
            frontier.append(leaf_hash(entry), |level, index, hash| {
                rows.add(level, index, hash);
            });
        }
        for path in tiles_between(rows.written, end) {
            // What grows on is of no tree that is signed.
            if path.is_full() || end == size {
                let Ok(tile) = rows.tile(&path);
                give(&path, &tile)?;
            }
        }
        rows.drop_full(end);
        Ok(())
    }
}

/// Hashes of the tiles that are not full, by level of tile.
#[derive(Debug)]
struct Rows {
    /// For each level of tiles: index of the first hash that is kept, and the hashes from there.
    levels: Vec<(u64, Vec<Hash>)>,
    /// Size of the tree whose tiles are on disk.
    written: u64,
}

impl Rows {
    fn new() -> Self {
        Self {
            levels: vec![(0, Vec::new()); TILE_LEVELS.into()],
            written: 0,
        }
    }

    fn load(directory: &Directory, size: u64) -> Result<Self, PublishError> {
        let mut levels = Vec::new();
        for level in 0..TILE_LEVELS {
            let row = size >> (u32::from(level) * u32::from(TILE_HEIGHT));
            let first = row - row % TILE_WIDTH;
            let mut hashes = Vec::new();
            if let Some(path) = TilePath::tile(level, first / TILE_WIDTH, (row - first) as u16) {
                let bytes = directory
                    .tile(&path)
                    .map_err(|e| PublishError::Tile(format!("{path} cannot be read: {e}")))?;
                let (chunks, rest) = bytes.as_chunks::<{ Hash::LEN }>();
                if chunks.len() as u64 != row - first || !rest.is_empty() {
                    return Err(PublishError::Tile(format!(
                        "{path} has {} bytes",
                        bytes.len()
                    )));
                }
                hashes = chunks.iter().map(|hash| Hash(*hash)).collect();
            }
            levels.push((first, hashes));
        }
        Ok(Self {
            levels,
            written: size,
        })
    }

    fn add(&mut self, level: u8, index: u64, hash: Hash) {
        if level.is_multiple_of(TILE_HEIGHT)
            && let Some((first, hashes)) = self.levels.get_mut(usize::from(level / TILE_HEIGHT))
        {
            debug_assert_eq!(*first + hashes.len() as u64, index);
            hashes.push(hash);
        }
    }

    fn drop_full(&mut self, written: u64) {
        self.written = written;
        for (first, hashes) in &mut self.levels {
            let full = hashes.len() - hashes.len() % TILE_WIDTH as usize;
            hashes.drain(..full);
            *first += full as u64;
        }
    }
}

/// Tiles of which all hashes are kept.
impl TileSource for Rows {
    type Error = Infallible;

    fn tile(&self, path: &TilePath) -> Result<Vec<u8>, Infallible> {
        let (first, hashes) = &self.levels[usize::from(path.level().unwrap_or(0))];
        let start = (path.index() * TILE_WIDTH - first) as usize;
        let tile = &hashes[start..start + usize::from(path.width())];
        Ok(tile.iter().flat_map(|hash| hash.0).collect())
    }
}

/// The directory of a published log.
#[derive(Clone, Debug)]
pub(super) struct Directory(pub(super) PathBuf);

impl Directory {
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>, PublishError> {
        let path = self.0.join(name);
        fs::read(&path).map_err(|source| PublishError::File { path, source })
    }

    /// Writes a file so that after a crash it is there whole or not at all.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), PublishError> {
        let path = self.0.join(name);
        let write = || {
            let parent = path.parent().unwrap_or(&self.0);
            fs::create_dir_all(parent)?;
            let mut draft = path.clone().into_os_string();
            draft.push("~");
            let mut file = File::create(&draft)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            // The names have to last, too: this directory's, and its own in the ones above.
            for directory in parent.ancestors().take_while(|d| d.starts_with(&self.0)) {
                File::open(directory)?.sync_all()?;
            }
            Ok(())
        };
        write().map_err(|source| PublishError::File { path, source })
    }
}

impl TileSource for Directory {
    type Error = io::Error;

    fn tile(&self, path: &TilePath) -> Result<Vec<u8>, io::Error> {
        fs::read(self.0.join(path.to_string()))
    }
}

impl BundleSource for Directory {
    type Error = io::Error;

    fn bundle(&self, path: &TilePath) -> Result<Vec<u8>, io::Error> {
        fs::read(self.0.join(path.to_string()))
    }
}
