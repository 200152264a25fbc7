//! A repository of the hub at a revision.

use std::fmt;

/// A repository at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    pub(super) name: String,
    pub(super) revision: String,
}

impl HubId {
    pub(super) fn parse(text: &str, revision: Option<&str>) -> Option<Self> {
        let (name, revision) = match (text.split_once('@'), revision) {
            (Some((name, revision)), None) => (name, revision),
            (None, revision) => (text, revision.unwrap_or("main")),
            (Some(_), Some(_)) => return None,
        };
        let word = |part: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            !part.is_empty() && part.bytes().all(allowed) && !part.starts_with('.') && !part.contains("..")
        };
        let (owner, repository) = name.split_once('/')?;
        let valid = word(owner) && word(repository) && revision.split('/').all(word);
        valid.then(|| Self { name: name.to_owned(), revision: revision.to_owned() })
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, revision: Option<&str>, expected: Option<(&str, &str)>) {
        let id = HubId::parse(text, revision);
        let found = id.as_ref().map(|id| (id.name.as_str(), id.revision.as_str()));
        assert_eq!(found, expected, "{text} {revision:?}");
    }

    #[test]
    fn hub_ids_have_an_owner_a_name_and_perhaps_a_revision() {
        check("a/b-1.3B_x", None, Some(("a/b-1.3B_x", "main")));
        check("a/b@v1", None, Some(("a/b", "v1")));
        check("a/b", Some("refs/pr/3"), Some(("a/b", "refs/pr/3")));
        for text in ["", "a", "a/", "/b", "a/b/c", "./a", "../a", "a/..", "a b/c", "a/b@", "a/b@../../c", "~/b"] {
            check(text, None, None);
        }
        check("a/b@v1", Some("v1"), None);
        check("a/b", Some("/etc"), None);
    }
}
