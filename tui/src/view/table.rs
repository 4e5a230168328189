//! A table of which only the visible rows are made.

use ratatui::{layout::Rect, style::Style};

use super::pen::{Pen, row};
use crate::state::{Row, State};

/// A column. Columns that do not fit are left out from the right; the first that can grows into what is left.
pub(super) struct Column {
    pub(super) title: &'static str,
    pub(super) width: u16,
    pub(super) is_number: bool,
    /// Takes up to so many cells more.
    pub(super) grows: u16,
}

impl Column {
    pub(super) const fn text(title: &'static str, width: u16) -> Self {
        Self {
            title,
            width,
            is_number: false,
            grows: 0,
        }
    }

    pub(super) const fn number(title: &'static str, width: u16) -> Self {
        Self {
            title,
            width,
            is_number: true,
            grows: 0,
        }
    }

    pub(super) const fn growing(mut self, by: u16) -> Self {
        self.grows = by;
        self
    }
}

/// What stands in a row, and how the row looks.
pub(super) type Cells = (Vec<String>, Style);

/// Draws the head and the visible rows.
pub(super) fn draw(
    pen: &mut Pen<'_>,
    area: Rect,
    state: &State,
    columns: &[Column],
    nothing: &str,
    cells: impl Fn(Row) -> Option<Cells>,
) {
    let fields = fields(area, columns);
    for (column, (x, width)) in columns.iter().zip(&fields) {
        put(
            pen,
            column,
            *x,
            area.y,
            *width,
            column.title,
            pen.theme.title(),
        );
    }
    let table = state.table();
    let visible = state.visible();
    if visible.is_empty() {
        let text = match table.filter.is_empty() {
            true => nothing,
            false => "nothing matches the filter; Esc clears it",
        };
        pen.line(row(area, 1), &[(text, pen.theme.faint())]);
        return;
    }
    let rows = usize::from(area.height.saturating_sub(1));
    for (at, which) in visible.iter().enumerate().skip(table.offset).take(rows) {
        let line = row(
            area,
            1 + u16::try_from(at - table.offset).unwrap_or_default(),
        );
        let Some((texts, style)) = cells(*which) else {
            continue;
        };
        for ((column, (x, width)), text) in columns.iter().zip(&fields).zip(&texts) {
            put(pen, column, *x, line.y, *width, text, style);
        }
        if at == table.selected && !table.is_lost {
            pen.paint(line, pen.theme.selected());
        }
    }
}

fn put(pen: &mut Pen<'_>, column: &Column, x: u16, y: u16, width: u16, text: &str, style: Style) {
    if column.is_number {
        pen.write_right(x, y, width, text, style);
    } else {
        pen.write(x, y, width, text, style);
    }
}

/// Where each column that fits begins, and how wide it is.
fn fields(area: Rect, columns: &[Column]) -> Vec<(u16, u16)> {
    const GAP: u16 = 2;
    let mut taken = 0;
    let fitting = columns
        .iter()
        .take_while(|column| {
            taken += column.width + if taken == 0 { 0 } else { GAP };
            taken <= area.width
        })
        .count();
    let widths = columns.iter().take(fitting).map(|column| column.width);
    let gaps = GAP * u16::try_from(fitting.saturating_sub(1)).unwrap_or_default();
    let mut left = area.width.saturating_sub(widths.sum::<u16>() + gaps);
    let mut x = area.x;
    columns
        .iter()
        .take(fitting)
        .map(|column| {
            let more = column.grows.min(left);
            left -= more;
            let field = (x, column.width + more);
            x += field.1 + GAP;
            field
        })
        .collect()
}
