//! `souk attest show`: what evidence claims, believed by nobody.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use serde_json::{Map, Value, json};
use souk_attest::{Evidence, SnpReport, TdxQuote, files};

use super::{DONE, unread};
use crate::{failure::Failure, out};

#[derive(Args, Debug)]
pub(crate) struct Show {
    /// The quote or report, raw or in hex
    file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let bytes = files::evidence_bytes(&self.file).map_err(|error| unread(&error))?;
        let evidence = Evidence::parse(&bytes).map_err(|why| {
            Failure::because(
                format_args!("{} cannot be shown", self.file.display()),
                &why,
            )
        })?;
        let mut claims = match &evidence {
            Evidence::Tdx(quote) => tdx(quote),
            Evidence::Snp(report) => snp(report),
        };
        claims.insert("digest".to_owned(), evidence.digest().to_string().into());
        claims.insert("verified".to_owned(), false.into());
        if self.json {
            out::json(&claims);
            return DONE;
        }
        out::line("nothing of this is verified: it is what the evidence claims");
        for (name, value) in &claims {
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            out::line(format_args!("{name:<18} {value}"));
        }
        DONE
    }
}

fn tdx(quote: &TdxQuote) -> Map<String, Value> {
    let td = quote.td();
    let fmspc = quote.claimed_fmspc().map(hex::encode_upper);
    object(json!({
        "tee": "tdx",
        "version": quote.version(),
        "report": quote.td_version().to_string(),
        "debug": td.is_debug(),
        "mr_td": td.mr_td.to_string(),
        "rtmr0": td.rtmr[0].to_string(),
        "rtmr1": td.rtmr[1].to_string(),
        "rtmr2": td.rtmr[2].to_string(),
        "rtmr3": td.rtmr[3].to_string(),
        "mr_config_id": td.mr_config_id.to_string(),
        "mr_owner": td.mr_owner.to_string(),
        "mr_owner_config": td.mr_owner_config.to_string(),
        "mr_seam": td.mr_seam.to_string(),
        "mr_service_td": td.mr_service_td.map(|hash| hash.to_string()),
        "attributes": hex::encode(td.attributes),
        "xfam": hex::encode(td.xfam),
        "tee_tcb_svn": hex::encode(td.tee_tcb_svn),
        "tee_tcb_svn2": td.tee_tcb_svn2.map(hex::encode),
        "report_data": td.report_data.to_string(),
        "fmspc": fmspc.ok(),
        "root": quote.claimed_root().to_string(),
    }))
}

fn snp(report: &SnpReport) -> Map<String, Value> {
    let product = report.claimed_product();
    object(json!({
        "tee": "sev-snp",
        "version": report.version(),
        "product": product.map(|product| product.to_string()),
        "debug": report.policy().debug(),
        "migration": report.policy().migration(),
        "smt": report.policy().smt(),
        "policy": format!("{:#x}", report.policy().bits()),
        "vmpl": report.vmpl(),
        "measurement": report.measurement().to_string(),
        "id_key_digest": report.id_key_digest().to_string(),
        "author_key_digest": report.author_key_digest().to_string(),
        "host_data": hex::encode(report.host_data()),
        "guest_svn": report.guest_svn(),
        "family_id": hex::encode(report.family_id()),
        "image_id": hex::encode(report.image_id()),
        "platform_info": format!("{:#x}", report.platform_info()),
        "reported_tcb": product.map(|product| report.reported_tcb(product).to_string()),
        "report_data": report.report_data().to_string(),
        "chip_id": hex::encode(report.chip_id()),
    }))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
