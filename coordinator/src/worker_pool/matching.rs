//! Whether workers belong together.

use cosec_proto::worker::{DescribeResponse, Role as WireRole};

use crate::role::Role;

/// Holds a worker against its place in a model.
///
/// `tokenizer` is the fingerprint that all workers of the model must have, where it is known.
///
/// # Errors
/// Says what does not match.
pub(super) fn check(role: Role, tokenizer: Option<&str>, description: &DescribeResponse) -> Result<(), String> {
    let hosts = description.role();
    let fits = match role {
        Role::Base => hosts == WireRole::Base,
        Role::Expert => hosts == WireRole::Expert,
        // Any network can be what the expert is compared with.
        Role::AntiExpert => true,
    };
    if !fits {
        return Err(format!("it is configured as {} and hosts a model as {}", role.name(), hosts.as_str_name()));
    }
    match tokenizer {
        Some(expected) if expected != description.tokenizer_fingerprint => Err(format!(
            "its tokenizer ({}) is not that of the model ({expected})",
            description.tokenizer_fingerprint
        )),
        _ => Ok(()),
    }
}
