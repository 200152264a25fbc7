//! What responses in one piece may take: all of such a response is kept until its last token, so what it may come to is
//! taken from a budget before it begins.

use std::sync::Arc;

use cosec_proto::ErrorCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api::config::ApiConfig;
use crate::api::error::ApiError;
use crate::request::{CheckedRequest, Prompt};

/// Bytes of a token with its text, as it is kept and as it is written.
const TOKEN: u64 = 512;

/// The same of its score, and of each alternative in it.
const SCORE: u64 = 1024;

/// The same of the report on it.
const REPORT: u64 = 2048;

/// The budget is counted in such units, of bytes.
const UNIT: u64 = 1024;

/// The budget of all responses in one piece.
pub(super) struct ResponseMemory {
    most_bytes: u64,
    units: Arc<Semaphore>,
}

impl ResponseMemory {
    pub(super) fn new(config: &ApiConfig) -> Self {
        let units = usize::try_from(config.response_memory_bytes / UNIT).unwrap_or(usize::MAX);
        let units = Arc::new(Semaphore::new(units.min(Semaphore::MAX_PERMITS)));
        Self { most_bytes: config.max_response_bytes, units }
    }

    /// Takes what the response to `request` may come to, with a model of so many tokens of context.
    ///
    /// # Errors
    /// Names the field to lower when that is more than a response may take; `Overloaded` when others have it.
    pub(super) fn reserve(&self, request: &CheckedRequest, context: u32) -> Result<OwnedSemaphorePermit, ApiError> {
        let bytes = most_bytes(request, context);
        if bytes > self.most_bytes {
            return Err(too_large(request, context, bytes, self.most_bytes));
        }
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        Arc::clone(&self.units).try_acquire_many_owned(units).map_err(|_| {
            let message = format!(
                "responses in one piece that are under way leave no room for another of up to {bytes} bytes; \
                 try again later, ask for less, or set stream"
            );
            ApiError::new(ErrorCode::Overloaded, message)
        })
    }
}

/// The most that the response can take.
fn most_bytes(request: &CheckedRequest, context: u32) -> u64 {
    let settings = &request.settings;
    let scores = settings.logprobs.map_or(0, |alternatives| SCORE * (1 + u64::from(alternatives)));
    let report = if settings.report { REPORT } else { 0 };
    let new_tokens = u64::from(settings.max_tokens.unwrap_or(context).min(context));
    let of_prompt = |prompt: &Prompt| {
        let echoed = if settings.echo { (prompt.size() as u64).min(context.into()) } else { 0 };
        echoed.saturating_mul(TOKEN + scores).saturating_add(new_tokens.saturating_mul(TOKEN + scores + report))
    };
    let each: u64 = request.prompts.iter().map(of_prompt).fold(0, u64::saturating_add);
    each.saturating_mul(settings.n.into())
}

fn too_large(request: &CheckedRequest, context: u32, bytes: u64, most: u64) -> ApiError {
    let settings = &request.settings;
    let (prompts, n) = (request.prompts.len(), settings.n);
    let tokens = settings.max_tokens.unwrap_or(context).min(context);
    let (field, value) = match settings.logprobs {
        Some(alternatives) => ("logprobs", format!(" with logprobs {alternatives}")),
        None if n > 1 => ("n", String::new()),
        None => ("max_tokens", String::new()),
    };
    let message = format!(
        "{prompts} prompts with n {n} and max_tokens {tokens}{value} may come to a response of {bytes} bytes, and one in \
         one piece may take {most}; ask for less, or set stream"
    );
    ApiError::field(field, message)
}
