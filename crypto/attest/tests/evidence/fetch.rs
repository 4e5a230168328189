//! Fetching collateral from a stand-in service that answers as Intel's and AMD's do, with real samples and minted chains.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::Value;
use souk_attest::{
    Bundle, Collateral, Evidence, Product, SnpCollateral, Trust,
    fetch::{self, FetchError, HttpError, Sources},
    verify,
};
use souk_crypto::UnixTime;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::{
    common::{at, tdx, tdx_sample},
    minted::{Minted, mint_snp, now},
};

/// Path and query to header and body.
type Answers = HashMap<String, (String, Vec<u8>)>;

/// A service on a free port of loopback.
struct Service {
    base: String,
    asked: Arc<Mutex<Vec<String>>>,
    down: Arc<AtomicBool>,
}

impl Service {
    async fn start(answers: Answers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let service = Self {
            base,
            asked: Arc::default(),
            down: Arc::default(),
        };
        let (asked, down) = (Arc::clone(&service.asked), Arc::clone(&service.down));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && head.len() < 8192 {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => break,
                    }
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let found = answers.get(&path).filter(|_| !down.load(Ordering::SeqCst));
                asked.lock().expect("not poisoned").push(path);
                let answer = match found {
                    Some((header, body)) => [
                        format!(
                            "HTTP/1.1 200 OK\r\n{header}content-length: {}\r\n\r\n",
                            body.len()
                        )
                        .as_bytes(),
                        body,
                    ]
                    .concat(),
                    None => b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec(),
                };
                // A client that went away has its answer.
                let _ = stream.write_all(&answer).await;
            }
        });
        service
    }

    fn asked(&self) -> usize {
        self.asked.lock().expect("not poisoned").len()
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// What a PCCS holds for the machine of a real sample.
fn pccs(name: &str, fmspc: &str) -> Answers {
    let sample: Value =
        serde_json::from_slice(&tdx_sample(&format!("{name}_collateral.json"))).expect("JSON");
    let text = |key: &str| sample[key].as_str().expect("text").to_owned();
    let signed = |name: &str, key: &str| {
        let (value, signature) = (text(key), text(&format!("{key}_signature")));
        format!("{{\"{name}\":{value},\"signature\":\"{signature}\"}}").into_bytes()
    };
    let header = |name: &str, key: &str| format!("{name}: {}\r\n", percent_encoded(&text(key)));
    HashMap::from([
        (
            "/sgx/certification/v4/rootcacrl".to_owned(),
            (String::new(), text("root_ca_crl").into_bytes()),
        ),
        (
            "/sgx/certification/v4/pckcrl?ca=platform&encoding=der".to_owned(),
            (String::new(), hex::decode(text("pck_crl")).expect("hex")),
        ),
        (
            format!("/tdx/certification/v4/tcb?fmspc={fmspc}"),
            (
                header("TCB-Info-Issuer-Chain", "tcb_info_issuer_chain"),
                signed("tcbInfo", "tcb_info"),
            ),
        ),
        (
            "/tdx/certification/v4/qe/identity".to_owned(),
            (
                header(
                    "SGX-Enclave-Identity-Issuer-Chain",
                    "qe_identity_issuer_chain",
                ),
                signed("enclaveIdentity", "qe_identity"),
            ),
        ),
    ])
}

fn sources(service: &Service, folder: &TempDir) -> Sources {
    Sources {
        pccs: Some(service.base.clone()),
        kds: Some(service.base.clone()),
        folder: folder.path().join("collateral"),
    }
}

/// Collateral under the roots of the vendors, from a folder that keeps it.
async fn collateral(
    sources: &Sources,
    evidence: &Evidence,
    now: UnixTime,
) -> Result<Collateral, FetchError> {
    let fetched = fetch::collateral(sources, evidence, &Trust::vendors(), now).await?;
    assert!(fetched.unkept.is_none());
    Ok(fetched.collateral)
}

fn verifies(evidence: &Evidence, collateral: &Collateral, now: UnixTime) -> bool {
    verify(evidence, collateral, &Trust::vendors(), now).is_ok()
}

#[tokio::test]
async fn collateral_of_a_real_quote_is_fetched_verified_and_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let service = Service::start(pccs("tdx_quote", "B0C06F000000")).await;
    let sources = sources(&service, &folder);
    let (quote, known) = tdx("tdx_quote");
    let day = at("2025-06-20T00:00:00Z");
    let fetched = collateral(&sources, &quote, day).await.expect("fetched");
    assert!(verifies(&quote, &fetched, day));
    assert_eq!(
        fetched.digest(),
        known.digest(),
        "the signed texts are those of the sample"
    );
    assert_eq!(service.asked(), 4);

    let kept = collateral(&sources, &quote, day).await.expect("kept");
    assert_eq!(kept.digest(), fetched.digest());
    assert_eq!(service.asked(), 4, "nothing was asked again");
}

#[tokio::test]
async fn collateral_is_fetched_again_before_it_ends_and_used_until_then() {
    let folder = tempfile::tempdir().expect("a folder");
    let service = Service::start(pccs("tdx_quote", "B0C06F000000")).await;
    let sources = sources(&service, &folder);
    let (quote, _) = tdx("tdx_quote");
    let fresh = at("2025-06-20T00:00:00Z");
    collateral(&sources, &quote, fresh).await.expect("fetched");
    let late = at("2025-07-18T00:00:00Z");
    collateral(&sources, &quote, late)
        .await
        .expect("fetched again");
    assert_eq!(service.asked(), 8);

    service.down.store(true, Ordering::SeqCst);
    let kept = collateral(&sources, &quote, late)
        .await
        .expect("kept, though the service is away");
    assert!(verifies(&quote, &kept, late));
    let ended = collateral(&sources, &quote, at("2025-08-01T00:00:00Z")).await;
    assert!(matches!(
        ended,
        Err(FetchError::Http {
            source: HttpError::Status { status: 404 },
            ..
        })
    ));
}

#[tokio::test]
async fn a_damaged_file_is_fetched_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let service = Service::start(pccs("tdx_quote", "B0C06F000000")).await;
    let sources = sources(&service, &folder);
    let (quote, _) = tdx("tdx_quote");
    let day = at("2025-06-20T00:00:00Z");
    collateral(&sources, &quote, day).await.expect("fetched");
    for file in std::fs::read_dir(&sources.folder).expect("a folder") {
        std::fs::write(file.expect("a file").path(), b"damaged").expect("written");
    }
    let fetched = collateral(&sources, &quote, day)
        .await
        .expect("fetched again");
    assert!(verifies(&quote, &fetched, day));
    assert_eq!(service.asked(), 8);
}

/// Has what a minted report needs fetched, and holds it against what was minted; how often the service was asked.
async fn asked_for(product: Product, version: u32) -> usize {
    let minted = mint_snp(product, version, |_| {});
    let (Evidence::Snp(report), Collateral::Snp(known)) = (&minted.evidence, &minted.collateral)
    else {
        panic!("a report of SNP");
    };
    let service = Service::start(kds(product, &report.chip_id(), known)).await;
    let folder = tempfile::tempdir().expect("a folder");
    let sources = sources(&service, &folder);
    let trust = Trust::with_test_roots([minted.root]);
    let fetched = fetch::collateral(&sources, &minted.evidence, &trust, now())
        .await
        .expect("fetched");
    assert_eq!(
        fetched.collateral.digest(),
        minted.collateral.digest(),
        "{product}"
    );
    service.asked()
}

#[tokio::test]
async fn certificates_and_list_of_a_minted_chip_are_fetched() {
    for product in Product::ALL {
        asked_for(product, 3).await;
    }
}

#[tokio::test]
async fn a_report_that_does_not_name_its_processor_is_looked_for_among_milan_and_genoa() {
    for (product, asked) in [(Product::Milan, 3), (Product::Genoa, 4)] {
        assert_eq!(asked_for(product, 2).await, asked, "{product}");
    }
}

#[tokio::test]
async fn what_does_not_verify_is_neither_given_nor_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let (quote, _) = tdx("tdx_quote");
    let day = at("2025-06-20T00:00:00Z");
    let mut forged = pccs("tdx_quote", "B0C06F000000");
    let tcb = "/tdx/certification/v4/tcb?fmspc=B0C06F000000";
    let (_, body) = forged.get_mut(tcb).expect("TCB info");
    *body = String::from_utf8_lossy(body)
        .replace("nextUpdate\":\"2025", "nextUpdate\":\"2100")
        .into_bytes();
    let bad = Service::start(forged).await;
    let refused = collateral(&sources(&bad, &folder), &quote, day).await;
    assert!(matches!(refused, Err(FetchError::Unverified(_))));

    let good = Service::start(pccs("tdx_quote", "B0C06F000000")).await;
    let fetched = collateral(&sources(&good, &folder), &quote, day)
        .await
        .expect("fetched, for nothing was kept");
    assert_eq!(good.asked(), 4);
    let late = at("2025-07-18T00:00:00Z");
    let kept = collateral(&sources(&bad, &folder), &quote, late)
        .await
        .expect("what was kept before");
    assert_eq!(kept.digest(), fetched.digest());
}

#[tokio::test]
async fn what_is_kept_is_asked_for_again_after_a_day() {
    let folder = tempfile::tempdir().expect("a folder");
    let service = Service::start(pccs("tdx_quote", "B0C06F000000")).await;
    let sources = sources(&service, &folder);
    let (quote, _) = tdx("tdx_quote");
    for (when, asked) in [
        ("2025-06-21T00:00:00Z", 4),
        ("2025-06-21T23:59:59Z", 4),
        ("2025-06-22T00:00:00Z", 8),
        ("2025-06-21T12:00:00Z", 12),
    ] {
        collateral(&sources, &quote, at(when))
            .await
            .expect("collateral");
        assert_eq!(service.asked(), asked, "{when}");
    }
}

#[tokio::test]
async fn fresh_collateral_is_given_though_the_folder_cannot_keep_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let service = Service::start(pccs("tdx_quote", "B0C06F000000")).await;
    let sources = sources(&service, &folder);
    std::fs::write(&sources.folder, b"no folder").expect("written");
    let (quote, _) = tdx("tdx_quote");
    let day = at("2025-06-20T00:00:00Z");
    let fetched = fetch::collateral(&sources, &quote, &Trust::vendors(), day)
        .await
        .expect("fetched");
    assert!(fetched.unkept.is_some());
    assert!(verifies(&quote, &fetched.collateral, day));
}

/// What AMD's key server holds for a minted chip.
fn kds(product: Product, chip_id: &[u8; 64], known: &SnpCollateral) -> Answers {
    let (id, fmc) = match product {
        Product::Turin => (&chip_id[..8], "&fmcSPL=01"),
        Product::Milan | Product::Genoa => (&chip_id[..], ""),
    };
    let pem = |der: &[u8]| pem::encode(&pem::Pem::new("CERTIFICATE", der));
    let chain = pem(known.ask_der()) + &pem(known.ark_der());
    let vcek = format!(
        "/vcek/v1/{product}/{}?blSPL=04&teeSPL=01&snpSPL=08&ucodeSPL=115{fmc}",
        hex::encode(id)
    );
    HashMap::from([
        (vcek, (String::new(), known.vcek_der().to_vec())),
        (
            format!("/vcek/v1/{product}/cert_chain"),
            (String::new(), chain.into_bytes()),
        ),
        (
            format!("/vcek/v1/{product}/crl"),
            (String::new(), known.crl_der().expect("a list").to_vec()),
        ),
    ])
}

#[tokio::test]
async fn an_answer_that_is_too_large_or_something_else_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (quote, _) = tdx("tdx_quote");
    let day = at("2025-06-20T00:00:00Z");
    let ask = async |answers| {
        let service = Service::start(answers).await;
        collateral(&sources(&service, &folder), &quote, day).await
    };
    let mut large = pccs("tdx_quote", "B0C06F000000");
    large.insert(
        "/sgx/certification/v4/rootcacrl".to_owned(),
        (String::new(), vec![0; 1 << 20]),
    );
    assert!(matches!(
        ask(large).await,
        Err(FetchError::Http {
            source: HttpError::TooLarge { .. },
            ..
        })
    ));
    let mut other = pccs("tdx_quote", "B0C06F000000");
    other.insert(
        "/tdx/certification/v4/qe/identity".to_owned(),
        (String::new(), b"{}".to_vec()),
    );
    assert!(matches!(
        ask(other).await,
        Err(FetchError::Http {
            source: HttpError::NoHeader { .. },
            ..
        })
    ));
    let mut garbled = pccs("tdx_quote", "B0C06F000000");
    garbled.insert(
        "/sgx/certification/v4/rootcacrl".to_owned(),
        (String::new(), b"no list".to_vec()),
    );
    assert!(matches!(ask(garbled).await, Err(FetchError::Plan(_))));
    let mut sources = Sources {
        pccs: None,
        kds: None,
        folder: folder.path().to_owned(),
    };
    let none = collateral(&sources, &quote, day).await;
    assert!(matches!(none, Err(FetchError::NoService { .. })));
    sources.pccs = Some("https://pccs.example".to_owned());
    let tls = collateral(&sources, &quote, day).await;
    assert!(matches!(
        tls,
        Err(FetchError::Http {
            source: HttpError::Address { .. },
            ..
        })
    ));
}

#[test]
fn a_bundle_holds_evidence_and_collateral_in_one_form() {
    let minted: Minted = mint_snp(Product::Milan, 2, |_| {});
    for (evidence, collateral) in [tdx("tdx_quote"), (minted.evidence, minted.collateral)] {
        let bundle = Bundle {
            evidence,
            collateral,
        };
        let bytes = bundle.to_bytes();
        let read = Bundle::from_bytes(&bytes).expect("a bundle");
        assert_eq!(read.to_bytes(), bytes);
        assert_eq!(read.evidence.digest(), bundle.evidence.digest());
        assert_eq!(read.collateral.digest(), bundle.collateral.digest());
        assert!(Bundle::from_bytes(&bytes[1..]).is_err());
    }
}
