//! The node: what it says comes in as events, what it is asked for goes out. The one module that calls the control API.
//!
//! ```text
//!  connect ─► watch ─► Connected, Snapshot, Happenings … ─► Gone ─► pause ─┐
//!     ▲                                                                    │
//!     └────────────────────────────────────────────────────────────────────┘
//! ```

use std::{
    error::Error,
    path::{Path, PathBuf},
    time::Duration,
};

use souk_control::{Client, ClientError, Updates, v1::watch_reply::What};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use crate::{action::Deed, event::Event};

/// First and longest pause before a node that does not answer is asked again.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Follows the node at a socket until nobody listens any more.
pub(crate) async fn run(
    socket: PathBuf,
    events: mpsc::Sender<Event>,
    mut deeds: mpsc::Receiver<Deed>,
) {
    let mut pause = FIRST_PAUSE;
    while !events.is_closed() {
        let why = match watched(&socket).await {
            Ok((client, updates)) => {
                pause = FIRST_PAUSE;
                follow(&client, updates, &events, &mut deeds).await
            }
            Err(error) => chain(&error),
        };
        if events.send(Event::Gone(why.clone())).await.is_err() {
            return;
        }
        let again = Instant::now() + pause;
        pause = (pause * 2).min(LONGEST_PAUSE);
        loop {
            tokio::select! {
                () = sleep_until(again) => break,
                deed = deeds.recv() => {
                    let Some(deed) = deed else { return };
                    let refused = Some(why.clone());
                    // Nobody listens any more: the loop above ends then.
                    let _ = events.send(Event::Done { deed, refused }).await;
                }
            }
        }
    }
}

async fn watched(socket: &Path) -> Result<(Client, Updates), ClientError> {
    let mut client = Client::connect(socket).await?;
    let updates = client.watch(0).await?;
    Ok((client, updates))
}

/// Tells what the node says until it says no more, and why that is.
async fn follow(
    client: &Client,
    mut updates: Updates,
    events: &mpsc::Sender<Event>,
    deeds: &mut mpsc::Receiver<Deed>,
) -> String {
    let closed = || "the program ends".to_owned();
    if events.send(Event::Connected).await.is_err() {
        return closed();
    }
    loop {
        tokio::select! {
            update = updates.next() => {
                let event = match update {
                    Ok(Some(What::Snapshot(snapshot))) => Event::Snapshot(snapshot),
                    Ok(Some(What::Happenings(late))) => Event::Happenings(late),
                    Ok(None) => return "the node has stopped".to_owned(),
                    Err(ClientError::Failed { .. } | ClientError::NotNow(_)) => {
                        return "the node broke off".to_owned();
                    }
                    Err(error) => return chain(&error),
                };
                if events.send(event).await.is_err() {
                    return closed();
                }
            }
            deed = deeds.recv() => {
                let Some(deed) = deed else { return closed() };
                let (client, events) = (client.clone(), events.clone());
                tokio::spawn(async move {
                    let refused = ask(client, &deed).await.err().map(|error| chain(&error));
                    // Nobody listens any more, and so nobody wants to know.
                    let _ = events.send(Event::Done { deed, refused }).await;
                });
            }
        }
    }
}

async fn ask(mut client: Client, deed: &Deed) -> Result<(), ClientError> {
    match deed.clone() {
        Deed::Drain => client.drain(None).await.map(drop),
        Deed::Resume => client.resume().await.map(drop),
        Deed::RefreshCard => client.refresh_card().await,
        Deed::Pause { backend } => client.pause_backend(backend, true).await,
        Deed::Unpause { backend } => client.pause_backend(backend, false).await,
        Deed::Reap { backend, lease } => client.reap(backend, lease).await,
        Deed::EndLease { lease, .. } => client.end(lease).await,
    }
}

/// An error with its causes, in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    let causes: Vec<_> = causes.map(ToString::to_string).collect();
    causes.join(": ")
}
