//! The gRPC service: the settings of `/v1/completions`, typed.

use std::sync::Arc;

use cosec_proto::wire::coordinator::coordinator_server::{Coordinator, CoordinatorServer};
use cosec_proto::wire::coordinator::{self as wire, generate_event, generate_request};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tonic::{Request, Response, Status};

use super::error::ApiError;
use super::metrics::InFlightRequest;
use super::parameters::RequestedSettings;
use super::state::ApiState;
use crate::generation::{ChoiceEvent, GenerateRequest, RunningGeneration, TokenUsage};
use crate::merge::{Decision, Hardening, RejectedProposal};
use crate::postprocess::{PlacedToken, TextDelta};
use crate::request::{ChatMessage, MAX_MESSAGES, Prompt};

/// The bound on messages is set before any model is known: that of a context which only long messages could fill.
const MAX_CONTEXT: u32 = 32_768;

const ROUTE: &str = "cosec.coordinator.v1.Coordinator/Generate";

/// The service; a message may be as long as an HTTP body.
#[must_use]
pub fn service(state: Arc<ApiState>) -> CoordinatorServer<GrpcService> {
    let limit = state.config.body_bytes(MAX_CONTEXT);
    CoordinatorServer::new(GrpcService { state }).max_decoding_message_size(limit)
}

/// See [`service`].
pub struct GrpcService {
    state: Arc<ApiState>,
}

#[tonic::async_trait]
impl Coordinator for GrpcService {
    type GenerateStream = BoxStream<'static, Result<wire::GenerateEvent, Status>>;

    async fn generate(
        &self,
        request: Request<wire::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let mut in_flight = self.state.metrics.begin("grpc", ROUTE.to_owned());
        let peer = request.remote_addr().map(|peer| peer.ip());
        let tenant = self.state.auth.authorize(request.metadata().as_ref(), peer).await;
        let read = tenant.and_then(|tenant| Ok((tenant, generate_request(request.into_inner())?)));
        let started = match read {
            Ok((tenant, request)) => self.state.generation.generate(request, &tenant, None).await,
            Err(error) => Err(error),
        };
        match started {
            Ok(generation) => Ok(Response::new(events(generation, in_flight))),
            Err(error) => {
                let status = Status::from(error);
                in_flight.answered(status.code().description());
                Err(status)
            }
        }
    }
}

fn generate_request(mut message: wire::GenerateRequest) -> Result<GenerateRequest, ApiError> {
    let prompt = match message.prompt.take() {
        None => return Err(ApiError::field("prompt", "prompt is missing; set text, token_ids or chat")),
        Some(generate_request::Prompt::Text(text)) => Prompt::Text(text),
        Some(generate_request::Prompt::TokenIds(tokens)) => Prompt::Tokens(tokens.ids),
        Some(generate_request::Prompt::Chat(chat)) => {
            let message = |message: wire::ChatMessage| ChatMessage { role: message.role, content: message.content };
            let count = chat.messages.len();
            if count > MAX_MESSAGES {
                let count = format!("a list of {count} messages");
                return Err(ApiError::value("messages", count, format_args!("at most {MAX_MESSAGES}")));
            }
            Prompt::Chat(chat.messages.into_iter().map(message).collect())
        }
    };
    let settings = RequestedSettings::take(&mut message);
    let (model, suffix) = (message.model, message.suffix);
    // The service has no other way than a stream.
    Ok(GenerateRequest { model, prompts: vec![prompt], suffix, settings, in_one_piece: false })
}

/// Deltas and ends of all choices, then the usage; or a status.
fn events(
    generation: RunningGeneration,
    in_flight: InFlightRequest,
) -> BoxStream<'static, Result<wire::GenerateEvent, Status>> {
    let state = Some((generation, in_flight));
    stream::unfold(state, |state| async move {
        let (mut generation, mut in_flight) = state?;
        let event = match generation.next().await {
            Some(Ok((choice, event))) => {
                let report = generation.settings().report;
                return Some((Ok(event_of(choice, event, report)), Some((generation, in_flight))));
            }
            Some(Err(error)) => {
                tracing::warn!(code = error.code.name(), message = error.message, "stream failed");
                Err(Status::from(error))
            }
            None => Ok(usage(&generation)),
        };
        let code = event.as_ref().err().map_or(tonic::Code::Ok, Status::code);
        in_flight.answered(code.description());
        Some((event, None))
    })
    .boxed()
}

fn usage(generation: &RunningGeneration) -> wire::GenerateEvent {
    let TokenUsage { prompt, completion, agreed, expert, base } = generation.usage();
    let count = |tokens: usize| u32::try_from(tokens).unwrap_or(u32::MAX);
    let usage = wire::Usage {
        prompt_tokens: count(prompt),
        completion_tokens: count(completion),
        agreed_tokens: count(agreed),
        expert_tokens: count(expert),
        base_tokens: count(base),
    };
    wire::GenerateEvent { event: Some(generate_event::Event::Usage(usage)) }
}

fn event_of(choice: u32, event: ChoiceEvent, report: bool) -> wire::GenerateEvent {
    let event = match event {
        ChoiceEvent::Delta(TextDelta { text, tokens }) => {
            let tokens = tokens.into_iter().map(|token| token_of(token, report)).collect();
            generate_event::Event::Delta(wire::Delta { choice, text, tokens })
        }
        ChoiceEvent::Finished(reason) => {
            generate_event::Event::Finished(wire::Finished { choice, reason: reason.name().to_owned() })
        }
    };
    wire::GenerateEvent { event: Some(event) }
}

fn token_of(token: PlacedToken, report: bool) -> wire::Token {
    let (log_probability, alternatives) = match token.score {
        None => (None, Vec::new()),
        Some(score) => (Some(score.log_probability), score.alternatives),
    };
    let alternative = |(id, log_probability)| wire::Alternative { id, log_probability };
    let report_of = |decision: Decision| wire::TokenReport {
        hardening: decision.hardening.map(Hardening::name).unwrap_or_default().to_owned(),
        p: decision.p,
        q: decision.q,
        law: decision.law,
        rejected: decision.rejected.map(|RejectedProposal { id, p, q }| wire::Rejected { id, p, q }),
    };
    wire::Token {
        id: token.id,
        log_probability,
        alternatives: alternatives.into_iter().map(alternative).collect(),
        report: token.decision.filter(|_| report).map(report_of),
    }
}
