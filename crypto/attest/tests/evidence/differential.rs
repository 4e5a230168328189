//! A second opinion: `tdx-quote` parses the same quotes and agrees on every field, and `sev` on every field of a report.

use ring::{
    digest::{SHA256, digest},
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use sev::{
    firmware::{guest::AttestationReport, host::TcbVersion},
    parser::ByteParser as _,
};
use souk_attest::{Evidence, Product, SnpReport, SnpTcb, TdVersion, TdxQuote};

use crate::{
    common::{milan, tdx},
    minted::{mint_snp, mint_tdx},
};

/// A quote as `tdx-quote` takes it. It checks the signature while it parses, and leaves six bytes of version 5 out of what is
/// signed (type and size of the body), so that no quote of version 5 parses there; one that is signed its way does.
fn signed_its_way(ours: &TdxQuote) -> Vec<u8> {
    const ITS_BODY: usize = 648;
    let mut bytes = ours.as_bytes().to_vec();
    if ours.version() == 5 {
        let rng = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &rng).expect("randomness");
        let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &rng).expect("a key");
        let signature = key.sign(&rng, &bytes[..48 + ITS_BODY]).expect("it signs");
        let body = u32::from_le_bytes(bytes[50..54].try_into().expect("four bytes")) as usize;
        let at = 54 + body + 4;
        bytes[at..at + 64].copy_from_slice(signature.as_ref());
        bytes[at + 64..at + 128].copy_from_slice(&key.public_key().as_ref()[1..]);
        // The quoting enclave has to vouch for the key, with the authentication data behind its report and signature.
        let qe_report = at + 128 + 6;
        let authentication = qe_report + 384 + 64 + 2;
        let vouched = [
            &bytes[at + 64..at + 128],
            &bytes[authentication..authentication + 32],
        ];
        let vouched = digest(&SHA256, &vouched.concat());
        bytes[qe_report + 320..qe_report + 352].copy_from_slice(vouched.as_ref());
    }
    bytes
}

fn tdx_quote_agrees(ours: &TdxQuote) {
    let bytes = signed_its_way(ours);
    let theirs = tdx_quote::Quote::from_bytes(&bytes).expect("it parses there, too");
    let (td, body) = (ours.td(), &theirs.body);
    assert_eq!(ours.version(), theirs.header.version);
    assert_eq!(td.tee_tcb_svn, body.tee_tcb_svn);
    assert_eq!(td.mr_seam.0, body.mrseam);
    assert_eq!(td.mr_signer_seam.0, body.mrsignerseam);
    assert_eq!(td.seam_attributes, body.seamattributes);
    assert_eq!(td.attributes, body.tdattributes);
    assert_eq!(td.xfam, body.xfam);
    assert_eq!(td.mr_td.0, body.mrtd);
    assert_eq!(td.mr_config_id.0, body.mrconfigid);
    assert_eq!(td.mr_owner.0, body.mrowner);
    assert_eq!(td.mr_owner_config.0, body.mrownerconfig);
    let rtmr = [body.rtmr0, body.rtmr1, body.rtmr2, body.rtmr3];
    assert_eq!(td.rtmr.map(|register| register.0), rtmr);
    assert_eq!(td.report_data.0, body.reportdata);
    assert_eq!(td.tee_tcb_svn2, body.tee_tcb_svn_2);
    assert_eq!(td.mr_service_td.map(|hash| hash.0), body.mrservicetd);
    let is_10 = matches!(body.tdx_version, tdx_quote::TDXVersion::One);
    assert_eq!(ours.td_version() == TdVersion::Td10, is_10);
}

#[test]
fn tdx_quote_agrees_on_every_field() {
    // It does not know TD 1.5ex, and takes every quote of version 5 to be as long as one with TD 1.5.
    for name in ["tdx_quote", "tdx_quote_outdated"] {
        let (Evidence::Tdx(quote), _) = tdx(name) else {
            panic!("a quote of TDX");
        };
        tdx_quote_agrees(&quote);
    }
    for (version, td_version) in [(4, TdVersion::Td10), (5, TdVersion::Td15)] {
        let minted = mint_tdx(|recipe| {
            recipe.quote_version = version;
            recipe.td_version = td_version;
        });
        let Evidence::Tdx(quote) = minted.evidence else {
            panic!("a quote of TDX");
        };
        tdx_quote_agrees(&quote);
    }
}

fn sev_agrees(ours: &SnpReport, product: Product) {
    let theirs = AttestationReport::from_bytes(ours.as_bytes()).expect("it parses there, too");
    let tcb = |tcb: TcbVersion| SnpTcb {
        fmc: tcb.fmc,
        bootloader: tcb.bootloader,
        tee: tcb.tee,
        snp: tcb.snp,
        microcode: tcb.microcode,
    };
    assert_eq!(ours.version(), theirs.version);
    assert_eq!(ours.guest_svn(), theirs.guest_svn);
    assert_eq!(ours.policy().debug(), theirs.policy.debug_allowed());
    assert_eq!(
        ours.policy().migration(),
        theirs.policy.migrate_ma_allowed()
    );
    assert_eq!(ours.policy().smt(), theirs.policy.smt_allowed());
    assert_eq!(ours.family_id(), theirs.family_id);
    assert_eq!(ours.image_id(), theirs.image_id);
    assert_eq!(ours.vmpl(), theirs.vmpl);
    assert_eq!(ours.platform_info(), u64::from(theirs.plat_info));
    assert_eq!(ours.report_data().0, theirs.report_data);
    assert_eq!(ours.measurement().0, theirs.measurement);
    assert_eq!(ours.host_data(), theirs.host_data);
    assert_eq!(ours.id_key_digest().0, theirs.id_key_digest);
    assert_eq!(ours.author_key_digest().0, theirs.author_key_digest);
    assert_eq!(ours.chip_id(), theirs.chip_id);
    assert_eq!(ours.current_tcb(product), tcb(theirs.current_tcb));
    assert_eq!(ours.reported_tcb(product), tcb(theirs.reported_tcb));
    assert_eq!(ours.committed_tcb(product), tcb(theirs.committed_tcb));
    assert_eq!(ours.launch_tcb(product), tcb(theirs.launch_tcb));
}

#[test]
fn sev_agrees_on_every_field() {
    let (Evidence::Snp(report), _) = milan() else {
        panic!("a report of SNP");
    };
    sev_agrees(&report, Product::Milan);
    for product in Product::ALL {
        for version in 2..=5 {
            let minted = mint_snp(product, version, |recipe| {
                recipe.policy |= 1 << 19;
                recipe.vmpl = 2;
            });
            let Evidence::Snp(report) = minted.evidence else {
                panic!("a report of SNP");
            };
            sev_agrees(&report, product);
        }
    }
}
