use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use crate::{
    Ending, Frame, Hello, MAX_DATA, Malformed, Session, SessionId, Status, Violation, WINDOW,
    Welcome, carry,
};

#[test]
fn greetings_read_back_and_nothing_else_is_one() {
    let hello = Hello {
        id: SessionId([7; 16]),
        is_new: true,
        received: u64::MAX,
    };
    let bytes = hello.encode();
    assert_eq!(Hello::decode(&bytes), Ok(hello));
    assert!(Hello::begins_with(bytes[0]) && !Hello::begins_with(b'S'));
    let welcome = Welcome {
        status: Status::Full,
        received: 3,
    };
    assert_eq!(Welcome::decode(&welcome.encode()), Ok(welcome));
    let mut other = bytes;
    other[24] = 2;
    assert_eq!(Hello::decode(&other), Err(Malformed));
    let banner = b"SSH-2.0-OpenSSH_9";
    assert_eq!(Welcome::decode(banner), Err(Malformed));
}

#[test]
fn frames_that_no_end_sends_are_malformed() {
    let too_long = (MAX_DATA as u16 + 1).to_be_bytes();
    for bytes in [&[3][..], &[0, 0, 0], &[0, too_long[0], too_long[1]]] {
        assert_eq!(Frame::take(&mut bytes.into()), Err(Malformed), "{bytes:?}");
    }
}

#[test]
fn what_fits_no_state_ends_the_session_and_changes_nothing() {
    let mut session = Session::default();
    session.handle_bytes(b"abc");
    // Nothing was sent, so nothing can have been passed on.
    let passed = Frame::Passed(1);
    assert_eq!(session.handle_frame(&passed), Err(Violation));
    assert_eq!(session.handle_attached(4), Err(Violation));
    session.handle_attached(0).expect("nothing was received");
    while session.next_frame().is_some() {}
    session
        .handle_frame(&Frame::Passed(3))
        .expect("it was sent");
    assert_eq!(session.handle_frame(&Frame::Passed(2)), Err(Violation));
    assert_eq!(session.handle_attached(2), Err(Violation));

    let full = Frame::Data(Bytes::from(vec![0; MAX_DATA]));
    for _ in 0..WINDOW / MAX_DATA {
        session.handle_frame(&full).expect("within the window");
    }
    let more = Frame::Data(Bytes::from_static(b"x"));
    assert_eq!(session.handle_frame(&more), Err(Violation));
    session.handle_delivered(session.deliverable().len());
    session.handle_frame(&Frame::End).expect("once");
    assert_eq!(session.handle_frame(&Frame::End), Err(Violation));
    assert_eq!(session.handle_frame(&more), Err(Violation));
}

/// Two ends and the carrier between them, without I/O.
#[derive(Default)]
struct Pair {
    ends: [Session; 2],
    /// Frames on their way to each end, as bytes that may be cut anywhere.
    carrier: [BytesMut; 2],
    given: [Vec<u8>; 2],
    taken: [Vec<u8>; 2],
    has_ended: [bool; 2],
}

#[derive(Clone, Debug)]
enum Step {
    Give(usize, u16),
    End(usize),
    Send(usize),
    /// So many bytes of what is on the way arrive.
    Arrive(usize, u16),
    Take(usize, u16),
    /// The carrier breaks, with all that is on it, and another one takes the session up.
    Cut,
}

fn step() -> impl Strategy<Value = Step> {
    let end = 0..2_usize;
    prop_oneof![
        4 => (end.clone(), 1..40_000_u16).prop_map(|(end, count)| Step::Give(end, count)),
        8 => end.clone().prop_map(Step::Send),
        8 => (end.clone(), any::<u16>()).prop_map(|(end, count)| Step::Arrive(end, count)),
        4 => (end.clone(), any::<u16>()).prop_map(|(end, count)| Step::Take(end, count)),
        2 => Just(Step::Cut),
        1 => end.prop_map(Step::End),
    ]
}

impl Pair {
    fn attach(&mut self) {
        self.carrier = Default::default();
        let received = [0, 1].map(|end| self.ends[end].received());
        for (end, at) in self.ends.iter_mut().zip([received[1], received[0]]) {
            end.handle_attached(at).expect("a peer that keeps to it");
        }
    }

    fn handle(&mut self, step: &Step) {
        match *step {
            Step::Give(end, count) => {
                let count = self.ends[end].room().min(count.into());
                let from = self.given[end].len();
                // Each byte tells its place.
                let bytes: Vec<u8> = (from..from + count).map(|at| (at % 251) as u8).collect();
                self.ends[end].handle_bytes(&bytes);
                self.given[end].extend(bytes);
            }
            Step::End(end) => self.ends[end].handle_end(),
            Step::Send(end) => {
                if let Some(frame) = self.ends[end].next_frame() {
                    frame.put(&mut self.carrier[1 - end]);
                }
            }
            Step::Arrive(end, count) => {
                let count = self.carrier[end].len().min(count.into());
                let mut arrived = BytesMut::from(&self.carrier[end][..count]);
                while let Some(frame) = Frame::take(&mut arrived).expect("frames") {
                    self.ends[end].handle_frame(&frame).expect("it fits");
                }
                let read = count - arrived.len();
                let _ = self.carrier[end].split_to(read);
            }
            Step::Take(end, count) => {
                let part = self.ends[end].deliverable();
                let part = part[..part.len().min(count.into())].to_vec();
                self.ends[end].handle_delivered(part.len());
                self.taken[end].extend(part);
                self.has_ended[end] |= self.ends[end].deliver_end();
            }
            Step::Cut => self.attach(),
        }
        for end in [0, 1] {
            assert!(self.given[1 - end].starts_with(&self.taken[end]));
            assert!(!self.has_ended[end] || self.taken[end] == self.given[1 - end]);
        }
    }

    /// Lets both ends end and everything arrive.
    fn settle(&mut self) {
        for _ in 0..1_000 {
            for end in [0, 1] {
                for step in [
                    Step::End(end),
                    Step::Send(end),
                    Step::Arrive(1 - end, u16::MAX),
                    Step::Take(end, u16::MAX),
                ] {
                    self.handle(&step);
                }
            }
            if self.ends.iter().all(Session::is_over) {
                return;
            }
        }
        panic!(
            "the session does not come to its end: {:?}",
            self.ends.each_ref().map(Session::is_over)
        );
    }
}

proptest! {
    #[test]
    fn every_byte_arrives_once_and_in_order_whatever_carriers_do(steps in prop::collection::vec(step(), 0..300)) {
        let mut pair = Pair::default();
        pair.attach();
        for step in &steps {
            pair.handle(step);
        }
        pair.settle();
        for end in [0, 1] {
            prop_assert!(pair.has_ended[end]);
            prop_assert!(pair.taken[end] == pair.given[1 - end]);
        }
    }

    #[test]
    fn frames_read_back(bytes in prop::collection::vec(any::<u8>(), 1..MAX_DATA), position: u64, cut: usize) {
        for frame in [Frame::Data(bytes.into()), Frame::Passed(position), Frame::End] {
            let mut written = BytesMut::new();
            frame.put(&mut written);
            let mut part = BytesMut::from(&written[..cut % written.len()]);
            prop_assert_eq!(Frame::take(&mut part), Ok(None));
            prop_assert_eq!(Frame::take(&mut written), Ok(Some(frame)));
            prop_assert!(written.is_empty());
        }
    }
}

/// Both ends over one carrier, until it is cut after `bytes` in one direction.
async fn carried(ends: &mut [Session; 2], near: &mut [DuplexStream; 2], bytes: u64) -> [Ending; 2] {
    let received = [0, 1].map(|end| ends[end].received());
    ends[0].handle_attached(received[1]).expect("it fits");
    ends[1].handle_attached(received[0]).expect("it fits");
    let (here, mut middle) = duplex(4_096);
    let (mut beyond, there) = duplex(4_096);
    let [a, b] = ends;
    let [near_a, near_b] = near;
    let relay = async {
        let (from, mut to) = tokio::io::split(&mut middle);
        let (mut back_from, mut back_to) = tokio::io::split(&mut beyond);
        let mut limited = from.take(bytes);
        let forward = tokio::io::copy(&mut limited, &mut back_to);
        let back = tokio::io::copy(&mut back_from, &mut to);
        tokio::select! {
            _ = forward => {}
            _ = back => {}
        }
    };
    let ends = async { tokio::join!(carry(a, here, near_a), carry(b, there, near_b)) };
    tokio::pin!(ends);
    tokio::select! {
        () = relay => {}
        (a, b) = &mut ends => return [a, b],
    }
    drop((middle, beyond));
    let (a, b) = ends.await;
    [a, b]
}

#[tokio::test]
async fn a_stream_larger_than_the_window_survives_one_cut_after_another() {
    let content: Vec<u8> = (0..3 * WINDOW).map(|at| (at % 253) as u8).collect();
    let mut ends = [Session::default(), Session::default()];
    let (far_a, near_a) = duplex(8_192);
    let (far_b, near_b) = duplex(8_192);
    let mut near = [near_a, near_b];
    // Each side sends everything and reads everything, as an echo over a wire that breaks.
    let side = |mut far: DuplexStream, content: Vec<u8>| async move {
        let (mut from, mut to) = tokio::io::split(&mut far);
        let mut read = Vec::new();
        let write = async {
            to.write_all(&content).await?;
            to.shutdown().await
        };
        let (written, taken) = tokio::join!(write, from.read_to_end(&mut read));
        written.expect("the session takes it");
        taken.expect("the session gives it");
        read
    };
    let carriers = async {
        let mut cuts = 0;
        while carried(&mut ends, &mut near, 400_000)
            .await
            .contains(&Ending::Cut)
        {
            cuts += 1;
        }
        cuts
    };
    let (a, b, cuts) = tokio::join!(
        side(far_a, content.clone()),
        side(far_b, content.clone()),
        carriers
    );
    assert!(
        a == content && b == content,
        "{} and {} bytes",
        a.len(),
        b.len()
    );
    assert!(cuts >= 7, "{cuts} cuts");
}

#[tokio::test]
async fn a_near_side_that_reads_no_more_ends_the_session_and_not_before_its_last_word() {
    let mut ends = [Session::default(), Session::default()];
    let (mut far_a, near_a) = duplex(8_192);
    let (mut far_b, near_b) = duplex(8_192);
    let mut near = [near_a, near_b];
    far_a.write_all(b"last words").await.expect("room");
    drop(far_a);
    let other = async {
        let mut heard = String::new();
        far_b.write_all(&[0; 5_000]).await.expect("room");
        far_b.read_to_string(&mut heard).await.expect("its end");
        drop(far_b);
        heard
    };
    let (heard, ended) = tokio::join!(other, carried(&mut ends, &mut near, u64::MAX));
    assert_eq!(heard, "last words");
    assert!(ended.contains(&Ending::Over), "{ended:?}");
}
