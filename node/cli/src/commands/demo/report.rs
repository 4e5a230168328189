//! What the demo tells: a story for people, or one object for scripts.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use serde::Serialize;
use souk_node::control::v1;

use super::{network::Network, visit::Session};
use crate::{
    commands::{end::Account, log::Verified, rent::Rented},
    failure::FAILED,
    out,
};

/// The parts of the demo.
#[derive(Clone, Copy)]
pub(super) enum Step {
    Machine,
    Network,
    Rent,
    Ssh,
    End,
    Verify,
}

/// What happened so far.
pub(super) struct Report {
    json: bool,
    object: Object,
    failures: Vec<String>,
}

/// The object of `souk demo --json`.
#[derive(Default, Serialize)]
struct Object {
    lease: String,
    ssh_exit_code: Option<i32>,
    receipt_bytes: usize,
    usage: Option<crate::commands::end::Usage>,
    proof_verified: bool,
    checkpoint: Option<String>,
    /// Milliseconds by part; `mixing_mean` is how much of them is mixing delay, on average.
    timings_ms: BTreeMap<String, u64>,
    /// What did not hold; empty on success.
    failures: Vec<String>,
}

impl Report {
    pub(super) fn new(json: bool) -> Self {
        Self {
            json,
            object: Object::default(),
            failures: Vec::new(),
        }
    }

    pub(super) fn begin(&self, folder: &Path) {
        self.say(format_args!(
            "souk demo: five processes on loopback, in {}",
            folder.display()
        ));
    }

    /// Says what begins, for whoever waits.
    pub(super) fn step(&self, step: Step) {
        let text = match step {
            Step::Machine => {
                "1 machine   may this user make namespaces? an image from this machine's own programs; three mixes"
            }
            Step::Network => "2 network   a provider joins",
            Step::Rent => "3 rent      by a requester with a fresh identity, over three mixes",
            Step::Ssh => {
                "4 use       over a relay that is neither the requester's entry nor the provider"
            }
            Step::End => "5 end       and wait for the provider's next checkpoint",
            Step::Verify => "6 verify    the whole usage log, as anybody can",
        };
        self.say(format_args!("\n{text}"));
    }

    pub(super) fn image(&mut self, image: &BTreeMap<&'static str, String>, took: Duration) {
        self.time("image_and_mixes", took);
        self.tell(
            took,
            format_args!(
                "image {} of {} files, {} MiB",
                image["hash"], image["files"], image["mib"]
            ),
        );
    }

    pub(super) fn network(&mut self, network: &Network, took: Duration) {
        self.time("network", took);
        let count = network.nodes().count();
        self.tell(
            took,
            format_args!(
                "{}: {count} nodes, each with the signed cards of all",
                network.id()
            ),
        );
        for (name, ready) in network.nodes() {
            self.say(format_args!("            {name:<9} {}", ready.node_id));
        }
    }

    pub(super) fn rented(&mut self, rented: &Rented, took: Duration) {
        self.time("rent", took);
        for (part, ms) in &rented.timings_ms {
            self.object.timings_ms.insert(format!("rent_{part}"), *ms);
        }
        self.object.lease.clone_from(&rented.lease);
        self.object.receipt_bytes = rented.receipt_bytes;
        self.tell(
            took,
            format_args!("lease {} for {}", rented.lease, rented.price),
        );
        self.say(format_args!(
            "            sealed request {} bytes; sealed receipt {} bytes, as every reply",
            rented.request_bytes, rented.receipt_bytes
        ));
        self.say(format_args!(
            "            limits enforced: {}; egress: {}",
            join(&rented.enforced),
            if rented.egress { "open" } else { "none" }
        ));
    }

    pub(super) fn session(&mut self, session: &Session, took: Duration) {
        self.time("ssh", took);
        self.object.ssh_exit_code = Some(session.exit_code);
        for line in session.output.lines() {
            self.say(format_args!("            │ {line}"));
        }
        let job = if session.job_right {
            "the job's answer is right"
        } else {
            "the job's answer is WRONG"
        };
        self.tell(
            took,
            format_args!("{} left with {}; {job}", session.client, session.exit_code),
        );
        let failed = format!("the SSH session failed: {}", session.complaint.trim_end());
        self.hold(session.exit_code == 0, &failed);
        self.hold(
            session.job_right,
            "the job in the lease gave a wrong answer",
        );
    }

    pub(super) fn account(&mut self, account: &Account, took: Duration) {
        self.time("end", took);
        self.object.proof_verified = account.proof_verified;
        self.object.checkpoint.clone_from(&account.checkpoint);
        if let Some(usage) = &account.usage {
            let reading = |reading: Option<u64>| {
                reading.map_or_else(|| "unknown".to_owned(), |number| number.to_string())
            };
            self.tell(
                took,
                format_args!(
                    "{}: {} core-ms, {} MiB-s, {} bytes in, {} bytes out, charge {}",
                    usage.outcome,
                    reading(usage.cpu_core_ms),
                    reading(usage.memory_mib_s),
                    reading(usage.net_rx_bytes),
                    reading(usage.net_tx_bytes),
                    usage.charge,
                ),
            );
            self.say(format_args!(
                "            entry {} of {}, inclusion proven under the signed root {}",
                account.log_index.unwrap_or_default(),
                account.log_size.unwrap_or_default(),
                account.root.as_deref().unwrap_or_default(),
            ));
        }
        self.object.usage.clone_from(&account.usage);
        self.hold(account.usage.is_some(), "no final statement came");
        self.hold(
            account.proof_verified,
            "the inclusion proof was not verified",
        );
    }

    pub(super) fn verified(&mut self, log: &Verified, traces: &[PathBuf], took: Duration) {
        self.time("verify", took);
        self.tell(
            took,
            format_args!(
                "{} entries lead to the root {}",
                log.size.unwrap_or_default(),
                log.root.as_deref().unwrap_or("none")
            ),
        );
        self.hold(log.verified, "the usage log does not verify");
        for path in traces {
            self.failures.push(format!(
                "the requester's identity stands in {}",
                path.display()
            ));
        }
    }

    /// What each party saw, as far as it counts at all.
    pub(super) fn seen(&self, statuses: Vec<(&'static str, v1::StatusReply)>) {
        self.say(format_args!("\nwhat each party saw"));
        for (name, status) in statuses {
            let count = |wanted: &str| {
                status
                    .mix
                    .iter()
                    .find(|counter| counter.name == wanted)
                    .map_or(0, |counter| counter.value)
            };
            if status.log.is_some() {
                self.say(format_args!(
                    "  {name:<9} {} messages of one size from mixes; keys for this lease alone. The requester's identity stands in none of its files",
                    count("messages")
                ));
            } else {
                self.say(format_args!(
                    "  {name:<9} {} packets of one size in, {} on to a neighbour, {} into a mailbox",
                    count("frames_in"),
                    count("forwarded"),
                    count("deposited")
                ));
            }
        }
        self.say(format_args!(
            "  entry     besides: the requester's address, and nothing of what it asked whom"
        ));
        self.say(format_args!("  relay     an address and an encrypted session of SSH; not who rents, not what is typed"));
    }

    pub(super) fn finish(&mut self, took: Duration, mixing: Duration) {
        self.time("total", took);
        self.time("mixing_mean", mixing);
        self.object.failures.clone_from(&self.failures);
        if self.json {
            out::json(&self.object);
            return;
        }
        self.say(format_args!(
            "\n{} in {:.1} s, of which about {:.1} s are mixing delay",
            if self.failures.is_empty() {
                "everything held"
            } else {
                "NOT everything held"
            },
            took.as_secs_f64(),
            mixing.as_secs_f64(),
        ));
        for failure in &self.failures {
            self.say(format_args!("  {failure}"));
        }
    }

    /// What to try while the network is left running.
    pub(super) fn keep(&self, folder: &Path, network: &Network) {
        self.say(format_args!(
            "\nthe network goes on until Ctrl-C; in another terminal:\n"
        ));
        let program = std::env::current_exe().unwrap_or_else(|_| "souk".into());
        let souk = program.display();
        self.say(format_args!(
            "  export SOUK_HOME={}",
            folder.join("requester").display()
        ));
        for command in ["market", "rent", "leases", "ssh LEASE", "end LEASE"] {
            self.say(format_args!("  {souk} {command}"));
        }
        for (name, ready) in network.nodes() {
            let config = ready
                .control_socket
                .ancestors()
                .nth(2)
                .unwrap_or(folder)
                .join("souk.toml");
            self.say(format_args!(
                "  {souk} status --config {}    # {name}",
                config.display()
            ));
        }
        self.say(format_args!(
            "\nthe folder {} stays; remove it when you are done",
            folder.display()
        ));
    }

    pub(super) fn exit_code(&self) -> ExitCode {
        ExitCode::from(if self.failures.is_empty() { 0 } else { FAILED })
    }

    fn hold(&mut self, held: bool, otherwise: &str) {
        if !held {
            self.failures.push(otherwise.to_owned());
        }
    }

    fn time(&mut self, part: &str, took: Duration) {
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.object.timings_ms.insert(part.to_owned(), ms);
    }

    fn tell(&self, took: Duration, text: impl std::fmt::Display) {
        self.say(format_args!("  {:>5.2} s   {text}", took.as_secs_f64()));
    }

    fn say(&self, text: impl std::fmt::Display) {
        if !self.json {
            out::line(text);
        }
    }
}

fn join(words: &[String]) -> String {
    if words.is_empty() {
        "none".to_owned()
    } else {
        words.join(", ")
    }
}
