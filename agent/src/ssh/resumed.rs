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

/// A client of plain SSH may wait for the server's first word (ssh-keyscan does, for 5 s). One that greets does so once it hears that
/// a relay leads here.
const FIRST_WORD: Duration = Duration::from_secs(3);

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
    guest: Guest,
}

/// Who began a session, as the server has it.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    /// Cancelled once SSH has ended, and the place at the door is free.
    pub(super) connection: CancellationToken,
    /// Cancelled once the client has logged in.
    pub(super) logged_in: CancellationToken,
    /// Ends the session.
    pub(super) put_out: CancellationToken,
}

/// What the SSH server talks through: a connection, or its end of a session.
pub(super) type Line = Either<TcpStream, DuplexStream>;

impl Sessions {
    /// Looks how a connection of `guest` begins. None where it carries a session that is served already, or nothing.
    pub(super) async fn receive(
        &self,
        mut stream: TcpStream,
        guest: &Guest,
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
        // Also a new one, where the answer to its first greeting was lost.
        let known = self
            .table()
            .get(&hello.id)
            .map(|entry| entry.attach.clone());
        if let Some(attach) = known {
            // Where one waits already, its client has just come with it, and comes again.
            let _ = attach.try_send((stream, hello.received));
            return Ok(None);
        }
        let status = if !hello.is_new {
            Status::Unknown
        } else if let Some(attachments) = self.begin(hello.id, guest) {
            let (near, far) = duplex(PIPE_BYTES);
            let first = Some((stream, hello.received));
            let ended = guest.put_out.clone();
            tokio::spawn(self.clone().keep(hello.id, near, first, attachments, ended));
            return Ok(Some(Line::Right(far)));
        } else {
            Status::Full
        };
        let welcome = Welcome {
            status,
            received: 0,
        };
        timeout(GREETING, stream.write_all(&welcome.encode())).await??;
        Ok(None)
    }

    /// A place for a new session. Where all are taken, one that waits goes: first such whose SSH has ended, then the one that has
    /// waited longest.
    fn begin(&self, id: SessionId, guest: &Guest) -> Option<mpsc::Receiver<(TcpStream, u64)>> {
        let mut table = self.table();
        if table.contains_key(&id) {
            return None;
        }
        if table.len() >= MAX_SESSIONS && !put_out(&mut table, |_| true) {
            return None;
        }
        let (attach, attachments) = mpsc::channel(1);
        table.insert(
            id,
            Entry {
                attach,
                waits_since: None,
                guest: guest.clone(),
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

    /// Ends the session that has waited longest of those that hold the place of a login. False where none waits.
    pub(super) fn put_out_longest(&self) -> bool {
        put_out(&mut self.table(), |guest| {
            guest.logged_in.is_cancelled() && !guest.connection.is_cancelled()
        })
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

/// Ends one of these sessions that waits. False where there is none.
fn put_out(table: &mut Table, is_one: impl Fn(&Guest) -> bool) -> bool {
    let waiting = table
        .iter()
        .filter(|(_, entry)| entry.waits_since.is_some() && is_one(&entry.guest));
    let first = waiting
        .min_by_key(|(_, entry)| (!entry.guest.connection.is_cancelled(), entry.waits_since))
        .map(|(id, _)| *id);
    let gone = first.and_then(|id| table.remove(&id));
    gone.inspect(|entry| entry.guest.put_out.cancel()).is_some()
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

    fn guest() -> Guest {
        Guest {
            connection: CancellationToken::new(),
            logged_in: CancellationToken::new(),
            put_out: CancellationToken::new(),
        }
    }

    #[test]
    fn a_full_table_gives_up_what_nobody_misses_first_and_nothing_that_is_carried() {
        let sessions = Sessions::default();
        let ids: Vec<_> = (0..MAX_SESSIONS as u8)
            .map(|n| SessionId([n; 16]))
            .collect();
        let guests: Vec<_> = ids.iter().map(|_| guest()).collect();
        let mut held = vec![];
        for (id, guest) in ids.iter().zip(&guests) {
            held.push(sessions.begin(*id, guest).expect("room"));
        }
        let newer = |n| sessions.begin(SessionId([n; 16]), &guest()).is_some();
        assert!(!newer(255), "all are carried");
        assert!(!newer(0), "no id twice");
        for at in [9, 4, 7, 5] {
            sessions.set_waiting(ids[at], true);
            guests[at].logged_in.cancel();
        }
        // SSH has ended in it.
        guests[7].connection.cancel();
        let gone = || -> Vec<_> {
            let put_out = |at: &usize| guests[*at].put_out.is_cancelled();
            (0..guests.len()).filter(put_out).collect()
        };
        assert!(newer(255));
        assert_eq!(gone(), [7]);
        assert!(newer(254));
        assert_eq!(gone(), [7, 9], "it has waited longest");
        assert_eq!(sessions.table().len(), MAX_SESSIONS);

        // A login that needs a place is helped by such alone as hold one.
        guests[4].connection.cancel();
        assert!(sessions.put_out_longest());
        assert_eq!(gone(), [5, 7, 9]);
        assert!(!sessions.put_out_longest());
    }
}
