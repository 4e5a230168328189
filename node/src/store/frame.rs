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
const DOMAIN: &[u8] = b"souk/1/store/row";
/// Room for what is hashed before a body: domain, table and key with their lengths, longer than a head. Tables and keys are this crate's own, the
/// longest key is a hash.
const MAX_PLACE_LEN: usize = 3 + DOMAIN.len() + 24 + 32;

/// Frames what `write` appends to the buffer, for its place. The buffer is the caller's, so that one serves many rows: place and
/// body stand in it in one piece to be hashed, and then the head takes the end of the place.
pub(super) fn frame<'a>(
    buffer: &'a mut Vec<u8>,
    table: &str,
    key: &[u8],
    write: impl FnOnce(&mut Vec<u8>),
) -> &'a [u8] {
    let (place, body_at) = place(table, key);
    buffer.clear();
    buffer.extend_from_slice(&place[..body_at]);
    write(buffer);
    let checksum = half(blake3::hash(buffer));
    let row = &mut buffer[body_at - HEAD_LEN..];
    row[0] = VERSION;
    row[1..HEAD_LEN].copy_from_slice(&checksum);
    row
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
    let (place, len) = place(table, key);
    // Few and large updates: each has a price of its own, which short rows would pay several times.
    let mut hasher = blake3::Hasher::new();
    half(hasher.update(&place[..len]).update(body).finalize())
}

/// What is hashed before a body, and how long it is.
fn place(table: &str, key: &[u8]) -> ([u8; MAX_PLACE_LEN], usize) {
    let mut place = [0; MAX_PLACE_LEN];
    let mut len = 0;
    for part in [DOMAIN, table.as_bytes(), key] {
        place[len] = u8::try_from(part.len()).expect("tables and keys are short");
        place[len + 1..][..part.len()].copy_from_slice(part);
        len += 1 + part.len();
    }
    (place, len)
}

fn half(hash: blake3::Hash) -> [u8; CHECKSUM_LEN] {
    *hash
        .as_bytes()
        .first_chunk()
        .expect("a hash is longer than its half")
}
