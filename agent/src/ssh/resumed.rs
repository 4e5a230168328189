//! Sessions that outlive the connections which carry them ([`souk_session`]).
//!
//! ```text
//!  greeted ──► carried ── the connection breaks ──► waiting ── LINGER, or a newer one needs its place ──► forgotten
//!                 ▲─────────── greeted again ──────────┘
//! ```
//!
//! Threat: strangers who begin sessions. The SSH server knows each by its place at the door, and a session whose client has
//! not logged in ends with that place; so only the tenant leaves sessions that wait, and at most [`MAX_SESSIONS`].

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use souk_session::{Ending, Hello, LINGER, Session, SessionId, Status, Welcome, carry};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};
use tokio_util::{either::Either, sync::CancellationToken};

/// Sessions at one time, those included that wait for a connection.
const MAX_SESSIONS: usize = 64;

/// Bytes between a session and the SSH server.
const PIPE_BYTES: usize = 64 * 1024;

/// A client of plain SSH may wait for the server's first word. One that greets does so once it hears that a relay leads here.
const FIRST_WORD: Duration = Duration::from_secs(5);

/// How long the rest of a greeting, and its answer, may take.
const GREETING: Duration = Duration::from_secs(10);

/// The sessions of an instance.
#[derive(Clone, Default)]
pub(super) struct Sessions(Arc<Mutex<Table>>);

type Table = HashMap<SessionId, Entry>;

struct Entry {
    /// Takes a connection that goes on with the session, and how far its client has received.
    attach: mpsc::Sender<(TcpStream, u64)>,
    /// Since when nothing carries it.
    waits_since: Option<Instant>,
    /// Ends it.
    ended: CancellationToken,
}

/// What the SSH server talks through: a connection, or its end of a session.
pub(super) type Line = Either<TcpStream, DuplexStream>;

impl Sessions {
    /// Looks how a connection begins. None where it carries a session that is served already, or nothing; `ended` ends a
    /// session that begins with it.
    pub(super) async fn receive(
        &self,
        mut stream: TcpStream,
        ended: &CancellationToken,
    ) -> io::Result<Option<Line>> {
        let mut first = [0];
        match timeout(FIRST_WORD, stream.peek(&mut first)).await {
            Ok(Ok(1)) if Hello::begins_with(first[0]) => {}
            Ok(Err(error)) => return Err(error),
            _ => return Ok(Some(Line::Left(stream))),
        }
        let mut hello = [0; Hello::LENGTH];
        timeout(GREETING, stream.read_exact(&mut hello)).await??;
        let hello = Hello::decode(&hello).map_err(io::Error::other)?;
        let status = if hello.is_new {
            if let Some(attachments) = self.begin(hello.id, ended) {
                let (near, far) = duplex(PIPE_BYTES);
                let first = Some((stream, hello.received));
                let keeping = self
                    .clone()
                    .keep(hello.id, near, first, attachments, ended.clone());
                tokio::spawn(keeping);
                return Ok(Some(Line::Right(far)));
            }
            Status::Full
        } else {
            let known = self
                .table()
                .get(&hello.id)
                .map(|entry| entry.attach.clone());
            if let Some(attach) = known {
                // Where one waits already, its client has just come with it, and comes again.
                let _ = attach.try_send((stream, hello.received));
                return Ok(None);
            }
            Status::Unknown
        };
        let welcome = Welcome {
            status,
            received: 0,
        };
        timeout(GREETING, stream.write_all(&welcome.encode())).await??;
        Ok(None)
    }

    /// A place for a new session. Where all are taken, the one that has waited longest goes.
    fn begin(
        &self,
        id: SessionId,
        ended: &CancellationToken,
    ) -> Option<mpsc::Receiver<(TcpStream, u64)>> {
        let mut table = self.table();
        if table.contains_key(&id) {
            return None;
        }
        if table.len() >= MAX_SESSIONS && !Self::put_out(&mut table) {
            return None;
        }
        let (attach, attachments) = mpsc::channel(1);
        table.insert(
            id,
            Entry {
                attach,
                waits_since: None,
                ended: ended.clone(),
            },
        );
        Some(attachments)
    }

    /// Carries a session over one connection after another.
    async fn keep(
        self,
        id: SessionId,
        mut near: DuplexStream,
        mut next: Option<(TcpStream, u64)>,
        mut attachments: mpsc::Receiver<(TcpStream, u64)>,
        ended: CancellationToken,
    ) {
        let mut session = Session::default();
        loop {
            self.set_waiting(id, next.is_none());
            next = match next {
                Some((stream, received)) => tokio::select! {
                    ending = attached(&mut session, stream, received, &mut near) => match ending {
                        Ending::Cut => None,
                        Ending::Over | Ending::Broken => break,
                    },
                    // The client knows better than we whether the old one still carries anything.
                    newer = attachments.recv() => newer,
                    () = ended.cancelled() => break,
                },
                None => tokio::select! {
                    another = timeout(LINGER, attachments.recv()) => match another {
                        Ok(Some(another)) => Some(another),
                        _ => break,
                    },
                    () = ended.cancelled() => break,
                },
            };
        }
        self.table().remove(&id);
        ended.cancel();
    }

    /// Ends the session that has waited longest. False where none waits.
    pub(super) fn put_out_longest(&self) -> bool {
        Self::put_out(&mut self.table())
    }

    fn put_out(table: &mut Table) -> bool {
        let waiting = table
            .iter()
            .filter(|(_, entry)| entry.waits_since.is_some());
        let oldest = waiting
            .min_by_key(|(_, entry)| entry.waits_since)
            .map(|(id, _)| *id);
        let gone = oldest.and_then(|id| table.remove(&id));
        gone.inspect(|entry| entry.ended.cancel()).is_some()
    }

    fn set_waiting(&self, id: SessionId, waits: bool) {
        if let Some(entry) = self.table().get_mut(&id) {
            entry.waits_since = waits.then(Instant::now);
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers the greeting on a connection and lets it carry the session.
async fn attached(
    session: &mut Session,
    mut stream: TcpStream,
    received: u64,
    near: &mut DuplexStream,
) -> Ending {
    // A greeting that was late, or somebody else's: it changes nothing, and the client comes again.
    if session.handle_attached(received).is_err() {
        return Ending::Cut;
    }
    let welcome = Welcome {
        status: Status::Ok,
        received: session.received(),
    };
    match timeout(GREETING, stream.write_all(&welcome.encode())).await {
        Ok(Ok(())) => carry(session, stream, near).await,
        _ => Ending::Cut,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_gives_up_what_has_waited_longest_and_nothing_that_is_carried() {
        let sessions = Sessions::default();
        let ids: Vec<_> = (0..MAX_SESSIONS as u8)
            .map(|n| SessionId([n; 16]))
            .collect();
        let ended: Vec<_> = ids.iter().map(|_| CancellationToken::new()).collect();
        let mut held = vec![];
        for (id, ended) in ids.iter().zip(&ended) {
            held.push(sessions.begin(*id, ended).expect("room"));
        }
        let another = CancellationToken::new();
        let newer = SessionId([255; 16]);
        assert!(sessions.begin(newer, &another).is_none(), "all are carried");
        assert!(sessions.begin(ids[0], &another).is_none(), "no id twice");
        sessions.set_waiting(ids[9], true);
        sessions.set_waiting(ids[4], true);
        assert!(sessions.begin(newer, &another).is_some());
        let gone = |token: &CancellationToken| token.is_cancelled();
        assert_eq!(ended.iter().position(gone), Some(9));
        assert_eq!(ended.iter().filter(|token| gone(token)).count(), 1);
        assert_eq!(sessions.table().len(), MAX_SESSIONS);
        // For a login that needs its place.
        assert!(sessions.put_out_longest() && gone(&ended[4]));
        assert!(!sessions.put_out_longest(), "nothing waits any more");
    }
}
