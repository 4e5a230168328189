//! Quotes of Intel TDX: parsed, and verified down from a root.
//!
//! ```text
//! root ─► PCK CA ─► PCK ─► quoting enclave ─► attestation key ─► TD report ─► report data: a key of a node
//!   ├──► signer ─► TCB info, identity of the quoting enclave       ├─► measurements
//!   └──► revocation lists                                          └─► attributes
//! ```
//!
//! `dcap-qvl` does the cryptography and matches TCB levels. Before it runs, this module checks what has a name here (root,
//! dates, revocation, FMSPC), so that a refusal says what is wrong; and it hands the library nothing but what it parsed.
//!
//! Threats: a chain to another root, collateral of another machine or day, a revoked key, padding that changes a digest.

mod collateral;
mod quote;

use dcap_qvl::{QuotePolicy, verify::QuoteVerifier};
use souk_crypto::UnixTime;

pub use collateral::{MAX_COLLATERAL_BYTES, TdxCollateral};
pub use quote::{MAX_QUOTE_BYTES, TdReport, TdVersion, TdxQuote};

use crate::{
    digest::RootId,
    refusal::{Part, Refusal, printable},
    x509::{self, check_window},
};

/// Intel's root certificate, valid from 2018 to 2049.
///
/// Source: <https://certificates.trustedservices.intel.com/Intel_SGX_Provisioning_Certification_RootCA.cer>.
pub(crate) const INTEL_ROOT: &[u8] = include_bytes!("tdx/intel_root.der");

/// What a verified quote says. Made here only, and handed out inside of a type that names the root.
#[derive(Clone, Debug)]
pub struct TdxFacts {
    quote_version: u16,
    td_version: TdVersion,
    td: Box<TdReport>,
    tcb_status: TcbStatus,
    advisories: Vec<String>,
    tcb_date: UnixTime,
    tcb_evaluation: u32,
    fmspc: [u8; 6],
    issued: UnixTime,
    expires: UnixTime,
}

impl TdxFacts {
    /// Version of the quote: 4 or 5.
    #[must_use]
    pub const fn quote_version(&self) -> u16 {
        self.quote_version
    }

    /// Version of the TD report.
    #[must_use]
    pub const fn td_version(&self) -> TdVersion {
        self.td_version
    }

    /// What the TD report says.
    #[must_use]
    pub fn td(&self) -> &TdReport {
        &self.td
    }

    /// How Intel judges machine, TDX module and quoting enclave together.
    #[must_use]
    pub const fn tcb_status(&self) -> TcbStatus {
        self.tcb_status
    }

    /// Advisories that apply, such as `INTEL-SA-00615`.
    #[must_use]
    pub fn advisories(&self) -> &[String] {
        &self.advisories
    }

    /// The date of the TCB level that the machine meets.
    #[must_use]
    pub const fn tcb_date(&self) -> UnixTime {
        self.tcb_date
    }

    /// Number of Intel's evaluation that the collateral is of.
    #[must_use]
    pub const fn tcb_evaluation(&self) -> u32 {
        self.tcb_evaluation
    }

    /// Family, model, stepping, platform and SKU of the machine.
    #[must_use]
    pub const fn fmspc(&self) -> [u8; 6] {
        self.fmspc
    }

    /// When the oldest part of the collateral was issued.
    #[must_use]
    pub const fn issued(&self) -> UnixTime {
        self.issued
    }

    /// The first date at which a certificate or a part of the collateral ends.
    #[must_use]
    pub const fn expires(&self) -> UnixTime {
        self.expires
    }
}

/// Intel's judgement of a machine, from best to worst; displayed in Intel's spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TcbStatus {
    /// Nothing is known against it.
    UpToDate,
    /// The software in the guest has to protect itself.
    SWHardeningNeeded,
    /// The platform should be configured otherwise.
    ConfigurationNeeded,
    /// Both of the above.
    ConfigurationAndSWHardeningNeeded,
    /// The module was updated under a running guest, which should start again.
    TDRelaunchAdvised,
    /// The same, on a platform that should be configured otherwise.
    TDRelaunchAdvisedConfigurationNeeded,
    /// Known holes are open.
    OutOfDate,
    /// The same, on a platform that should be configured otherwise.
    OutOfDateConfigurationNeeded,
}

impl TcbStatus {
    /// All of them, from best to worst. A revoked TCB never verifies.
    pub const ALL: [Self; 8] = [
        Self::UpToDate,
        Self::SWHardeningNeeded,
        Self::ConfigurationNeeded,
        Self::ConfigurationAndSWHardeningNeeded,
        Self::TDRelaunchAdvised,
        Self::TDRelaunchAdvisedConfigurationNeeded,
        Self::OutOfDate,
        Self::OutOfDateConfigurationNeeded,
    ];

    fn of(status: dcap_qvl::TcbStatus) -> Result<Self, Refusal> {
        use dcap_qvl::TcbStatus as Library;
        Ok(match status {
            Library::UpToDate => Self::UpToDate,
            Library::SWHardeningNeeded => Self::SWHardeningNeeded,
            Library::ConfigurationNeeded => Self::ConfigurationNeeded,
            Library::ConfigurationAndSWHardeningNeeded => Self::ConfigurationAndSWHardeningNeeded,
            Library::TDRelaunchAdvised => Self::TDRelaunchAdvised,
            Library::TDRelaunchAdvisedConfigurationNeeded => {
                Self::TDRelaunchAdvisedConfigurationNeeded
            }
            Library::OutOfDate => Self::OutOfDate,
            Library::OutOfDateConfigurationNeeded => Self::OutOfDateConfigurationNeeded,
            Library::Revoked => return Err(Refusal::TcbRevoked),
        })
    }
}

impl std::fmt::Display for TcbStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

impl std::str::FromStr for TcbStatus {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        let all = Self::ALL.into_iter();
        all.into_iter()
            .find(|status| status.to_string() == text)
            .ok_or(UnknownStatus)
    }
}

/// Not a TCB status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no TCB status of Intel's")]
pub struct UnknownStatus;

/// Verifies a quote against the root in `root_der`, which the caller trusts.
pub(crate) fn verify(
    quote: &TdxQuote,
    collateral: &TdxCollateral,
    root_der: &[u8],
    now: UnixTime,
) -> Result<TdxFacts, Refusal> {
    check_root(quote, collateral, root_der)?;
    check_dates(quote, collateral, now)?;
    check_revocation(quote, collateral)?;
    if let Some(chain) = &collateral.pck_chain
        && !chain.iter().eq([quote.pck(), quote.pck_ca(), quote.root()])
    {
        return Err(Refusal::OtherPlatform {
            expected: "the PCK certificate of the quote".to_owned(),
            found: "another PCK certificate".to_owned(),
        });
    }
    let fmspc = quote.claimed_fmspc()?;
    if fmspc != collateral.fmspc {
        return Err(Refusal::OtherPlatform {
            expected: format!("FMSPC {}", hex::encode_upper(fmspc)),
            found: format!("FMSPC {}", hex::encode_upper(collateral.fmspc)),
        });
    }
    // Whether a guest under debug is accepted is for the policy to say.
    let undecided = QuotePolicy::claims_only(now.0);
    let claims = QuoteVerifier::new(root_der.to_vec())
        .allow_debug(true)
        .verify_with_policy(quote.as_bytes(), &collateral.library, now.0, &undecided)
        .map_err(|error| named(&format!("{error:#}")))?;
    Ok(TdxFacts {
        quote_version: quote.version(),
        td_version: quote.td_version(),
        td: Box::new(quote.td()),
        tcb_status: TcbStatus::of(claims.tcb.status)?,
        advisories: claims
            .tcb
            .advisory_ids
            .iter()
            .map(|id| printable(id))
            .collect(),
        tcb_date: UnixTime(claims.platform.tcb_date_tag),
        tcb_evaluation: claims.tcb.eval_data_number,
        fmspc,
        issued: collateral.issued(),
        expires: UnixTime(claims.earliest_expiration_date),
    })
}

fn check_root(
    quote: &TdxQuote,
    collateral: &TdxCollateral,
    root_der: &[u8],
) -> Result<(), Refusal> {
    let roots = [
        quote.root(),
        &collateral.tcb_info_chain[1],
        &collateral.qe_identity_chain[1],
    ];
    match roots.into_iter().find(|root| root.der() != root_der) {
        Some(root) => Err(Refusal::UnknownRoot {
            root: RootId(x509::fingerprint(root.der())).to_string(),
        }),
        None => Ok(()),
    }
}

fn check_dates(quote: &TdxQuote, collateral: &TdxCollateral, now: UnixTime) -> Result<(), Refusal> {
    let TdxCollateral {
        tcb_info,
        qe_identity,
        ..
    } = collateral;
    quote.root().check_dates(Part::Root, now)?;
    quote.pck_ca().check_dates(Part::PckCa, now)?;
    quote.pck().check_dates(Part::Pck, now)?;
    collateral.tcb_info_chain[0].check_dates(Part::TcbInfoSigner, now)?;
    collateral.qe_identity_chain[0].check_dates(Part::QeIdentitySigner, now)?;
    check_window(Part::TcbInfo, tcb_info.issued, tcb_info.next_update, now)?;
    check_window(
        Part::QeIdentity,
        qe_identity.issued,
        qe_identity.next_update,
        now,
    )?;
    collateral.root_crl.check_dates(Part::RootCrl, now)?;
    collateral.pck_crl.check_dates(Part::PckCrl, now)
}

fn check_revocation(quote: &TdxQuote, collateral: &TdxCollateral) -> Result<(), Refusal> {
    let by_root = [
        (quote.root(), Part::Root),
        (quote.pck_ca(), Part::PckCa),
        (&collateral.tcb_info_chain[0], Part::TcbInfoSigner),
        (&collateral.qe_identity_chain[0], Part::QeIdentitySigner),
    ];
    for (cert, part) in by_root {
        if collateral.root_crl.revokes(cert) {
            return Err(Refusal::Revoked { part });
        }
    }
    if collateral.pck_crl.revokes(quote.pck()) {
        return Err(Refusal::Revoked { part: Part::Pck });
    }
    Ok(())
}

/// Gives what the library found a name of ours. Each line is held by a test that brings it about.
fn named(why: &str) -> Refusal {
    let has = |text: &str| why.contains(text);
    let detail = || printable(why);
    if has("No matching TCB level found") || has("below minimum required") {
        Refusal::NoTcbLevel { why: detail() }
    } else if has("TCB status is invalid: Revoked") {
        Refusal::TcbRevoked
    } else if has("Signature is invalid for tcb_info") {
        Refusal::Signature {
            part: Part::TcbInfo,
        }
    } else if has("Signature is invalid for qe_identity") {
        Refusal::Signature {
            part: Part::QeIdentity,
        }
    } else if has("Signature is invalid for qe_report") {
        Refusal::Signature {
            part: Part::QeReport,
        }
    } else if has("ISV enclave report signature is invalid") {
        Refusal::Signature {
            part: Part::TdReport,
        }
    } else if has("QE report hash mismatch") {
        Refusal::ForeignAttestationKey
    } else if has("certificate chain") || has("root CA CRL") || has("PCK CRL") {
        Refusal::Chain { why: detail() }
    } else if has("TDX module") {
        Refusal::TdxModule { why: detail() }
    } else if has("QE ") {
        Refusal::QuotingEnclave { why: detail() }
    } else if has("TD attributes")
        || has("TD migration")
        || has("SERVTD_EXT")
        || has("SEPT_VE_DISABLE")
        || has("MR service TD")
    {
        Refusal::Attributes { why: detail() }
    } else {
        Refusal::Unverified { why: detail() }
    }
}
