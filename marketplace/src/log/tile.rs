//! Tiles and entry bundles (<https://c2sp.org/tlog-tiles>): names, forms, and which of them a growing log needs.
//!
//! Threat: a path that leads out of the folder of the log. A path is parsed into numbers, which have one text.

use std::{fmt, str::FromStr};

use super::{Hash, MAX_ENTRY_BYTES, NodeSource, node_hash};

/// Levels of the tree in one tile (tlog-tiles fixes 8).
pub const TILE_HEIGHT: u8 = 8;
/// Hashes in a full tile and entries in a full bundle.
pub const TILE_WIDTH: u64 = 1 << TILE_HEIGHT;
/// Highest tile level: 8 × 8 levels cover 2^64 leaves.
const MAX_TILE_LEVEL: u8 = 7;

/// Where a tile or an entry bundle lies, as in <https://c2sp.org/tlog-tiles>.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TilePath {
    /// Level of the tile, or none for an entry bundle.
    level: Option<u8>,
    index: u64,
    /// Hashes or entries in it: 1 to 256; below 256 it is partial.
    width: u16,
}

impl TilePath {
    /// The tile at a level.
    #[must_use]
    pub fn tile(level: u8, index: u64, width: u16) -> Option<Self> {
        (level <= MAX_TILE_LEVEL && (1..=TILE_WIDTH as u16).contains(&width)).then_some(Self {
            level: Some(level),
            index,
            width,
        })
    }

    /// Its level; none for an entry bundle.
    #[must_use]
    pub fn level(&self) -> Option<u8> {
        self.level
    }

    /// Its place in its level, from 0.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.index
    }

    /// How many hashes or entries it holds, 1 to 256.
    #[must_use]
    pub fn width(&self) -> u16 {
        self.width
    }

    /// Whether it will grow no more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        u64::from(self.width) == TILE_WIDTH
    }
}

/// `tile/<level>/<index>[.p/<width>]`, the index in groups of three digits, all but the last with an `x` before them.
impl fmt::Display for TilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.level {
            Some(level) => write!(f, "tile/{level}/")?,
            None => f.write_str("tile/entries/")?,
        }
        let digits = self.index.to_string();
        let padded = format!("{:0>width$}", digits, width = digits.len().div_ceil(3) * 3);
        for (i, digit) in padded.chars().enumerate() {
            if i % 3 == 0 {
                if i > 0 {
                    f.write_str("/")?;
                }
                if i + 3 < padded.len() {
                    f.write_str("x")?;
                }
            }
            write!(f, "{digit}")?;
        }
        if self.is_full() {
            Ok(())
        } else {
            write!(f, ".p/{}", self.width)
        }
    }
}

/// A path that names no tile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the path of a tile or an entry bundle")]
pub struct TilePathError;

impl FromStr for TilePath {
    type Err = TilePathError;

    fn from_str(s: &str) -> Result<Self, TilePathError> {
        // The longest path there is has seven groups of digits and a width.
        if s.len() > 64 {
            return Err(TilePathError);
        }
        let rest = s.strip_prefix("tile/").ok_or(TilePathError)?;
        let (level, rest) = rest.split_once('/').ok_or(TilePathError)?;
        let level = match level {
            "entries" => None,
            digits => Some(digits.parse::<u8>().map_err(|_| TilePathError)?),
        };
        let (index, width) = match rest.split_once(".p/") {
            None => (rest, TILE_WIDTH as u16),
            Some((index, width)) => (index, width.parse().map_err(|_| TilePathError)?),
        };
        let digits: String = index
            .split('/')
            .map(|g| g.trim_start_matches('x'))
            .collect();
        let path = Self {
            level,
            index: digits.parse().map_err(|_| TilePathError)?,
            width,
        };
        // One spelling for each tile: signs, missing `x` and other widths of padding are refused here.
        if level.is_none_or(|l| l <= MAX_TILE_LEVEL)
            && (1..=TILE_WIDTH as u16).contains(&width)
            && path.to_string() == s
        {
            Ok(path)
        } else {
            Err(TilePathError)
        }
    }
}

/// Path of the entry bundle `index`, which holds `width` entries.
#[must_use]
pub fn bundle_path(index: u64, width: u16) -> Option<TilePath> {
    (1..=TILE_WIDTH as u16)
        .contains(&width)
        .then_some(TilePath {
            level: None,
            index,
            width,
        })
}

/// Every tile that the tree of `new_size` has and the tree of `old_size` had not, lower levels first.
///
/// A tile that grew is named with its new width; its narrower forms may be removed once it is full.
pub fn tiles_between(old_size: u64, new_size: u64) -> impl Iterator<Item = TilePath> {
    (0..=MAX_TILE_LEVEL).flat_map(move |level| {
        let shift = u32::from(level) * u32::from(TILE_HEIGHT);
        rows_between(old_size >> shift, new_size >> shift).map(move |(index, width)| TilePath {
            level: Some(level),
            index,
            width,
        })
    })
}

/// Every entry bundle that the tree of `new_size` has and the tree of `old_size` had not.
pub fn bundles_between(old_size: u64, new_size: u64) -> impl Iterator<Item = TilePath> {
    rows_between(old_size, new_size).map(|(index, width)| TilePath {
        level: None,
        index,
        width,
    })
}

/// Rows of 256 that changed while their items grew from `old` to `new`: index and width.
fn rows_between(old: u64, new: u64) -> impl Iterator<Item = (u64, u16)> {
    let end = if new > old {
        new.div_ceil(TILE_WIDTH)
    } else {
        0
    };
    (old / TILE_WIDTH..end).map(move |index| {
        let width = (new - index * TILE_WIDTH).min(TILE_WIDTH);
        (index, width as u16)
    })
}

/// A bundle of entries that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// It ends within an entry, or holds more than it should.
    #[error("entry bundle has {found} entries and {left} bytes over, expected {expected} entries")]
    Width {
        /// Complete entries in it.
        found: usize,
        /// Bytes after them.
        left: usize,
        /// Entries its path promises.
        expected: u16,
    },
    /// An entry is larger than any entry of this log.
    #[error("entry of {0} bytes, the limit is {max}", max = MAX_ENTRY_BYTES)]
    TooLarge(usize),
}

/// An entry bundle: each entry after its length in two bytes, big endian.
///
/// # Errors
/// [`BundleError::TooLarge`] for an entry above [`MAX_ENTRY_BYTES`].
pub fn encode_bundle<'a>(
    entries: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Vec<u8>, BundleError> {
    let mut out = Vec::new();
    for entry in entries {
        if entry.len() > MAX_ENTRY_BYTES {
            return Err(BundleError::TooLarge(entry.len()));
        }
        out.extend_from_slice(&(entry.len() as u16).to_be_bytes());
        out.extend_from_slice(entry);
    }
    Ok(out)
}

/// The entries of a bundle of `width` entries.
///
/// # Errors
/// [`BundleError`] where it holds more or fewer, or one that is too large.
pub fn bundle_entries(bundle: &[u8], width: u16) -> Result<Vec<&[u8]>, BundleError> {
    let mut entries = Vec::with_capacity(usize::from(width));
    let mut rest = bundle;
    while let Some((length, tail)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length));
        if length > MAX_ENTRY_BYTES {
            return Err(BundleError::TooLarge(length));
        }
        let Some((entry, tail)) = tail.split_at_checked(length) else {
            break;
        };
        if entries.len() == usize::from(width) {
            break;
        }
        entries.push(entry);
        rest = tail;
    }
    if rest.is_empty() && entries.len() == usize::from(width) {
        Ok(entries)
    } else {
        Err(BundleError::Width {
            found: entries.len(),
            left: rest.len(),
            expected: width,
        })
    }
}

/// Where tiles come from.
pub trait TileSource {
    /// What goes wrong when one cannot be had.
    type Error;

    /// Bytes of a tile: its hashes, one after the other.
    ///
    /// # Errors
    /// Whatever the source says of a tile that it cannot give.
    fn tile(&self, path: &TilePath) -> Result<Vec<u8>, Self::Error>;
}

/// Why a hash could not be had from tiles.
#[derive(Debug, thiserror::Error)]
pub enum TilesError<E: std::error::Error + 'static> {
    /// The source of the tiles failed.
    #[error("tile {path} cannot be read")]
    Source {
        /// Which tile.
        path: TilePath,
        /// The cause.
        #[source]
        source: E,
    },
    /// A tile has not the length its path promises.
    #[error("tile {path} has {length} bytes")]
    Length {
        /// Which tile.
        path: TilePath,
        /// What it has.
        length: usize,
    },
    /// The hash lies outside of the tree.
    #[error("subtree {index} at level {level} is not complete in a tree of size {size}")]
    OutOfRange {
        /// Level of the subtree.
        level: u8,
        /// Its place in the level.
        index: u64,
        /// Size of the tree.
        size: u64,
    },
}

/// The nodes of a tree of a given size, read from its tiles.
#[derive(Clone, Copy, Debug)]
pub struct TiledNodes<'a, T> {
    tiles: &'a T,
    size: u64,
}

impl<'a, T: TileSource> TiledNodes<'a, T> {
    /// Nodes of the tree of `size` leaves.
    pub fn new(tiles: &'a T, size: u64) -> Self {
        Self { tiles, size }
    }
}

impl<T: TileSource> NodeSource for TiledNodes<'_, T>
where
    T::Error: std::error::Error + 'static,
{
    type Error = TilesError<T::Error>;

    fn node(&self, level: u8, index: u64) -> Result<Hash, Self::Error> {
        let out_of_range = TilesError::OutOfRange {
            level,
            index,
            size: self.size,
        };
        if level >= 64 || index >= self.size >> level {
            return Err(out_of_range);
        }
        let (tile_level, above) = (level / TILE_HEIGHT, level % TILE_HEIGHT);
        // A subtree above the tile's own row is folded from 2^above hashes of the row.
        let first = index << above;
        let row = self.size >> (u32::from(tile_level) * u32::from(TILE_HEIGHT));
        let tile_index = first / TILE_WIDTH;
        let width = (row - tile_index * TILE_WIDTH).min(TILE_WIDTH);
        let path = TilePath {
            level: Some(tile_level),
            index: tile_index,
            width: width as u16,
        };
        let bytes = self
            .tiles
            .tile(&path)
            .map_err(|source| TilesError::Source { path, source })?;
        if bytes.len() as u64 != width * Hash::LEN as u64 {
            return Err(TilesError::Length {
                path,
                length: bytes.len(),
            });
        }
        let start = (first % TILE_WIDTH) as usize;
        let (hashes, _) = bytes.as_chunks::<{ Hash::LEN }>();
        let mut fold: Vec<Hash> = hashes[start..start + (1 << above)]
            .iter()
            .map(|h| Hash(*h))
            .collect();
        while fold.len() > 1 {
            fold = fold
                .chunks_exact(2)
                .map(|pair| node_hash(&pair[0], &pair[1]))
                .collect();
        }
        Ok(fold[0])
    }
}
