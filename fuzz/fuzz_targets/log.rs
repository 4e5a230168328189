//! The usage log: entries and signed notes are written as they were read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use souk_market::log::{Entry, SignedNote};

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
});
