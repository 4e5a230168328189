//! What the formats of souk cost beside their bare primitives, measured turn by turn in one run.
//!
//! `cargo bench -p souk-crypto` prints absolute figures by criterion, then one line for each ratio.

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

mod measured;

use measured::ratio;

/// The size of a request with its SURBs.
const PLAINTEXT_BYTES: usize = 4_096;

fn main() {
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

    ratio("hpke-seal", || fixture.hpke_seal(), || fixture.raw_seal());
    ratio("hpke-open", || fixture.hpke_open(), || fixture.raw_open());
    ratio(
        "signed-object",
        || fixture.open_object(),
        || fixture.raw_verify(),
    );
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
