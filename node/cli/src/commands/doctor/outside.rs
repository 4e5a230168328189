//! What others see of the node: as a requester sees it, under an identity that is made for this.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{Finding, SMALLEST};
use crate::{
    commands::{end::unended, rent, requester},
    failure::Failure,
    progress::Progress,
};
use souk_crypto::NodeId;
use souk_market::matching::Wanted;
use souk_market::{
    quorum::LeftOut,
    units::{DurationS, Limits},
};
use souk_node::{
    client::{Connected, Ended, Judgement, RentRequest, Visitor},
    config::{Config, Evidence},
    control::v1,
    net::ConnectError,
};

/// The provider's next checkpoint is waited for so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// The lease of a self-test ends by itself after this, should this program die.
const LEASE_S: u32 = 300;

/// The node that is looked at.
fn own_id(snapshot: &v1::Snapshot) -> Option<NodeId> {
    snapshot.status.as_ref()?.node_id.parse().ok()
}

/// Asks for the market as a requester does who was never here, in a folder that goes with what is returned.
async fn visit(
    config: &Config,
    policy: Option<&Path>,
    progress: &Progress,
) -> Result<(TempDir, Visitor), Failure> {
    // What this node judges others by has nothing to do with it.
    let mut config = config.clone();
    config.evidence = Evidence::default();
    if let Some(policy) = policy {
        let found = std::path::absolute(policy);
        config.evidence.policy = Some(found.map_err(|error| {
            Failure::because(format_args!("cannot find {}", policy.display()), &error)
        })?);
    }
    // A requester's folder holds keys.
    let folder = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .map_err(|error| Failure::because("cannot make a temporary folder", &error))?;
    let client = requester::client(folder.path(), &config)?;
    requester::check_policy(&client)?;
    let visitor = requester::visit(&client, progress).await?;
    Ok((folder, visitor))
}

/// Whether requesters with this policy believe the node.
pub(super) async fn judged(
    config: &Config,
    snapshot: &v1::Snapshot,
    policy: &Path,
    progress: &Progress,
) -> Finding {
    const CHECK: &str = "evidence";
    const WHY: &str = "who has this policy neither rents here nor sends over this node";
    let name = policy.display();
    let judgement = async {
        let (_folder, visitor) = visit(config, Some(policy), progress).await?;
        let own = own_id(snapshot).filter(|own| visitor.market().card(own).is_some());
        let own = own.ok_or_else(|| {
            Failure::new("the others show no card of this node").hint("see what is bad above")
        })?;
        let judged = visitor.judgements().await;
        let judged = judged.map_err(|error| requester::unjudged(Failure::of(&error), &error))?;
        Ok::<_, Failure>(judged.and_then(|judged| judged.of(&own).cloned()))
    };
    match judgement.await {
        Ok(Some(Judgement::Accepted { kind })) => {
            Finding::fine(CHECK, format!("{name} accepts this node: {kind}"))
        }
        Ok(Some(Judgement::Refused { reason, why, .. })) => Finding::bad(
            CHECK,
            format!("{name} refuses this node: {reason}: {why}"),
            WHY,
            format!(
                "`souk attest policy check {name}` shows what it accepts; docs/attestation.md says what each reason means"
            ),
        ),
        Ok(None) => Finding::bad(
            CHECK,
            format!("{name} refuses this node: its card names no evidence"),
            WHY,
            "set evidence.source in souk.toml; where it is set, `souk status` says why there is none",
        ),
        Err(failure) => {
            Finding::failed(CHECK, &failure, "it cannot be told who believes this node")
        }
    }
}

pub(super) async fn look(
    config: &Config,
    snapshot: &v1::Snapshot,
    lease: bool,
    progress: &Progress,
) -> Vec<Finding> {
    const CHECK: &str = "seen by others";
    let Some(own) = own_id(snapshot) else {
        return Vec::new();
    };
    if config.node.bootstrap.is_empty() {
        let unasked = Finding::note(
            CHECK,
            "nobody can be asked: node.bootstrap names no other node",
            "whether others see this node cannot be told",
            "name two or three nodes of the network under node.bootstrap",
        );
        return [unasked]
            .into_iter()
            .chain(lease.then(nothing_rented))
            .collect();
    }
    let (_folder, visitor) = match visit(config, None, progress).await {
        Ok(visited) => visited,
        Err(failure) => {
            let why = "requesters go the same way, and get nowhere either";
            return [Finding::failed(CHECK, &failure, why)]
                .into_iter()
                .chain(lease.then(nothing_rented))
                .collect();
        }
    };
    let market = visitor.market();
    let asked = market.roots.len();
    let left_out = market.left_out.iter().find(|(node, _)| *node == own);
    let mut findings = vec![match (market.card(&own), left_out) {
        (Some(listed), _)
            if snapshot
                .card
                .as_ref()
                .is_some_and(|own| listed.card.sequence.0 < own.sequence) =>
        {
            Finding::bad(
                CHECK,
                "the others show an earlier card of this node",
                "its addresses and offers may be gone",
                "wait until the new card has travelled; if it stays so, check peers and reachable above",
            )
        }
        (Some(_), _) => Finding::fine(
            CHECK,
            format!("{asked} nodes were asked, and show its card"),
        ),
        (None, Some((_, LeftOut::NoQuorum { seen }))) => Finding::bad(
            CHECK,
            format!(
                "{seen} of {asked} nodes show its card, and {} must",
                market.quorum
            ),
            "requesters take only cards that several nodes show",
            "wait until the card has travelled; if it stays so, check peers and reachable above",
        ),
        (None, Some((_, LeftOut::Equivocal))) => Finding::bad(
            CHECK,
            "two cards with one sequence were signed by this identity",
            "it is run twice, or its data folder was copied; nobody uses either card",
            "stop the other one, then `souk node refresh-card`",
        ),
        (None, None) => Finding::bad(
            CHECK,
            format!("none of {asked} nodes shows its card"),
            "nobody can find this node",
            "is it on the same network, and is the clock right? See the warnings above",
        ),
    }];
    if market
        .card(&own)
        .is_some_and(|listed| !listed.card.addresses.is_empty())
    {
        let dialled_in = snapshot.network.as_ref().map_or(0, |n| n.dialled_in);
        findings.push(answers(&visitor.dial(own).await, dialled_in));
    }
    if lease {
        findings.push(if market.card(&own).is_some() {
            progress.step("renting from this node");
            let avoided = [own];
            let lease =
                requester::session_avoiding(visitor, &avoided, progress, async |connected| {
                    rented(connected, own).await
                });
            match lease.await {
                Ok(what) => Finding::fine("lease", what),
                Err(failure) => {
                    Finding::failed("lease", &failure, "a requester would meet the same")
                }
            }
        } else {
            nothing_rented()
        });
    }
    findings
}

/// What a dial from this machine to the addresses of the card says.
fn answers(dialled: &Result<(), ConnectError>, dialled_in: u32) -> Finding {
    const CHECK: &str = "addresses";
    const FIX: &str =
        "compare node.external, or else node.listen, with what others see; forward the port";
    match dialled {
        Ok(()) => Finding::fine(CHECK, "the node answers at those of its card"),
        Err(ConnectError::WrongNode) => Finding::bad(
            CHECK,
            "another node answers at those of its card",
            "what is meant for this node goes to that one",
            FIX,
        ),
        Err(_) if dialled_in > 0 => Finding::fine(
            CHECK,
            "this machine does not reach those of its card, and others do",
        ),
        Err(error) => Finding::bad(
            CHECK,
            format!("nobody answers at those of its card: {error}"),
            "no node that is connected has dialled this one either, so it gets only what comes over connections of its own",
            FIX,
        ),
    }
}

fn nothing_rented() -> Finding {
    Finding::bad(
        "lease",
        "nothing was rented",
        "no requester could be seen to find this node",
        "see the findings above",
    )
}

/// Rents the smallest machine of the node through the mix, and ends it.
async fn rented(connected: &Connected, own: NodeId) -> Result<String, Failure> {
    let image = rent::common_image(connected.market(), Some(own))
        .ok_or_else(|| Failure::new("the card names no image").hint("souk image build"))?;
    let request = RentRequest {
        wanted: Wanted {
            image,
            resources: SMALLEST,
            duration: DurationS(LEASE_S),
            required: Limits::of(&[]),
            arch: None,
            shared_kernel: true,
            max_total: None,
            issuer: None,
            attested: None,
            tees: None,
            provider: Some(own),
        },
        voucher: None,
        direct: false,
        require_evidence: false,
    };
    let start = Instant::now();
    let rented = connected.rent(&request, &mut |_| ()).await;
    let mut lease = rented.map_err(|error| rent::unrented(&error))?;
    let receipt = start.elapsed();
    let ended = connected.end(&mut lease, PATIENCE, &mut |_| ()).await;
    match ended.map_err(|error| unended(&error))? {
        Ended::Proven(_) => Ok(format!(
            "a machine was rented through the mix in {:.1} s, ended, and its entry in the usage log verified after {:.1} s",
            receipt.as_secs_f64(),
            start.elapsed().as_secs_f64()
        )),
        Ended::Pending(state) => Err(Failure::new(format_args!(
            "a machine was rented in {:.1} s; its end was not proven in {} s: {}",
            receipt.as_secs_f64(),
            PATIENCE.as_secs(),
            state.as_str()
        ))
        .hint("wait for the next checkpoint; provider.checkpoint_s says how often there is one")),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    #[test]
    fn who_is_dialled_by_others_is_reached_whatever_this_machine_reaches() {
        let away = || Err(ConnectError::TimedOut);
        let wrong = Err(ConnectError::WrongNode);
        for (dialled, dialled_in, state) in [
            (Ok(()), 0, State::Fine),
            (away(), 3, State::Fine),
            (away(), 0, State::Bad),
            (wrong, 3, State::Bad),
        ] {
            let found = answers(&dialled, dialled_in);
            assert_eq!(found.state, state, "{dialled:?} {dialled_in}");
        }
    }
}
