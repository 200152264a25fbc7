//! What a stream lost, repeated or changed against the undisturbed one.

use std::ops::AddAssign;

/// The fewest edits that make the one of the other (Levenshtein), by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Tokens that did not come.
    pub lost: usize,
    /// Tokens that came without belonging there.
    pub repeated: usize,
    /// Tokens that came as another one.
    pub changed: usize,
}

impl Difference {
    /// Holds what came against what should have come.
    #[must_use]
    pub fn between(expected: &[u32], came: &[u32]) -> Self {
        if expected == came {
            return Self::default();
        }
        // Of the beginnings of `came`, for as much of `expected` as was seen.
        let mut row: Vec<Self> = (0..=came.len()).map(|repeated| Self { repeated, ..Self::default() }).collect();
        for (index, token) in expected.iter().enumerate() {
            let mut diagonal = row[0];
            row[0] = Self { lost: index + 1, ..Self::default() };
            for (at, other) in came.iter().enumerate() {
                let changed = Self { changed: diagonal.changed + usize::from(token != other), ..diagonal };
                let lost = Self { lost: row[at + 1].lost + 1, ..row[at + 1] };
                let repeated = Self { repeated: row[at].repeated + 1, ..row[at] };
                diagonal = row[at + 1];
                row[at + 1] = [changed, lost, repeated].into_iter().min_by_key(Self::total).unwrap_or(changed);
            }
        }
        row[came.len()]
    }

    /// All edits.
    #[must_use]
    pub fn total(&self) -> usize {
        self.lost + self.repeated + self.changed
    }
}

impl AddAssign for Difference {
    fn add_assign(&mut self, other: Self) {
        self.lost += other.lost;
        self.repeated += other.repeated;
        self.changed += other.changed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted_by_kind() {
        let check = |expected: &[u32], came: &[u32], counts: [usize; 3]| {
            let [lost, repeated, changed] = counts;
            assert_eq!(Difference::between(expected, came), Difference { lost, repeated, changed });
        };
        check(&[1, 2, 3, 4], &[1, 2, 3, 4], [0, 0, 0]);
        check(&[1, 2, 3, 4], &[1, 2], [2, 0, 0]);
        check(&[1, 2, 3, 4], &[1, 3, 4], [1, 0, 0]);
        check(&[1, 2, 3, 4], &[1, 2, 2, 3, 4], [0, 1, 0]);
        check(&[1, 2, 3, 4], &[1, 9, 3, 4], [0, 0, 1]);
        check(&[1, 2, 3, 4, 5, 6], &[1, 3, 4, 5, 5, 9], [1, 1, 1]);
        check(&[], &[1, 2], [0, 2, 0]);
    }
}
