//! An SNP attestation report, read at its offsets.
//!
//! Source: AMD, "SEV Secure Nested Paging Firmware ABI Specification" (56860), table 23 and section 10.1 of "Common
//! Structures". Versions 2 to 5; TCB versions of Turin have another layout than those of Milan and Genoa.

use crate::{
    digest::{EvidenceDigest, Measurement, ReportData},
    refusal::{Part, Refusal},
    verified::Tee,
};

/// A report has exactly this many bytes.
pub const REPORT_BYTES: usize = 0x4a0;

/// Everything before it is signed.
pub(crate) const SIGNATURE_AT: usize = 0x2a0;
/// ECDSA P-384 with SHA-384.
const ECDSA_P384: u32 = 1;
/// A number of the signature has this much room, of which P-384 needs 48 bytes.
const SCALAR_ROOM: usize = 72;

/// A report whose form was checked, and nothing else.
#[derive(Clone, PartialEq, Eq)]
pub struct SnpReport {
    raw: Box<[u8; REPORT_BYTES]>,
    product: Option<Product>,
}

/// A generation of AMD's EPYC processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Product {
    /// EPYC 7003.
    Milan,
    /// EPYC 9004 and 8004.
    Genoa,
    /// EPYC 9005.
    Turin,
}

impl Product {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Milan, Self::Genoa, Self::Turin];

    /// The name in AMD's certificates and addresses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Milan => "Milan",
            Self::Genoa => "Genoa",
            Self::Turin => "Turin",
        }
    }

    /// By family and model of CPUID leaf 1; Siena and Bergamo are of Genoa's line.
    fn of_cpu(family: u8, model: u8) -> Option<Self> {
        match (family, model) {
            (0x19, 0x00..=0x0f) => Some(Self::Milan),
            (0x19, 0x10..=0x1f | 0xa0..=0xaf) => Some(Self::Genoa),
            (0x1a, 0x00..=0x11) => Some(Self::Turin),
            _ => None,
        }
    }
}

impl std::fmt::Display for Product {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Security versions of the parts of AMD's firmware.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SnpTcb {
    /// Firmware of the FMC; Turin only.
    pub fmc: Option<u8>,
    /// Boot loader of the security processor.
    pub bootloader: u8,
    /// Operating system of the security processor.
    pub tee: u8,
    /// SNP firmware.
    pub snp: u8,
    /// Microcode.
    pub microcode: u8,
}

impl SnpTcb {
    /// Whether no part is older than in `minimum`.
    #[must_use]
    pub fn meets(&self, minimum: &Self) -> bool {
        self.fmc.unwrap_or(0) >= minimum.fmc.unwrap_or(0)
            && self.bootloader >= minimum.bootloader
            && self.tee >= minimum.tee
            && self.snp >= minimum.snp
            && self.microcode >= minimum.microcode
    }

    pub(crate) fn to_bytes(self, product: Product) -> [u8; 8] {
        let mut bytes = [0; 8];
        match product {
            Product::Turin => bytes[..4].copy_from_slice(&[
                self.fmc.unwrap_or(0),
                self.bootloader,
                self.tee,
                self.snp,
            ]),
            Product::Milan | Product::Genoa => {
                bytes[..2].copy_from_slice(&[self.bootloader, self.tee]);
                bytes[6] = self.snp;
            }
        }
        bytes[7] = self.microcode;
        bytes
    }

    pub(crate) const fn of(bytes: [u8; 8], product: Product) -> Self {
        match product {
            Product::Turin => Self {
                fmc: Some(bytes[0]),
                bootloader: bytes[1],
                tee: bytes[2],
                snp: bytes[3],
                microcode: bytes[7],
            },
            Product::Milan | Product::Genoa => Self {
                fmc: None,
                bootloader: bytes[0],
                tee: bytes[1],
                snp: bytes[6],
                microcode: bytes[7],
            },
        }
    }
}

impl std::fmt::Display for SnpTcb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(fmc) = self.fmc {
            write!(f, "fmc {fmc}, ")?;
        }
        write!(
            f,
            "bootloader {}, tee {}, snp {}, microcode {}",
            self.bootloader, self.tee, self.snp, self.microcode
        )
    }
}

impl SnpReport {
    /// Parses a report of version 2 to 5.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] for another length and for reserved bytes that are not zero, [`Refusal::Unsupported`] for
    /// other versions, algorithms and processors, [`Refusal::NotByChip`] for a report that nothing or a VLEK signed.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let malformed = |why| Refusal::malformed(Part::Evidence, why);
        let raw: Box<[u8; REPORT_BYTES]> = bytes
            .to_vec()
            .try_into()
            .map_err(|_| malformed("an SNP report has 1,184 bytes"))?;
        let mut report = Self { raw, product: None };
        let unsupported = |what, found: String| Err(Refusal::Unsupported { what, found });
        if !(2..=5).contains(&report.version()) {
            return unsupported("report version", report.version().to_string());
        }
        if report.u32_at(0x34) != ECDSA_P384 {
            return unsupported("signature algorithm", report.u32_at(0x34).to_string());
        }
        if report.version() >= 3 {
            let [family, model] = report.at(0x188);
            report.product = Product::of_cpu(family, model);
            if report.product.is_none() {
                let found = format!("family {family:#x} model {model:#x}");
                return unsupported("processor", found);
            }
        }
        if !report.reserved_is_zero() {
            return Err(malformed("reserved bytes are not zero"));
        }
        match report.u32_at(0x48) {
            key if key & 0b10 != 0 => Err(Refusal::NotByChip { by: "nothing" }),
            key => match key >> 2 & 0b111 {
                0 => Ok(report),
                1 => Err(Refusal::NotByChip { by: "a VLEK" }),
                7 => Err(Refusal::NotByChip { by: "nothing" }),
                _ => Err(Refusal::NotByChip {
                    by: "an unknown key",
                }),
            },
        }
    }

    /// The report.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.raw.as_slice()
    }

    /// Digest of the report.
    #[must_use]
    pub fn digest(&self) -> EvidenceDigest {
        EvidenceDigest::of(Tee::SevSnp, self.as_bytes())
    }

    /// Version of the report: 2 to 5.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.u32_at(0x00)
    }

    /// The processor, which reports name from version 3.
    #[must_use]
    pub const fn claimed_product(&self) -> Option<Product> {
        self.product
    }

    /// Security version of the guest, as its ID block gives it.
    #[must_use]
    pub fn guest_svn(&self) -> u32 {
        self.u32_at(0x04)
    }

    /// What the guest allows its host.
    #[must_use]
    pub fn policy(&self) -> GuestPolicy {
        GuestPolicy(u64::from_le_bytes(self.at(0x08)))
    }

    /// Family of the guest, as its ID block gives it.
    #[must_use]
    pub fn family_id(&self) -> [u8; 16] {
        self.at(0x10)
    }

    /// Image of the guest, as its ID block gives it.
    #[must_use]
    pub fn image_id(&self) -> [u8; 16] {
        self.at(0x20)
    }

    /// Privilege level that asked for the report; 0 is the most privileged.
    #[must_use]
    pub fn vmpl(&self) -> u32 {
        self.u32_at(0x30)
    }

    /// Flags of the platform: bit 0 SMT, 1 TSME, 2 ECC, 3 RAPL off, 4 ciphertext hiding, 5 alias check done, 7 TIO.
    #[must_use]
    pub fn platform_info(&self) -> u64 {
        u64::from_le_bytes(self.at(0x40))
    }

    /// What the guest asked to have signed.
    #[must_use]
    pub fn report_data(&self) -> ReportData {
        ReportData(self.at(0x50))
    }

    /// Measurement of the guest at launch.
    #[must_use]
    pub fn measurement(&self) -> Measurement {
        Measurement(self.at(0x90))
    }

    /// Chosen by the host at launch.
    #[must_use]
    pub fn host_data(&self) -> [u8; 32] {
        self.at(0xc0)
    }

    /// Digest of the key that signed the ID block; zero without one.
    #[must_use]
    pub fn id_key_digest(&self) -> Measurement {
        Measurement(self.at(0xe0))
    }

    /// Digest of the key that certified the ID key; zero without one.
    #[must_use]
    pub fn author_key_digest(&self) -> Measurement {
        Measurement(self.at(0x110))
    }

    /// The chip; 64 bytes, of which Turin uses 8. Zero where the host hides it.
    #[must_use]
    pub fn chip_id(&self) -> [u8; 64] {
        self.at(0x1a0)
    }

    /// TCB that the key of the chip is derived from, in the layout of `product`.
    #[must_use]
    pub fn reported_tcb(&self, product: Product) -> SnpTcb {
        SnpTcb::of(self.at(0x180), product)
    }

    pub(crate) fn reported_tcb_bytes(&self) -> [u8; 8] {
        self.at(0x180)
    }

    /// TCB that runs now, in the layout of `product`.
    #[must_use]
    pub fn current_tcb(&self, product: Product) -> SnpTcb {
        SnpTcb::of(self.at(0x38), product)
    }

    /// TCB that the platform cannot go back behind, in the layout of `product`.
    #[must_use]
    pub fn committed_tcb(&self, product: Product) -> SnpTcb {
        SnpTcb::of(self.at(0x1e0), product)
    }

    /// TCB at the launch of the guest, in the layout of `product`.
    #[must_use]
    pub fn launch_tcb(&self, product: Product) -> SnpTcb {
        SnpTcb::of(self.at(0x1f0), product)
    }

    fn reserved_is_zero(&self) -> bool {
        let after_cpuid = if self.version() >= 3 { 0x18b } else { 0x188 };
        let after_tcb = if self.version() >= 5 { 0x208 } else { 0x1f8 };
        let scalars = SIGNATURE_AT + 2 * SCALAR_ROOM;
        [
            0x4c..0x50,
            after_cpuid..0x1a0,
            0x1eb..0x1ec,
            0x1ef..0x1f0,
            after_tcb..SIGNATURE_AT,
            SIGNATURE_AT + 48..SIGNATURE_AT + SCALAR_ROOM,
            SIGNATURE_AT + SCALAR_ROOM + 48..scalars,
            scalars..REPORT_BYTES,
        ]
        .into_iter()
        .all(|range| self.raw[range].iter().all(|byte| *byte == 0))
    }

    fn at<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.raw[offset..offset + N]
            .try_into()
            .expect("offsets of fields lie inside the report")
    }

    fn u32_at(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.at(offset))
    }
}

impl std::fmt::Debug for SnpReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnpReport")
            .field("version", &self.version())
            .field("measurement", &self.measurement())
            .finish_non_exhaustive()
    }
}

/// What the owner of a guest allows its host (table 10 of the ABI specification).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestPolicy(u64);

impl GuestPolicy {
    /// All bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The host may run the guest beside another thread of the same core.
    #[must_use]
    pub const fn smt(self) -> bool {
        self.0 & 1 << 16 != 0
    }

    /// A migration agent may move the guest, with all its secrets.
    #[must_use]
    pub const fn migration(self) -> bool {
        self.0 & 1 << 18 != 0
    }

    /// The host may look into the guest.
    #[must_use]
    pub const fn debug(self) -> bool {
        self.0 & 1 << 19 != 0
    }
}
