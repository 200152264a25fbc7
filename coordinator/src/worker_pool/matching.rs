//! Whether workers belong together.

use cosec_proto::{WorkerDescription, WorkerRole};

/// Holds a worker against its place in a model; gives the fingerprint of what sessions compute with.
///
/// `adapter` is the one that sessions apply.
///
/// # Errors
/// Says what does not match.
pub(super) fn check<'a>(
    role: WorkerRole,
    adapter: Option<&str>,
    description: &'a WorkerDescription,
) -> Result<&'a str, String> {
    let hosts = description.role;
    // Any network can be what the expert is compared with.
    if role != WorkerRole::AntiExpert && hosts != role {
        return Err(format!("it is configured as {role} and hosts a model as {hosts}"));
    }
    fingerprint(description, adapter)
}

/// Fingerprint of what sessions under `adapter` compute with. An adapter's content counts, not its name: sessions move
/// between workers on which it is the same.
///
/// # Errors
/// Says that the worker has no such adapter.
pub(super) fn fingerprint<'a>(description: &'a WorkerDescription, adapter: Option<&str>) -> Result<&'a str, String> {
    let Some(wanted) = adapter else { return Ok(&description.fingerprint) };
    let adapters = &description.adapters;
    match adapters.iter().find(|adapter| adapter.name == wanted) {
        Some(adapter) => Ok(&adapter.fingerprint),
        None if adapters.is_empty() => Err(format!("it has no adapter {wanted:?}; it has none at all")),
        None => {
            let names: Vec<&str> = adapters.iter().map(|adapter| adapter.name.as_str()).collect();
            Err(format!("it has no adapter {wanted:?}; it has {}", names.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use cosec_proto::wire::worker::{DescribeResponse, Role};

    use super::*;

    #[test]
    fn an_adapter_is_known_by_its_content() {
        let adapters = [("sql", "1"), ("c", "2")];
        let message = DescribeResponse {
            role: Role::Expert.into(),
            fingerprint: "0".to_owned(),
            adapters: adapters.map(|(name, _)| name.to_owned()).into(),
            adapter_fingerprints: adapters.map(|(_, fingerprint)| fingerprint.to_owned()).into(),
            protocol_version: cosec_proto::PROTOCOL_VERSION,
            instance: 1,
            vocabulary: 1,
            context_tokens: 1,
            max_operation_tokens: 1,
            ..DescribeResponse::default()
        };
        let description = WorkerDescription::try_from(message).unwrap();
        let fingerprint = |adapter| fingerprint(&description, adapter);
        assert_eq!([None, Some("sql"), Some("c")].map(fingerprint), [Ok("0"), Ok("1"), Ok("2")]);
        assert_eq!(fingerprint(Some("java")), Err("it has no adapter \"java\"; it has sql, c".to_owned()));
        let check = |adapter| check(WorkerRole::Expert, adapter, &description);
        assert_eq!(check(Some("c")), Ok("2"));
        assert!(check(Some("java")).is_err());
    }
}
