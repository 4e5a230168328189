//! What the formats of souk cost beside their bare primitives, measured turn by turn in one run.
//!
//! `cargo bench -p souk-crypto` prints absolute figures by criterion, then one line for each ratio, and fails where a
//! ratio is below its bound.

use std::{
    hint::black_box,
    process::ExitCode,
    time::{Duration, Instant},
};

use chacha20poly1305::{ChaCha20Poly1305, KeyInit as _, aead::AeadInOut as _};
use criterion::Criterion;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use souk_crypto::{
    CardKey, LogKey, MixKey, MixPublicKey, NetworkId, NodeKey, SealKey, SealPublicKey, SubKeys,
    UnixTime, Window, domain,
    keys::Secret as _,
    seal,
    sign::{self, Signed},
};
use x25519_dalek::{EphemeralSecret, PublicKey, StaticSecret};

/// The size of a request with its SURBs.
const PLAINTEXT_BYTES: usize = 4_096;

/// Turns for each ratio; the median of each side counts, so that a busy machine does not.
const TURNS: usize = 401;

fn main() -> ExitCode {
    let fixture = Fixture::new();
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("seal 4 KiB");
    group.bench_function("hpke", |b| b.iter(|| fixture.hpke_seal()));
    group.bench_function("x25519 + chacha20poly1305", |b| {
        b.iter(|| fixture.raw_seal());
    });
    group.finish();
    let mut group = criterion.benchmark_group("open 4 KiB");
    group.bench_function("hpke", |b| b.iter(|| fixture.hpke_open()));
    group.bench_function("x25519 + chacha20poly1305", |b| {
        b.iter(|| fixture.raw_open());
    });
    group.finish();
    let mut group = criterion.benchmark_group("verify");
    group.bench_function("signed object", |b| b.iter(|| fixture.open_object()));
    group.bench_function("ed25519", |b| b.iter(|| fixture.raw_verify()));
    group.finish();

    let ratios = [
        ratio(
            "seal, HPKE to raw",
            0.8,
            || fixture.hpke_seal(),
            || fixture.raw_seal(),
        ),
        ratio(
            "open, HPKE to raw",
            0.8,
            || fixture.hpke_open(),
            || fixture.raw_open(),
        ),
        ratio(
            "seal and open, HPKE to raw",
            0.8,
            || (fixture.hpke_seal(), fixture.hpke_open()),
            || (fixture.raw_seal(), fixture.raw_open()),
        ),
        ratio(
            "open signed object to verify Ed25519",
            0.7,
            || fixture.open_object(),
            || fixture.raw_verify(),
        ),
    ];
    if ratios.iter().all(|holds| *holds) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[expect(clippy::print_stdout, reason = "the ratio is what this program is for")]
/// Speed of `ours` as a part of that of `peer`; says whether it reaches `bound`.
fn ratio<A, B>(name: &str, bound: f64, ours: impl Fn() -> A, peer: impl Fn() -> B) -> bool {
    let time = |f: &dyn Fn()| {
        let start = Instant::now();
        f();
        start.elapsed()
    };
    let mut of_ours = Vec::with_capacity(TURNS);
    let mut of_peer = Vec::with_capacity(TURNS);
    for _ in 0..TURNS {
        of_ours.push(time(&|| drop(black_box(ours()))));
        of_peer.push(time(&|| drop(black_box(peer()))));
    }
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times[TURNS / 2]
    };
    let (ours, peer) = (median(of_ours), median(of_peer));
    let ratio = peer.as_secs_f64() / ours.as_secs_f64();
    println!(
        "{name}: {:.0} % ({ours:?} and {peer:?}), bound {:.0} %",
        ratio * 100.0,
        bound * 100.0
    );
    ratio >= bound
}

struct Fixture {
    network: NetworkId,
    seal_key: SealKey,
    to: SealPublicKey,
    plaintext: Vec<u8>,
    sealed: Vec<u8>,
    raw_key: StaticSecret,
    raw_to: PublicKey,
    raw_sealed: (PublicKey, Vec<u8>),
    signed: Signed<SubKeys>,
    verifying: VerifyingKey,
    signature: ed25519_dalek::Signature,
}

impl Fixture {
    fn new() -> Self {
        let network: NetworkId = "bench.00000000".parse().expect("a network id");
        let seal_key = SealKey::from_secret_bytes(&[1; 32]);
        let raw_key = StaticSecret::from([1; 32]);
        let plaintext = vec![7; PLAINTEXT_BYTES];
        let signed = signed_object(&network);
        let signing = SigningKey::from_bytes(&[2; 32]);
        let mut fixture = Self {
            sealed: Vec::new(),
            raw_sealed: (PublicKey::from(&raw_key), Vec::new()),
            signature: signing.sign(signed.as_bytes()),
            verifying: signing.verifying_key(),
            network,
            to: seal_key.public(),
            seal_key,
            plaintext,
            raw_to: PublicKey::from(&raw_key),
            raw_key,
            signed,
        };
        fixture.sealed = fixture.hpke_seal();
        fixture.raw_sealed = fixture.raw_seal();
        fixture
    }

    fn hpke_seal(&self) -> Vec<u8> {
        let domain = &domain::TO_PROVIDER;
        seal::seal(
            domain,
            &self.network,
            &self.to,
            b"request",
            &self.plaintext,
            &mut rand::rng(),
        )
        .expect("fits")
    }

    fn hpke_open(&self) -> usize {
        let domain = &domain::TO_PROVIDER;
        let opened = seal::open(
            domain,
            &self.network,
            &self.seal_key,
            b"request",
            &self.sealed,
        );
        opened.expect("opens").len()
    }

    fn raw_seal(&self) -> (PublicKey, Vec<u8>) {
        let ephemeral = EphemeralSecret::random_from_rng(&mut rand::rng());
        let enc = PublicKey::from(&ephemeral);
        let shared = ephemeral.diffie_hellman(&self.raw_to);
        let cipher = ChaCha20Poly1305::new(shared.as_bytes().into());
        let mut out = self.plaintext.clone();
        cipher
            .encrypt_in_place(&[0; 12].into(), b"request", &mut out)
            .expect("fits");
        (enc, out)
    }

    fn raw_open(&self) -> usize {
        let (enc, sealed) = &self.raw_sealed;
        let shared = self.raw_key.diffie_hellman(enc);
        let cipher = ChaCha20Poly1305::new(shared.as_bytes().into());
        let mut out = sealed.clone();
        cipher
            .decrypt_in_place(&[0; 12].into(), b"request", &mut out)
            .expect("opens");
        out.len()
    }

    fn open_object(&self) -> u64 {
        let opened = sign::open::<SubKeys>(self.signed.as_bytes(), &self.network);
        opened.expect("opens").serial
    }

    fn raw_verify(&self) {
        let key = VerifyingKey::from_bytes(self.verifying.as_bytes()).expect("a key");
        key.verify_strict(self.signed.as_bytes(), &self.signature)
            .expect("verifies");
    }
}

fn signed_object(network: &NetworkId) -> Signed<SubKeys> {
    let window = Window::new(UnixTime(1_000_000), UnixTime(2_000_000)).expect("not empty");
    let mix_key = |epoch| MixKey {
        epoch,
        suite: 1,
        key: MixPublicKey::from_bytes(&[9; 32]).expect("32 bytes"),
        window,
    };
    let sub_keys = SubKeys {
        serial: 1,
        window,
        card_key: CardKey::from_secret_bytes(&[1; 32]).public(),
        log_key: Some(LogKey::from_secret_bytes(&[2; 32]).public()),
        seal_key: Some(SealKey::from_secret_bytes(&[3; 32]).public()),
        mix_keys: (0..3).map(mix_key).collect(),
    };
    let signed = sign::sign(sub_keys, &NodeKey::from_secret_bytes(&[2; 32]), network);
    signed.expect("valid").signed().clone()
}
