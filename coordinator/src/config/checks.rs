//! What the configuration's types allow and the coordinator does not. Every problem names its key.

use cosec_proto::limits::MAX_DRAFT_TOKENS;
use cosec_proto::{WorkerRole, transport};

use crate::admission::AdmissionLimits;
use crate::api::config::ApiConfig;
use crate::discovery::DiscoveryConfig;
use crate::models::ModelConfig;
use crate::session::config::{ExpertAbsent, SessionConfig};
use crate::tenant::oidc::config::OidcConfig;
use crate::worker_pool::PoolConfig;

/// A week; longer deadlines would only hide a stuck request.
const MAX_TIMEOUT_SECONDS: u64 = 7 * 24 * 3600;

pub(super) fn check_api(config: &ApiConfig) -> Result<(), String> {
    if config.require_key && config.keys_file.is_none() && config.oidc.is_none() {
        return Err("api.require_key is true, but neither api.keys_file nor api.oidc says who is known".to_owned());
    }
    config.oidc.as_ref().map_or(Ok(()), OidcConfig::validate)?;
    check_positive(&[
        ("api.max_body_bytes", config.max_body_bytes.map_or(1, |bytes| bytes as u64)),
        ("api.max_prompt_bytes", config.max_prompt_bytes as u64),
        ("api.max_choices", config.max_choices as u64),
        ("api.max_response_bytes", config.max_response_bytes),
        ("api.body_timeout_seconds", config.body_timeout_seconds),
        ("api.request_timeout_seconds", config.request_timeout_seconds),
    ])?;
    let (most, of_all) = (config.max_response_bytes, config.response_memory_bytes);
    if most > of_all {
        return Err(format!(
            "api.max_response_bytes is {most}; it must be at most api.response_memory_bytes, {of_all}"
        ));
    }
    let seconds = config.request_timeout_seconds;
    if seconds > MAX_TIMEOUT_SECONDS {
        return Err(format!("api.request_timeout_seconds is {seconds}; it must be at most {MAX_TIMEOUT_SECONDS}"));
    }
    Ok(())
}

pub(super) fn check_rooms(
    admission: &AdmissionLimits,
    workers: &PoolConfig,
    sessions: &SessionConfig,
) -> Result<(), String> {
    check_positive(&[
        ("admission.max_sessions", admission.max_sessions as u64),
        ("workers.step_deadline_ms", workers.step_deadline_ms),
        ("workers.describe_interval_ms", workers.describe_interval_ms),
    ])?;
    if !(1..=MAX_DRAFT_TOKENS).contains(&sessions.max_draft) {
        return Err(format!("sessions.max_draft is {}; it must be 1 to {MAX_DRAFT_TOKENS}", sessions.max_draft));
    }
    let SessionConfig { slow_client_turn_ms, slow_client_cache_ms, write_timeout_ms, .. } = *sessions;
    if slow_client_turn_ms > slow_client_cache_ms || slow_client_cache_ms > write_timeout_ms {
        return Err(format!(
            "sessions.slow_client_turn_ms, slow_client_cache_ms and write_timeout_ms are {slow_client_turn_ms}, \
             {slow_client_cache_ms} and {write_timeout_ms}; none may be less than the one before it"
        ));
    }
    Ok(())
}

fn check_positive(values: &[(&str, u64)]) -> Result<(), String> {
    match values.iter().find(|(_, value)| *value == 0) {
        Some((key, _)) => Err(format!("{key} is 0; it must be at least 1")),
        None => Ok(()),
    }
}

pub(super) fn check_models(
    models: &[ModelConfig],
    discovery: &DiscoveryConfig,
    expert_absent: ExpertAbsent,
) -> Result<(), String> {
    if models.is_empty() {
        return Err("models is empty; set --model, --tokenizer and --base (or --etcd), or [[models]]".to_owned());
    }
    for (index, model) in models.iter().enumerate() {
        if model.name.is_empty() || models[..index].iter().any(|other| other.name == model.name) {
            return Err(format!("models[{index}].name is {:?}; names must be set and differ", model.name));
        }
        for (key, adapter) in [("base_adapter", &model.base_adapter), ("expert_adapter", &model.expert_adapter)] {
            if adapter.as_ref().is_some_and(String::is_empty) {
                let problem = "is empty; name an adapter of the workers, or leave it out";
                return Err(format!("models[{index}].{key} {problem}"));
            }
        }
        check_fingerprints(model).map_err(|problem| format!("models[{index}].{problem}"))?;
        check_addresses(model, discovery, expert_absent).map_err(|problem| format!("models[{index}].{problem}"))?;
    }
    Ok(())
}

fn check_fingerprints(model: &ModelConfig) -> Result<(), String> {
    let tokenizer = model.tokenizer_fingerprint.as_deref();
    let of_roles = WorkerRole::ALL.map(|role| (role.name(), model.fingerprint(role)));
    for (name, pinned) in of_roles.into_iter().chain([("tokenizer", tokenizer)]) {
        let is_digest =
            |pinned: &str| pinned.len() == 64 && pinned.bytes().all(|digit| b"0123456789abcdef".contains(&digit));
        if let Some(pinned) = pinned.filter(|pinned| !is_digest(pinned)) {
            let allowed = "64 hexadecimal digits in lower case, as workers log them";
            return Err(format!("{name}_fingerprint is {pinned:.80?}; it must be {allowed}"));
        }
    }
    let [base, expert, anti_expert] = WorkerRole::ALL.map(|role| model.fingerprint(role));
    if expert.is_some() && expert == base {
        return Err("expert_fingerprint is that of the base, which would harden nothing".to_owned());
    }
    if anti_expert.is_some() && anti_expert == expert {
        return Err("anti_expert_fingerprint is that of the expert, which would harden nothing".to_owned());
    }
    Ok(())
}

fn check_addresses(
    model: &ModelConfig,
    discovery: &DiscoveryConfig,
    expert_absent: ExpertAbsent,
) -> Result<(), String> {
    let addresses = model.addresses();
    if !discovery.reads_addresses() {
        return match addresses.iter().find(|(_, addresses)| !addresses.is_empty()) {
            Some((role, _)) => {
                Err(format!("{} names addresses, but discovery is of a kind that finds them itself", role.name()))
            }
            None => Ok(()),
        };
    }
    if model.base.is_empty() {
        return Err("base is empty; name the address of at least one worker".to_owned());
    }
    if model.expert.is_empty() && expert_absent != ExpertAbsent::Degrade {
        let hint = "name the address of at least one worker, or set sessions.expert_absent to degrade";
        return Err(format!("expert is empty; {hint}"));
    }
    if *discovery != DiscoveryConfig::Static {
        return Ok(());
    }
    for (role, addresses) in addresses {
        for (index, address) in addresses.iter().enumerate() {
            transport::endpoint(address).map_err(|error| format!("{}[{index}] {error}", role.name()))?;
        }
    }
    Ok(())
}
