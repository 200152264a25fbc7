//! What both sides of a comparison are asked for, and how figures become a table.

use std::time::Duration;

use anyhow::Result;

/// Something that serves one model.
#[expect(async_fn_in_trait, reason = "used by the commands of this crate alone, never as an object")]
pub trait Engine {
    /// Feeds a fresh prompt, every engine the same one at the same call; the most probable token after it and the time
    /// until it is there.
    ///
    /// # Errors
    /// When the engine fails.
    async fn prefill(&mut self, tokens: u32) -> Result<(u32, Duration)>;

    /// Opens sequences of `tokens` tokens each, all different, for [`Self::decode`].
    ///
    /// # Errors
    /// When the engine fails.
    async fn open(&mut self, sequences: usize, tokens: u32) -> Result<()>;

    /// Cuts the first `sequences` sequences back to how they were opened and extends each token by token for about
    /// `span`, at most `most_steps` tokens each.
    ///
    /// # Errors
    /// When the engine fails.
    async fn decode(&mut self, sequences: usize, span: Duration, most_steps: u32) -> Result<Decoded>;

    /// The system's number of the engine's process.
    ///
    /// # Errors
    /// When it has ended.
    fn process(&self) -> Result<u32>;
}

/// What came of decoding.
#[derive(Clone, Debug, Default)]
pub struct Decoded {
    /// Of all sequences.
    pub tokens: usize,
    /// From the first operation to the last token.
    pub elapsed: Duration,
    /// Between two tokens of a sequence.
    pub gaps: Vec<Duration>,
    /// That the engine's process spent on all cores.
    pub cpu: Duration,
}

impl Decoded {
    /// Tokens per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.tokens as f64 / self.elapsed.as_secs_f64()
    }
}

/// The value below which `share` (0 to 1) of `values` lie; NaN of nothing.
#[must_use]
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (share * sorted.len().saturating_sub(1) as f64).round() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

/// The middle of `values`.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// Rows of text under a heading, in columns as wide as they need to be.
#[derive(Debug, Default)]
pub struct Table(Vec<Vec<String>>);

impl Table {
    /// A table with these column names.
    #[must_use]
    pub fn new(columns: &[&str]) -> Self {
        Self(vec![columns.iter().map(|&column| column.to_owned()).collect()])
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.0.push(cells);
    }
}

impl std::fmt::Display for Table {
    /// In Markdown, so that it can be kept as it is.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let width =
            |column: usize| self.0.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        for (index, row) in self.0.iter().enumerate() {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
                if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            writeln!(formatter, "| {} |", cells.collect::<Vec<_>>().join(" | "))?;
            if index == 0 {
                let rule = widths.iter().map(|&width| "-".repeat(width)).collect::<Vec<_>>();
                writeln!(formatter, "|-{}-|", rule.join("-|-"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "values are picked, not computed")]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_values() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|share| quantile(&values, share)), [1.0, 3.0, 5.0, 5.0]);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn tables_are_aligned() {
        let mut table = Table::new(&["a", "long"]);
        table.row(vec!["bb".to_owned(), "1".to_owned()]);
        assert_eq!(table.to_string(), "| a  | long |\n|----|------|\n| bb |    1 |\n");
    }
}
