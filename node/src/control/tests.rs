use std::{
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use souk_backend::LeaseId;
use souk_market::units::BackendName;
use tokio::{net::UnixStream, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    v1::{control_client::ControlClient, watch_reply::What},
    *,
};

const LEASE: LeaseId = LeaseId([7; 16]);

/// A node with one lease.
#[derive(Default)]
struct OneLease {
    stop: CancellationToken,
    happenings: Happenings,
    snapshots: AtomicU64,
}

#[async_trait]
impl Operations for OneLease {
    async fn status(&self) -> v1::StatusReply {
        v1::StatusReply {
            peers: 3,
            ..Default::default()
        }
    }
    async fn offers(&self) -> Vec<v1::Offer> {
        (0..10_000)
            .map(|n| v1::Offer {
                node_id: format!("12D3KooW{n:044}"),
                images: vec!["0".repeat(64); 8],
                ..Default::default()
            })
            .collect()
    }
    async fn leases(&self) -> Vec<v1::Lease> {
        vec![v1::Lease {
            lease: LEASE.to_string(),
            ..Default::default()
        }]
    }
    async fn orphans(&self) -> Option<v1::OrphansReply> {
        None
    }
    async fn end(&self, lease: LeaseId) -> Result<(), EndError> {
        (lease == LEASE)
            .then_some(())
            .ok_or(EndError::NoSuchLease(lease))
    }
    fn standing(&self) -> v1::StandingReply {
        v1::StandingReply {
            standing: "open".to_owned(),
            ..Default::default()
        }
    }
    async fn drain(&self, _: v1::DrainRequest) -> Result<(), ChangeRefused> {
        Ok(())
    }
    async fn resume(&self) -> Result<(), ChangeRefused> {
        Err(ChangeRefused::Change("nothing to resume".into()))
    }
    async fn retire(&self, _: v1::RetireRequest) -> Result<(), ChangeRefused> {
        Ok(())
    }
    fn agree(&self, request: v1::AgreeRequest) -> Result<v1::AgreeReply, ChangeRefused> {
        Ok(v1::AgreeReply {
            agreement: request.node_id.into_bytes(),
        })
    }
    async fn snapshot(&self) -> v1::Snapshot {
        let made = self.snapshots.fetch_add(1, Ordering::SeqCst);
        v1::Snapshot {
            at_unix_ms: made,
            // Larger than the windows of a connection, so that one that is not read cannot hide in them.
            program: "x".repeat(1024 * 1024),
            ..Default::default()
        }
    }
    fn happenings(&self) -> &Happenings {
        &self.happenings
    }
    async fn refresh_card(&self) -> Result<(), ChangeRefused> {
        Ok(())
    }
    async fn pause_backend(&self, backend: BackendName, _: bool) -> Result<(), PauseError> {
        match backend.as_str() {
            "sandbox" => Ok(()),
            _ => Err(PauseError::NoSuchBackend(backend)),
        }
    }
    async fn reap(&self, backend: BackendName, lease: LeaseId) -> Result<(), ReapError> {
        Err(ReapError::NoSuchOrphan { backend, lease })
    }
    fn metrics(&self) -> String {
        "# EOF\n".to_owned()
    }
    fn shutdown(&self) {
        self.stop.cancel();
    }
}

fn served(path: &Path) -> JoinHandle<()> {
    serving(path, Access::Full).1
}

fn serving(path: &Path, access: Access) -> (Arc<OneLease>, JoinHandle<()>) {
    let node = Arc::new(OneLease::default());
    let socket = Socket::bind(path).expect("binds");
    let serving = Serving::new(node.clone(), node.stop.clone());
    let service = tokio::spawn(async move {
        serve(socket, access, &serving).await.expect("serves");
    });
    (node, service)
}

#[tokio::test]
async fn every_call_is_answered_and_shutdown_ends_the_service() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("run/control.sock");
    let service = served(&path);
    let mut client = Client::connect(&path).await.expect("connects");
    let version = client.version().await.expect("answers");
    assert_eq!((version.control, version.program), (VERSION, program()));
    assert_eq!(version.revision, REVISION.unwrap_or_default());
    assert_eq!(client.status().await.expect("answers").peers, 3);
    assert_eq!(client.leases().await.expect("answers").len(), 1);
    let error = client.orphans().await.expect_err("is no provider");
    assert!(matches!(error, ClientError::NotNow(_)), "{error}");
    assert_eq!(
        client.drain(Some(9)).await.expect("answers").standing,
        "open"
    );
    let error = client.resume().await.expect_err("is refused");
    assert!(
        matches!(&error, ClientError::Refused(why) if why == "nothing to resume"),
        "{error}"
    );
    client
        .retire(v1::RetireRequest::default())
        .await
        .expect("answers");
    assert_eq!(
        client.agree("old".to_owned()).await.expect("answers"),
        b"old"
    );
    assert_eq!(client.metrics().await.expect("answers"), "# EOF\n");
    client.end(LEASE.to_string()).await.expect("ends");
    let error = client
        .end(LeaseId([8; 16]).to_string())
        .await
        .expect_err("is not there");
    assert!(matches!(error, ClientError::NotFound(_)), "{error}");
    client.refresh_card().await.expect("answers");
    let pause = |backend: &str| backend.to_owned();
    client
        .pause_backend(pause("sandbox"), true)
        .await
        .expect("answers");
    let error = client
        .pause_backend(pause("other"), true)
        .await
        .expect_err("is not there");
    assert!(
        matches!(&error, ClientError::NotFound(why) if why.contains("no backend other")),
        "{error}"
    );
    let error = client
        .reap("sandbox".to_owned(), LEASE.to_string())
        .await
        .expect_err("is not there");
    assert!(matches!(error, ClientError::NotFound(_)), "{error}");
    client.shutdown().await.expect("answers");
    drop(client);
    service.await.expect("the service ends");
    assert!(!path.exists(), "the name of the socket is gone");
}

#[tokio::test]
async fn the_largest_market_fits_a_reply() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("control.sock");
    let service = served(&path);
    let mut client = Client::connect(&path).await.expect("connects");
    assert_eq!(client.offers().await.expect("answers").len(), 10_000);
    service.abort();
}

#[tokio::test]
async fn only_the_user_of_the_node_can_open_the_socket() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("run/control.sock");
    let service = served(&path);
    let mode = |path: &Path| path.metadata().expect("exists").permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().expect("folder")), 0o700);
    service.abort();
}

#[tokio::test]
async fn a_client_of_another_version_is_told_which_is_right() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("control.sock");
    let service = served(&path);
    let channel = tonic::transport::Endpoint::from_shared(format!("unix://{}", path.display()))
        .expect("valid")
        .connect()
        .await
        .expect("connects");
    let mut other = ControlClient::with_interceptor(channel, |mut request: tonic::Request<()>| {
        request
            .metadata_mut()
            .insert(VERSION_KEY, (VERSION + 1).into());
        Ok(request)
    });
    let status = other
        .status(v1::StatusRequest {})
        .await
        .expect_err("is refused");
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert!(
        status
            .message()
            .contains("speaks control version 1, the caller speaks version 2"),
        "{status}"
    );
    let reply = other
        .version(v1::VersionRequest {})
        .await
        .expect("every version may ask this");
    assert_eq!(reply.into_inner().control, VERSION);
    service.abort();
}

#[tokio::test]
async fn a_second_node_does_not_take_the_socket_of_a_running_one() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("control.sock");
    let service = served(&path);
    assert!(matches!(
        Socket::bind(&path),
        Err(SocketError::InUse { .. })
    ));
    UnixStream::connect(&path)
        .await
        .expect("the first still listens");
    service.abort();
}

#[tokio::test]
async fn the_socket_of_a_dead_node_is_replaced_and_other_files_are_not() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("control.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
    assert!(matches!(
        Client::connect(&path).await,
        Err(ClientError::NotRunning { .. })
    ));
    drop(Socket::bind(&path).expect("replaces"));
    std::fs::write(&path, "mine").expect("writes");
    assert!(matches!(
        Socket::bind(&path),
        Err(SocketError::NotASocket { .. })
    ));
    assert_eq!(std::fs::read(&path).expect("still there"), b"mine");
}

#[tokio::test]
async fn a_folder_that_others_write_to_and_a_long_path_are_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let open = folder.path().join("open");
    std::fs::create_dir(&open).expect("makes");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).expect("opens");
    assert!(matches!(
        Socket::bind(&open.join("s")),
        Err(SocketError::OpenFolder { .. })
    ));
    let long = folder.path().join("x".repeat(120));
    assert!(matches!(
        Socket::bind(&long),
        Err(SocketError::PathTooLong { .. })
    ));
}

#[test]
fn a_folder_of_another_user_is_refused_needs_root() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let folder = tempfile::tempdir().expect("temporary folder");
    std::os::unix::fs::chown(folder.path(), Some(65_534), None).expect("given away");
    assert!(matches!(
        Socket::bind(&folder.path().join("s")),
        Err(SocketError::OthersFolder { owner: 65_534, .. })
    ));
}

#[tokio::test]
async fn a_monitoring_socket_answers_what_changes_nothing_and_refuses_the_rest() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("monitor.sock");
    let (node, service) = serving(&path, Access::ReadOnly);
    let mut client = Client::connect(&path).await.expect("connects");
    client.version().await.expect("answers");
    client.status().await.expect("answers");
    client.offers().await.expect("answers");
    client.leases().await.expect("answers");
    client.standing().await.expect("answers");
    client.metrics().await.expect("answers");
    let mut updates = client.watch(0).await.expect("answers");
    updates.next().await.expect("answers").expect("a snapshot");
    let backend = || "sandbox".to_owned();
    for (call, refused) in [
        ("End", client.end(LEASE.to_string()).await.err()),
        ("Drain", client.drain(None).await.err()),
        ("Resume", client.resume().await.err()),
        (
            "Retire",
            client.retire(v1::RetireRequest::default()).await.err(),
        ),
        ("Agree", client.agree("old".to_owned()).await.err()),
        ("RefreshCard", client.refresh_card().await.err()),
        (
            "PauseBackend",
            client.pause_backend(backend(), true).await.err(),
        ),
        (
            "Reap",
            client.reap(backend(), LEASE.to_string()).await.err(),
        ),
        ("Shutdown", client.shutdown().await.err()),
    ] {
        assert!(
            matches!(&refused, Some(ClientError::ReadOnly(why))
                if why.contains(&format!("refuses {call};")) && why.contains("control.socket")),
            "{call}: {refused:?}"
        );
    }
    assert!(!node.stop.is_cancelled());
    service.abort();
}

#[test]
fn who_may_open_a_monitoring_socket_may_pass_its_folder() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let _inside = runtime.enter();
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("run/monitor.sock");
    let _socket = Socket::bind_for(&path, 0o660).expect("binds");
    let mode = |path: &Path| path.metadata().expect("exists").permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o660);
    assert_eq!(mode(path.parent().expect("folder")), 0o750);
}

#[tokio::test]
async fn one_who_watches_gets_snapshots_and_each_happening_once_until_the_node_stops() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("control.sock");
    let (node, service) = serving(&path, Access::Full);
    node.happenings.note(1, Happening::Started);
    let mut client = Client::connect(&path).await.expect("connects");
    let mut updates = client.watch(1).await.expect("answers");
    let (mut snapshots, mut seen) = (Vec::new(), Vec::new());
    while snapshots.len() < 3 || seen.len() < 2 {
        match updates.next().await.expect("answers").expect("goes on") {
            What::Snapshot(snapshot) => {
                snapshots.push(snapshot.at_unix_ms);
                if snapshots.len() == 2 {
                    node.happenings.note(2, Happening::Card(9));
                }
            }
            What::Happenings(late) => {
                assert_eq!(late.missed, 0);
                seen.extend(late.happenings.iter().map(|one| one.sequence));
            }
        }
    }
    assert_eq!(snapshots, [0, 1, 2]);
    assert_eq!(seen, [0, 1]);
    // A stream that is open does not keep the node from stopping.
    client.shutdown().await.expect("answers");
    while updates.next().await.expect("ends well").is_some() {}
    drop(client);
    drop(updates);
    service.await.expect("the service ends");
}

#[tokio::test]
async fn a_client_that_does_not_read_costs_no_snapshots_and_learns_what_it_missed() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("control.sock");
    let (node, service) = serving(&path, Access::Full);
    let mut slow = Client::connect(&path).await.expect("connects");
    let mut asleep = slow.watch(1).await.expect("answers");
    let mut quick = Client::connect(&path).await.expect("connects");
    let mut updates = quick.watch(1).await.expect("answers");
    // Ten snapshots of 1 MiB are more than what the slow one's connection holds.
    let mut got = 0;
    let reading = async {
        while got < 11 {
            let reply = updates.next().await.expect("answers").expect("goes on");
            let is_snapshot = matches!(reply, What::Snapshot(_));
            got += u64::from(is_snapshot);
            if is_snapshot && got == 10 {
                for n in 0..200 {
                    node.happenings.note(n, Happening::Card(n));
                }
            }
        }
    };
    timeout(Duration::from_secs(60), reading)
        .await
        .expect("a slow client holds up no other");
    let made = node.snapshots.load(Ordering::SeqCst);
    assert!(made <= 2 * got, "{made} snapshots for {got}");
    // It goes on from what is now: few old snapshots, and the number of happenings that it cannot have any more.
    let (mut old, mut missed) = (0, 0);
    while missed == 0 {
        match asleep.next().await.expect("answers").expect("goes on") {
            What::Snapshot(_) => old += 1,
            What::Happenings(late) => missed = late.missed,
        }
    }
    assert!(
        old < 15,
        "{old} snapshots were kept for one who did not read"
    );
    assert_eq!(missed, 150);
    service.abort();
}

#[tokio::test]
async fn more_watchers_than_there_are_places_are_told_so_and_a_place_comes_free() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("control.sock");
    let service = served(&path);
    let mut client = Client::connect(&path).await.expect("connects");
    let mut watching = Vec::new();
    for _ in 0..feed::MAX_WATCHERS {
        watching.push(client.watch(0).await.expect("a place"));
    }
    let error = client.watch(0).await.expect_err("no place");
    assert!(
        matches!(&error, ClientError::NotNow(why) if why.contains("16 clients watch")),
        "{error}"
    );
    watching.pop();
    let again = async {
        while client.watch(0).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), again)
        .await
        .expect("a place comes free");
    service.abort();
}
