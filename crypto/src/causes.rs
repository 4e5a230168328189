//! Errors with what caused them, for people and logs.

use std::{error::Error, iter};

/// An error, and then each cause of the one before.
pub fn causes<'e>(
    error: &'e (dyn Error + 'static),
) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    iter::successors(Some(error), |error| (*error).source())
}

/// An error with its causes, on one line.
#[must_use]
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let words: Vec<_> = causes(error).map(ToString::to_string).collect();
    words.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Window;

    #[derive(Debug, thiserror::Error)]
    #[error("no card")]
    struct Outer(#[source] crate::WindowError);

    #[test]
    fn each_cause_is_said_once_and_in_order() {
        let source = Window::new(crate::UnixTime(2), crate::UnixTime(1)).expect_err("ends first");
        let said = source.to_string();
        let error = Outer(source);
        assert_eq!(with_causes(&error), format!("no card: {said}"));
        assert_eq!(causes(&error).count(), 2);
    }
}
