//! Where things are on the screen: for drawing them, and for knowing what the mouse points at.
//!
//! ```text
//!  0        title: who, which network, how it stands
//!  1        tabs
//!  2 …      head of the page, then the head of its table, then its rows
//!  h - 2    notice or filter
//!  h - 1    keys
//! ```

use ratatui::layout::Rect;

use crate::{page::Page, state::State};

/// What is at a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hit {
    /// The tab of a page.
    Page(Page),
    /// A row of the table, from the top of the screen.
    Row(u16),
}

/// Rows above and below the body.
const ABOVE: u16 = 2;
const BELOW: u16 = 2;

/// The whole screen.
pub(crate) fn screen(state: &State) -> Rect {
    Rect::new(0, 0, state.width, state.height)
}

/// Where the page is.
pub(crate) fn body(state: &State) -> Rect {
    body_of(screen(state))
}

/// Where the page is on a screen of this size.
pub(crate) fn body_of(screen: Rect) -> Rect {
    let height = screen.height.saturating_sub(ABOVE + BELOW);
    Rect::new(0, ABOVE.min(screen.height), screen.width, height)
}

/// Rows that the head of a page takes.
pub(crate) const fn head_rows(page: Page) -> u16 {
    match page {
        Page::Backends | Page::Leases | Page::Events => 1,
        Page::Market | Page::Log => 4,
        Page::Network => 5,
        Page::Overview | Page::Mix => 0,
    }
}

/// The head of a page, and its table with a head of its own.
pub(crate) fn parts(state: &State) -> (Rect, Rect) {
    let body = body(state);
    let head = head_rows(state.page).min(body.height);
    let (above, below) = (body.y, body.y + head);
    (
        Rect::new(0, above, body.width, head),
        Rect::new(0, below, body.width, body.height - head),
    )
}

/// Rows of the table that fit.
pub(crate) fn table_rows(state: &State) -> u16 {
    parts(state).1.height.saturating_sub(1)
}

/// The cells of each tab: page, column, width.
pub(crate) fn tabs() -> impl Iterator<Item = (Page, u16, u16)> {
    let mut x = 0;
    Page::ALL.into_iter().map(move |page| {
        let width = u16::try_from(page.title().len()).unwrap_or_default() + 2;
        let at = x;
        x += width + 1;
        (page, at, width)
    })
}

/// What is at a cell.
pub(crate) fn hit(state: &State, x: u16, y: u16) -> Option<Hit> {
    if y == 1 {
        let tab = tabs().find(|(_, at, width)| (*at..at + width).contains(&x));
        return tab.map(|(page, ..)| Hit::Page(page));
    }
    let table = parts(state).1;
    let first = table.y + 1;
    let is_row = state.page.has_table() && x < table.width && (first..table.bottom()).contains(&y);
    is_row.then(|| Hit::Row(y - first))
}
