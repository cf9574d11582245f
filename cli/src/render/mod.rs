//! How things look: text that is safe to show, tables, times.

mod output;
mod table;
mod times;

pub(crate) use output::{Format, Output};
pub(crate) use table::Table;
pub(crate) use times::{age, span, stamp};

/// The text without what a terminal would obey: control characters, and those that turn the reading direction. Names and
/// reasons come from other people.
pub(crate) fn clean(text: &str) -> String {
    text.chars().filter(|c| !is_hostile(*c)).collect()
}

/// As [`clean`], on one line of at most `longest` characters.
pub(crate) fn clean_line(text: &str, longest: usize) -> String {
    let line = clean(&text.replace(['\n', '\t'], " "));
    if line.chars().count() <= longest {
        return line;
    }
    let mut cut: String = line.chars().take(longest.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// A character a terminal would obey. Line feed and tab are the only control characters that pass.
pub(crate) fn is_hostile(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t')
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_told_nothing_by_other_peoples_text() {
        assert_eq!(clean("a\u{1b}[31mb\rc\u{9b}d\u{202e}e\tf\n"), "a[31mbcde\tf\n");
        assert_eq!(clean_line("a\nb\tc", 10), "a b c");
        assert_eq!(clean_line("ääääää", 4), "äää…");
    }
}
