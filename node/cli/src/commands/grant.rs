//! `souk grant`.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};
use souk_crypto::{HolderKey, HolderPublicKey, IssuerKey, NodeId, keyfile, sign};
use souk_market::{
    envelope::Voucher,
    units::{DurationS, Resources},
};
use souk_node::unix_now;

use super::{ConfigFile, DONE};
use crate::{
    failure::{Failure, USAGE},
    out,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Grant {
    /// Make the key of one lease, for an issuer to vouch for, and print its public half.
    #[command(
        after_help = "Example:\n  souk grant holder lease.key\n\nSend the printed key to the issuer. A holder key is for one lease: two leases with one key would be linked."
    )]
    Holder(Holder),
    /// Vouch for the holder of a key, offline: sign a grant for one lease.
    #[command(
        after_help = "Example:\n  souk grant issue --key issuer.key --holder 5f3c… --duration-s 3600 > lease.grant\n  souk rent --grant lease.grant --holder-key lease.key\n\nAn issuer and a provider together can identify whom the grant was given to."
    )]
    Issue(Issue),
}

#[derive(Args, Debug)]
pub(crate) struct Holder {
    /// Where the secret key is written, with mode 0600
    file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Issue {
    #[command(flatten)]
    config: ConfigFile,
    /// The issuer's secret key, from `souk issuer key new`
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The holder's public key, from `souk grant holder`
    #[arg(long, value_name = "HEX")]
    holder: String,
    /// The only provider at which it counts; any that lists the issuer if none is named
    #[arg(long, value_name = "NODE")]
    provider: Option<NodeId>,
    /// The longest lease, in seconds
    #[arg(long, default_value_t = 3600, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    duration_s: u32,
    /// The most CPU, in thousandths of a core
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    cpu_millicores: u32,
    /// The most memory, in MiB
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..))]
    memory_mib: u32,
    /// The most disk, in MiB
    #[arg(long, default_value_t = 1024)]
    disk_mib: u32,
    /// The most processes
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    max_processes: u32,
    /// How long the grant can be used, in seconds from now
    #[arg(long, default_value_t = 86_400, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    valid_s: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Grant {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Self::Holder(Holder { file, json }) => {
                let key = HolderKey::generate(&mut rand::rng());
                keyfile::create(&file, &key).map_err(|error| Failure::of(&error))?;
                out::token("holder", &hex::encode(key.public().as_bytes()), json);
                DONE
            }
            Self::Issue(args) => args.run(),
        }
    }
}

impl Issue {
    fn run(self) -> Result<ExitCode, Failure> {
        let network = self.config.load()?.network.id;
        let key: IssuerKey = keyfile::load(&self.key).map_err(|error| Failure::of(&error))?;
        let holder = holder(&self.holder)?;
        let voucher = Voucher {
            issuer: key.public(),
            holder,
            provider: self.provider,
            max_resources: Resources {
                cpu_millicores: self.cpu_millicores,
                memory_mib: self.memory_mib,
                disk_mib: self.disk_mib,
                gpus: 0,
                max_processes: self.max_processes,
            },
            max_duration: DurationS(self.duration_s),
            not_after: unix_now().plus_s(self.valid_s),
        };
        let signed = sign::sign(voucher, &key, &network).map_err(|error| Failure::of(&error))?;
        // The network is that of the configuration, which may be one that was not meant.
        out::note(format_args!("a grant for the network {network}"));
        out::token("grant", &hex::encode(signed.signed().as_bytes()), self.json);
        DONE
    }
}

fn holder(text: &str) -> Result<HolderPublicKey, Failure> {
    let hint = "give the 64 hex digits that `souk grant holder` printed";
    let bytes = hex::decode(text).map_err(|why| {
        Failure::because("that is no holder key", &why)
            .hint(hint)
            .code(USAGE)
    })?;
    HolderPublicKey::from_bytes(&bytes).map_err(|why| {
        Failure::because("that is no holder key", &why)
            .hint(hint)
            .code(USAGE)
    })
}
