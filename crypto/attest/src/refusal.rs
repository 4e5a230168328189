//! Why evidence is not believed, by whose fault it is.
//!
//! Threat: an error that everybody may read as it suits. Every refusal has one name, which scripts and tests match, and one
//! [`Blame`], which decides whom it counts against. A peer that merely forwarded evidence is never to blame.

use souk_crypto::UnixTime;

/// Whose fault a refusal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blame {
    /// Who published the evidence: it is malformed, forged, replayed, or of a kind that nobody asked for.
    Publisher,
    /// Who supplied the collateral: it is malformed, stale, or belongs to another machine. Fresh collateral may help.
    Collateral,
    /// The machine: the evidence is genuine and says that the machine is not fit.
    Platform,
    /// Nobody can tell: the clock of whoever verifies may be wrong.
    Clock,
}

/// What carries a signature in a chain of evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The quote or report as a whole.
    Evidence,
    /// The TD report, signed by the attestation key.
    TdReport,
    /// The report of Intel's quoting enclave, signed by the PCK.
    QeReport,
    /// The SNP report, signed by the VCEK.
    SnpReport,
    /// The certificates inside a quote.
    PckChain,
    /// The PCK certificate.
    Pck,
    /// The certificate authority that issued the PCK.
    PckCa,
    /// The root certificate.
    Root,
    /// Intel's TCB info.
    TcbInfo,
    /// The certificate that signed the TCB info.
    TcbInfoSigner,
    /// Intel's identity of the quoting enclave.
    QeIdentity,
    /// The certificate that signed the identity of the quoting enclave.
    QeIdentitySigner,
    /// The revocation list of the root.
    RootCrl,
    /// The revocation list of the PCK's authority.
    PckCrl,
    /// AMD's signing key of a product line.
    Ask,
    /// The key of a chip.
    Vcek,
    /// The revocation list of AMD's root.
    AmdCrl,
    /// The collateral as a whole.
    Collateral,
}

impl Part {
    /// The part in plain words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Evidence => "evidence",
            Self::TdReport => "TD report",
            Self::QeReport => "quoting enclave report",
            Self::SnpReport => "SNP report",
            Self::PckChain => "certificate chain of the quote",
            Self::Pck => "PCK certificate",
            Self::PckCa => "PCK CA certificate",
            Self::Root => "root certificate",
            Self::TcbInfo => "TCB info",
            Self::TcbInfoSigner => "TCB info signing certificate",
            Self::QeIdentity => "quoting enclave identity",
            Self::QeIdentitySigner => "quoting enclave identity signing certificate",
            Self::RootCrl => "root revocation list",
            Self::PckCrl => "PCK revocation list",
            Self::Ask => "ASK certificate",
            Self::Vcek => "VCEK certificate",
            Self::AmdCrl => "ARK revocation list",
            Self::Collateral => "collateral",
        }
    }

    const fn supplied_by(self) -> Blame {
        match self {
            Self::Evidence
            | Self::TdReport
            | Self::QeReport
            | Self::SnpReport
            | Self::PckChain
            | Self::Pck
            | Self::PckCa
            | Self::Root => Blame::Publisher,
            Self::TcbInfo
            | Self::TcbInfoSigner
            | Self::QeIdentity
            | Self::QeIdentitySigner
            | Self::RootCrl
            | Self::PckCrl
            | Self::Ask
            | Self::Vcek
            | Self::AmdCrl
            | Self::Collateral => Blame::Collateral,
        }
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why evidence did not verify.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Bytes that begin like no evidence.
    #[error("these bytes are neither a TDX quote nor an SEV-SNP report")]
    UnknownEvidence,
    /// More bytes than are read.
    #[error("the {part} has {len} bytes, at most {max} are read")]
    TooLarge {
        /// What is too large.
        part: Part,
        /// Its bytes.
        len: usize,
        /// The bound.
        max: usize,
    },
    /// Bytes that do not have the form they should.
    #[error("the {part} is malformed: {why}")]
    Malformed {
        /// What is malformed.
        part: Part,
        /// The first thing that is wrong.
        why: String,
    },
    /// A quote of another TEE, such as SGX.
    #[error("this is a quote of {found}, not of TDX")]
    NotTdx {
        /// The TEE that it is of.
        found: &'static str,
    },
    /// A version, algorithm or generation that is not known here.
    #[error("{what} {found} is not supported")]
    Unsupported {
        /// What has it.
        what: &'static str,
        /// The value.
        found: String,
    },
    /// A certificate chain that does not end at a root that is trusted.
    #[error("the chain ends at a root that is not trusted (SHA-256 {root})")]
    UnknownRoot {
        /// SHA-256 of the root certificate, in hex.
        root: String,
    },
    /// A signature that does not hold.
    #[error("the signature of the {part} is wrong")]
    Signature {
        /// What was to be signed.
        part: Part,
    },
    /// A chain of certificates that does not hold together.
    #[error("the certificate chain does not hold: {why}")]
    Chain {
        /// What is wrong.
        why: String,
    },
    /// The quoting enclave vouches for another attestation key than the one that signed.
    #[error("the quoting enclave does not vouch for the attestation key")]
    ForeignAttestationKey,
    /// Something dated begins later.
    #[error("the {part} is valid from {} only", crate::date::format(*from))]
    NotYetValid {
        /// What is dated.
        part: Part,
        /// When it begins.
        from: UnixTime,
    },
    /// Something dated has ended.
    #[error("the {part} expired at {}", crate::date::format(*to))]
    Expired {
        /// What is dated.
        part: Part,
        /// When it ended.
        to: UnixTime,
    },
    /// Collateral of another machine or product.
    #[error("the collateral is for {found}, the evidence for {expected}")]
    OtherPlatform {
        /// What the evidence names.
        expected: String,
        /// What the collateral names.
        found: String,
    },
    /// Collateral lacks a part.
    #[error("the collateral holds no {part}")]
    Missing {
        /// What is missing.
        part: Part,
    },
    /// A revocation list names a certificate.
    #[error("the {part} was revoked")]
    Revoked {
        /// What was revoked.
        part: Part,
    },
    /// Intel knows no TCB level that the machine meets.
    #[error("the machine meets no TCB level that is known: {why}")]
    NoTcbLevel {
        /// Which component falls short.
        why: String,
    },
    /// Intel revoked the TCB level of the machine.
    #[error("the TCB level of the machine was revoked")]
    TcbRevoked,
    /// The quoting enclave is not the one Intel describes.
    #[error("the quoting enclave is not Intel's: {why}")]
    QuotingEnclave {
        /// The field that differs.
        why: String,
    },
    /// The TDX module is not one Intel describes.
    #[error("the TDX module is not Intel's: {why}")]
    TdxModule {
        /// The field that differs.
        why: String,
    },
    /// Attributes of the guest with which nothing it says can be believed.
    #[error("the attributes of the guest are not safe: {why}")]
    Attributes {
        /// The attribute.
        why: String,
    },
    /// A report that was not signed by the key of the chip.
    #[error("the report was signed by {by}, not by the key of the chip")]
    NotByChip {
        /// What signed instead.
        by: &'static str,
    },
    /// The certificate of the chip and the report disagree.
    #[error("{field} is {report} in the report and {vcek} in the certificate of the chip")]
    OtherChip {
        /// The field.
        field: &'static str,
        /// Its value in the report.
        report: String,
        /// Its value in the certificate.
        vcek: String,
    },
    /// Something else that the library for TDX found.
    #[error("the quote does not verify: {why}")]
    Unverified {
        /// In the words of the library.
        why: String,
    },
}

impl Refusal {
    /// Whose fault it is.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::TooLarge { part, .. }
            | Self::Malformed { part, .. }
            | Self::Signature { part } => part.supplied_by(),
            Self::UnknownEvidence
            | Self::NotTdx { .. }
            | Self::Unsupported { .. }
            | Self::UnknownRoot { .. }
            | Self::Chain { .. }
            | Self::ForeignAttestationKey
            | Self::NotByChip { .. }
            | Self::Unverified { .. } => Blame::Publisher,
            Self::NotYetValid { .. } => Blame::Clock,
            Self::Expired { .. }
            | Self::OtherPlatform { .. }
            | Self::OtherChip { .. }
            | Self::Missing { .. } => Blame::Collateral,
            Self::Revoked { .. }
            | Self::NoTcbLevel { .. }
            | Self::TcbRevoked
            | Self::QuotingEnclave { .. }
            | Self::TdxModule { .. }
            | Self::Attributes { .. } => Blame::Platform,
        }
    }

    /// The name of the reason, which does not change between releases.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::UnknownEvidence => "unknown-evidence",
            Self::TooLarge { .. } => "too-large",
            Self::Malformed { .. } => "malformed",
            Self::NotTdx { .. } => "not-tdx",
            Self::Unsupported { .. } => "unsupported",
            Self::UnknownRoot { .. } => "unknown-root",
            Self::Signature { .. } => "signature",
            Self::Chain { .. } => "chain",
            Self::ForeignAttestationKey => "foreign-attestation-key",
            Self::NotYetValid { .. } => "not-yet-valid",
            Self::Expired { .. } => "expired",
            Self::OtherPlatform { .. } => "other-platform",
            Self::Missing { .. } => "missing-collateral",
            Self::Revoked { .. } => "revoked",
            Self::NoTcbLevel { .. } => "no-tcb-level",
            Self::TcbRevoked => "tcb-revoked",
            Self::QuotingEnclave { .. } => "quoting-enclave",
            Self::TdxModule { .. } => "tdx-module",
            Self::Attributes { .. } => "attributes",
            Self::NotByChip { .. } => "not-by-chip",
            Self::OtherChip { .. } => "other-chip",
            Self::Unverified { .. } => "unverified",
        }
    }

    pub(crate) fn malformed(part: Part, why: impl std::fmt::Display) -> Self {
        Self::Malformed {
            part,
            why: printable(&why.to_string()),
        }
    }
}

/// A text that may hold what a stranger wrote, fit for a screen and a log: one line of at most 200 characters, nothing that
/// controls a terminal.
pub(crate) fn printable(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    let line: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    let line = line.join(" ");
    let is_shown = |c: &char| c.is_ascii_graphic() || *c == ' ';
    line.chars().filter(is_shown).take(MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stranger_wrote_controls_no_terminal() {
        let refusal = Refusal::malformed(
            Part::TcbInfo,
            "unknown `\u{1b}[2Jroot\u{202e}`,\n\texpected another",
        );
        assert_eq!(
            refusal.to_string(),
            "the TCB info is malformed: unknown ` [2Jroot`, expected another"
        );
        assert_eq!(printable(&"x".repeat(10_000)).len(), 200);
    }
}
