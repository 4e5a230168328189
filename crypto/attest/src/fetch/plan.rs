//! What to ask a service for, and what to make of its responses; without a connection.
//!
//! Sources: Intel, "API Documentation" of the Provisioning Certification Service, version 4; AMD, "VCEK Certificate and KDS
//! Interface Specification" (57230), chapter 4.

use dcap_qvl::QuoteCollateralV3;
use serde::de::IgnoredAny;
use souk_crypto::UnixTime;

use crate::{
    refusal::{Part, Refusal},
    snp::{Product, SnpPieces, SnpReport},
    tdx::{TdxCollateral, TdxQuote},
    verified::{Collateral, Evidence},
};

/// One request, a `GET`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Path and query, beginning with a slash.
    pub path: String,
    /// The header that the response needs, in lower case.
    pub header: Option<&'static str>,
    /// Bytes that a response may have.
    pub max_bytes: usize,
}

/// What came back with status 200.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The header that was asked for, if one was.
    pub header: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// Why there is nothing to ask, or nothing to make of a response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The evidence does not say whom it is of.
    #[error("the evidence does not say which collateral it needs")]
    Evidence(#[source] Refusal),
    /// The report names no processor, as those of version 2, and no chip of a known kind.
    #[error("the report does not name its processor")]
    UnknownProcessor,
    /// A response is not what was asked for.
    #[error("the response about the {part} makes no sense")]
    Response {
        /// What it is about.
        part: Part,
    },
    /// The responses are no collateral.
    #[error("the responses are no collateral")]
    Collateral(#[source] Refusal),
}

const TCB_INFO_CHAIN: &str = "tcb-info-issuer-chain";
const QE_IDENTITY_CHAIN: &str = "sgx-enclave-identity-issuer-chain";
const KIB: usize = 1024;

/// What to ask for.
///
/// # Errors
/// [`PlanError::Evidence`] or [`PlanError::UnknownProcessor`].
pub fn requests(evidence: &Evidence) -> Result<Vec<Request>, PlanError> {
    match evidence {
        Evidence::Tdx(quote) => tdx_requests(quote),
        Evidence::Snp(report) => Ok(snp_requests(report, first_product(report)?)),
    }
}

/// What to ask for instead where the service knows nothing of the first; `None` where the evidence leaves nothing to guess. A report
/// of version 2 with a long chip id is of a Milan, or of a Genoa with its first firmware.
#[must_use]
pub fn other_requests(evidence: &Evidence) -> Option<Vec<Request>> {
    match evidence {
        Evidence::Snp(report) if report.claimed_product().is_none() => {
            let is_milan = first_product(report) == Ok(Product::Milan);
            is_milan.then(|| snp_requests(report, Product::Genoa))
        }
        Evidence::Snp(_) | Evidence::Tdx(_) => None,
    }
}

/// Collateral at `now` from the responses, in the order of the requests.
///
/// # Errors
/// [`PlanError::Response`] or [`PlanError::Collateral`].
pub fn collateral(
    evidence: &Evidence,
    responses: &[Response],
    now: UnixTime,
) -> Result<Collateral, PlanError> {
    match evidence {
        Evidence::Tdx(_) => tdx(responses),
        Evidence::Snp(report) => {
            let mut pieces = SnpPieces::default();
            for response in responses {
                pieces.add(&response.body).map_err(PlanError::Collateral)?;
            }
            let found = pieces
                .for_report(report, now)
                .map_err(PlanError::Collateral)?;
            Ok(Collateral::Snp(Box::new(found)))
        }
    }
}

fn tdx_requests(quote: &TdxQuote) -> Result<Vec<Request>, PlanError> {
    let fmspc = quote.claimed_fmspc().map_err(PlanError::Evidence)?;
    let get = |path: String, header, kib| Request {
        path,
        header,
        max_bytes: kib * KIB,
    };
    let ca = quote.claimed_ca();
    Ok(vec![
        get("/sgx/certification/v4/rootcacrl".to_owned(), None, 64),
        get(
            format!("/sgx/certification/v4/pckcrl?ca={ca}&encoding=der"),
            None,
            256,
        ),
        get(
            format!(
                "/tdx/certification/v4/tcb?fmspc={}",
                hex::encode_upper(fmspc)
            ),
            Some(TCB_INFO_CHAIN),
            128,
        ),
        get(
            "/tdx/certification/v4/qe/identity".to_owned(),
            Some(QE_IDENTITY_CHAIN),
            128,
        ),
    ])
}

/// Collateral of TDX from the responses about the root's list, the PCK's list, TCB info and identity, in this order.
///
/// # Errors
/// As [`collateral`].
pub fn tdx(responses: &[Response]) -> Result<Collateral, PlanError> {
    let [root_crl, pck_crl, tcb_info, qe_identity] = responses else {
        return Err(PlanError::Response {
            part: Part::Collateral,
        });
    };
    let (tcb_info_text, tcb_info_signature) = signed(tcb_info, "tcbInfo", Part::TcbInfo)?;
    let (identity_text, identity_signature) =
        signed(qe_identity, "enclaveIdentity", Part::QeIdentity)?;
    let parts = QuoteCollateralV3 {
        pck_crl_issuer_chain: String::new(),
        // Caching services give the list of the root in hex, Intel in DER.
        root_ca_crl: hex::decode(root_crl.body.trim_ascii())
            .unwrap_or_else(|_| root_crl.body.clone()),
        pck_crl: hex::decode(pck_crl.body.trim_ascii()).unwrap_or_else(|_| pck_crl.body.clone()),
        tcb_info_issuer_chain: tcb_info
            .header
            .as_deref()
            .map_or_else(String::new, percent_decoded),
        tcb_info: tcb_info_text,
        tcb_info_signature,
        qe_identity_issuer_chain: qe_identity
            .header
            .as_deref()
            .map_or_else(String::new, percent_decoded),
        qe_identity: identity_text,
        qe_identity_signature: identity_signature,
        pck_certificate_chain: None,
    };
    let collateral = TdxCollateral::of_parts(parts).map_err(PlanError::Collateral)?;
    Ok(Collateral::Tdx(Box::new(collateral)))
}

/// The product that a report names, or the first that it may be of.
fn first_product(report: &SnpReport) -> Result<Product, PlanError> {
    let chip_id = report.chip_id();
    let is_short = chip_id[8..].iter().all(|byte| *byte == 0);
    match report.claimed_product() {
        Some(product) => Ok(product),
        // Version 2 names none. Only Turin has short ids.
        None if chip_id == [0; 64] => Err(PlanError::UnknownProcessor),
        None if is_short => Ok(Product::Turin),
        None => Ok(Product::Milan),
    }
}

fn snp_requests(report: &SnpReport, product: Product) -> Vec<Request> {
    let chip_id = report.chip_id();
    let tcb = report.reported_tcb(product);
    let (id, fmc) = match tcb.fmc {
        Some(fmc) => (&chip_id[..8], format!("&fmcSPL={fmc:02}")),
        None => (&chip_id[..], String::new()),
    };
    let get = |path: String, kib| Request {
        path,
        header: None,
        max_bytes: kib * KIB,
    };
    vec![
        get(
            format!(
                "/vcek/v1/{product}/{}?blSPL={:02}&teeSPL={:02}&snpSPL={:02}&ucodeSPL={:02}{fmc}",
                hex::encode(id),
                tcb.bootloader,
                tcb.tee,
                tcb.snp,
                tcb.microcode
            ),
            8,
        ),
        get(format!("/vcek/v1/{product}/cert_chain"), 32),
        get(format!("/vcek/v1/{product}/crl"), 256),
    ]
}

/// The text that was signed, byte for byte as it stands in the response, and its signature.
fn signed(response: &Response, name: &str, part: Part) -> Result<(String, Vec<u8>), PlanError> {
    #[derive(serde::Deserialize)]
    struct Signature {
        signature: String,
    }
    let wrong = || PlanError::Response { part };
    let text = std::str::from_utf8(&response.body).map_err(|_| wrong())?;
    let whole: Signature = serde_json::from_str(text).map_err(|_| wrong())?;
    let signature = hex::decode(&whole.signature).map_err(|_| wrong())?;
    let key = format!("\"{name}\":");
    let at = text.find(&key).ok_or_else(wrong)? + key.len();
    let rest = text[at..].trim_start();
    let mut values = serde_json::Deserializer::from_str(rest).into_iter::<IgnoredAny>();
    values.next().and_then(Result::ok).ok_or_else(wrong)?;
    Ok((rest[..values.byte_offset()].to_owned(), signature))
}

/// `%2D` and its like become what they stand for; anything else stays.
fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let digits = bytes.get(at + 1..at + 3).filter(|_| *byte == b'%');
        let decoded = digits.and_then(|digits| hex::decode(digits).ok());
        if let Some(decoded) = decoded {
            out.extend(decoded);
            at += 3;
        } else {
            out.push(*byte);
            at += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signed_text_is_taken_as_it_stands() {
        let response = |body: &str| Response {
            header: None,
            body: body.as_bytes().to_vec(),
        };
        let body = r#"{ "tcbInfo": {"b": 1,  "a":"}"} , "signature":"00ff"}"#;
        let (text, signature) = signed(&response(body), "tcbInfo", Part::TcbInfo).expect("signed");
        assert_eq!(text, r#"{"b": 1,  "a":"}"}"#);
        assert_eq!(signature, [0, 255]);
        for wrong in [
            "",
            "{}",
            r#"{"signature":"00"}"#,
            r#"{"tcbInfo":{},"signature":"xy"}"#,
        ] {
            assert!(
                signed(&response(wrong), "tcbInfo", Part::TcbInfo).is_err(),
                "{wrong}"
            );
        }
    }

    #[test]
    fn percent_signs_that_stand_for_nothing_stay() {
        assert_eq!(
            percent_decoded("-----BEGIN%20CERTIFICATE%2D%0A"),
            "-----BEGIN CERTIFICATE-\n"
        );
        assert_eq!(percent_decoded("100% %zz %4"), "100% %zz %4");
    }
}
