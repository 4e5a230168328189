//! The command line.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

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
    #[command(
        subcommand,
        after_help = "Example:\n  souk node init ~/node && souk node run --config ~/node/souk.toml"
    )]
    Node(commands::node::Node),
    /// Show how the node on this machine stands.
    Status(commands::status::Status),
    /// Watch the node on this machine, and act on it.
    Top(commands::top::Top),
    Doctor(commands::doctor::Doctor),
    /// Check or print a configuration.
    #[command(subcommand, after_help = "Example:\n  souk config check souk.toml")]
    Config(commands::config::Config),
    /// Tell what runs on a machine, by the evidence of its TEE.
    #[command(
        subcommand,
        after_help = "Example:\n  souk attest verify quote.bin --collateral collateral.json --policy policy.toml"
    )]
    Attest(commands::attest::Attest),
    /// Watch a whole lease on this machine.
    Demo(commands::demo::Demo),
    /// Measure this machine.
    #[command(subcommand, after_help = "Example:\n  souk bench leases")]
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
    SshProxy(commands::ssh::SshProxy),
    /// End a lease and verify its account.
    End(commands::end::End),
    /// Verify usage logs.
    #[command(subcommand, after_help = "Example:\n  souk log verify 12D3KooW…")]
    Log(commands::log::Log),
    /// Make and look after images, the root file systems of leases.
    #[command(
        subcommand,
        after_help = "Example:\n  souk image build && souk image list"
    )]
    Image(commands::image::Image),
    /// Vouch for requesters.
    #[command(
        subcommand,
        after_help = "Example:\n  souk grant holder lease.key\n  souk grant issue --key issuer.key --holder 5f3c… > lease.grant"
    )]
    Grant(commands::grant::Grant),
    /// Make keys that sign grants.
    #[command(subcommand, after_help = "Example:\n  souk issuer key new issuer.key")]
    Issuer(commands::issuer::Issuer),
    /// Write manual pages and the completions of shells.
    Manual(commands::manual::Manual),
    /// Print the version of this program and of what it speaks.
    Version(commands::version::Version),
}

impl Cli {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        match self.command {
            Command::Node(node) => node.run(),
            Command::Status(status) => status.run(),
            Command::Top(top) => top.run(),
            Command::Doctor(doctor) => doctor.run(),
            Command::Config(config) => config.run(),
            Command::Attest(attest) => attest.run(),
            Command::Demo(demo) => demo.run(),
            Command::Bench(bench) => bench.run(),
            Command::Market(market) => market.run(),
            Command::Rent(rent) => rent.run(),
            Command::Leases(leases) => leases.run(),
            Command::Ssh(ssh) => ssh.run(),
            Command::SshProxy(proxy) => proxy.run(),
            Command::End(end) => end.run(),
            Command::Log(log) => log.run(),
            Command::Image(image) => image.run(),
            Command::Grant(grant) => grant.run(),
            Command::Issuer(issuer) => issuer.run(),
            Command::Manual(manual) => manual.run(&Self::command()),
            Command::Version(version) => version.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All commands, with their paths.
    fn all(command: &clap::Command, path: &str, found: &mut Vec<(String, clap::Command)>) {
        found.push((path.to_owned(), command.clone()));
        for sub in command.get_subcommands() {
            all(sub, &format!("{path} {}", sub.get_name()), found);
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_with_an_example() {
        let mut found = Vec::new();
        all(&Cli::command(), "souk", &mut found);
        assert!(found.len() > 40, "{}", found.len());
        for (path, command) in found {
            assert!(
                command.get_about().is_some(),
                "{path} says nothing of itself"
            );
            let after = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            let is_shown = after.contains("Example") && after.contains(&path);
            assert!(is_shown, "{path} has no example in its help");
        }
    }

    #[test]
    fn every_command_of_a_requester_speaks_json_and_says_where_its_folder_is() {
        let mut found = Vec::new();
        all(&Cli::command(), "souk", &mut found);
        let option = |command: &clap::Command, name: &str| {
            let argument = command.get_arguments().find(|a| a.get_long() == Some(name));
            argument.map(|a| a.get_help().map(ToString::to_string).unwrap_or_default())
        };
        let of_a_requester = found
            .iter()
            .filter(|(_, command)| option(command, "home").is_some());
        let mut seen = 0;
        for (path, command) in of_a_requester.filter(|(_, command)| !command.is_hide_set()) {
            seen += 1;
            for name in ["home", "config"] {
                let help = option(command, name).unwrap_or_default();
                assert!(help.contains("$XDG_DATA_HOME"), "{path} --{name}: {help}");
            }
            // What comes out of a session is what runs in it.
            let speaks = path == "souk ssh" || option(command, "json").is_some();
            assert!(speaks, "{path} has no --json");
        }
        assert!(seen >= 6, "{seen}");
        for path in [
            "souk grant holder",
            "souk grant issue",
            "souk issuer key new",
        ] {
            let (_, command) = found.iter().find(|(p, _)| p == path).expect("there");
            assert!(option(command, "json").is_some(), "{path} has no --json");
        }
    }

    #[test]
    fn all_that_asks_the_node_here_takes_its_socket() {
        let ask = |args: &[&str]| {
            let socket = ["--socket", "/run/souk/monitor.sock"];
            Cli::try_parse_from([&["souk"], args, &socket].concat())
        };
        for command in [
            &["status"][..],
            &["top"],
            &["doctor"],
            &["leases", "--orphans"],
            &["node", "leases"],
            &["node", "market"],
            &["node", "metrics"],
            &["node", "drain"],
        ] {
            assert!(ask(command).is_ok(), "{command:?}");
        }
        assert!(ask(&["leases"]).is_err(), "nobody is asked");
        assert!(ask(&["top", "--replay", "evening.jsonl"]).is_err());
    }

    #[test]
    fn a_request_for_nothing_is_refused_at_once() {
        let ask = |args: &[&str]| Cli::try_parse_from([&["souk", "rent"], args].concat());
        assert!(ask(&["--duration-s", "1"]).is_ok());
        for nothing in [
            "--duration-s",
            "--cpu-millicores",
            "--memory-mib",
            "--max-processes",
        ] {
            let error = ask(&[nothing, "0"]).expect_err(nothing).to_string();
            assert!(error.contains(nothing), "{error}");
        }
        let grant = |args: &[&str]| {
            let issue = ["souk", "grant", "issue", "--key", "k", "--holder", "h"];
            Cli::try_parse_from([&issue, args].concat())
        };
        assert!(grant(&[]).is_ok());
        for nothing in [
            "--duration-s",
            "--cpu-millicores",
            "--memory-mib",
            "--max-processes",
            "--valid-s",
        ] {
            let error = grant(&[nothing, "0"]).expect_err(nothing).to_string();
            assert!(error.contains(nothing), "{error}");
        }
        assert!(ask(&["--resume", "5f3c", "--direct"]).is_err());
        assert!(
            ask(&["--grant", "lease.grant"]).is_err(),
            "a grant has a key"
        );
    }
}
