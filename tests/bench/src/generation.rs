//! Whole completions over a coordinator's gRPC door.

use anyhow::{Context, Result};
use cosec_proto::wire::coordinator::GenerateRequest;
use cosec_proto::wire::coordinator::generate_event::Event;
use tokio::task::JoinSet;

use crate::cluster::Coordinator;

/// What a request came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// Ids of the tokens.
    pub tokens: Vec<u32>,
    /// Their text.
    pub text: String,
}

/// Runs one request to its end.
///
/// # Errors
/// When it is refused or breaks off.
pub async fn generate(coordinator: &Coordinator, request: GenerateRequest) -> Result<Completion> {
    let mut client = coordinator.client.clone();
    let mut events = client.generate(request).await.context("a request was refused")?.into_inner();
    let mut completion = Completion::default();
    while let Some(event) = events.message().await.context("a stream broke")? {
        if let Some(Event::Delta(delta)) = event.event {
            completion.text.push_str(&delta.text);
            completion.tokens.extend(delta.tokens.iter().map(|token| token.id));
        }
    }
    Ok(completion)
}

/// Runs requests at the same time; their completions in the same order.
///
/// # Errors
/// When one of them is refused or breaks off.
pub async fn generate_together(coordinator: &Coordinator, requests: Vec<GenerateRequest>) -> Result<Vec<Completion>> {
    let mut completions = vec![Completion::default(); requests.len()];
    let mut running = JoinSet::new();
    for (index, request) in requests.into_iter().enumerate() {
        let coordinator = coordinator.clone();
        running.spawn(async move { (index, generate(&coordinator, request).await) });
    }
    while let Some(done) = running.join_next().await {
        let (index, completion) = done?;
        completions[index] = completion?;
    }
    Ok(completions)
}
