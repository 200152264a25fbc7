//! What a worker's model is for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::wire::worker as wire;

/// What a worker's model is for in decoding one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum WorkerRole {
    /// The large code model.
    Base,
    /// The security expert that steers it.
    Expert,
    /// What the expert is compared with in the rule `product`.
    AntiExpert,
}

impl WorkerRole {
    /// All of them, in order of [`Self::index`].
    pub const ALL: [Self; 3] = [Self::Base, Self::Expert, Self::AntiExpert];

    /// Name in messages, metrics, configuration and etcd.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Expert => "expert",
            Self::AntiExpert => "anti_expert",
        }
    }

    /// Place in [`Self::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for WorkerRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for WorkerRole {
    type Err = UnknownRole;

    fn from_str(name: &str) -> Result<Self, UnknownRole> {
        let found = Self::ALL.into_iter().find(|role| role.name() == name);
        found.ok_or_else(|| UnknownRole { name: name.to_owned() })
    }
}

impl TryFrom<String> for WorkerRole {
    type Error = UnknownRole;

    fn try_from(name: String) -> Result<Self, UnknownRole> {
        name.parse()
    }
}

impl From<WorkerRole> for &'static str {
    fn from(role: WorkerRole) -> Self {
        role.name()
    }
}

impl From<WorkerRole> for wire::Role {
    fn from(role: WorkerRole) -> Self {
        match role {
            WorkerRole::Base => Self::Base,
            WorkerRole::Expert => Self::Expert,
            WorkerRole::AntiExpert => Self::AntiExpert,
        }
    }
}

impl TryFrom<wire::Role> for WorkerRole {
    type Error = UnknownRole;

    fn try_from(role: wire::Role) -> Result<Self, UnknownRole> {
        match role {
            wire::Role::Base => Ok(Self::Base),
            wire::Role::Expert => Ok(Self::Expert),
            wire::Role::AntiExpert => Ok(Self::AntiExpert),
            wire::Role::Unspecified => Err(UnknownRole { name: role.as_str_name().to_owned() }),
        }
    }
}

/// A name that is no role's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no role; the roles are base, expert and anti_expert")]
pub struct UnknownRole {
    name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_has_one_name() {
        for role in WorkerRole::ALL {
            assert_eq!(role.name().parse(), Ok(role));
            assert_eq!(WorkerRole::try_from(wire::Role::from(role)), Ok(role));
            assert_eq!(serde_json::from_value::<WorkerRole>(serde_json::json!(role)).unwrap(), role);
        }
        let old = "anti-expert".parse::<WorkerRole>().unwrap_err().to_string();
        assert!(old.ends_with("base, expert and anti_expert"), "{old}");
        assert!(WorkerRole::try_from(wire::Role::Unspecified).is_err());
    }
}
