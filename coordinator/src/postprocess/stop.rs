//! Finds stop strings in a text that arrives in pieces.

/// Holds back what may become a stop string.
///
/// Of several the one that is complete first wins, and among those that end together the longest: what a reader would
/// see who checks after every character. So the result does not depend on how the text is cut into pieces.
pub struct StopScanner {
    stops: Vec<String>,
    held: String,
}

impl StopScanner {
    /// Looks for any of `stops`, none of which is empty.
    #[must_use]
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// Takes the next piece and returns the text that is now certain, and whether a stop string follows it.
    #[must_use]
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        let complete = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start))
        });
        if let Some((_, start)) = complete.min() {
            let mut text = std::mem::take(&mut self.held);
            text.truncate(start);
            return (text, true);
        }
        let possible = self.held.split_off(self.held.len() - self.longest_beginning());
        (std::mem::replace(&mut self.held, possible), false)
    }

    /// The text that was held back for nothing.
    #[must_use]
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end that a stop string begins with. As both are whole characters, so are these.
    fn longest_beginning(&self) -> usize {
        let held = self.held.as_bytes();
        let longest = |stop: &String| {
            let most = held.len().min(stop.len() - 1);
            (1..=most).rev().find(|&n| held.ends_with(&stop.as_bytes()[..n])).unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut scanner = StopScanner::new(stops.iter().map(|&s| s.to_owned()).collect());
        let mut text = String::new();
        for piece in pieces {
            let (safe, stopped) = scanner.push(piece);
            text.push_str(&safe);
            if stopped {
                return (text, true);
            }
        }
        (text + &scanner.finish(), false)
    }

    #[test]
    fn across_pieces() {
        let check = |stops: &[&str], pieces: &[&str], text: &str, stopped: bool| {
            assert_eq!(scan(stops, pieces), (text.to_owned(), stopped), "{stops:?} in {pieces:?}");
        };
        check(&[], &["ab"], "ab", false);
        check(&["\n\n"], &["a\n", "\nb"], "a", true);
        check(&["\n\n"], &["a\n", "b\n"], "a\nb\n", false);
        check(&["abc"], &["ab", "ab", "c"], "ab", true);
        check(&["aab"], &["aaa", "b"], "a", true);
        check(&["abcd", "bc"], &["a", "bcd"], "a", true);
        check(&["bc", "abc"], &["xabc"], "x", true);
        check(&["é"], &["caf", "é!"], "caf", true);
        check(&["日本"], &["日", "日本"], "日", true);
    }

    #[test]
    fn holds_back_no_more_than_it_must() {
        let mut scanner = StopScanner::new(vec!["end".to_owned()]);
        assert_eq!(scanner.push("then en"), ("then ".to_owned(), false));
        assert_eq!(scanner.push("e"), ("en".to_owned(), false));
        assert_eq!(scanner.push("x"), ("ex".to_owned(), false));
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(
            text in "[abé]{0,30}",
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            cuts in prop::collection::vec(0usize..30, 0..6),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let characters: Vec<String> = text.chars().map(String::from).collect();
            let one_by_one = scan(&stops, &characters.iter().map(String::as_str).collect::<Vec<_>>());
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(characters.len())).collect();
            cuts.extend([0, characters.len()]);
            cuts.sort_unstable();
            let pieces: Vec<String> = cuts.windows(2).map(|pair| characters[pair[0]..pair[1]].concat()).collect();
            let in_pieces = scan(&stops, &pieces.iter().map(String::as_str).collect::<Vec<_>>());
            prop_assert_eq!(one_by_one, in_pieces);
        }
    }
}
