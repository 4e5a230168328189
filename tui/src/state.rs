//! What the dashboard knows and where the operator is in it: `State + Event → Action`, and nothing else.
//!
//! ```text
//!            Snapshot, Happenings, Connected, Gone, Done
//!                               │
//!   Key ──► dialog? ──► filter? ──► page ──► Option<Action>
//! ```
//!
//! It grows with nothing: one snapshot, [`MAX_HAPPENINGS`] happenings, [`MAX_SAMPLES`] of each history. What a table shows is worked
//! out when it changes, not when it is drawn, so that a frame costs what is visible.
//!
//! Threats: an operator who presses the wrong key: nothing is done to a node before a question was answered with `y`. Rows that move
//! while a key is pressed: the mark stays on what it was put on, and where that is gone, nothing is marked.

mod rows;
mod samples;

use std::collections::VecDeque;

use souk_control::v1;

pub use self::rows::Row;
pub(crate) use self::samples::{Samples, Series};
use crate::{
    action::{Action, Deed},
    event::{Event, Key, Mouse},
    layout::{self, Hit},
    page::Page,
    view::overview,
};

/// Happenings that are kept: as many as the node keeps.
pub const MAX_HAPPENINGS: usize = 50;
/// Samples of each history: ten minutes at one a second.
pub(crate) const MAX_SAMPLES: usize = 600;
/// A filter is no longer, in characters.
const MAX_FILTER: usize = 64;
/// How long a notice stands, in milliseconds.
const NOTICE_MS: u64 = 8_000;
/// Without a word from the node for so long, in milliseconds, it is said to be silent.
const SILENT_MS: u64 = 5_000;

/// Whether the node answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// Nobody knows yet.
    Connecting,
    /// It does.
    Up,
    /// It does not, since then and for this reason.
    Gone {
        /// Milliseconds since 1970.
        since_ms: u64,
        /// What the system or the node said.
        why: String,
    },
}

/// Where one page's table stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    /// Among the rows that the filter lets through. On the overview, which has none: the line that is at its top.
    pub(crate) selected: usize,
    /// What stands in that row, so that it is found again where rows come and go.
    mark: Option<[String; 2]>,
    /// It is not there any more, and no row is marked until the operator chooses one.
    pub(crate) is_lost: bool,
    /// The first that is on the screen.
    pub(crate) offset: usize,
    pub(crate) filter: String,
}

/// A line above the keys that says what became of something.
#[derive(Clone, Debug)]
pub(crate) struct Notice {
    pub(crate) text: String,
    pub(crate) is_bad: bool,
    until_ms: u64,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct State {
    pub(crate) width: u16,
    pub(crate) height: u16,
    pub(crate) now_ms: u64,
    pub(crate) page: Page,
    pub(crate) link: Link,
    pub(crate) snapshot: Option<Box<v1::Snapshot>>,
    /// When it came.
    heard_ms: u64,
    /// The newest first.
    pub(crate) happenings: VecDeque<v1::Happening>,
    pub(crate) missed: u64,
    pub(crate) samples: Samples,
    tables: [Table; 8],
    /// The rows of this page that the filter lets through.
    visible: Vec<Row>,
    /// Lines of the overview that the screen has no room for.
    excess: usize,
    /// A filter is being written.
    pub(crate) is_filtering: bool,
    /// What is asked.
    pub(crate) dialog: Option<Deed>,
    pub(crate) has_help: bool,
    pub(crate) notice: Option<Notice>,
}

impl State {
    /// Before anything is known.
    #[must_use]
    pub fn new(width: u16, height: u16) -> Self {
        Self {
            width,
            height,
            now_ms: 0,
            page: Page::default(),
            link: Link::Connecting,
            snapshot: None,
            heard_ms: 0,
            happenings: VecDeque::new(),
            missed: 0,
            samples: Samples::default(),
            tables: Default::default(),
            visible: Vec::new(),
            excess: 0,
            is_filtering: false,
            dialog: None,
            has_help: false,
            notice: None,
        }
    }

    /// Takes what came in; says what is to be done.
    pub fn handle(&mut self, event: Event) -> Option<Action> {
        let action = match event {
            Event::Key(key) => self.key(key),
            Event::Mouse { what, x, y } => self.mouse(what, x, y),
            Event::Resize { width, height } => {
                (self.width, self.height) = (width, height);
                None
            }
            Event::Tick(now_ms) => {
                self.now_ms = now_ms;
                self.notice = self.notice.take().filter(|notice| now_ms < notice.until_ms);
                return None;
            }
            Event::Connected => {
                self.link = Link::Up;
                self.heard_ms = self.now_ms;
                // A node that was started again counts its happenings from zero.
                self.happenings.clear();
                self.missed = 0;
                None
            }
            Event::Gone(why) => {
                let since_ms = match self.link {
                    Link::Gone { since_ms, .. } => since_ms,
                    Link::Connecting | Link::Up => {
                        // What became of an action matters less than that.
                        self.notice = None;
                        self.now_ms
                    }
                };
                self.link = Link::Gone { since_ms, why };
                // What it was asked for is not done to whoever answers next.
                self.dialog = None;
                return None;
            }
            Event::Snapshot(snapshot) => {
                self.heard_ms = self.now_ms;
                self.samples.take(self.snapshot.as_deref(), &snapshot);
                self.snapshot = Some(snapshot);
                None
            }
            Event::Happenings(late) => {
                self.missed = self.missed.saturating_add(late.missed);
                for happening in late.happenings {
                    self.happenings.push_front(happening);
                }
                self.happenings.truncate(MAX_HAPPENINGS);
                None
            }
            Event::Done { deed, refused } => {
                self.notice = Some(Notice {
                    is_bad: refused.is_some(),
                    text: refused.unwrap_or_else(|| deed.done()),
                    until_ms: self.now_ms.saturating_add(NOTICE_MS),
                });
                return None;
            }
        };
        self.settle();
        action
    }

    /// The rows of this page's table that the filter lets through.
    #[must_use]
    pub fn visible(&self) -> &[Row] {
        &self.visible
    }

    pub(crate) fn table(&self) -> &Table {
        &self.tables[self.page.number()]
    }

    /// For how long the node has said nothing though it is there, in milliseconds, where that is long.
    pub(crate) fn silent_ms(&self) -> Option<u64> {
        let silent = self.now_ms.saturating_sub(self.heard_ms);
        (self.link == Link::Up && silent > SILENT_MS).then_some(silent)
    }

    /// Unix seconds by the clock of this program.
    pub(crate) fn now_s(&self) -> u64 {
        self.now_ms / 1000
    }

    /// Brings what depends on something else in line with it.
    fn settle(&mut self) {
        let Some(snapshot) = self.snapshot.as_deref() else {
            return;
        };
        let number = self.page.number();
        let filter = &self.tables[number].filter;
        self.visible = rows::visible(self.page, snapshot, &self.happenings, filter);
        self.excess = match self.page {
            Page::Overview => overview::excess(self, snapshot),
            _ => 0,
        };
        let last = self.last();
        let height = usize::from(layout::table_rows(self));
        let table = &mut self.tables[number];
        let place = match &table.mark {
            Some(mark) => self.visible.iter().position(|row| {
                let key = rows::key(*row, snapshot);
                key.is_some_and(|key| key == *mark)
            }),
            None => Some(table.selected),
        };
        table.is_lost = place.is_none();
        table.selected = place.unwrap_or(table.selected).min(last);
        if table.mark.is_none() {
            let row = self.visible.get(table.selected);
            let key = row.and_then(|row| rows::key(*row, snapshot));
            table.mark = key.map(|key| key.map(str::to_owned));
        }
        let first = table.selected.saturating_sub(height.saturating_sub(1));
        let most = self.visible.len().saturating_sub(height);
        table.offset = table
            .offset
            .clamp(first, table.selected.max(first))
            .min(most);
    }

    /// The last row that can be selected.
    fn last(&self) -> usize {
        self.visible.len().saturating_sub(1).max(self.excess)
    }

    fn key(&mut self, key: Key) -> Option<Action> {
        if key == Key::Interrupt {
            return Some(Action::Quit);
        }
        if let Some(deed) = self.dialog.take() {
            return match key {
                Key::Char('y' | 'Y') => Some(Action::Do(deed)),
                Key::Char('n' | 'N' | 'q') | Key::Esc => None,
                _ => {
                    self.dialog = Some(deed);
                    None
                }
            };
        }
        if self.has_help {
            self.has_help = false;
            return None;
        }
        if self.is_filtering {
            self.write_filter(key);
            return None;
        }
        self.command(key)
    }

    fn write_filter(&mut self, key: Key) {
        let filter = &mut self.tables[self.page.number()].filter;
        match key {
            Key::Char(c) if !c.is_control() && filter.chars().count() < MAX_FILTER => {
                filter.push(c);
                self.filtered();
            }
            Key::Backspace => {
                filter.pop();
                self.filtered();
            }
            Key::Esc => {
                self.is_filtering = false;
                self.show_all();
            }
            Key::Enter => self.is_filtering = false,
            Key::Up | Key::Down | Key::PageUp | Key::PageDown => self.walk(key),
            _ => {}
        }
    }

    fn show_all(&mut self) {
        self.tables[self.page.number()].filter.clear();
        self.filtered();
    }

    /// Where a filter hides what is marked, another row is: the operator who wrote it sees which.
    fn filtered(&mut self) {
        let was_lost = self.tables[self.page.number()].is_lost;
        self.settle();
        let table = &mut self.tables[self.page.number()];
        if table.is_lost && !was_lost {
            table.mark = None;
        }
    }

    fn command(&mut self, key: Key) -> Option<Action> {
        match key {
            Key::Char('q') => return Some(Action::Quit),
            Key::Char('?' | 'h') => self.has_help = true,
            Key::Char('/') if self.page.has_table() => self.is_filtering = true,
            Key::Char(digit @ '1'..='8') => {
                self.page = Page::ALL[usize::from(digit as u8 - b'1')];
            }
            Key::Tab | Key::Right => self.page = self.page.step(1),
            Key::BackTab | Key::Left => self.page = self.page.step(-1),
            Key::Esc => self.show_all(),
            Key::Up | Key::Down | Key::PageUp | Key::PageDown | Key::Home | Key::End => {
                self.walk(key);
            }
            Key::Char('k') => self.walk(Key::Up),
            Key::Char('j') => self.walk(Key::Down),
            Key::Char(c) => self.ask(c),
            Key::Enter | Key::Backspace | Key::Interrupt => {}
        }
        None
    }

    fn walk(&mut self, key: Key) {
        let screen = usize::from(layout::table_rows(self)).max(1);
        let last = self.last();
        let table = &mut self.tables[self.page.number()];
        let at = table.selected;
        table.selected = match key {
            // What came to the place of the lost row is the nearest.
            Key::Up | Key::Down if table.is_lost => at,
            Key::Up => at.saturating_sub(1),
            Key::Down => at + 1,
            Key::PageUp => at.saturating_sub(screen),
            Key::PageDown => at + screen,
            Key::Home => 0,
            _ => last,
        }
        .min(last);
        table.mark = None;
    }

    /// Puts the question of a key, where it has one on this page.
    fn ask(&mut self, key: char) {
        let keys = self.page.keys();
        let is_key = keys.iter().any(|(name, _)| name.starts_with(key));
        match self.deed(key) {
            Some(deed) if self.link == Link::Up => self.dialog = Some(deed),
            Some(_) => self.warn("the node does not answer; nothing can be done now"),
            None if is_key && self.table().is_lost => {
                self.warn("what was marked is gone; choose a row");
            }
            None => {}
        }
    }

    fn warn(&mut self, text: &str) {
        self.notice = Some(Notice {
            text: text.to_owned(),
            is_bad: true,
            until_ms: self.now_ms.saturating_add(NOTICE_MS),
        });
    }

    fn deed(&self, key: char) -> Option<Deed> {
        let snapshot = self.snapshot.as_deref()?;
        let table = self.table();
        let selected = self.visible.get(table.selected);
        let selected = selected.filter(|_| !table.is_lost);
        match (self.page, key, selected) {
            (Page::Overview, 'd', _) => Some(Deed::Drain),
            (Page::Overview, 'u', _) => Some(Deed::Resume),
            (Page::Overview | Page::Market, 'c', _) => Some(Deed::RefreshCard),
            (Page::Backends, 'p', Some(Row::Backend(at))) => {
                let row = snapshot.backends.get(*at)?;
                let backend = row.state.as_ref()?.backend.clone();
                Some(match row.paused {
                    true => Deed::Unpause { backend },
                    false => Deed::Pause { backend },
                })
            }
            (Page::Backends, 'x', Some(Row::Orphan(at))) => {
                let orphan = snapshot.orphans.get(*at)?;
                Some(Deed::Reap {
                    backend: orphan.backend.clone(),
                    lease: orphan.lease.clone(),
                })
            }
            (Page::Leases, 'e', Some(Row::Lease(at))) => {
                let lease = snapshot.leases.get(*at)?;
                Some(Deed::EndLease {
                    lease: lease.lease.clone(),
                    backend: lease.backend.clone(),
                    age_s: self.now_s().saturating_sub(lease.accepted_unix_s),
                    left_s: lease.valid_to_unix_s.saturating_sub(self.now_s()),
                })
            }
            _ => None,
        }
    }

    fn mouse(&mut self, what: Mouse, x: u16, y: u16) -> Option<Action> {
        if self.dialog.is_some() {
            // A question is answered with a key: a click may be meant for what was there before.
            return None;
        }
        if self.has_help {
            self.has_help = what != Mouse::Click;
            return None;
        }
        match (what, layout::hit(self, x, y)) {
            (Mouse::ScrollUp, _) => self.walk(Key::Up),
            (Mouse::ScrollDown, _) => self.walk(Key::Down),
            (Mouse::Click, Some(Hit::Page(page))) => {
                self.page = page;
                self.is_filtering = false;
            }
            (Mouse::Click, Some(Hit::Row(row))) => {
                let table = &mut self.tables[self.page.number()];
                let row = table.offset + usize::from(row);
                if row < self.visible.len() {
                    (table.selected, table.mark) = (row, None);
                }
            }
            (Mouse::Click, None) => {}
        }
        None
    }
}
