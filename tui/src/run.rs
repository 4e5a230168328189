//! A session: the events in order, the frames, and what is asked of the node.

use std::{
    fs::File,
    io::{self, BufReader},
    path::{Path, PathBuf},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use crate::{
    action::Action,
    event::{Event, Key},
    link,
    record::{self, ReadError, Recorder},
    screen::Screen,
    state::State,
    theme::Theme,
};

/// Events that wait for the state. When it is full, the node and the terminal wait.
const EVENT_QUEUE: usize = 64;
/// What the node is asked for and that waits; an operator confirms one at a time.
const DEED_QUEUE: usize = 8;
/// Between two ticks: ages on the screen are in seconds.
const TICK: Duration = Duration::from_secs(1);
/// Between two frames, at least.
const FRAME: Duration = Duration::from_millis(33);
/// A pause in a recording is not replayed longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a session shows.
#[derive(Clone, Debug)]
pub enum Source {
    /// The node at a control socket.
    Node(PathBuf),
    /// A recording.
    Recording(PathBuf),
}

/// How a session goes.
#[derive(Clone, Debug)]
pub struct Options {
    /// What it shows.
    pub source: Source,
    /// Where it is recorded.
    pub record: Option<PathBuf>,
    /// How it looks.
    pub theme: Theme,
}

/// Why a session ended, other than by the operator.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// There is no terminal, or it does not do what is asked of it.
    #[error("the terminal cannot be used")]
    Terminal(#[source] io::Error),
    /// The recording cannot be written.
    #[error("cannot write the recording {}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The recording cannot be opened.
    #[error("cannot open the recording {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The recording is none.
    #[error("cannot replay {}", path.display())]
    Replay {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: ReadError,
    },
}

/// Shows a node or a recording in this terminal until the operator quits.
///
/// # Errors
/// [`TopError`]; the terminal is put back in every case.
pub async fn run(options: Options) -> Result<(), TopError> {
    let (told, mut from_source) = mpsc::channel(EVENT_QUEUE);
    let (typed, mut from_terminal) = mpsc::channel(EVENT_QUEUE);
    let (deeds, to_do) = mpsc::channel(DEED_QUEUE);
    let is_replay = matches!(options.source, Source::Recording(_));
    // What can go wrong with files is said before the terminal is taken.
    let mut recorder = recorder(options.record.as_deref())?;
    match options.source {
        Source::Node(socket) => drop(tokio::spawn(link::run(socket, told, to_do))),
        Source::Recording(path) => replay(&path, told)?,
    }
    let screen = Screen::take().map_err(TopError::Terminal)?;
    let (width, height) = Screen::size().map_err(TopError::Terminal)?;
    let mut session = Session {
        screen,
        state: State::new(width, height),
        theme: options.theme,
        drawn: Instant::now(),
    };
    crate::screen::read(typed);
    let signals = || -> io::Result<_> {
        Ok((
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ))
    };
    let (mut terminate, mut hang_up) = signals().map_err(TopError::Terminal)?;
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let began = Instant::now();
    // What a click or a page down means depends on it.
    write(&mut recorder, began, &Event::Resize { width, height })?;
    loop {
        let event = tokio::select! {
            Some(event) = from_terminal.recv() => match event {
                event if !is_replay => event,
                Event::Key(Key::Char('q') | Key::Esc | Key::Interrupt) => break,
                // All is shown as it was, and so at the size that it had.
                Event::Resize { .. } => {
                    session.show(false).await?;
                    continue;
                }
                _ => continue,
            },
            Some(event) = from_source.recv() => event,
            _ = ticks.tick(), if !is_replay => Event::Tick(now_ms()),
            _ = terminate.recv() => break,
            _ = hang_up.recv() => break,
        };
        write(&mut recorder, began, &event)?;
        match session.state.handle(event) {
            // What a recording did was done then; also the end of its session.
            _ if is_replay => {}
            Some(Action::Quit) => break,
            Some(Action::Do(deed)) => {
                // One that finds the queue full was confirmed while eight others wait.
                if let Err(mpsc::error::TrySendError::Full(deed)) = deeds.try_send(deed) {
                    let refused =
                        Some("the node is still busy with what it was asked for".to_owned());
                    let event = Event::Done { deed, refused };
                    write(&mut recorder, began, &event)?;
                    session.state.handle(event);
                }
            }
            None => {}
        }
        let more = !from_source.is_empty() || !from_terminal.is_empty();
        session.show(more).await?;
    }
    if let Some((mut recorder, path)) = recorder {
        let written = recorder.flush();
        written.map_err(|source| TopError::Record { path, source })?;
    }
    Ok(())
}

struct Session {
    screen: Screen,
    state: State,
    theme: Theme,
    drawn: Instant,
}

impl Session {
    /// Draws, unless more is at hand and the last frame is new: then one frame shows all of it.
    async fn show(&mut self, more: bool) -> Result<(), TopError> {
        let early = FRAME.checked_sub(self.drawn.elapsed());
        match early {
            Some(_) if more => return Ok(()),
            Some(early) => sleep(early).await,
            None => {}
        }
        let drawn = self.screen.draw(&self.state, self.theme);
        self.drawn = Instant::now();
        drawn.map_err(TopError::Terminal)
    }
}

fn recorder(path: Option<&Path>) -> Result<Option<(Recorder, PathBuf)>, TopError> {
    let Some(path) = path else { return Ok(None) };
    let recorder = Recorder::create(path).map_err(|source| TopError::Record {
        path: path.to_owned(),
        source,
    })?;
    Ok(Some((recorder, path.to_owned())))
}

/// Writes down what came in, where that is wanted.
fn write(
    recorder: &mut Option<(Recorder, PathBuf)>,
    began: Instant,
    event: &Event,
) -> Result<(), TopError> {
    let Some((recorder, path)) = recorder else {
        return Ok(());
    };
    let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let is_tick = matches!(event, Event::Tick(_));
    let written = recorder.take(ms, event);
    let written = written.and_then(|()| if is_tick { recorder.flush() } else { Ok(()) });
    written.map_err(|source| TopError::Record {
        path: path.clone(),
        source,
    })
}

/// Tells what a recording says, at the pace at which it was said.
fn replay(path: &Path, events: mpsc::Sender<Event>) -> Result<(), TopError> {
    let file = File::open(path).map_err(|source| TopError::Open {
        path: path.to_owned(),
        source,
    })?;
    let read = record::read(BufReader::new(file)).map_err(|source| TopError::Replay {
        path: path.to_owned(),
        source,
    })?;
    thread::spawn(move || {
        let mut last = 0;
        for line in read {
            let event = match line {
                Ok((ms, event)) => {
                    let pause = Duration::from_millis(ms.saturating_sub(last));
                    thread::sleep(pause.min(LONGEST_PAUSE));
                    last = ms;
                    event
                }
                Err(error) => Event::Gone(error.to_string()),
            };
            if events.blocking_send(event).is_err() {
                return;
            }
        }
        // Nobody is there to be told where the program has ended.
        let _ = events.blocking_send(Event::Gone("the recording is over".to_owned()));
    });
    Ok(())
}

fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use souk_control::v1;

    use super::*;
    use crate::page::Page;

    fn written(events: &[Event]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("session");
        let mut recorder = Recorder::create(&path).expect("creates");
        for event in events {
            recorder.take(0, event).expect("writes");
        }
        recorder.flush().expect("writes");
        (folder, path)
    }

    #[test]
    fn a_replay_shows_all_that_was_shown_also_after_a_q_and_at_the_size_that_it_had() {
        let keys = |keys: &'static str| keys.chars().map(|c| Event::Key(Key::Char(c)));
        let peer = |transport: &str| v1::Peer {
            transport: transport.to_owned(),
            ..Default::default()
        };
        let snapshot = v1::Snapshot {
            network: Some(v1::Network {
                peers: vec![peer("quic"), peer("tcp")],
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut events = vec![
            Event::Resize {
                width: 100,
                height: 30,
            },
            Event::Tick(5),
            Event::Connected,
            Event::Snapshot(Box::new(snapshot)),
        ];
        // A help and a question that are closed, and a filter.
        events.extend(keys("?q1dq6/quic"));
        events.push(Event::Key(Key::Enter));
        let (_folder, path) = written(&events);
        let (told, mut replayed) = mpsc::channel(EVENT_QUEUE);
        replay(&path, told).expect("a recording");
        let mut again = State::new(80, 24);
        let over = Event::Gone("the recording is over".to_owned());
        let all: Vec<_> = std::iter::from_fn(|| replayed.blocking_recv())
            .take_while(|event| *event != over)
            .inspect(|event| assert_eq!(again.handle(event.clone()), None))
            .collect();
        assert_eq!(all, events);
        assert_eq!((again.width, again.height), (100, 30));
        assert_eq!((again.page, again.visible().len()), (Page::Network, 1));
        assert!(again.dialog.is_none() && !again.has_help);
    }
}
