//! A state as cells. Pure: the same state gives the same cells, and nothing is kept from frame to frame.

mod chrome;
pub(crate) mod overview;
mod pages;
mod pen;
mod table;

use ratatui::buffer::Buffer;

use crate::{layout, page::Page, state::State, theme::Theme};

/// Draws all of it.
pub fn render(state: &State, theme: Theme, buffer: &mut Buffer) {
    // The terminal may have another size than the last event said; a recording's is that of its own terminal.
    let screen = layout::screen(state).intersection(buffer.area);
    if screen.is_empty() {
        return;
    }
    let mut pen = pen::Pen::new(buffer, layout::body_of(screen), theme);
    match (&state.snapshot, state.page) {
        (None, _) => chrome::nothing_yet(&mut pen, state),
        (Some(snapshot), Page::Overview) => overview::draw(&mut pen, state, snapshot),
        (Some(snapshot), Page::Mix) => pages::mix(&mut pen, state, snapshot),
        (Some(snapshot), Page::Backends) => pages::backends(&mut pen, state, snapshot),
        (Some(snapshot), Page::Leases) => pages::leases(&mut pen, state, snapshot),
        (Some(snapshot), Page::Market) => pages::market(&mut pen, state, snapshot),
        (Some(snapshot), Page::Network) => pages::network(&mut pen, state, snapshot),
        (Some(snapshot), Page::Log) => pages::log(&mut pen, state, snapshot),
        (Some(_), Page::Events) => pages::events(&mut pen, state),
    }
    let mut pen = pen::Pen::new(buffer, screen, theme);
    chrome::frame(&mut pen, state);
    chrome::overlays(&mut pen, state);
}
