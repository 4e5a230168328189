//! Colours, and how to do without.
//!
//! Two colours only beside those of the terminal: a blue and a vermilion, which people with any of the common kinds of colour
//! blindness tell apart, both readable on white and on black. Whatever they say is also said by a word or a sign.

use ratatui::style::{Color, Modifier, Style};

/// #0087ff of the 256 colours: links, bars, what is well.
const BLUE: Color = Color::Indexed(33);
/// #d75f00: what needs a look.
const VERMILION: Color = Color::Indexed(166);

/// How things look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    has_colour: bool,
}

impl Theme {
    /// What the environment asks for: no colour where `NO_COLOR` is set and not empty (no-color.org), or where the terminal has too
    /// few.
    #[must_use]
    pub fn of_environment() -> Self {
        let set = |name| std::env::var(name).unwrap_or_default();
        Self::of(&set("NO_COLOR"), &set("TERM"))
    }

    fn of(no_color: &str, term: &str) -> Self {
        let is_poor = matches!(term, "" | "dumb" | "linux" | "vt100" | "vt220");
        Self {
            has_colour: no_color.is_empty() && !is_poor,
        }
    }

    /// With colours.
    #[must_use]
    pub const fn colourful() -> Self {
        Self { has_colour: true }
    }

    /// Without.
    #[must_use]
    pub const fn plain() -> Self {
        Self { has_colour: false }
    }

    fn coloured(self, colour: Color) -> Style {
        match self.has_colour {
            true => Style::new().fg(colour),
            false => Style::new(),
        }
    }

    pub(crate) fn text(self) -> Style {
        Style::new()
    }

    pub(crate) fn title(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    pub(crate) fn faint(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    pub(crate) fn accent(self) -> Style {
        self.coloured(BLUE)
    }

    pub(crate) fn bad(self) -> Style {
        self.coloured(VERMILION).add_modifier(Modifier::BOLD)
    }

    pub(crate) fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_can_do_without_colours() {
        assert_eq!(Theme::of("", "xterm-256color"), Theme::colourful());
        for (no_color, term) in [("1", "xterm-256color"), ("", "dumb"), ("", "")] {
            assert_eq!(Theme::of(no_color, term), Theme::plain());
        }
    }

    /// Relative luminance of WCAG 2.
    fn luminance(rgb: [u8; 3]) -> f64 {
        let [r, g, b] = rgb.map(|channel| {
            let part = f64::from(channel) / 255.0;
            match part <= 0.04045 {
                true => part / 12.92,
                false => ((part + 0.055) / 1.055).powf(2.4),
            }
        });
        0.2126 * r + 0.7152 * g + 0.0722 * b
    }

    /// The colour cube of the 256 colours.
    fn rgb(colour: Color) -> [u8; 3] {
        let Color::Indexed(index) = colour else {
            panic!("{colour:?} is what the terminal makes of it");
        };
        let cube = index
            .checked_sub(16)
            .filter(|n| *n < 216)
            .expect("of the cube");
        [cube / 36, cube / 6 % 6, cube % 6]
            .map(|step| [0, 95, 135, 175, 215, 255][usize::from(step)])
    }

    #[test]
    fn colours_are_readable_on_white_and_on_black() {
        for colour in [BLUE, VERMILION] {
            let of = luminance(rgb(colour));
            let (on_black, on_white) = ((of + 0.05) / 0.05, 1.05 / (of + 0.05));
            // What WCAG 2 asks of large text and of signs.
            assert!(
                on_black > 3.0 && on_white > 3.0,
                "{colour:?}: {on_black} {on_white}"
            );
        }
    }
}
