//! A software SEV-SNP: a chip and AMD's key server, under a test root.

use ring::{
    rand::SecureRandom,
    signature::{
        ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PSS_SHA384, RsaKeyPair,
    },
};
use rsa::{pkcs1::EncodeRsaPrivateKey as _, rand_core};
use souk_crypto::UnixTime;
use x509_cert::der::asn1::ObjectIdentifier;

use super::{
    SoftError,
    der::{self, Algorithm, Key, ToSign},
};
use crate::{
    digest::{Measurement, ReportData, RootId},
    refusal::Part,
    snp::{Product, REPORT_BYTES, SIGNATURE_AT, SnpCollateral, SnpTcb},
    x509,
};

const ARK: &str = "souk test ARK, proves nothing (SEV-SNP)";
const ASK: &str = "souk test ASK, proves nothing";
const VCEK: &str = "souk test VCEK, proves nothing";
/// Half of what AMD uses: these keys protect nothing, and drawing them is slow.
const RSA_BITS: usize = 2048;

/// What a software SEV-SNP pretends to be.
#[derive(Clone, Debug)]
pub struct SnpRecipe {
    /// Version of reports: 2 to 5.
    pub version: u32,
    /// The processor.
    pub product: Product,
    /// TCB in the report.
    pub tcb: SnpTcb,
    /// TCB in the certificate of the chip.
    pub vcek_tcb: SnpTcb,
    /// Whether the certificate of the chip is one of another chip.
    pub other_chip: bool,
    /// Bits of the guest policy.
    pub policy: u64,
    /// Privilege level of who asks.
    pub vmpl: u32,
    /// Measurement of the guest.
    pub measurement: Measurement,
    /// Digest of the key of the ID block.
    pub id_key_digest: Measurement,
    /// Bits that say which key signed: 0 for the VCEK, 2 for none, 4 for a VLEK.
    pub key_info: u32,
    /// When certificates begin and the revocation list is issued.
    pub issued: UnixTime,
    /// When the revocation list ends.
    pub next_update: UnixTime,
    /// When certificates end.
    pub certificates_end: UnixTime,
    /// A certificate that the root has revoked.
    pub revoked: Option<Part>,
    /// Whether there is a revocation list.
    pub with_crl: bool,
}

impl SnpRecipe {
    /// A machine with nothing against it, whose collateral holds from `issued` for 30 days.
    #[must_use]
    pub fn sound(product: Product, version: u32, issued: UnixTime) -> Self {
        const DAY_S: u64 = 86_400;
        let tcb = SnpTcb {
            fmc: (product == Product::Turin).then_some(1),
            bootloader: 4,
            tee: 1,
            snp: 8,
            microcode: 115,
        };
        Self {
            version,
            product,
            tcb,
            vcek_tcb: tcb,
            other_chip: false,
            // SMT allowed, and the bit that is always one.
            policy: 0x3_0000,
            vmpl: 0,
            measurement: Measurement([7; 48]),
            id_key_digest: Measurement::ZERO,
            key_info: 0,
            issued,
            next_update: issued.plus_s(30 * DAY_S),
            certificates_end: issued.plus_s(3_650 * DAY_S),
            revoked: None,
            with_crl: true,
        }
    }
}

/// The keys of a software AMD. Drawing them takes a while; many machines can stand under them.
pub struct TestAmd {
    ark: RsaKeyPair,
    ask: RsaKeyPair,
}

impl std::fmt::Debug for TestAmd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestAmd").finish_non_exhaustive()
    }
}

impl TestAmd {
    /// Draws the keys of a root and of a product.
    ///
    /// # Errors
    /// [`SoftError::Randomness`].
    pub fn new(rng: &dyn SecureRandom) -> Result<Self, SoftError> {
        Ok(Self {
            ark: rsa_key(rng)?,
            ask: rsa_key(rng)?,
        })
    }
}

/// A software SEV-SNP.
pub struct TestSnp {
    recipe: SnpRecipe,
    vcek: EcdsaKeyPair,
    collateral: SnpCollateral,
}

impl std::fmt::Debug for TestSnp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestSnp")
            .field("root", &self.root())
            .finish_non_exhaustive()
    }
}

impl TestSnp {
    /// Draws a chip under the keys of `amd`.
    ///
    /// # Errors
    /// [`SoftError`] if there is no randomness, or the recipe gives certificates that do not parse.
    pub fn new(
        recipe: SnpRecipe,
        amd: &TestAmd,
        rng: &dyn SecureRandom,
    ) -> Result<Self, SoftError> {
        let algorithm = &ECDSA_P384_SHA384_FIXED_SIGNING;
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(algorithm, rng).map_err(|_| SoftError::Randomness)?;
        let vcek = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), rng)
            .map_err(|_| SoftError::Randomness)?;
        let issue = |serial, issuer: (&str, &RsaKeyPair), subject, key, extensions: Vec<_>| {
            let cert = ToSign {
                serial,
                issuer: issuer.0,
                subject,
                from: recipe.issued,
                to: recipe.certificates_end,
                key,
                is_ca: extensions.is_empty(),
                extensions,
            };
            let tbs = der::certificate(&cert, Algorithm::RsaPssSha384);
            let signature = sign(issuer.1, &tbs, rng)?;
            Ok::<_, SoftError>(der::signed(&tbs, Algorithm::RsaPssSha384, &signature))
        };
        let by_root = (ARK, &amd.ark);
        let ark = issue(
            1,
            by_root,
            ARK,
            Key::Rsa(amd.ark.public_key().as_ref()),
            Vec::new(),
        )?;
        let ask = issue(
            2,
            by_root,
            ASK,
            Key::Rsa(amd.ask.public_key().as_ref()),
            Vec::new(),
        )?;
        let point = Key::P384(vcek.public_key().as_ref());
        let vcek_cert = issue(0, (ASK, &amd.ask), VCEK, point, extensions(&recipe))?;
        let crl = if recipe.with_crl {
            let revoked: &[_] = match recipe.revoked {
                Some(Part::Root) => &[(None, 1)],
                Some(Part::Ask) => &[(None, 2)],
                Some(Part::Vcek) => &[(None, 3), (Some(ASK), 0)],
                _ => &[],
            };
            let (from, to) = (recipe.issued, recipe.next_update);
            let tbs = der::revocation_list(ARK, from, to, revoked, Algorithm::RsaPssSha384);
            let signature = sign(&amd.ark, &tbs, rng)?;
            Some(der::signed(&tbs, Algorithm::RsaPssSha384, &signature))
        } else {
            None
        };
        let collateral = SnpCollateral::new(&vcek_cert, &ask, &ark, crl.as_deref())
            .map_err(SoftError::Minted)?;
        Ok(Self {
            recipe,
            vcek,
            collateral,
        })
    }

    /// SHA-256 of its root, which a policy has to name.
    #[must_use]
    pub fn root(&self) -> RootId {
        RootId(x509::fingerprint(self.collateral.ark_der()))
    }

    /// What the test's AMD publishes.
    #[must_use]
    pub const fn collateral(&self) -> &SnpCollateral {
        &self.collateral
    }

    /// A report over `report_data`.
    ///
    /// # Errors
    /// [`SoftError::Randomness`].
    pub fn report(
        &self,
        report_data: ReportData,
        rng: &dyn SecureRandom,
    ) -> Result<Vec<u8>, SoftError> {
        let recipe = &self.recipe;
        let mut report = vec![0; REPORT_BYTES];
        let mut put = |at: usize, bytes: &[u8]| report[at..at + bytes.len()].copy_from_slice(bytes);
        let tcb = recipe.tcb.to_bytes(recipe.product);
        put(0x00, &recipe.version.to_le_bytes());
        put(0x08, &recipe.policy.to_le_bytes());
        put(0x30, &recipe.vmpl.to_le_bytes());
        put(0x34, &1_u32.to_le_bytes());
        put(0x38, &tcb);
        put(0x40, &0b10_0101_u64.to_le_bytes());
        put(0x48, &recipe.key_info.to_le_bytes());
        put(0x50, &report_data.0);
        put(0x90, &recipe.measurement.0);
        put(0xe0, &recipe.id_key_digest.0);
        put(0x180, &tcb);
        if recipe.version >= 3 {
            let (family, model) = match recipe.product {
                Product::Milan => (0x19, 0x01),
                Product::Genoa => (0x19, 0x11),
                Product::Turin => (0x1a, 0x02),
            };
            put(0x188, &[family, model, 1]);
        }
        put(0x1a0, &chip_id(recipe.product));
        put(0x1e0, &tcb);
        put(0x1e8, &[1, 58, 1]);
        put(0x1ec, &[1, 58, 1]);
        put(0x1f0, &tcb);
        let signature = self
            .vcek
            .sign(rng, &report[..SIGNATURE_AT])
            .map_err(|_| SoftError::Randomness)?;
        let (r, s) = signature.as_ref().split_at(48);
        for (at, scalar) in [(SIGNATURE_AT, r), (SIGNATURE_AT + 72, s)] {
            let little_endian: Vec<u8> = scalar.iter().rev().copied().collect();
            report[at..at + 48].copy_from_slice(&little_endian);
        }
        Ok(report)
    }
}

/// Turin has 8 bytes, the others 64.
fn chip_id(product: Product) -> Vec<u8> {
    match product {
        Product::Turin => vec![0xc1; 8],
        Product::Milan | Product::Genoa => vec![0xc1; 64],
    }
}

fn extensions(recipe: &SnpRecipe) -> Vec<(ObjectIdentifier, Vec<u8>)> {
    let oid = |number: &str| {
        ObjectIdentifier::new(&format!("1.3.6.1.4.1.3704.1.{number}")).expect("a constant of ours")
    };
    let tcb = &recipe.vcek_tcb;
    let mut chip = chip_id(recipe.product);
    if recipe.other_chip {
        chip[0] ^= 1;
    }
    let mut all = vec![
        (oid("1"), der::integer(&[0])),
        (oid("2"), der::ia5(&format!("{}-B0", recipe.product))),
        (oid("3.1"), der::integer(&[tcb.bootloader])),
        (oid("3.2"), der::integer(&[tcb.tee])),
        (oid("3.3"), der::integer(&[tcb.snp])),
        (oid("3.8"), der::integer(&[tcb.microcode])),
        (oid("4"), chip),
    ];
    if let Some(fmc) = tcb.fmc {
        all.push((oid("3.9"), der::integer(&[fmc])));
    }
    all
}

fn sign(key: &RsaKeyPair, message: &[u8], rng: &dyn SecureRandom) -> Result<Vec<u8>, SoftError> {
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PSS_SHA384, rng, message, &mut signature)
        .map_err(|_| SoftError::Randomness)?;
    Ok(signature)
}

fn rsa_key(rng: &dyn SecureRandom) -> Result<RsaKeyPair, SoftError> {
    let key =
        rsa::RsaPrivateKey::new(&mut Random(rng), RSA_BITS).map_err(|_| SoftError::Randomness)?;
    let der = key.to_pkcs1_der().map_err(|_| SoftError::Randomness)?;
    RsaKeyPair::from_der(der.as_bytes()).map_err(|_| SoftError::Randomness)
}

/// Ring's randomness, as the generation of crates that `rsa` is of takes it.
struct Random<'a>(&'a dyn SecureRandom);

impl rand_core::RngCore for Random<'_> {
    fn next_u32(&mut self) -> u32 {
        rand_core::impls::next_u32_via_fill(self)
    }

    fn next_u64(&mut self) -> u64 {
        rand_core::impls::next_u64_via_fill(self)
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        self.0
            .fill(bytes)
            .expect("the system gave randomness before");
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}

impl rand_core::CryptoRng for Random<'_> {}
