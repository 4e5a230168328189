//! What AMD publishes and a report is verified with: the certificates of the chip and its authorities, and a revocation
//! list.
//!
//! The canonical form is CBOR with DER inside. [`SnpPieces`] takes loose files, as AMD's key server and the kernel give
//! them, and finds those that belong to a report.

use minicbor::{Decode, Encode, bytes::ByteVec};
use souk_crypto::{UnixTime, cbor};

use crate::{
    digest::CollateralDigest,
    refusal::{Part, Refusal},
    snp::{Product, SnpReport, vcek},
    verified::Tee,
    x509::{self, Cert, Crl},
};

/// Collateral of one chip is no larger, in bytes: three certificates and a revocation list.
pub const MAX_SNP_COLLATERAL_BYTES: usize = 3 * x509::MAX_CERT_BYTES + x509::MAX_CRL_BYTES + 1024;

/// Loose pieces are no more than this; a folder with all of AMD's certificates and one of ours has ten.
const MAX_PIECES: usize = 64;

/// Collateral whose form was checked, and nothing else.
#[derive(Clone, Debug)]
pub struct SnpCollateral {
    pub(super) vcek: Cert,
    pub(super) ask: Cert,
    pub(super) ark: Cert,
    pub(super) crl: Option<Crl>,
}

#[derive(Clone, Debug, Encode, Decode)]
#[cbor(map)]
struct Wire {
    #[n(0)]
    vcek: ByteVec,
    #[n(1)]
    ask: ByteVec,
    #[n(2)]
    ark: ByteVec,
    #[n(3)]
    crl: Option<ByteVec>,
}

impl SnpCollateral {
    /// Takes certificates and list as DER.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`] or [`Refusal::Malformed`], with the part that is wrong.
    pub fn new(vcek: &[u8], ask: &[u8], ark: &[u8], crl: Option<&[u8]>) -> Result<Self, Refusal> {
        Ok(Self {
            vcek: Cert::from_der(vcek, Part::Vcek)?,
            ask: Cert::from_der(ask, Part::Ask)?,
            ark: Cert::from_der(ark, Part::Root)?,
            crl: crl
                .map(|crl| Crl::from_der(crl, Part::AmdCrl))
                .transpose()?,
        })
    }

    /// Reads the canonical form.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Refusal> {
        let wire: Wire = cbor::decode(bytes, MAX_SNP_COLLATERAL_BYTES)
            .map_err(|error| Refusal::malformed(Part::Collateral, error))?;
        Self::new(
            &wire.vcek,
            &wire.ask,
            &wire.ark,
            wire.crl.as_deref().map(Vec::as_slice),
        )
    }

    /// The canonical form.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let bytes = |cert: &Cert| ByteVec::from(cert.der().to_vec());
        cbor::encode(&Wire {
            vcek: bytes(&self.vcek),
            ask: bytes(&self.ask),
            ark: bytes(&self.ark),
            crl: self.crl.as_ref().map(|crl| crl.der().to_vec().into()),
        })
    }

    /// Digest of the canonical form.
    #[must_use]
    pub fn digest(&self) -> CollateralDigest {
        CollateralDigest::of(Tee::SevSnp, &self.to_bytes())
    }

    /// The certificate of the chip.
    #[must_use]
    pub fn vcek_der(&self) -> &[u8] {
        self.vcek.der()
    }

    /// The certificate of who issued it.
    #[must_use]
    pub fn ask_der(&self) -> &[u8] {
        self.ask.der()
    }

    /// The root, which proves nothing by being here.
    #[must_use]
    pub fn ark_der(&self) -> &[u8] {
        self.ark.der()
    }

    /// The revocation list of the root.
    #[must_use]
    pub fn crl_der(&self) -> Option<&[u8]> {
        self.crl.as_ref().map(Crl::der)
    }

    /// When the revocation list was issued, if there is one.
    #[must_use]
    pub fn issued(&self) -> Option<UnixTime> {
        self.crl.as_ref().map(Crl::this_update)
    }

    /// How well it fits `report` at `now`: by chip and TCB first, then by its dates; the later list wins.
    pub(crate) fn rank(&self, report: &SnpReport, now: UnixTime) -> impl Ord + use<> {
        let holds = now < self.expires() && self.issued().is_none_or(|issued| issued <= now);
        (vcek::fit(&self.vcek, report), holds, self.issued())
    }

    /// The first date at which a part of it ends.
    #[must_use]
    pub fn expires(&self) -> UnixTime {
        [&self.vcek, &self.ask, &self.ark]
            .into_iter()
            .map(|cert| cert.window().1)
            .chain(self.crl.as_ref().map(Crl::next_update))
            .min()
            .expect("three certificates")
    }
}

/// Certificates and lists in any order, of any number of chips and products.
#[derive(Clone, Debug, Default)]
pub struct SnpPieces {
    certs: Vec<Cert>,
    crls: Vec<Crl>,
}

impl SnpPieces {
    /// Takes what one file holds: certificates or revocation lists, in PEM or DER. Says whether it held any.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`] when there are too many pieces.
    pub fn add(&mut self, file: &[u8]) -> Result<bool, Refusal> {
        let before = self.certs.len() + self.crls.len();
        if let Ok(cert) = Cert::from_der(file, Part::Collateral) {
            self.certs.push(cert);
        } else if let Ok(crl) = Crl::from_der(file, Part::AmdCrl) {
            self.crls.push(crl);
        } else if file.len() <= MAX_SNP_COLLATERAL_BYTES * 2 {
            for block in pem::parse_many(file).unwrap_or_default() {
                match block.tag() {
                    "CERTIFICATE" => self
                        .certs
                        .extend(Cert::from_der(block.contents(), Part::Collateral)),
                    "X509 CRL" => self
                        .crls
                        .extend(Crl::from_der(block.contents(), Part::AmdCrl)),
                    _ => {}
                }
            }
        }
        let len = self.certs.len() + self.crls.len();
        x509::bounded(Part::Collateral, len, MAX_PIECES)?;
        Ok(len > before)
    }

    /// The collateral of `report` at `now`: the certificate of its chip, and who issued that, from the pieces or, for AMD's
    /// own authorities, from this program.
    ///
    /// Of several that fit, the one that holds at `now` is taken: a chip has a certificate for each TCB, and a list that was
    /// issued after `now` says nothing about it.
    ///
    /// # Errors
    /// [`Refusal::Missing`] with the part that is not there.
    pub fn for_report(&self, report: &SnpReport, now: UnixTime) -> Result<SnpCollateral, Refusal> {
        let vcek = self
            .certs
            .iter()
            .filter(|cert| vcek::is_vcek(cert))
            // Any other certificate of a chip gets a better answer than none: its fields differ by name.
            .max_by_key(|cert| (vcek::fit(cert, report), cert.holds(now)))
            .ok_or(Refusal::Missing { part: Part::Vcek })?;
        let built_in = built_in()?;
        let issuer = |of: &Cert, part| {
            self.certs
                .iter()
                .chain(&built_in)
                .filter(|cert| cert.subject() == of.issuer())
                // Of several alike the first: what was given goes before what is built in.
                .min_by_key(|cert| !cert.holds(now))
                .ok_or(Refusal::Missing { part })
        };
        let ask = issuer(vcek, Part::Ask)?;
        let ark = issuer(ask, Part::Root)?;
        let crl = self
            .crls
            .iter()
            .filter(|crl| crl.issuer() == ark.subject())
            .max_by_key(|crl| (crl.this_update() <= now, crl.this_update()));
        Ok(SnpCollateral {
            vcek: vcek.clone(),
            ask: ask.clone(),
            ark: ark.clone(),
            crl: crl.cloned(),
        })
    }
}

/// ASK and ARK of all products, as `sev` carries them.
fn built_in() -> Result<Vec<Cert>, Refusal> {
    use sev::certs::snp::builtin::{genoa, milan, turin};
    let mut certs = Vec::new();
    for pem in [
        milan::ASK,
        milan::ARK,
        genoa::ASK,
        genoa::ARK,
        turin::ASK,
        turin::ARK,
    ] {
        certs.extend(x509::from_pem(pem, Part::Ask, 1)?);
    }
    Ok(certs)
}

/// The root of a product, as DER.
pub(crate) fn amd_root(product: Product) -> Vec<u8> {
    use sev::certs::snp::builtin::{genoa, milan, turin};
    let pem = match product {
        Product::Milan => milan::ARK,
        Product::Genoa => genoa::ARK,
        Product::Turin => turin::ARK,
    };
    pem::parse(pem)
        .expect("the certificates in sev are PEM; a test reads all of them")
        .into_contents()
}
