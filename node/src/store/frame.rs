//! Rows as they lie in the database: version, checksum, body.
//!
//! redb checks its pages when it repairs, not at each read, so a bit that flipped on disk can come back as a value. The
//! checksum covers the table and the key as well: a row that turns up in another place is damaged, too.

use redb::{Key, TableDefinition, Value};

use super::{CorruptRow, Damage};

/// Version of the framing and of what is inside.
const VERSION: u8 = 1;
/// Half of a BLAKE3 hash: against accidents, not against whoever can write the file.
const CHECKSUM_LEN: usize = 16;
const HEAD_LEN: usize = 1 + CHECKSUM_LEN;

/// Frames a body for its place.
pub(super) fn frame(table: &str, key: &[u8], body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_LEN + body.len());
    out.push(VERSION);
    out.extend_from_slice(&checksum(table, key, body));
    out.extend_from_slice(body);
    out
}

/// The body of a framed row.
pub(super) fn unframe<'a>(
    table: &'static str,
    key: &[u8],
    framed: &'a [u8],
) -> Result<&'a [u8], CorruptRow> {
    let damaged = |damage| CorruptRow {
        table,
        key: hex::encode(key),
        damage,
    };
    let (head, body) = framed
        .split_at_checked(HEAD_LEN)
        .ok_or_else(|| damaged(Damage::Short))?;
    if head[0] != VERSION {
        return Err(damaged(Damage::Version(head[0])));
    }
    if head[1..] != checksum(table, key, body) {
        return Err(damaged(Damage::Checksum));
    }
    Ok(body)
}

/// Reads a framed row as CBOR.
pub(super) fn decode<'a, T: minicbor::Decode<'a, ()>>(
    table: &'static str,
    key: &[u8],
    framed: &'a [u8],
) -> Result<T, CorruptRow> {
    minicbor::decode(unframe(table, key, framed)?).map_err(|e| CorruptRow {
        table,
        key: hex::encode(key),
        damage: Damage::Body(e.to_string()),
    })
}

/// A table whose values are framed rows.
pub(super) const fn table<K: Key + 'static, V: Value + 'static>(
    name: &'static str,
) -> TableDefinition<'static, K, V> {
    TableDefinition::new(name)
}

fn checksum(table: &str, key: &[u8], body: &[u8]) -> [u8; CHECKSUM_LEN] {
    let mut hasher = blake3::Hasher::new();
    for part in [b"souk/1/store/row", table.as_bytes(), key] {
        hasher.update(&[part.len() as u8]);
        hasher.update(part);
    }
    hasher.update(body);
    let hash = hasher.finalize();
    hash.as_bytes()[..CHECKSUM_LEN]
        .try_into()
        .expect("a hash is longer than its half")
}
