//! Reports of AMD SEV-SNP: parsed, and verified down from a root.
//!
//! ```text
//! ARK ─► ASK ─► VCEK (chip, TCB) ─► report ─► report data: a key of a node
//!   └──► revocation list               ├─► measurement, id key
//!                                      └─► guest policy, VMPL
//! ```
//!
//! `sev` checks the signatures. It leaves out, and this module does: that the root is AMD's, the dates of certificates, the
//! revocation list, and that the certificate is of the chip and TCB of the report.
//!
//! Threats: a chain to another root, the certificate of another chip, a key that AMD revoked, firmware that was rolled back
//! below the TCB that its key stands for.

mod collateral;
mod report;
mod vcek;

use ring::signature::{RSA_PSS_2048_8192_SHA384, UnparsedPublicKey};
use sev::{
    certs::snp::{Certificate, Verifiable as _},
    firmware::guest::AttestationReport,
    parser::ByteParser as _,
};
use souk_crypto::UnixTime;
use x509_cert::der::asn1::ObjectIdentifier;

pub(crate) use collateral::amd_root;
pub use collateral::{MAX_SNP_COLLATERAL_BYTES, SnpCollateral, SnpPieces};
pub(crate) use report::SIGNATURE_AT;
pub use report::{GuestPolicy, Product, REPORT_BYTES, SnpReport, SnpTcb};

use crate::{
    digest::RootId,
    refusal::{Part, Refusal},
    x509::{self, Cert},
};

const RSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");

/// What a verified report says. Made here only, and handed out inside of a type that names the root.
#[derive(Clone, Debug)]
pub struct SnpFacts {
    report: SnpReport,
    product: Product,
    revocation_checked: bool,
    issued: Option<UnixTime>,
    expires: UnixTime,
}

impl SnpFacts {
    /// The report.
    #[must_use]
    pub const fn report(&self) -> &SnpReport {
        &self.report
    }

    /// The product, as the certificate of the chip names it.
    #[must_use]
    pub const fn product(&self) -> Product {
        self.product
    }

    /// TCB that the key of the chip stands for.
    #[must_use]
    pub fn tcb(&self) -> SnpTcb {
        self.report.reported_tcb(self.product)
    }

    /// Whether a revocation list of the root was there, and named nothing of the chain.
    #[must_use]
    pub const fn revocation_checked(&self) -> bool {
        self.revocation_checked
    }

    /// When the revocation list was issued.
    #[must_use]
    pub const fn issued(&self) -> Option<UnixTime> {
        self.issued
    }

    /// The first date at which a certificate or the revocation list ends.
    #[must_use]
    pub const fn expires(&self) -> UnixTime {
        self.expires
    }
}

/// Verifies a report against the root in `root_der`, which the caller trusts.
pub(crate) fn verify(
    report: &SnpReport,
    collateral: &SnpCollateral,
    root_der: &[u8],
    now: UnixTime,
) -> Result<SnpFacts, Refusal> {
    let SnpCollateral {
        vcek,
        ask,
        ark,
        crl,
    } = collateral;
    if ark.der() != root_der {
        return Err(Refusal::UnknownRoot {
            root: RootId(x509::fingerprint(ark.der())).to_string(),
        });
    }
    ark.check_dates(Part::Root, now)?;
    ask.check_dates(Part::Ask, now)?;
    vcek.check_dates(Part::Vcek, now)?;
    if ask.issuer() != ark.subject() || vcek.issuer() != ask.subject() {
        let why = "the certificates do not name each other".to_owned();
        return Err(Refusal::Chain { why });
    }
    if let Some(crl) = crl {
        check_revocation(crl, ark, ask, vcek, now)?;
    }
    let product = vcek::product(vcek)?;
    vcek::check(vcek, report, product)?;
    check_signatures(report, ark, ask, vcek)?;
    Ok(SnpFacts {
        report: report.clone(),
        product,
        revocation_checked: crl.is_some(),
        issued: collateral.issued(),
        expires: collateral.expires(),
    })
}

fn check_revocation(
    crl: &x509::Crl,
    ark: &Cert,
    ask: &Cert,
    vcek: &Cert,
    now: UnixTime,
) -> Result<(), Refusal> {
    let part = Part::AmdCrl;
    if crl.issuer() != ark.subject() || crl.signature_algorithm().oid != RSA_PSS {
        return Err(Refusal::malformed(part, "not a list of the root"));
    }
    crl.check_dates(part, now)?;
    let (signed, signature) = crl.signed().ok_or(Refusal::Signature { part })?;
    UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, ark.public_key())
        .verify(&signed, signature)
        .map_err(|_| Refusal::Signature { part })?;
    for (cert, part) in [(ark, Part::Root), (ask, Part::Ask), (vcek, Part::Vcek)] {
        if crl.revokes(cert) {
            return Err(Refusal::Revoked { part });
        }
    }
    Ok(())
}

fn check_signatures(
    report: &SnpReport,
    ark: &Cert,
    ask: &Cert,
    vcek: &Cert,
) -> Result<(), Refusal> {
    let certificate = |cert: &Cert, part| {
        Certificate::from_der(cert.der()).map_err(|error| Refusal::malformed(part, error))
    };
    let sev_ark = certificate(ark, Part::Root)?;
    let sev_ask = certificate(ask, Part::Ask)?;
    let sev_vcek = certificate(vcek, Part::Vcek)?;
    for (signer, signed, part) in [
        (&sev_ark, &sev_ark, Part::Root),
        (&sev_ark, &sev_ask, Part::Ask),
        (&sev_ask, &sev_vcek, Part::Vcek),
    ] {
        (signer, signed)
            .verify()
            .map_err(|_| Refusal::Signature { part })?;
    }
    let understood = AttestationReport::from_bytes(report.as_bytes())
        .map_err(|error| Refusal::malformed(Part::SnpReport, error))?;
    // What the library does not understand it does not hash.
    if understood
        .to_bytes()
        .ok()
        .as_ref()
        .map(<[u8; REPORT_BYTES]>::as_slice)
        != Some(report.as_bytes())
    {
        return Err(Refusal::malformed(
            Part::SnpReport,
            "fields without a meaning",
        ));
    }
    (&sev_vcek, &understood)
        .verify()
        .map_err(|_| Refusal::Signature {
            part: Part::SnpReport,
        })
}
