//! Certificates and revocation lists as evidence needs them: parsed once, with their dates, and equal to their bytes.
//!
//! Threat: bytes beside the signed ones. A certificate is taken only if encoding it again gives the same bytes, and only
//! if the two places that name its signature algorithm agree, so that every byte is either signed or a signature.

use std::borrow::Cow;

use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use souk_crypto::UnixTime;
use x509_cert::{
    certificate::{CertificateInner, Raw},
    crl::{CertificateList, RevokedCert},
    der::{Decode as _, Encode as _, asn1::ObjectIdentifier},
    ext::pkix::name::{GeneralName, GeneralNames},
    name::Name,
    spki::AlgorithmIdentifierOwned,
    time::Time,
};

use crate::refusal::{Part, Refusal};

/// A certificate is no larger, in bytes; Intel's and AMD's have 700 to 1,700.
pub(crate) const MAX_CERT_BYTES: usize = 8 * 1024;

/// A revocation list is no larger, in bytes; Intel's list of PCKs grows with the machines that it revokes.
pub(crate) const MAX_CRL_BYTES: usize = 256 * 1024;

/// Says of an entry in a revocation list who issued the certificate (RFC 5280 section 5.3.3).
const CERTIFICATE_ISSUER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.29");

/// A certificate whose form was checked, and nothing else.
#[derive(Clone, Debug)]
pub(crate) struct Cert {
    der: Vec<u8>,
    parsed: CertificateInner<Raw>,
}

impl PartialEq for Cert {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}
impl Eq for Cert {}

impl Cert {
    pub(crate) fn from_der(der: &[u8], part: Part) -> Result<Self, Refusal> {
        bounded(part, der.len(), MAX_CERT_BYTES)?;
        let parsed = CertificateInner::<Raw>::from_der(der)
            .map_err(|error| Refusal::malformed(part, error))?;
        if parsed.to_der().ok().as_deref() != Some(der) {
            return Err(Refusal::malformed(part, "not in distinguished encoding"));
        }
        if parsed.signature_algorithm() != parsed.tbs_certificate().signature() {
            return Err(Refusal::malformed(part, "two signature algorithms"));
        }
        Ok(Self {
            der: der.to_vec(),
            parsed,
        })
    }

    pub(crate) fn der(&self) -> &[u8] {
        &self.der
    }

    pub(crate) fn serial(&self) -> &[u8] {
        self.parsed.tbs_certificate().serial_number().as_bytes()
    }

    pub(crate) fn subject(&self) -> &Name {
        self.parsed.tbs_certificate().subject()
    }

    pub(crate) fn issuer(&self) -> &Name {
        self.parsed.tbs_certificate().issuer()
    }

    pub(crate) fn window(&self) -> (UnixTime, UnixTime) {
        let validity = self.parsed.tbs_certificate().validity();
        (instant(&validity.not_before), instant(&validity.not_after))
    }

    /// The public key without its algorithm.
    pub(crate) fn public_key(&self) -> &[u8] {
        let info = self.parsed.tbs_certificate().subject_public_key_info();
        info.subject_public_key.raw_bytes()
    }

    /// The contents of an extension; `None` where there is none or more than one.
    pub(crate) fn extension(&self, oid: ObjectIdentifier) -> Option<&[u8]> {
        let extensions = self.parsed.tbs_certificate().extensions()?;
        let mut found = extensions.iter().filter(|found| found.extn_id == oid);
        match (found.next(), found.next()) {
            (Some(one), None) => Some(one.extn_value.as_bytes()),
            _ => None,
        }
    }

    /// Whether an authority with a key of P-256, as all of Intel's have, signed it.
    pub(crate) fn is_signed_by(&self, authority: &Self) -> bool {
        let signed = self.parsed.tbs_certificate().to_der().ok();
        let signature = self.parsed.signature().as_bytes();
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, authority.public_key());
        signed.zip(signature).is_some_and(|(signed, signature)| {
            self.issuer() == authority.subject() && key.verify(&signed, signature).is_ok()
        })
    }

    /// Whether `now` lies within its dates.
    pub(crate) fn holds(&self, now: UnixTime) -> bool {
        self.check_dates(Part::Collateral, now).is_ok()
    }

    /// Refuses a certificate outside its dates.
    pub(crate) fn check_dates(&self, part: Part, now: UnixTime) -> Result<(), Refusal> {
        let (from, to) = self.window();
        check_window(part, from, to, now)
    }
}

/// A revocation list whose form was checked, and nothing else.
#[derive(Clone, Debug)]
pub(crate) struct Crl {
    der: Vec<u8>,
    parsed: CertificateList<Raw>,
    this_update: UnixTime,
    next_update: UnixTime,
}

impl PartialEq for Crl {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}
impl Eq for Crl {}

impl Crl {
    pub(crate) fn from_der(der: &[u8], part: Part) -> Result<Self, Refusal> {
        bounded(part, der.len(), MAX_CRL_BYTES)?;
        let parsed = CertificateList::<Raw>::from_der(der)
            .map_err(|error| Refusal::malformed(part, error))?;
        if parsed.to_der().ok().as_deref() != Some(der) {
            return Err(Refusal::malformed(part, "not in distinguished encoding"));
        }
        if parsed.signature_algorithm != parsed.tbs_cert_list.signature {
            return Err(Refusal::malformed(part, "two signature algorithms"));
        }
        for entry in entries(&parsed) {
            named_issuer(entry, part)?;
        }
        let next_update = parsed
            .tbs_cert_list
            .next_update
            .as_ref()
            .ok_or_else(|| Refusal::malformed(part, "it never ends"))?;
        Ok(Self {
            der: der.to_vec(),
            this_update: instant(&parsed.tbs_cert_list.this_update),
            next_update: instant(next_update),
            parsed,
        })
    }

    pub(crate) fn der(&self) -> &[u8] {
        &self.der
    }

    pub(crate) fn issuer(&self) -> &Name {
        &self.parsed.tbs_cert_list.issuer
    }

    pub(crate) fn this_update(&self) -> UnixTime {
        self.this_update
    }

    pub(crate) fn next_update(&self) -> UnixTime {
        self.next_update
    }

    pub(crate) fn signature_algorithm(&self) -> &AlgorithmIdentifierOwned {
        &self.parsed.signature_algorithm
    }

    /// What is signed, and the signature.
    pub(crate) fn signed(&self) -> Option<(Vec<u8>, &[u8])> {
        let tbs = self.parsed.tbs_cert_list.to_der().ok()?;
        Some((tbs, self.parsed.signature.as_bytes()?))
    }

    /// Whether it names `cert`. An entry may say that its certificate, and those of the entries after it, were issued by somebody
    /// else (RFC 5280 section 5.3.3).
    pub(crate) fn revokes(&self, cert: &Cert) -> bool {
        let mut issuer = Cow::Borrowed(self.issuer());
        entries(&self.parsed).iter().any(|entry| {
            if let Ok(Some(other)) = named_issuer(entry, Part::Collateral) {
                issuer = Cow::Owned(other);
            }
            *issuer == *cert.issuer() && entry.serial_number.as_bytes() == cert.serial()
        })
    }

    /// Refuses a list outside its dates; at the moment of its next update it is stale.
    pub(crate) fn check_dates(&self, part: Part, now: UnixTime) -> Result<(), Refusal> {
        let to = self.next_update;
        if now == to {
            return Err(Refusal::Expired { part, to });
        }
        check_window(part, self.this_update, to, now)
    }
}

fn entries(list: &CertificateList<Raw>) -> &[RevokedCert<Raw>] {
    let entries = list.tbs_cert_list.revoked_certificates.as_deref();
    entries.unwrap_or_default()
}

/// The issuer that an entry names, if it names one. A list with an entry that says something else that must be understood
/// cannot be used (RFC 5280 section 5.3).
fn named_issuer(entry: &RevokedCert<Raw>, part: Part) -> Result<Option<Name>, Refusal> {
    let mut issuer = None;
    for extension in entry.crl_entry_extensions.iter().flatten() {
        if extension.extn_id == CERTIFICATE_ISSUER {
            let names = GeneralNames::from_der(extension.extn_value.as_bytes())
                .map_err(|error| Refusal::malformed(part, error))?;
            let [GeneralName::DirectoryName(name)] = names.as_slice() else {
                return Err(Refusal::malformed(part, "an entry of no single issuer"));
            };
            issuer = Some(name.clone());
        } else if extension.critical {
            let why = format!("an entry with the critical extension {}", extension.extn_id);
            return Err(Refusal::malformed(part, why));
        }
    }
    Ok(issuer)
}

/// Refuses what begins after `now` or ended before it; both ends belong to it (RFC 5280 section 4.1.2.5).
pub(crate) fn check_window(
    part: Part,
    from: UnixTime,
    to: UnixTime,
    now: UnixTime,
) -> Result<(), Refusal> {
    if now < from {
        return Err(Refusal::NotYetValid { part, from });
    }
    if now > to {
        return Err(Refusal::Expired { part, to });
    }
    Ok(())
}

pub(crate) fn bounded(part: Part, len: usize, max: usize) -> Result<(), Refusal> {
    if len > max {
        return Err(Refusal::TooLarge { part, len, max });
    }
    Ok(())
}

/// SHA-256 of a root certificate: how a policy names it.
pub(crate) fn fingerprint(der: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    digest.as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

/// Writes certificates as PEM (RFC 7468, strict form).
pub(crate) fn to_pem(certs: &[Cert]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    certs
        .iter()
        .map(|cert| pem::encode_config(&pem::Pem::new("CERTIFICATE", cert.der()), config))
        .collect()
}

/// Reads at most `max` PEM blocks with certificates, whatever stands around them.
pub(crate) fn from_pem(text: &[u8], part: Part, max: usize) -> Result<Vec<Cert>, Refusal> {
    bounded(part, text.len(), max * MAX_CERT_BYTES * 2)?;
    let blocks = pem::parse_many(text).map_err(|error| Refusal::malformed(part, error))?;
    bounded(part, blocks.len(), max)?;
    blocks
        .iter()
        .map(|block| Cert::from_der(block.contents(), part))
        .collect()
}

fn instant(time: &Time) -> UnixTime {
    UnixTime(time.to_unix_duration().as_secs())
}
