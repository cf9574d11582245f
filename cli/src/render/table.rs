//! Tables: columns under a header, no lines, so that they read well and cut well.

use super::clean_line;
use comfy_table::{CellAlignment, ContentArrangement, presets};
use std::fmt;

/// Longest text in the last cell of a row, and in the others; the rest is in the JSON.
const LONGEST: (usize, usize) = (160, 48);

/// A table in the making.
pub(crate) struct Table(comfy_table::Table);

impl Table {
    /// A table with these columns. A row is a line, however narrow the terminal: a folded column reads worse.
    pub(crate) fn new<const N: usize>(columns: [&str; N]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).set_header(columns);
        table.set_content_arrangement(ContentArrangement::Disabled);
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        Self(table)
    }

    /// Numbers stand right.
    pub(crate) fn right(mut self, columns: &[usize]) -> Self {
        for index in columns {
            if let Some(column) = self.0.column_mut(*index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        self
    }

    /// Adds a row; every cell is cleaned.
    pub(crate) fn row<const N: usize>(&mut self, cells: &[String; N]) {
        let longest = |i| if i + 1 == N { LONGEST.0 } else { LONGEST.1 };
        let cells = cells.iter().enumerate().map(|(i, cell)| clean_line(cell, longest(i)));
        self.0.add_row(cells.collect::<Vec<_>>());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, line) in self.0.lines().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            f.write_str(line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_in_columns_and_hold_no_control_characters() {
        let mut table = Table::new(["NAME", "JOBS"]).right(&[1]);
        table.row(&["sum\u{1b}[2J".into(), "7".into()]);
        table.row(&["a longer name".into(), "12".into()]);
        assert_eq!(table.to_string(), "NAME           JOBS\nsum[2J            7\na longer name    12");
    }
}
