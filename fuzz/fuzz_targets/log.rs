//! The usage log and the journal: entries, notes, checkpoints and rows are written as they were read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use souk_crypto::{LogKey, cbor, keys::Secret as _};
use souk_market::{
    lifecycle::Row,
    log::{Checkpoint, Entry, KeyName, NoteVerifier, SignedNote},
};

/// More than any row has.
const MAX_ROW_BYTES: usize = 1_024;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(entry) = Entry::decode(bytes) {
        let again = Entry::decode(&entry.encode()).expect("what is written decodes");
        assert_eq!(again.encode(), entry.encode());
    }
    if let Ok(note) = str::from_utf8(bytes).map(SignedNote::parse)
        && let Ok(note) = note
    {
        let written = note.to_string();
        let again = SignedNote::parse(&written).expect("what is written parses");
        assert_eq!(again, note);
        assert_eq!(again.to_string(), written);
    }
    if let Ok(row) = cbor::decode::<Row>(bytes, MAX_ROW_BYTES) {
        let written = cbor::encode(&row);
        let again: Row = cbor::decode(&written, MAX_ROW_BYTES).expect("what is written decodes");
        assert_eq!(cbor::encode(&again), written);
    }
    if let Ok(text) = str::from_utf8(bytes) {
        checkpoint(text);
    }
});

/// Any text that a log might sign: where it opens as a checkpoint, signing the checkpoint anew gives the same one.
fn checkpoint(text: &str) {
    let key = LogKey::from_secret_bytes(&[4; 32]);
    let first = text.lines().next().unwrap_or_default();
    let Ok(origin) = KeyName::new(first) else {
        return;
    };
    let Ok(note) = SignedNote::sign(text, &origin, &key) else {
        return;
    };
    let verifier = NoteVerifier::new(origin.clone(), key.public());
    if let Ok(opened) = Checkpoint::open(note.to_string().as_bytes(), &origin, &verifier) {
        let again = opened.sign(&key).to_string();
        let again = Checkpoint::open(again.as_bytes(), &origin, &verifier).expect("just signed");
        assert_eq!((again.size(), again.root()), (opened.size(), opened.root()));
    }
}
