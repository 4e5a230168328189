//! The command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{commands, failure::Failure};

/// Rent and sell machines anonymously.
#[derive(Debug, Parser)]
#[command(
    name = "souk",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
#[command(
    after_help = "Examples:\n  souk demo                        watch a whole lease on this machine\n  souk node init ~/node            make a configuration and an identity\n  souk node run -c ~/node/souk.toml\n  souk market && souk rent         find and rent a machine"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node, or speak with one that runs here.
    #[command(subcommand)]
    Node(commands::node::Node),
    /// Show how the node on this machine stands.
    Status(commands::status::Status),
    /// Check or print a configuration.
    #[command(subcommand)]
    Config(commands::config::Config),
    /// Tell what runs on a machine, by the evidence of its TEE.
    #[command(subcommand)]
    Attest(commands::attest::Attest),
    /// Watch a whole lease on this machine.
    Demo(commands::demo::Demo),
    /// Measure this machine.
    #[command(subcommand)]
    Bench(commands::bench::Bench),
    /// Show what can be rented.
    Market(commands::market::Market),
    /// Rent a machine.
    Rent(Box<commands::rent::Rent>),
    /// Show the leases of this requester.
    Leases(commands::leases::Leases),
    /// Log in to a lease.
    Ssh(commands::ssh::Ssh),
    /// Carry a stream to a lease, for ssh.
    #[command(hide = true)]
    RelayConnect(commands::ssh::RelayConnect),
    /// End a lease and verify its account.
    End(commands::end::End),
    /// Verify usage logs.
    #[command(subcommand)]
    Log(commands::log::Log),
    /// Make and look after images, the root file systems of leases.
    #[command(subcommand)]
    Image(commands::image::Image),
    /// Vouch for requesters.
    #[command(subcommand)]
    Grant(commands::grant::Grant),
    /// Make keys that sign grants.
    #[command(subcommand)]
    Issuer(commands::issuer::Issuer),
    /// Print the version of this program and of what it speaks.
    Version(commands::version::Version),
}

impl Cli {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        match self.command {
            Command::Node(node) => node.run(),
            Command::Status(status) => status.run(),
            Command::Config(config) => config.run(),
            Command::Attest(attest) => attest.run(),
            Command::Demo(demo) => demo.run(),
            Command::Bench(bench) => bench.run(),
            Command::Market(market) => market.run(),
            Command::Rent(rent) => rent.run(),
            Command::Leases(leases) => leases.run(),
            Command::Ssh(ssh) => ssh.run(),
            Command::RelayConnect(relay) => relay.run(),
            Command::End(end) => end.run(),
            Command::Log(log) => log.run(),
            Command::Image(image) => image.run(),
            Command::Grant(grant) => grant.run(),
            Command::Issuer(issuer) => issuer.run(),
            Command::Version(version) => version.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// All commands that do something, with their paths.
    fn leaves(command: &clap::Command, path: &str, found: &mut Vec<(String, clap::Command)>) {
        if !command.has_subcommands() {
            found.push((path.to_owned(), command.clone()));
        }
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            leaves(sub, &format!("{path} {}", sub.get_name()), found);
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_with_an_example() {
        let mut found = Vec::new();
        leaves(&Cli::command(), "souk", &mut found);
        assert!(found.len() > 5);
        for (path, command) in found {
            assert!(
                command.get_about().is_some(),
                "{path} says nothing of itself"
            );
            let after = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(after.contains(&path), "{path} has no example in its help");
        }
    }
}
