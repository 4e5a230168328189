//! A TDX quote, parsed so strictly that every byte of it means something.
//!
//! ```text
//! header 48 │ body (TD report 1.0: 584, 1.5: 648, 1.5ex: 885) │ len │ signature 64 │ attestation key 64 │ 6 │ len ─┐
//!   QE report 384 │ its signature 64 │ len │ authentication data 32 │ 5 │ len │ PCK, PCK CA, root as PEM ◄─────────┘
//! ```
//!
//! Version 5 has type and size of the body behind the header. Some platforms fill quotes up with zero bytes; nothing else
//! may follow. Source: Intel, "TDX DCAP Quote Generation Library and Quote Verification Library", section A.3 and A.4.

use dcap_qvl::quote::{AuthData, Quote, Report};

use crate::{
    digest::{EvidenceDigest, Measurement, ReportData, RootId},
    refusal::{Part, Refusal},
    verified::Tee,
    x509::{self, Cert},
};

/// A quote is no larger, in bytes; those seen have 5,000 to 5,300, and kernels give at most 8 KiB.
pub const MAX_QUOTE_BYTES: usize = 16 * 1024;

/// Type of what certifies the attestation key: a report of the quoting enclave.
const CERTIFIED_BY_QE: u16 = 6;
/// Type of what certifies the quoting enclave: a PEM chain.
const PCK_CHAIN: u16 = 5;
const AUTHENTICATION_DATA_BYTES: usize = 32;

/// A quote whose form was checked, and nothing else.
#[derive(Clone, Debug)]
pub struct TdxQuote {
    raw: Vec<u8>,
    quote: Quote,
    chain: [Cert; 3],
}

/// Which TD report a quote holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TdVersion {
    /// TDX 1.0.
    Td10,
    /// TDX 1.5.
    Td15,
    /// TDX 1.5 with the fields of service TDs.
    Td15Ex,
}

impl std::fmt::Display for TdVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Td10 => "TD 1.0",
            Self::Td15 => "TD 1.5",
            Self::Td15Ex => "TD 1.5ex",
        })
    }
}

impl TdxQuote {
    /// Parses a quote of version 4 or 5.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`], [`Refusal::NotTdx`] for a quote of SGX, [`Refusal::Unsupported`] for other versions and
    /// algorithms, [`Refusal::Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        x509::bounded(Part::Evidence, bytes.len(), MAX_QUOTE_BYTES)?;
        let malformed = |why| Refusal::malformed(Part::Evidence, why);
        let header = Header::of(bytes).ok_or_else(|| malformed("shorter than a header"))?;
        header.check()?;
        let quote =
            Quote::parse(bytes).map_err(|error| Refusal::malformed(Part::Evidence, error))?;
        if matches!(quote.report, Report::SgxEnclave(_)) {
            return Err(Refusal::NotTdx { found: "SGX" });
        }
        let AuthData::V4(auth) = &quote.auth_data else {
            return Err(malformed("signature data of version 3"));
        };
        let inner = &auth.qe_report_data;
        if auth.certification_data.cert_type != CERTIFIED_BY_QE {
            return Err(malformed(
                "the attestation key is not certified by a quoting enclave",
            ));
        }
        if inner.certification_data.cert_type != PCK_CHAIN {
            return Err(malformed("the PCK certificate chain is not inside"));
        }
        if inner.qe_auth_data.data.len() != AUTHENTICATION_DATA_BYTES {
            return Err(malformed(
                "authentication data of another length than 32 bytes",
            ));
        }
        let chain = pck_chain(&inner.certification_data.body.data)?;
        // The library reads nested lengths loosely; written again, the quote shows what it skipped.
        let understood = scale_encode(&quote);
        let Some(padding) = bytes.strip_prefix(understood.as_slice()) else {
            return Err(malformed("lengths that do not agree"));
        };
        if padding.iter().any(|byte| *byte != 0) {
            return Err(malformed("bytes behind the end"));
        }
        Ok(Self {
            raw: understood,
            quote,
            chain,
        })
    }

    /// The quote without padding.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw
    }

    /// Digest of the quote without padding.
    #[must_use]
    pub fn digest(&self) -> EvidenceDigest {
        EvidenceDigest::of(Tee::Tdx, &self.raw)
    }

    /// Version of the quote: 4 or 5.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.quote.header.version
    }

    /// Version of the TD report inside.
    #[must_use]
    pub fn td_version(&self) -> TdVersion {
        match self.quote.report {
            Report::TD15(_) => TdVersion::Td15,
            Report::TD15Ex(_) => TdVersion::Td15Ex,
            Report::TD10(_) | Report::SgxEnclave(_) => TdVersion::Td10,
        }
    }

    /// Everything the TD report says.
    #[must_use]
    pub fn td(&self) -> TdReport {
        let td = self.quote.report.as_td10().expect("only TD reports parse");
        let td15 = self.quote.report.as_td15();
        TdReport {
            tee_tcb_svn: td.tee_tcb_svn,
            mr_seam: Measurement(td.mr_seam),
            mr_signer_seam: Measurement(td.mr_signer_seam),
            seam_attributes: td.seam_attributes,
            attributes: td.td_attributes,
            xfam: td.xfam,
            mr_td: Measurement(td.mr_td),
            mr_config_id: Measurement(td.mr_config_id),
            mr_owner: Measurement(td.mr_owner),
            mr_owner_config: Measurement(td.mr_owner_config),
            rtmr: [td.rt_mr0, td.rt_mr1, td.rt_mr2, td.rt_mr3].map(Measurement),
            report_data: ReportData(td.report_data),
            tee_tcb_svn2: td15.map(|td| td.tee_tcb_svn2),
            mr_service_td: td15.map(|td| Measurement(td.mr_service_td)),
        }
    }

    /// SHA-256 of the root that its chain ends at, which proves nothing by itself.
    #[must_use]
    pub fn claimed_root(&self) -> RootId {
        RootId(x509::fingerprint(self.root().der()))
    }

    /// FMSPC of the machine, as its PCK certificate claims: which TCB info to fetch.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] if the certificate has no extension of Intel's.
    pub fn claimed_fmspc(&self) -> Result<[u8; 6], Refusal> {
        dcap_qvl::intel::parse_pck_extension(self.pck().der())
            .map(|extension| extension.fmspc)
            .map_err(|error| Refusal::malformed(Part::Pck, error))
    }

    /// Which of Intel's two authorities issued the PCK: `platform` or `processor`, as the names of addresses have it.
    #[must_use]
    pub fn claimed_ca(&self) -> &'static str {
        let subject = self.pck_ca().subject().to_string();
        if subject.contains("Platform") {
            "platform"
        } else {
            "processor"
        }
    }

    pub(crate) fn pck(&self) -> &Cert {
        &self.chain[0]
    }

    pub(crate) fn pck_ca(&self) -> &Cert {
        &self.chain[1]
    }

    pub(crate) fn root(&self) -> &Cert {
        &self.chain[2]
    }
}

/// What a TD report says, signed by nobody as long as it comes from a [`TdxQuote`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TdReport {
    /// TCB of the TDX module when the guest started.
    pub tee_tcb_svn: [u8; 16],
    /// Measurement of the TDX module.
    pub mr_seam: Measurement,
    /// Who signed the TDX module; zero for Intel.
    pub mr_signer_seam: Measurement,
    /// Attributes of the TDX module.
    pub seam_attributes: [u8; 8],
    /// Attributes of the guest, little endian.
    pub attributes: [u8; 8],
    /// CPU features of the guest, little endian.
    pub xfam: [u8; 8],
    /// Measurement of the guest's first memory.
    pub mr_td: Measurement,
    /// Chosen by the host: configuration that no owner defined.
    pub mr_config_id: Measurement,
    /// Chosen by the host: the owner of the guest.
    pub mr_owner: Measurement,
    /// Chosen by the host: configuration that the owner defined.
    pub mr_owner_config: Measurement,
    /// Registers that firmware and kernel extend.
    pub rtmr: [Measurement; 4],
    /// What the guest asked to have signed.
    pub report_data: ReportData,
    /// TCB of the TDX module now; from TD 1.5.
    pub tee_tcb_svn2: Option<[u8; 16]>,
    /// Service TDs bound to the guest; from TD 1.5.
    pub mr_service_td: Option<Measurement>,
}

impl TdReport {
    /// Bit 0 of the attributes: the host can look into the guest; and bits 4 to 6: it can count what the guest does.
    #[must_use]
    pub fn is_debug(&self) -> bool {
        self.attributes[0] & 0b0111_0001 != 0
    }
}

/// The fields that decide whether the rest is read.
struct Header {
    version: u16,
    key_type: u16,
    tee: u32,
}

impl Header {
    fn of(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<48>()?;
        Some(Self {
            version: u16::from_le_bytes([bytes[0], bytes[1]]),
            key_type: u16::from_le_bytes([bytes[2], bytes[3]]),
            tee: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        })
    }

    fn check(&self) -> Result<(), Refusal> {
        match self.tee {
            0x81 => {}
            0 if (3..=5).contains(&self.version) => {
                return Err(Refusal::NotTdx { found: "SGX" });
            }
            _ => {
                return Err(Refusal::Unsupported {
                    what: "TEE type",
                    found: format!("{:#x}", self.tee),
                });
            }
        }
        let unsupported = |what, found: u16| {
            let found = found.to_string();
            Err(Refusal::Unsupported { what, found })
        };
        match (self.version, self.key_type) {
            (4 | 5, 2) => Ok(()),
            (4 | 5, other) => unsupported("attestation key type", other),
            (other, _) => unsupported("quote version", other),
        }
    }
}

/// PCK, PCK CA and root, in the only form in which Intel writes them, with or without a final zero byte.
fn pck_chain(text: &[u8]) -> Result<[Cert; 3], Refusal> {
    let text = text.strip_suffix(&[0]).unwrap_or(text);
    let certs = x509::from_pem(text, Part::PckChain, 3)?;
    if x509::to_pem(&certs).as_bytes() != text {
        return Err(Refusal::malformed(
            Part::PckChain,
            "not in the strict form of PEM",
        ));
    }
    certs
        .try_into()
        .map_err(|_| Refusal::malformed(Part::PckChain, "not PCK, PCK CA and root"))
}

fn scale_encode(quote: &Quote) -> Vec<u8> {
    parity_scale_codec::Encode::encode(quote)
}
