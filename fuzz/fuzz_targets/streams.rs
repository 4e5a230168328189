//! The stream protocols of a node: what decodes encodes, and decodes again to the same.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use minicbor::{Decode, Encode};
use souk_session::{Frame, Hello, Session, WINDOW, Welcome};
use souk_wire::{cards, evidence, log, mailbox, relay};

fuzz_target!(|bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    match which % 16 {
        0 => message::<cards::Request>(bytes, cards::REQUEST_CAP),
        1 => message::<cards::Head>(bytes, cards::HEAD_CAP),
        2 => page(bytes),
        3 => message::<mailbox::Request>(bytes, mailbox::REQUEST_CAP),
        4 => message::<mailbox::Answer>(bytes, mailbox::ANSWER_CAP),
        5 => batch(bytes),
        6 => message::<relay::Registration>(bytes, relay::REQUEST_CAP),
        7 => message::<relay::Connect>(bytes, relay::REQUEST_CAP),
        8 => message::<relay::Splice>(bytes, relay::REQUEST_CAP),
        9 => message::<relay::Answer>(bytes, relay::ANSWER_CAP),
        10 => path(bytes),
        11 => message::<relay::Spliced>(bytes, bytes.len()),
        12 => message::<evidence::Head>(bytes, evidence::HEAD_CAP),
        13 => asked(bytes),
        14 => session(bytes),
        _ => answer(bytes),
    }
});

fn message<T>(bytes: &[u8], cap: usize)
where
    T: for<'b> Decode<'b, ()> + Encode<()> + PartialEq + Debug,
{
    let Ok(message) = souk_wire::decode::<T>(bytes) else {
        return;
    };
    let written = souk_wire::encode(&message);
    assert!(written.len() <= cap, "{} bytes of {message:?}", written.len());
    let again: T = souk_wire::decode(&written).expect("what is written decodes");
    assert_eq!(again, message);
}

/// Both ends of a session over hostile frames: nothing panics, and neither keeps more than its window.
fn session(bytes: &[u8]) {
    if let Some(hello) = bytes.first_chunk() {
        if let Ok(read) = Hello::decode(hello) {
            assert_eq!(read.encode(), *hello);
        }
    }
    if let Some(welcome) = bytes.first_chunk() {
        if let Ok(read) = Welcome::decode(welcome) {
            assert_eq!(read.encode(), *welcome);
        }
    }
    let mut session = Session::default();
    session.handle_bytes(&[7; 3_000]);
    let mut arrived = bytes.into();
    while let Ok(Some(frame)) = Frame::take(&mut arrived) {
        if session.handle_frame(&frame).is_err() {
            break;
        }
        let _ = session.next_frame();
        let part = session.deliverable().len();
        assert!(part <= WINDOW);
        session.handle_delivered(part / 2);
        if session.deliver_end() {
            session.handle_end();
        }
    }
}

fn page(bytes: &[u8]) {
    let mut objects = Vec::new();
    let Ok(added) = cards::decode_page(bytes, usize::MAX, &mut objects) else {
        return;
    };
    assert!(objects.len() <= cards::MAX_PAGE_OBJECTS && added <= bytes.len());
    let mut again = Vec::new();
    for page in cards::pages(&objects) {
        let written = cards::encode_page(page);
        assert!(written.len() <= cards::PAGE_BYTES);
        let room = objects.len() - again.len();
        cards::decode_page(&written, room, &mut again).expect("what is written decodes");
    }
    assert_eq!(again, objects);
}

fn asked(bytes: &[u8]) {
    let Ok(request) = souk_wire::decode::<evidence::Request>(bytes) else {
        return;
    };
    if let Ok(Some(names)) = request.asked() {
        assert_eq!(evidence::Request::of(&names), request);
        assert!(souk_wire::encode(&request).len() <= evidence::REQUEST_CAP);
    }
}

fn batch(bytes: &[u8]) {
    // An input of the full size is rare by chance: shorter ones are filled up, as batches are.
    let mut bytes = bytes.to_vec();
    bytes.resize(mailbox::BATCH_BYTES, 0);
    if let Ok(batch) = mailbox::decode_batch(&bytes) {
        let written = mailbox::encode_batch(batch.as_ref());
        assert_eq!(mailbox::decode_batch(&written), Ok(batch));
    }
}

fn path(bytes: &[u8]) {
    if let Ok(path) = log::decode_path(bytes) {
        assert_eq!(path.to_string().as_bytes(), bytes, "a path has one spelling");
        assert!(bytes.len() <= log::PATH_CAP);
    }
}

fn answer(bytes: &[u8]) {
    if let Ok(answer) = log::decode_answer(bytes) {
        assert_eq!(log::encode_answer(&answer), bytes);
    }
}
