//! The certificate of a chip, and whether it is the one of a report.
//!
//! Source: AMD, "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface Specification" (57230), section 3.1.

use x509_cert::der::{Decode as _, asn1::ObjectIdentifier};

use super::{Product, SnpReport, SnpTcb};
use crate::{
    refusal::{Part, Refusal, printable},
    x509::Cert,
};

const PRODUCT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.2");
const BOOTLOADER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.1");
const TEE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.2");
const SNP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.3");
const MICROCODE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.8");
const FMC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.9");
const HARDWARE_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.4");

/// Turin has chip ids of 8 bytes, padded to 64 in a report.
const SHORT_ID: usize = 8;

/// Whether a certificate is one of a chip at all.
pub(super) fn is_vcek(cert: &Cert) -> bool {
    cert.extension(HARDWARE_ID).is_some()
}

/// Whether a certificate is one of this chip; never for a chip id that is hidden.
fn is_of_chip(cert: &Cert, chip_id: &[u8; 64]) -> bool {
    if chip_id == &[0; 64] {
        return false;
    }
    match cert.extension(HARDWARE_ID) {
        Some(id) if id.len() == 64 => id == chip_id,
        Some(id) if id.len() == SHORT_ID => {
            id == &chip_id[..SHORT_ID] && chip_id[SHORT_ID..].iter().all(|byte| *byte == 0)
        }
        _ => false,
    }
}

/// How well a certificate fits a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fit {
    /// Of another chip.
    No,
    /// Of this chip, at another TCB.
    Chip,
    /// Of this chip at this TCB.
    ChipAndTcb,
}

/// How well a certificate fits a report; [`check`] says what is wrong.
pub(super) fn fit(cert: &Cert, report: &SnpReport) -> Fit {
    let checked = product(cert).and_then(|product| check(cert, report, product));
    match checked {
        Ok(()) => Fit::ChipAndTcb,
        Err(_) if is_of_chip(cert, &report.chip_id()) => Fit::Chip,
        Err(_) => Fit::No,
    }
}

/// The product that a certificate of a chip names, such as `Milan` of `Milan-B0`.
pub(super) fn product(cert: &Cert) -> Result<Product, Refusal> {
    let name = cert
        .extension(PRODUCT_NAME)
        .and_then(|der| x509_cert::der::asn1::Ia5StringRef::from_der(der).ok())
        .ok_or_else(|| Refusal::malformed(Part::Vcek, "it names no product"))?
        .as_str();
    let line = name.split('-').next().unwrap_or(name);
    let known = Product::ALL
        .into_iter()
        .find(|product| product.as_str() == line);
    known.ok_or_else(|| Refusal::Unsupported {
        what: "product",
        found: printable(name),
    })
}

/// Refuses a certificate that is not of the chip and TCB that made the report.
pub(super) fn check(cert: &Cert, report: &SnpReport, product: Product) -> Result<(), Refusal> {
    if let Some(claimed) = report.claimed_product()
        && claimed != product
    {
        return Err(other("product", claimed, product));
    }
    if !is_of_chip(cert, &report.chip_id()) {
        let of_cert = cert.extension(HARDWARE_ID).unwrap_or_default();
        return Err(other(
            "chip id",
            hex::encode(report.chip_id()),
            hex::encode(of_cert),
        ));
    }
    let of_cert = SnpTcb {
        fmc: match product {
            Product::Turin => Some(version(cert, FMC)?),
            Product::Milan | Product::Genoa => None,
        },
        bootloader: version(cert, BOOTLOADER)?,
        tee: version(cert, TEE)?,
        snp: version(cert, SNP)?,
        microcode: version(cert, MICROCODE)?,
    };
    let reported = report.reported_tcb(product);
    if reported != of_cert {
        return Err(other("TCB", reported, of_cert));
    }
    Ok(())
}

fn version(cert: &Cert, oid: ObjectIdentifier) -> Result<u8, Refusal> {
    cert.extension(oid)
        .and_then(|der| u8::from_der(der).ok())
        .ok_or_else(|| Refusal::malformed(Part::Vcek, format!("no version under {oid}")))
}

fn other(
    field: &'static str,
    report: impl std::fmt::Display,
    vcek: impl std::fmt::Display,
) -> Refusal {
    Refusal::OtherChip {
        field,
        report: report.to_string(),
        vcek: vcek.to_string(),
    }
}
