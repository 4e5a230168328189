//! `souk attest mint`: evidence of no machine at all, to try policies and programs with.

use std::{fs, path::PathBuf, process::ExitCode};

use clap::{Args, ValueEnum};
use ring::rand::SystemRandom;
use souk_attest::{
    Product, ReportData, RootId,
    soft::{SnpRecipe, SoftError, TdxRecipe, TestAmd, TestRoot, TestSnp, TestTdx},
};
use souk_node::unix_now;
use zeroize::Zeroizing;

use super::{DONE, unwritten, write_new};
use crate::{failure::Failure, out};

#[derive(Args, Debug)]
pub(crate) struct Mint {
    /// The folder to write evidence, collateral and policy into
    folder: PathBuf,
    /// Whose structures it has
    #[arg(long, value_enum, default_value_t = Structure::Tdx)]
    tee: Structure,
    /// What it binds, as 128 hex digits [default: zeros]
    #[arg(long, value_name = "HEX")]
    report_data: Option<ReportData>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Structure {
    Tdx,
    SevSnp,
}

/// What is written.
struct Minted {
    evidence: Vec<u8>,
    collateral: Vec<u8>,
    root: RootId,
    /// What a node needs to mint under the same root.
    root_file: Option<Zeroizing<Vec<u8>>>,
    measurement: String,
}

impl Mint {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let data = self.report_data.unwrap_or(ReportData([0; 64]));
        let minted = match self.tee {
            Structure::Tdx => tdx(data),
            Structure::SevSnp => snp(data),
        };
        let minted = minted.map_err(|error| Failure::of(&error))?;
        fs::create_dir_all(&self.folder).map_err(|error| unwritten(&self.folder, &error))?;
        let policy = format!(
            "# Accepts evidence that a test made, which proves nothing.\nversion = 1\nkinds = [\"none+test\"]\ntest_roots = [\"{}\"]\n\n[[measurement]]\nname = \"minted\"\n{}",
            minted.root, minted.measurement
        );
        let root = minted.root_file.as_deref().map(Vec::as_slice);
        for (name, bytes, mode) in [
            ("evidence.bin", Some(minted.evidence.as_slice()), 0o644),
            ("collateral.cbor", Some(minted.collateral.as_slice()), 0o644),
            ("policy.toml", Some(policy.as_bytes()), 0o644),
            ("root.key", root, 0o600),
        ] {
            let Some(bytes) = bytes else { continue };
            let path = self.folder.join(name);
            // A policy that the operator wrote is not replaced by one that accepts what proves nothing.
            write_new(&path, bytes, mode)?;
        }
        out::line(format_args!(
            "none+test: evidence.bin, collateral.cbor and policy.toml in {}; they prove nothing",
            self.folder.display()
        ));
        DONE
    }
}

fn tdx(data: ReportData) -> Result<Minted, SoftError> {
    let rng = SystemRandom::new();
    let recipe = TdxRecipe::up_to_date(unix_now());
    let [rtmr0, rtmr1, rtmr2, rtmr3] = recipe.td.rtmr;
    let measurement = format!(
        "tee = \"tdx\"\nmr_td = \"{}\"\nrtmr0 = \"{rtmr0}\"\nrtmr1 = \"{rtmr1}\"\nrtmr2 = \"{rtmr2}\"\nrtmr3 = \"{rtmr3}\"\n",
        recipe.td.mr_td
    );
    let root = TestRoot::new(recipe.issued, &rng)?;
    let machine = TestTdx::under(&root, recipe, &rng)?;
    Ok(Minted {
        evidence: machine.quote(data, &rng)?,
        collateral: machine.collateral().to_bytes(),
        root: root.id(),
        root_file: Some(root.to_bytes()),
        measurement,
    })
}

fn snp(data: ReportData) -> Result<Minted, SoftError> {
    let rng = SystemRandom::new();
    let recipe = SnpRecipe::sound(Product::Genoa, 3, unix_now());
    let measurement = format!(
        "tee = \"sev-snp\"\nmeasurement = \"{}\"\n",
        recipe.measurement
    );
    let machine = TestSnp::new(recipe, &TestAmd::new(&rng)?, &rng)?;
    Ok(Minted {
        evidence: machine.report(data, &rng)?,
        collateral: machine.collateral().to_bytes(),
        root: machine.root(),
        root_file: None,
        measurement,
    })
}
