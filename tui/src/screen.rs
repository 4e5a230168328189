//! The terminal: taken when the program begins, and put back when it ends, however it ends but by SIGKILL.

use std::{
    io::{self, Stdout, stdout},
    panic,
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use ratatui::{
    Terminal,
    backend::CrosstermBackend,
    crossterm::{
        cursor::{Hide, Show},
        event::{
            self, DisableMouseCapture, EnableMouseCapture, KeyCode, KeyEvent, KeyEventKind,
            KeyModifiers, MouseButton, MouseEventKind,
        },
        execute,
        terminal::{
            EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode, size,
        },
    },
};
use tokio::sync::mpsc;

use crate::{
    event::{Event, Key, Mouse},
    state::State,
    theme::Theme,
    view,
};

/// How long the thread that reads keys waits at a time, so that it ends soon after the program does.
const LOOK: Duration = Duration::from_millis(250);

/// Whether the terminal is ours; there is only one.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal, while it is ours.
pub(crate) struct Screen(Terminal<CrosstermBackend<Stdout>>);

impl Screen {
    /// Takes the terminal.
    pub(crate) fn take() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                // First, so that what is said of the panic can be read.
                put_back();
                before(info);
            }));
        });
        enable_raw_mode()?;
        TAKEN.store(true, Ordering::SeqCst);
        let screen = || -> io::Result<_> {
            execute!(stdout(), EnterAlternateScreen, EnableMouseCapture, Hide)?;
            Terminal::new(CrosstermBackend::new(stdout()))
        };
        screen().map(Self).inspect_err(|_| put_back())
    }

    /// Columns and rows.
    pub(crate) fn size() -> io::Result<(u16, u16)> {
        size()
    }

    /// Draws what has changed.
    pub(crate) fn draw(&mut self, state: &State, theme: Theme) -> io::Result<()> {
        self.0
            .draw(|frame| view::render(state, theme, frame.buffer_mut()))
            .map(drop)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        put_back();
    }
}

fn put_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        // A terminal that is gone needs nothing.
        let _ = execute!(stdout(), DisableMouseCapture, LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}

/// Reads keys, the mouse and sizes until nobody wants them. A terminal that is gone ends the program.
pub(crate) fn read(events: mpsc::Sender<Event>) {
    thread::spawn(move || {
        while !events.is_closed() {
            let read = match event::poll(LOOK) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            let event = match read {
                Ok(read) => taken(&read),
                Err(_) => Some(Event::Key(Key::Interrupt)),
            };
            let is_over = event == Some(Event::Key(Key::Interrupt));
            if event.is_some_and(|event| events.blocking_send(event).is_err()) || is_over {
                return;
            }
        }
    });
}

fn taken(event: &event::Event) -> Option<Event> {
    match event {
        event::Event::Key(key) if key.kind != KeyEventKind::Release => key_of(key).map(Event::Key),
        event::Event::Mouse(mouse) => {
            let what = match mouse.kind {
                MouseEventKind::Down(MouseButton::Left) => Mouse::Click,
                MouseEventKind::ScrollUp => Mouse::ScrollUp,
                MouseEventKind::ScrollDown => Mouse::ScrollDown,
                _ => return None,
            };
            let (x, y) = (mouse.column, mouse.row);
            Some(Event::Mouse { what, x, y })
        }
        event::Event::Resize(width, height) => Some(Event::Resize {
            width: *width,
            height: *height,
        }),
        _ => None,
    }
}

fn key_of(key: &KeyEvent) -> Option<Key> {
    let held = key.modifiers & (KeyModifiers::CONTROL | KeyModifiers::ALT);
    Some(match key.code {
        KeyCode::Char('c') if held == KeyModifiers::CONTROL => Key::Interrupt,
        KeyCode::Char(c) if held.is_empty() => Key::Char(c),
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Esc,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Tab => Key::Tab,
        KeyCode::BackTab => Key::BackTab,
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::Left => Key::Left,
        KeyCode::Right => Key::Right,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        _ => return None,
    })
}
