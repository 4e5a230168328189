//! Writes texts into cells: cut at the edge, free of control characters, by their width.

use ratatui::{buffer::Buffer, layout::Rect, style::Style};
use unicode_width::UnicodeWidthStr as _;

use crate::theme::Theme;

/// Writes within an area.
pub(super) struct Pen<'a> {
    buffer: &'a mut Buffer,
    screen: Rect,
    pub(super) theme: Theme,
}

impl<'a> Pen<'a> {
    pub(super) fn new(buffer: &'a mut Buffer, screen: Rect, theme: Theme) -> Self {
        Self {
            buffer,
            screen,
            theme,
        }
    }

    /// Writes at a cell, at most `width` cells; returns how many it took.
    pub(super) fn write(&mut self, x: u16, y: u16, width: u16, text: &str, style: Style) -> u16 {
        let room = self.screen.right().saturating_sub(x).min(width);
        if room == 0 || y < self.screen.y || y >= self.screen.bottom() {
            return 0;
        }
        // What does not fit is cut with a sign, so that nobody takes a part for the whole. Control characters are left out.
        let taken = wide(text);
        if taken <= usize::from(room) {
            let (end, _) = self.buffer.set_stringn(x, y, text, room.into(), style);
            return end - x;
        }
        let (end, _) = self
            .buffer
            .set_stringn(x, y, text, usize::from(room - 1), style);
        self.buffer.set_stringn(end, y, "…", 1, style);
        end + 1 - x
    }

    /// Writes so that the text ends at the right of a field.
    pub(super) fn write_right(&mut self, x: u16, y: u16, width: u16, text: &str, style: Style) {
        let pad = usize::from(width).saturating_sub(wide(text));
        let pad = u16::try_from(pad).unwrap_or(width);
        self.write(x + pad, y, width - pad, text, style);
    }

    /// Writes parts one behind the other.
    pub(super) fn line(&mut self, area: Rect, parts: &[(&str, Style)]) {
        let mut x = area.x;
        for (text, style) in parts {
            x += self.write(x, area.y, area.right().saturating_sub(x), text, *style);
        }
    }

    /// Gives a whole area a style.
    pub(super) fn paint(&mut self, area: Rect, style: Style) {
        self.buffer.set_style(area.intersection(self.screen), style);
    }

    /// Empties an area.
    pub(super) fn clear(&mut self, area: Rect) {
        let area = area.intersection(self.screen);
        for y in area.top()..area.bottom() {
            for x in area.left()..area.right() {
                self.buffer[(x, y)].reset();
            }
        }
    }

    pub(super) fn screen(&self) -> Rect {
        self.screen
    }
}

/// Cells that a text takes.
pub(super) fn wide(text: &str) -> usize {
    text.width()
}

/// One row of an area, counted from its top; empty below its end.
pub(super) fn row(area: Rect, at: u16) -> Rect {
    match at < area.height {
        true => Rect::new(area.x, area.y + at, area.width, 1),
        false => Rect::new(area.x, area.bottom(), 0, 0),
    }
}

/// Lines of whole words.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always one");
        if !line.is_empty() && wide(line) + 1 + wide(word) > width {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}
