//! What travels in the mix: frames, SURBs, fragments and replies are written as they were read.
//!
//! All have one size, so the input is laid over zeros of that size; input of any other size is tried as it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use souk_sphinx::{
    Frame, Surb,
    message::{Fragment, ReplyBody},
    packet::Body,
    surb::SURB_LEN,
};

fuzz_target!(|bytes: &[u8]| {
    assert!(bytes.len() == Frame::LEN || Frame::from_bytes(bytes).is_err());
    assert!(bytes.len() == SURB_LEN || Surb::from_bytes(bytes).is_err());

    let mut frame = [0; Frame::LEN];
    lay_over(&mut frame, bytes);
    if let Ok(read) = Frame::from_bytes(&frame) {
        assert_eq!(*read.to_bytes(), frame);
    }
    let mut surb = [0; SURB_LEN];
    lay_over(&mut surb, bytes);
    if let Ok(read) = Surb::from_bytes(&surb) {
        assert_eq!(read.to_bytes(), surb);
    }
    let mut body: Body = [0; size_of::<Body>()];
    lay_over(&mut body, bytes);
    if let Ok(read) = Fragment::from_body(&body) {
        assert_eq!(*read.to_body(), body);
    }
    if let Ok(read) = ReplyBody::from_body(&body) {
        let written = match read {
            ReplyBody::Reply(reply) => reply.to_body(),
            ReplyBody::Ack(ack) => ack.to_body(),
        };
        assert_eq!(*written, body);
    }
});

fn lay_over(out: &mut [u8], bytes: &[u8]) {
    let len = out.len().min(bytes.len());
    out[..len].copy_from_slice(&bytes[..len]);
}
