//! Verified evidence: types that only verification makes, and that name what they were verified against.
//!
//! ```text
//! bytes ─► Evidence ──┐
//! bytes ─► Collateral ┴─ verify(trust, now) ─┬─► Verified::Tdx(VerifiedTdx)    Intel's root
//!                                            ├─► Verified::Snp(VerifiedSnp)    AMD's root of the product
//!                                            ├─► Verified::Test(VerifiedTest)  a test root that trust names: proves nothing
//!                                            └─► Refusal
//! ```
//!
//! Threat: evidence that nobody verified, or that a test made, taken for the real thing. A [`VerifiedTest`] is a type of its
//! own, its kind is called `none+test`, and it is made only for callers who name the test root.

use std::{collections::BTreeSet, fmt};

use souk_crypto::UnixTime;

use crate::{
    digest::{CollateralDigest, EvidenceDigest, ReportData, RootId},
    refusal::{Part, Refusal},
    snp::{self, Product, REPORT_BYTES, SnpCollateral, SnpFacts, SnpReport},
    tdx::{self, INTEL_ROOT, TdxCollateral, TdxFacts, TdxQuote},
    x509,
};

/// Evidence whose form was checked, and nothing else.
#[derive(Clone, Debug)]
pub enum Evidence {
    /// A TDX quote.
    Tdx(Box<TdxQuote>),
    /// An SEV-SNP report.
    Snp(SnpReport),
}

impl Evidence {
    /// Tells by the bytes which kind it is, and parses it.
    ///
    /// # Errors
    /// [`Refusal::UnknownEvidence`] if the bytes begin like nothing that is known; else why they do not parse.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let word: &[u8; 4] = bytes.first_chunk().ok_or(Refusal::UnknownEvidence)?;
        let low = u16::from_le_bytes([word[0], word[1]]);
        let high = u16::from_le_bytes([word[2], word[3]]);
        match (low, high) {
            (1..=15, 0) if bytes.len() == REPORT_BYTES => SnpReport::parse(bytes).map(Self::Snp),
            // Version, then type of the attestation key, which no SNP report has in this place.
            (1..=15, 2 | 3) => TdxQuote::parse(bytes).map(|quote| Self::Tdx(Box::new(quote))),
            _ => Err(Refusal::UnknownEvidence),
        }
    }

    /// What it claims to be.
    #[must_use]
    pub const fn tee(&self) -> Tee {
        match self {
            Self::Tdx(_) => Tee::Tdx,
            Self::Snp(_) => Tee::SevSnp,
        }
    }

    /// What it claims to bind, which proves nothing by itself.
    #[must_use]
    pub fn claimed_report_data(&self) -> ReportData {
        match self {
            Self::Tdx(quote) => quote.td().report_data,
            Self::Snp(report) => report.report_data(),
        }
    }

    /// Digest of the evidence.
    #[must_use]
    pub fn digest(&self) -> EvidenceDigest {
        match self {
            Self::Tdx(quote) => quote.digest(),
            Self::Snp(report) => report.digest(),
        }
    }

    /// The evidence in its only form.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Tdx(quote) => quote.as_bytes(),
            Self::Snp(report) => report.as_bytes(),
        }
    }
}

/// Collateral whose form was checked, and nothing else.
#[derive(Clone, Debug)]
pub enum Collateral {
    /// For a TDX quote.
    Tdx(Box<TdxCollateral>),
    /// For an SEV-SNP report.
    Snp(Box<SnpCollateral>),
}

impl Collateral {
    /// Reads the canonical form for evidence of `tee`.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`] or [`Refusal::Malformed`].
    pub fn from_bytes(tee: Tee, bytes: &[u8]) -> Result<Self, Refusal> {
        Ok(match tee {
            Tee::Tdx => Self::Tdx(Box::new(TdxCollateral::from_bytes(bytes)?)),
            Tee::SevSnp => Self::Snp(Box::new(SnpCollateral::from_bytes(bytes)?)),
        })
    }

    /// The canonical form.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Tdx(collateral) => collateral.to_bytes(),
            Self::Snp(collateral) => collateral.to_bytes(),
        }
    }

    /// Digest of the canonical form.
    #[must_use]
    pub fn digest(&self) -> CollateralDigest {
        match self {
            Self::Tdx(collateral) => collateral.digest(),
            Self::Snp(collateral) => collateral.digest(),
        }
    }

    /// When its oldest dated part was issued, certificates aside; 1970 where nothing else is dated.
    #[must_use]
    pub fn issued(&self) -> UnixTime {
        match self {
            Self::Tdx(collateral) => collateral.issued(),
            Self::Snp(collateral) => collateral.issued().unwrap_or_default(),
        }
    }

    /// The first date at which a part of it ends.
    #[must_use]
    pub fn expires(&self) -> UnixTime {
        match self {
            Self::Tdx(collateral) => collateral.expires(),
            Self::Snp(collateral) => collateral.expires(),
        }
    }
}

/// Whose structures evidence has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tee {
    /// Intel TDX.
    Tdx,
    /// AMD SEV-SNP.
    SevSnp,
}

impl Tee {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Tdx, Self::SevSnp];

    /// The name in policies and on screens.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tdx => "tdx",
            Self::SevSnp => "sev-snp",
        }
    }
}

impl fmt::Display for Tee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What verified evidence proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A guest of Intel TDX.
    Tdx,
    /// A guest of AMD SEV-SNP.
    SevSnp,
    /// Nothing: a test made it.
    NoneTest,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tdx, Self::SevSnp, Self::NoneTest];

    /// The name on cards, in policies and on screens.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tdx => "tdx",
            Self::SevSnp => "sev-snp",
            Self::NoneTest => "none+test",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a caller trusts besides the roots of the vendors, which are built in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    test_roots: BTreeSet<RootId>,
}

impl Trust {
    /// The roots of Intel and AMD, and nothing else.
    #[must_use]
    pub fn vendors() -> Self {
        Self::default()
    }

    /// Also lets evidence under these test roots verify, as [`Verified::Test`].
    #[must_use]
    pub fn with_test_roots(roots: impl IntoIterator<Item = RootId>) -> Self {
        Self {
            test_roots: roots.into_iter().collect(),
        }
    }
}

/// Evidence that verified.
#[derive(Clone, Debug)]
pub enum Verified {
    /// A TDX quote under Intel's root.
    Tdx(VerifiedTdx),
    /// An SEV-SNP report under AMD's root of the product.
    Snp(VerifiedSnp),
    /// Evidence that a test made.
    Test(VerifiedTest),
}

/// A TDX quote that verified under Intel's root.
#[derive(Clone, Debug)]
pub struct VerifiedTdx {
    facts: TdxFacts,
}

impl VerifiedTdx {
    /// What it says.
    #[must_use]
    pub const fn facts(&self) -> &TdxFacts {
        &self.facts
    }
}

/// An SEV-SNP report that verified under AMD's root of the product.
#[derive(Clone, Debug)]
pub struct VerifiedSnp {
    facts: SnpFacts,
}

impl VerifiedSnp {
    /// What it says.
    #[must_use]
    pub const fn facts(&self) -> &SnpFacts {
        &self.facts
    }
}

/// Evidence that a test made, verified under its test root. It proves nothing about any machine.
#[derive(Clone, Debug)]
pub struct VerifiedTest {
    root: RootId,
    facts: Facts,
}

impl VerifiedTest {
    /// The test root.
    #[must_use]
    pub const fn root(&self) -> RootId {
        self.root
    }

    /// What it says.
    #[must_use]
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }
}

/// What evidence says, whoever signed it.
#[derive(Clone, Debug)]
pub enum Facts {
    /// In the structures of TDX.
    Tdx(TdxFacts),
    /// In the structures of SEV-SNP.
    Snp(SnpFacts),
}

/// What evidence says, borrowed.
#[derive(Clone, Copy, Debug)]
pub enum FactsRef<'a> {
    /// In the structures of TDX.
    Tdx(&'a TdxFacts),
    /// In the structures of SEV-SNP.
    Snp(&'a SnpFacts),
}

impl Verified {
    /// What it proves.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Tdx(_) => Kind::Tdx,
            Self::Snp(_) => Kind::SevSnp,
            Self::Test(_) => Kind::NoneTest,
        }
    }

    /// What it says.
    #[must_use]
    pub const fn facts(&self) -> FactsRef<'_> {
        match self {
            Self::Tdx(verified) => FactsRef::Tdx(&verified.facts),
            Self::Snp(verified) => FactsRef::Snp(&verified.facts),
            Self::Test(verified) => match &verified.facts {
                Facts::Tdx(facts) => FactsRef::Tdx(facts),
                Facts::Snp(facts) => FactsRef::Snp(facts),
            },
        }
    }

    /// What the guest asked to have signed.
    #[must_use]
    pub fn report_data(&self) -> ReportData {
        match self.facts() {
            FactsRef::Tdx(facts) => facts.td().report_data,
            FactsRef::Snp(facts) => facts.report().report_data(),
        }
    }

    /// The first date at which something that it stands on ends; after it, nothing was verified.
    #[must_use]
    pub const fn expires(&self) -> UnixTime {
        match self.facts() {
            FactsRef::Tdx(facts) => facts.expires(),
            FactsRef::Snp(facts) => facts.expires(),
        }
    }
}

/// Verifies evidence at `now`.
///
/// # Errors
/// The first [`Refusal`]. Collateral of the other vendor is [`Refusal::OtherPlatform`].
pub fn verify(
    evidence: &Evidence,
    collateral: &Collateral,
    trust: &Trust,
    now: UnixTime,
) -> Result<Verified, Refusal> {
    match (evidence, collateral) {
        (Evidence::Tdx(quote), Collateral::Tdx(collateral)) => {
            verify_tdx(quote, collateral, trust, now)
        }
        (Evidence::Snp(report), Collateral::Snp(collateral)) => {
            verify_snp(report, collateral, trust, now)
        }
        (Evidence::Tdx(_), Collateral::Snp(_)) => Err(other_vendor(Tee::Tdx, Tee::SevSnp)),
        (Evidence::Snp(_), Collateral::Tdx(_)) => Err(other_vendor(Tee::SevSnp, Tee::Tdx)),
    }
}

fn verify_tdx(
    quote: &TdxQuote,
    collateral: &TdxCollateral,
    trust: &Trust,
    now: UnixTime,
) -> Result<Verified, Refusal> {
    let root = quote.claimed_root();
    if trust.test_roots.contains(&root) {
        let facts = Facts::Tdx(tdx::verify(quote, collateral, quote.root().der(), now)?);
        return Ok(Verified::Test(VerifiedTest { root, facts }));
    }
    let facts = tdx::verify(quote, collateral, INTEL_ROOT, now)?;
    Ok(Verified::Tdx(VerifiedTdx { facts }))
}

fn verify_snp(
    report: &SnpReport,
    collateral: &SnpCollateral,
    trust: &Trust,
    now: UnixTime,
) -> Result<Verified, Refusal> {
    let root = collateral.claimed_root();
    if trust.test_roots.contains(&root) {
        let der = collateral.ark_der();
        let facts = Facts::Snp(snp::verify(report, collateral, der, now)?);
        return Ok(Verified::Test(VerifiedTest { root, facts }));
    }
    let amd = Product::ALL.map(snp::amd_root);
    let Some(der) = amd.iter().find(|der| *der == collateral.ark_der()) else {
        return Err(Refusal::UnknownRoot {
            root: root.to_string(),
        });
    };
    let facts = snp::verify(report, collateral, der, now)?;
    if snp::amd_root(facts.product()) != *der {
        return Err(Refusal::malformed(
            Part::Vcek,
            "issued by another product's root",
        ));
    }
    Ok(Verified::Snp(VerifiedSnp { facts }))
}

fn other_vendor(expected: Tee, found: Tee) -> Refusal {
    Refusal::OtherPlatform {
        expected: expected.to_string(),
        found: found.to_string(),
    }
}

impl SnpCollateral {
    /// SHA-256 of the root in it, which proves nothing by itself.
    #[must_use]
    pub fn claimed_root(&self) -> RootId {
        RootId(x509::fingerprint(self.ark_der()))
    }
}
