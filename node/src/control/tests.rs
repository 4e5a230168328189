use std::{os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use async_trait::async_trait;
use souk_backend::LeaseId;
use tokio::{net::UnixStream, sync::Notify, task::JoinHandle};

use super::{v1::control_client::ControlClient, *};

const LEASE: LeaseId = LeaseId([7; 16]);

/// A node with one lease.
#[derive(Default)]
struct OneLease {
    stop: Notify,
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
        Err(ChangeRefused("nothing to resume".to_owned()))
    }
    async fn retire(&self, _: v1::RetireRequest) -> Result<(), ChangeRefused> {
        Ok(())
    }
    fn agree(&self, request: v1::AgreeRequest) -> Result<v1::AgreeReply, ChangeRefused> {
        Ok(v1::AgreeReply {
            agreement: request.node_id.into_bytes(),
        })
    }
    fn metrics(&self) -> String {
        "# EOF\n".to_owned()
    }
    fn shutdown(&self) {
        self.stop.notify_one();
    }
}

fn served(path: &Path) -> JoinHandle<()> {
    let node = Arc::new(OneLease::default());
    let socket = Socket::bind(path).expect("binds");
    tokio::spawn(async move {
        let stopped = node.clone();
        serve(socket, node, async move { stopped.stop.notified().await })
            .await
            .expect("serves");
    })
}

#[tokio::test]
async fn every_call_is_answered_and_shutdown_ends_the_service() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("run/control.sock");
    let service = served(&path);
    let mut client = Client::connect(&path).await.expect("connects");
    assert_eq!(client.version().await.expect("answers").control, VERSION);
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
    client.end(LEASE).await.expect("ends");
    let error = client
        .end(LeaseId([8; 16]))
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
