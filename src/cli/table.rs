//! Plain-text tables.

/// A table with headers; the first column is left-aligned, the others right-aligned.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Creates a table with these headers.
    pub fn new<const N: usize>(headers: [&str; N]) -> Table {
        Table { rows: vec![headers.map(str::to_owned).to_vec()] }
    }

    /// Adds a row.
    ///
    /// # Panics
    /// If the number of cells differs from the number of headers.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        assert_eq!(self.rows[0].len(), N, "a row has a cell under each header");
        self.rows.push(cells.to_vec());
    }
}

/// Formats a number with `decimals` decimals; a dash for `None`.
pub fn or_dash(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        for (index, row) in self.rows.iter().enumerate() {
            let mut line = format!("{:<1$}", row[0], widths[0]);
            for (cell, width) in row.iter().zip(&widths).skip(1) {
                line.push_str(&format!("  {cell:>width$}"));
            }
            writeln!(f, "{}", line.trim_end())?;
            if index == 0 {
                let rules: Vec<String> = widths.iter().map(|&width| "─".repeat(width)).collect();
                writeln!(f, "{}", rules.join("  "))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["", "plain", "speculative"]);
        table.row(["tokens/s".to_owned(), "1520.3".to_owned(), "2701.9".to_owned()]);
        table.row(["TTFT p50, µs".to_owned(), "9".to_owned(), "10".to_owned()]);
        let expected = "               plain  speculative\n\
                        ────────────  ──────  ───────────\n\
                        tokens/s      1520.3       2701.9\n\
                        TTFT p50, µs       9           10\n";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn a_figure_that_does_not_exist_is_a_dash() {
        assert_eq!([or_dash(Some(1.25), 1), or_dash(Some(2.0), 0), or_dash(None, 3)], ["1.2", "2", "-"]);
    }

    #[test]
    fn a_table_without_rows_is_its_headers() {
        assert_eq!(Table::new(["a", "bc"]).to_string(), "a  bc\n─  ──\n");
    }
}
