//! Whether workers belong together.

use cosec_proto::WorkerRole;
use cosec_proto::wire::worker::{DescribeResponse, Role as WireRole};

/// Holds a worker against its place in a model.
///
/// `adapter` is the one that sessions apply.
///
/// # Errors
/// Says what does not match.
pub(super) fn check(role: WorkerRole, adapter: Option<&str>, description: &DescribeResponse) -> Result<(), String> {
    let hosts = description.role();
    let fits = match role {
        WorkerRole::Base => hosts == WireRole::Base,
        WorkerRole::Expert => hosts == WireRole::Expert,
        // Any network can be what the expert is compared with.
        WorkerRole::AntiExpert => true,
    };
    if !fits {
        return Err(format!("it is configured as {} and hosts a model as {}", role.name(), hosts.as_str_name()));
    }
    fingerprint(description, adapter).map(|_| ())
}

/// Fingerprint of what sessions under `adapter` compute with. An adapter's content counts, not its name: sessions move
/// between workers on which it is the same.
///
/// # Errors
/// Says that the worker has no such adapter.
pub(super) fn fingerprint<'a>(description: &'a DescribeResponse, adapter: Option<&str>) -> Result<&'a str, String> {
    let Some(wanted) = adapter else { return Ok(&description.fingerprint) };
    let mut adapters = description.adapters.iter().zip(&description.adapter_fingerprints);
    match adapters.find(|(name, _)| *name == wanted) {
        Some((_, fingerprint)) => Ok(fingerprint),
        None if description.adapters.is_empty() => Err(format!("it has no adapter {wanted:?}; it has none at all")),
        None => Err(format!("it has no adapter {wanted:?}; it has {}", description.adapters.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_is_known_by_its_content() {
        let adapters = [("sql", "1"), ("c", "2")];
        let description = DescribeResponse {
            role: WireRole::Expert.into(),
            fingerprint: "0".to_owned(),
            adapters: adapters.map(|(name, _)| name.to_owned()).into(),
            adapter_fingerprints: adapters.map(|(_, fingerprint)| fingerprint.to_owned()).into(),
            ..DescribeResponse::default()
        };
        let fingerprint = |adapter| fingerprint(&description, adapter);
        assert_eq!([None, Some("sql"), Some("c")].map(fingerprint), [Ok("0"), Ok("1"), Ok("2")]);
        assert_eq!(fingerprint(Some("java")), Err("it has no adapter \"java\"; it has sql, c".to_owned()));
        let check = |adapter| check(WorkerRole::Expert, adapter, &description);
        assert_eq!(check(Some("c")), Ok(()));
        assert!(check(Some("java")).is_err());
    }
}
