//! A software TDX: a machine, its quoting enclave and Intel's services, under a test root.

use dcap_qvl::{
    INTEL_QE_VENDOR_ID, QuoteCollateralV3,
    quote::{
        AuthData, AuthDataV4, CertificationData, Data, EnclaveReport, Header,
        QEReportCertificationData, Quote, Report, TDReport10, TDReport15, TDReport15Ex,
    },
};
use parity_scale_codec::Encode as _;
use ring::{
    rand::SecureRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use serde_json::json;
use souk_crypto::UnixTime;
use x509_cert::der::asn1::ObjectIdentifier;

use super::{
    SoftError,
    der::{self, Algorithm, Key, ToSign},
    root::{self, TestRoot},
};
use crate::{
    date,
    digest::{ReportData, RootId},
    refusal::Part,
    tdx::{TdReport, TdVersion, TdxCollateral},
    x509::{self, Cert},
};

const SGX_EXTENSION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1");
const PCK_CA: &str = "souk test PCK Platform CA, proves nothing";
const PCK: &str = "souk test PCK, proves nothing";
const SIGNER: &str = "souk test TCB signing, proves nothing";
/// `mr_signer` of Intel's quoting enclave for TDs stands in real identities; the test's is its own.
const QE_SIGNER: [u8; 32] = [0x5e; 32];
const QE_PRODUCT: u16 = 2;

/// What a software TDX pretends to be.
#[derive(Clone, Debug)]
pub struct TdxRecipe {
    /// Version of quotes: 4, or 5.
    pub quote_version: u16,
    /// Version of TD reports; 4 knows TD 1.0 only.
    pub td_version: TdVersion,
    /// What reports say, but for the report data.
    pub td: TdReport,
    /// Status of the machine's TCB level, in Intel's spelling.
    pub platform_status: &'static str,
    /// Advisories of the machine's TCB level.
    pub advisories: Vec<String>,
    /// Status of the quoting enclave's TCB level, in Intel's spelling.
    pub qe_status: &'static str,
    /// TCB of the module that counts as up to date; a report below it meets a level that is out of date.
    pub module_svn: u8,
    /// TCB of the machine; a level asks for 5 everywhere.
    pub cpu_svn: u8,
    /// FMSPC of the machine.
    pub fmspc: [u8; 6],
    /// FMSPC in the collateral.
    pub collateral_fmspc: [u8; 6],
    /// When collateral is issued.
    pub issued: UnixTime,
    /// When collateral ends.
    pub next_update: UnixTime,
    /// When certificates end; they begin when the root does.
    pub certificates_end: UnixTime,
    /// A certificate that its issuer has revoked.
    pub revoked: Option<Part>,
    /// The quoting enclave vouches for another attestation key.
    pub foreign_attestation_key: bool,
    /// The quoting enclave is not the one in its identity.
    pub foreign_quoting_enclave: bool,
}

impl TdxRecipe {
    /// A machine with nothing against it, whose collateral holds from `issued` for 30 days.
    #[must_use]
    pub fn up_to_date(issued: UnixTime) -> Self {
        use crate::digest::Measurement;
        const DAY_S: u64 = 86_400;
        let mut tee_tcb_svn = [5; 16];
        // Module version 0: no identity of a module of its own.
        tee_tcb_svn[1] = 0;
        Self {
            quote_version: 4,
            td_version: TdVersion::Td10,
            td: TdReport {
                tee_tcb_svn,
                mr_seam: Measurement([0x5e; 48]),
                mr_signer_seam: Measurement::ZERO,
                seam_attributes: [0; 8],
                // SEPT_VE_DISABLE.
                attributes: [0, 0, 0, 0x10, 0, 0, 0, 0],
                xfam: [0xe7, 0, 6, 0, 0, 0, 0, 0],
                mr_td: Measurement([1; 48]),
                mr_config_id: Measurement::ZERO,
                mr_owner: Measurement::ZERO,
                mr_owner_config: Measurement::ZERO,
                rtmr: [
                    Measurement([2; 48]),
                    Measurement([3; 48]),
                    Measurement([4; 48]),
                    Measurement::ZERO,
                ],
                report_data: ReportData([0; 64]),
                tee_tcb_svn2: Some(tee_tcb_svn),
                mr_service_td: Some(Measurement::ZERO),
            },
            platform_status: "UpToDate",
            advisories: Vec::new(),
            qe_status: "UpToDate",
            module_svn: 5,
            cpu_svn: 5,
            fmspc: [0x70, 0x65, 0x73, 0x74, 0, 1],
            collateral_fmspc: [0x70, 0x65, 0x73, 0x74, 0, 1],
            issued,
            next_update: issued.plus_s(30 * DAY_S),
            certificates_end: issued.plus_s(3_650 * DAY_S),
            revoked: None,
            foreign_attestation_key: false,
            foreign_quoting_enclave: false,
        }
    }
}

/// A software TDX.
pub struct TestTdx {
    recipe: TdxRecipe,
    attestation: EcdsaKeyPair,
    pck: EcdsaKeyPair,
    chain: [Cert; 3],
    collateral: TdxCollateral,
}

impl std::fmt::Debug for TestTdx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestTdx")
            .field("root", &self.root())
            .finish_non_exhaustive()
    }
}

impl TestTdx {
    /// Draws a root and everything below it.
    ///
    /// # Errors
    /// [`SoftError`] if there is no randomness, or the recipe gives collateral that does not parse.
    pub fn new(recipe: TdxRecipe, rng: &dyn SecureRandom) -> Result<Self, SoftError> {
        let from = recipe.issued.minus_s(86_400);
        let root = TestRoot::between(from, recipe.certificates_end, rng)?;
        Self::under(&root, recipe, rng)
    }

    /// Draws everything below `root`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn under(
        root: &TestRoot,
        recipe: TdxRecipe,
        rng: &dyn SecureRandom,
    ) -> Result<Self, SoftError> {
        let [pck_ca, pck, signer] = [key(rng)?, key(rng)?, key(rng)?];
        let from = recipe.issued.minus_s(86_400);
        let to = recipe.certificates_end;
        let issue = |serial,
                     issuer: (&str, &EcdsaKeyPair),
                     subject,
                     of: &EcdsaKeyPair,
                     is_ca,
                     extensions,
                     part| {
            let cert = ToSign {
                serial,
                issuer: issuer.0,
                subject,
                from,
                to,
                key: Key::P256(of.public_key().as_ref()),
                is_ca,
                extensions,
            };
            let tbs = der::certificate(&cert, Algorithm::EcdsaSha256);
            let signature = sign_der(issuer.1, &tbs, rng)?;
            Cert::from_der(&der::signed(&tbs, Algorithm::EcdsaSha256, &signature), part)
                .map_err(SoftError::Minted)
        };
        let by_root = (root::NAME, root.key());
        let sgx = vec![(SGX_EXTENSION, sgx_extension(&recipe))];
        let chain = [
            issue(3, (PCK_CA, &pck_ca), PCK, &pck, false, sgx, Part::Pck)?,
            issue(2, by_root, PCK_CA, &pck_ca, true, Vec::new(), Part::PckCa)?,
            root.cert().clone(),
        ];
        let signer_cert = issue(
            4,
            by_root,
            SIGNER,
            &signer,
            false,
            Vec::new(),
            Part::TcbInfoSigner,
        )?;
        let list = |issuer: (&str, &EcdsaKeyPair), parts: &[(Part, u64)]| {
            let revoked: Vec<_> = parts
                .iter()
                .filter(|(part, _)| recipe.revoked == Some(*part))
                .map(|(_, serial)| (None, *serial))
                .collect();
            let (from, to) = (recipe.issued, recipe.next_update);
            let tbs = der::revocation_list(issuer.0, from, to, &revoked, Algorithm::EcdsaSha256);
            let signature = sign_der(issuer.1, &tbs, rng)?;
            Ok::<_, SoftError>(der::signed(&tbs, Algorithm::EcdsaSha256, &signature))
        };
        let root_crl = list(
            by_root,
            &[(Part::Root, 1), (Part::PckCa, 2), (Part::TcbInfoSigner, 4)],
        )?;
        let pck_crl = list((PCK_CA, &pck_ca), &[(Part::Pck, 3)])?;
        let (tcb_info, qe_identity) = (tcb_info(&recipe), qe_identity(&recipe));
        let signer_chain = x509::to_pem(&[signer_cert, chain[2].clone()]);
        let collateral = TdxCollateral::of_parts(QuoteCollateralV3 {
            pck_crl_issuer_chain: String::new(),
            root_ca_crl: root_crl,
            pck_crl,
            tcb_info_issuer_chain: signer_chain.clone(),
            tcb_info_signature: sign(&signer, tcb_info.as_bytes(), rng)?.to_vec(),
            tcb_info,
            qe_identity_issuer_chain: signer_chain,
            qe_identity_signature: sign(&signer, qe_identity.as_bytes(), rng)?.to_vec(),
            qe_identity,
            pck_certificate_chain: None,
        })
        .map_err(SoftError::Minted)?;
        Ok(Self {
            recipe,
            attestation: key(rng)?,
            pck,
            chain,
            collateral,
        })
    }

    /// SHA-256 of its root, which a policy has to name.
    #[must_use]
    pub fn root(&self) -> RootId {
        RootId(x509::fingerprint(self.chain[2].der()))
    }

    /// What the test's Intel publishes.
    #[must_use]
    pub const fn collateral(&self) -> &TdxCollateral {
        &self.collateral
    }

    /// A quote over `report_data`.
    ///
    /// # Errors
    /// [`SoftError`] if there is no randomness.
    pub fn quote(
        &self,
        report_data: ReportData,
        rng: &dyn SecureRandom,
    ) -> Result<Vec<u8>, SoftError> {
        let recipe = &self.recipe;
        let mut quote = Quote {
            header: Header {
                version: recipe.quote_version,
                attestation_key_type: 2,
                tee_type: 0x81,
                qe_svn: 0,
                pce_svn: 0,
                qe_vendor_id: INTEL_QE_VENDOR_ID,
                user_data: [0; 20],
            },
            report: report(recipe, report_data),
            auth_data: AuthData::V4(self.signatures(rng)?),
        };
        let signed = quote.encode();
        let signed = &signed[..quote.signed_length()];
        let signature = sign(&self.attestation, signed, rng)?;
        if let AuthData::V4(auth) = &mut quote.auth_data {
            auth.ecdsa_signature = signature;
        }
        Ok(quote.encode())
    }

    /// Everything behind the report, but for the signature over it.
    fn signatures(&self, rng: &dyn SecureRandom) -> Result<AuthDataV4, SoftError> {
        let mut point = [0; 64];
        point.copy_from_slice(&self.attestation.public_key().as_ref()[1..]);
        let authentication = [0x61; 32];
        let mut bound = [0; 64];
        let digest = x509::fingerprint(&[&point[..], &authentication].concat());
        bound[..32].copy_from_slice(&digest);
        if self.recipe.foreign_attestation_key {
            bound[0] ^= 1;
        }
        let mut mr_signer = QE_SIGNER;
        if self.recipe.foreign_quoting_enclave {
            mr_signer[0] ^= 1;
        }
        let qe_report = EnclaveReport {
            cpu_svn: [self.recipe.cpu_svn; 16],
            misc_select: 0,
            reserved1: [0; 28],
            attributes: [0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            mr_enclave: [0x51; 32],
            reserved2: [0; 32],
            mr_signer,
            reserved3: [0; 96],
            isv_prod_id: QE_PRODUCT,
            isv_svn: 4,
            reserved4: [0; 60],
            report_data: bound,
        }
        .encode();
        let qe_report_signature = sign(&self.pck, &qe_report, rng)?;
        let qe_report_data = QEReportCertificationData {
            qe_report: qe_report.try_into().expect("a report has 384 bytes"),
            qe_report_signature,
            qe_auth_data: Data::new(authentication.to_vec()),
            certification_data: CertificationData {
                cert_type: 5,
                body: Data::new(x509::to_pem(&self.chain).into_bytes()),
            },
        };
        Ok(AuthDataV4 {
            ecdsa_signature: [0; 64],
            ecdsa_attestation_key: point,
            certification_data: CertificationData {
                cert_type: 6,
                body: Data::new(qe_report_data.encode()),
            },
            qe_report_data,
        })
    }
}

fn report(recipe: &TdxRecipe, report_data: ReportData) -> Report {
    let td = &recipe.td;
    let base = TDReport10 {
        tee_tcb_svn: td.tee_tcb_svn,
        mr_seam: td.mr_seam.0,
        mr_signer_seam: td.mr_signer_seam.0,
        seam_attributes: td.seam_attributes,
        td_attributes: td.attributes,
        xfam: td.xfam,
        mr_td: td.mr_td.0,
        mr_config_id: td.mr_config_id.0,
        mr_owner: td.mr_owner.0,
        mr_owner_config: td.mr_owner_config.0,
        rt_mr0: td.rtmr[0].0,
        rt_mr1: td.rtmr[1].0,
        rt_mr2: td.rtmr[2].0,
        rt_mr3: td.rtmr[3].0,
        report_data: report_data.0,
    };
    let td15 = TDReport15 {
        base,
        tee_tcb_svn2: td.tee_tcb_svn2.unwrap_or(td.tee_tcb_svn),
        mr_service_td: td.mr_service_td.map_or([0; 48], |hash| hash.0),
    };
    match recipe.td_version {
        TdVersion::Td10 => Report::TD10(base),
        TdVersion::Td15 => Report::TD15(td15),
        TdVersion::Td15Ex => Report::TD15Ex(TDReport15Ex {
            base: td15,
            vmid: 0,
            td_id: [0x1d; 32],
            dev_info: [0; 48],
            init_service_td_hash: [0; 48],
            init_service_td_attributes: [0; 8],
            init_cpu_svn: [0; 16],
            init_tee_tcb_svn: [0; 16],
            init_tee_fmspc: [0; 12],
            cur_service_td_hash: [0; 48],
            cur_service_td_attributes: [0; 8],
        }),
    }
}

/// Intel's extension of a PCK certificate ("Intel SGX PCK Certificate and CRL Profile", section 1.3.5).
fn sgx_extension(recipe: &TdxRecipe) -> Vec<u8> {
    let field = |number: &str, value: Vec<u8>| {
        der::sequence(&[
            &der::oid(&format!("1.2.840.113741.1.13.1.{number}")),
            &value,
        ])
    };
    let mut tcb: Vec<_> = (1..=16)
        .map(|part| field(&format!("2.{part}"), der::integer(&[recipe.cpu_svn])))
        .collect();
    tcb.push(field("2.17", der::integer(&[recipe.cpu_svn])));
    tcb.push(field("2.18", der::octets(&[recipe.cpu_svn; 16])));
    der::sequence_of(&[
        field("1", der::octets(&[0x99; 16])),
        field("2", der::sequence_of(&tcb)),
        field("3", der::octets(&[0, 0])),
        field("4", der::octets(&recipe.fmspc)),
        field("5", der::enumerated(1)),
    ])
}

fn tcb_info(recipe: &TdxRecipe) -> String {
    let components = |svn: u8| vec![json!({ "svn": svn }); 16];
    let level = |module: u8, status: &str, advisories: &[String]| {
        let mut tdx = components(0);
        tdx[0] = json!({ "svn": module });
        json!({
            "tcb": {
                "sgxtcbcomponents": components(5),
                "pcesvn": 5,
                "tdxtcbcomponents": tdx,
            },
            "tcbDate": "2025-01-01T00:00:00Z",
            "tcbStatus": status,
            "advisoryIDs": advisories,
        })
    };
    json!({
        "id": "TDX",
        "version": 3,
        "issueDate": date::format(recipe.issued),
        "nextUpdate": date::format(recipe.next_update),
        "fmspc": hex::encode_upper(recipe.collateral_fmspc),
        "pceId": "0000",
        "tcbType": 0,
        "tcbEvaluationDataNumber": 17,
        "tdxModule": {
            "mrsigner": "0".repeat(96),
            "attributes": "0".repeat(16),
            "attributesMask": "F".repeat(16),
        },
        "tcbLevels": [
            level(recipe.module_svn, recipe.platform_status, &recipe.advisories),
            level(1, "OutOfDate", &["INTEL-SA-00000".to_owned()]),
        ],
    })
    .to_string()
}

fn qe_identity(recipe: &TdxRecipe) -> String {
    json!({
        "id": "TD_QE",
        "version": 2,
        "issueDate": date::format(recipe.issued),
        "nextUpdate": date::format(recipe.next_update),
        "tcbEvaluationDataNumber": 17,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": hex::encode_upper(QE_SIGNER),
        "isvprodid": QE_PRODUCT,
        "tcbLevels": [{
            "tcb": { "isvsvn": 4 },
            "tcbDate": "2025-01-01T00:00:00Z",
            "tcbStatus": recipe.qe_status,
        }],
    })
    .to_string()
}

fn key(rng: &dyn SecureRandom) -> Result<EcdsaKeyPair, SoftError> {
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, rng).map_err(|_| SoftError::Randomness)?;
    EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), rng).map_err(|_| SoftError::Randomness)
}

/// A signature as quotes and Intel's JSON have it: `r` and `s`.
fn sign(key: &EcdsaKeyPair, message: &[u8], rng: &dyn SecureRandom) -> Result<[u8; 64], SoftError> {
    let signature = key.sign(rng, message).map_err(|_| SoftError::Randomness)?;
    let bytes = signature.as_ref().try_into();
    Ok(bytes.expect("P-256 has signatures of 64 bytes"))
}

/// A signature as certificates have it.
pub(super) fn sign_der(
    key: &EcdsaKeyPair,
    message: &[u8],
    rng: &dyn SecureRandom,
) -> Result<Vec<u8>, SoftError> {
    let signature = sign(key, message, rng)?;
    let (r, s) = signature.split_at(32);
    Ok(der::sequence(&[&der::integer(r), &der::integer(s)]))
}
