//! What Intel publishes and a quote is verified with: TCB info, identity of the quoting enclave, revocation lists.
//!
//! One form is canonical: CBOR with certificates in DER, in which no byte is free. It is what travels and what a digest
//! names. The JSON of `dcap-qvl`, in which others write collateral, is read as well.
//!
//! Everything that can be known without a quote is checked once, when the collateral is read; a million quotes may follow.

use dcap_qvl::{QeIdentity, QuoteCollateralV3, TcbInfo};
use minicbor::{Decode, Encode, bytes::ByteVec};
use souk_crypto::{UnixTime, cbor, with_causes};

use crate::{
    digest::CollateralDigest,
    refusal::{Part, Refusal, printable},
    verified::Tee,
    x509::{self, Cert, Crl},
};

/// Collateral of one machine is no larger, in bytes; what was seen has 15,000 to 25,000.
pub const MAX_COLLATERAL_BYTES: usize = 512 * 1024;

/// TCB info or an identity is no larger, in bytes.
const MAX_JSON_BYTES: usize = 128 * 1024;
const SIGNATURE_BYTES: usize = 64;

/// Collateral whose form was checked, and nothing else.
#[derive(Clone, Debug)]
pub struct TdxCollateral {
    wire: Wire,
    /// As the library takes it.
    pub(super) library: QuoteCollateralV3,
    pub(super) root_crl: Crl,
    pub(super) pck_crl: Crl,
    pub(super) tcb_info_chain: [Cert; 2],
    pub(super) qe_identity_chain: [Cert; 2],
    pub(super) tcb_info: Dated,
    pub(super) qe_identity: Dated,
    pub(super) fmspc: [u8; 6],
    /// The chain of the PCK that a file carries along, from the PCK up. It is no part of the canonical form: the chain inside
    /// the quote is the one that counts, and this one has to be the same.
    pub(super) pck_chain: Option<Vec<Cert>>,
}

/// The dates of something that Intel signed as JSON.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dated {
    pub(super) issued: UnixTime,
    pub(super) next_update: UnixTime,
}

#[derive(Clone, Debug, Encode, Decode)]
#[cbor(map)]
struct Wire {
    #[n(0)]
    root_crl: ByteVec,
    #[n(1)]
    pck_crl: ByteVec,
    #[n(2)]
    tcb_info: String,
    #[n(3)]
    tcb_info_signature: ByteVec,
    #[n(4)]
    tcb_info_chain: [ByteVec; 2],
    #[n(5)]
    qe_identity: String,
    #[n(6)]
    qe_identity_signature: ByteVec,
    #[n(7)]
    qe_identity_chain: [ByteVec; 2],
}

impl TdxCollateral {
    /// Reads the canonical form.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`] or [`Refusal::Malformed`], with the part that is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Refusal> {
        let wire = cbor::decode(bytes, MAX_COLLATERAL_BYTES)
            .map_err(|error| Refusal::malformed(Part::Collateral, with_causes(&error)))?;
        Self::of(wire)
    }

    /// Reads collateral in the JSON of `dcap-qvl`: certificates as PEM, bytes as hex.
    ///
    /// # Errors
    /// As [`Self::from_bytes`].
    pub fn from_json(text: &[u8]) -> Result<Self, Refusal> {
        x509::bounded(Part::Collateral, text.len(), MAX_COLLATERAL_BYTES)?;
        let json: QuoteCollateralV3 = serde_json::from_slice(text)
            .map_err(|error| Refusal::malformed(Part::Collateral, error))?;
        Self::of_parts(json)
    }

    /// Takes the answers of a PCCS: TCB info and identity as they were signed, chains as PEM, lists as DER.
    pub(crate) fn of_parts(parts: QuoteCollateralV3) -> Result<Self, Refusal> {
        let chain = |pem: &str, part| -> Result<[ByteVec; 2], Refusal> {
            let certs = x509::from_pem(pem.as_bytes(), part, 2)?;
            let ders = certs.iter().map(|cert| ByteVec::from(cert.der().to_vec()));
            ders.collect::<Vec<_>>()
                .try_into()
                .map_err(|_| Refusal::malformed(part, "its chain is not signer and root"))
        };
        let pck_chain = parts.pck_certificate_chain.as_deref().map(|pem| {
            x509::from_pem(pem.as_bytes(), Part::PckChain, 3)
                .map_err(|error| Refusal::malformed(Part::Collateral, error))
        });
        let pck_crl_issuer = match parts.pck_crl_issuer_chain.as_str() {
            "" => None,
            pem => Some(chain(pem, Part::PckCrl)?),
        };
        let found = Self::of(Wire {
            tcb_info_chain: chain(&parts.tcb_info_issuer_chain, Part::TcbInfoSigner)?,
            qe_identity_chain: chain(&parts.qe_identity_issuer_chain, Part::QeIdentitySigner)?,
            root_crl: parts.root_ca_crl.into(),
            pck_crl: parts.pck_crl.into(),
            tcb_info: parts.tcb_info,
            tcb_info_signature: parts.tcb_info_signature.into(),
            qe_identity: parts.qe_identity,
            qe_identity_signature: parts.qe_identity_signature.into(),
        })?;
        if let Some(ders) = pck_crl_issuer {
            found.check_pck_crl_issuer(&ders)?;
        }
        Ok(Self {
            pck_chain: pck_chain.transpose()?,
            ..found
        })
    }

    /// Refuses a chain beside the list of the PCK's authority that is not of its issuer: nothing else looks at it, and nothing
    /// in a file should be free.
    fn check_pck_crl_issuer(&self, ders: &[ByteVec; 2]) -> Result<(), Refusal> {
        let part = Part::PckCrl;
        let [issuer, root] = chain(ders, part)?;
        let is_issuer = root == self.tcb_info_chain[1]
            && issuer.subject() == self.pck_crl.issuer()
            && issuer.is_signed_by(&root);
        if !is_issuer {
            return Err(Refusal::malformed(
                part,
                "its chain is not that of its issuer",
            ));
        }
        Ok(())
    }

    fn of(wire: Wire) -> Result<Self, Refusal> {
        let (tcb_info, fmspc) = tcb_info(&wire.tcb_info)?;
        let tcb_info_chain = chain(&wire.tcb_info_chain, Part::TcbInfoSigner)?;
        let qe_identity_chain = chain(&wire.qe_identity_chain, Part::QeIdentitySigner)?;
        signature(&wire.tcb_info_signature, Part::TcbInfo)?;
        signature(&wire.qe_identity_signature, Part::QeIdentity)?;
        Ok(Self {
            library: QuoteCollateralV3 {
                pck_crl_issuer_chain: String::new(),
                root_ca_crl: wire.root_crl.to_vec(),
                pck_crl: wire.pck_crl.to_vec(),
                tcb_info_issuer_chain: x509::to_pem(&tcb_info_chain),
                tcb_info: wire.tcb_info.clone(),
                tcb_info_signature: wire.tcb_info_signature.to_vec(),
                qe_identity_issuer_chain: x509::to_pem(&qe_identity_chain),
                qe_identity: wire.qe_identity.clone(),
                qe_identity_signature: wire.qe_identity_signature.to_vec(),
                // The chain inside the quote is the one that counts.
                pck_certificate_chain: None,
            },
            root_crl: Crl::from_der(&wire.root_crl, Part::RootCrl)?,
            pck_crl: Crl::from_der(&wire.pck_crl, Part::PckCrl)?,
            qe_identity: qe_identity(&wire.qe_identity)?,
            tcb_info_chain,
            qe_identity_chain,
            tcb_info,
            fmspc,
            pck_chain: None,
            wire,
        })
    }

    /// The canonical form.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        cbor::encode(&self.wire)
    }

    /// Digest of the canonical form.
    #[must_use]
    pub fn digest(&self) -> CollateralDigest {
        CollateralDigest::of(Tee::Tdx, &self.to_bytes())
    }

    /// FMSPC of the machines that it is for.
    #[must_use]
    pub const fn fmspc(&self) -> [u8; 6] {
        self.fmspc
    }

    /// The oldest date of issue among TCB info, identity and revocation lists.
    #[must_use]
    pub fn issued(&self) -> UnixTime {
        [self.tcb_info.issued, self.qe_identity.issued]
            .into_iter()
            .chain([self.root_crl.this_update(), self.pck_crl.this_update()])
            .min()
            .expect("four dates")
    }

    /// The first date at which a part of it ends.
    #[must_use]
    pub fn expires(&self) -> UnixTime {
        [self.tcb_info.next_update, self.qe_identity.next_update]
            .into_iter()
            .chain([self.root_crl.next_update(), self.pck_crl.next_update()])
            .min()
            .expect("four dates")
    }
}

fn chain(ders: &[ByteVec; 2], part: Part) -> Result<[Cert; 2], Refusal> {
    let [signer, root] = ders;
    Ok([Cert::from_der(signer, part)?, Cert::from_der(root, part)?])
}

fn signature(bytes: &[u8], part: Part) -> Result<(), Refusal> {
    if bytes.len() != SIGNATURE_BYTES {
        return Err(Refusal::malformed(part, "its signature is not 64 bytes"));
    }
    Ok(())
}

fn tcb_info(json: &str) -> Result<(Dated, [u8; 6]), Refusal> {
    let part = Part::TcbInfo;
    x509::bounded(part, json.len(), MAX_JSON_BYTES)?;
    let info: TcbInfo =
        serde_json::from_str(json).map_err(|error| Refusal::malformed(part, error))?;
    let mut fmspc = [0; 6];
    hex::decode_to_slice(&info.fmspc, &mut fmspc)
        .map_err(|error| Refusal::malformed(part, error))?;
    if info.id != "TDX" {
        return Err(Refusal::OtherPlatform {
            expected: "TDX".to_owned(),
            found: printable(&info.id),
        });
    }
    Ok((dated(&info.issue_date, &info.next_update, part)?, fmspc))
}

fn qe_identity(json: &str) -> Result<Dated, Refusal> {
    let part = Part::QeIdentity;
    x509::bounded(part, json.len(), MAX_JSON_BYTES)?;
    let identity: QeIdentity =
        serde_json::from_str(json).map_err(|error| Refusal::malformed(part, error))?;
    dated(&identity.issue_date, &identity.next_update, part)
}

fn dated(issued: &str, next_update: &str, part: Part) -> Result<Dated, Refusal> {
    let instant =
        |text: &str| crate::date::parse(text).ok_or_else(|| Refusal::malformed(part, "no date"));
    Ok(Dated {
        issued: instant(issued)?,
        next_update: instant(next_update)?,
    })
}
