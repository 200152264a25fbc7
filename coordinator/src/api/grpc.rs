//! The gRPC service: the settings of `/v1/completions`, typed.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request as HttpRequest, State};
use axum::middleware::{self, Next};
use axum::response::Response as HttpResponse;
use cosec_proto::wire::coordinator::coordinator_server::{Coordinator, CoordinatorServer};
use cosec_proto::wire::coordinator::{self as wire, generate_event, generate_request};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::error::ApiError;
use super::metrics::InFlightRequest;
use super::parameters::RequestedSettings;
use super::state::ApiState;
use crate::generation::{ChoiceEvent, GenerateRequest, RunningGeneration, TokenUsage};
use crate::merge::{Decision, Hardening, RejectedProposal};
use crate::postprocess::{PlacedToken, TextDelta};
use crate::request::{ChatMessage, MAX_MESSAGES, Prompt};
use crate::tenant::Tenant;

/// The bound on messages is set before any model is known: that of a context which only long messages could fill.
const MAX_CONTEXT: u32 = 32_768;

const ROUTE: &str = "cosec.coordinator.v1.Coordinator/Generate";

/// Routes to the service, whose callers are known before their message is read; it may be as long as an HTTP body.
pub fn routes(state: Arc<ApiState>) -> Router {
    let limit = state.config.body_bytes(MAX_CONTEXT);
    let service = CoordinatorServer::new(GrpcService { state: Arc::clone(&state) }).max_decoding_message_size(limit);
    let routes = Routes::new(service).into_axum_router().reset_fallback();
    routes.layer(middleware::from_fn_with_state(state, authorized))
}

/// Finds out whose a request is by its head.
async fn authorized(State(state): State<Arc<ApiState>>, mut request: HttpRequest, next: Next) -> HttpResponse {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip());
    match state.auth.authorize(request.headers(), peer).await {
        Ok(tenant) => {
            request.extensions_mut().insert(tenant);
            next.run(request).await
        }
        Err(error) => {
            let status = Status::from(error);
            state.metrics.begin("grpc", ROUTE.to_owned()).answered(status.code().description());
            status.into_http::<Body>()
        }
    }
}

/// See [`routes`].
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
        let unknown = || Status::internal("the request has not been authorized");
        let tenant = request.extensions().get::<Arc<Tenant>>().cloned().ok_or_else(unknown)?;
        let started = match generate_request(request.into_inner()) {
            Ok(request) => self.state.generation.generate(request, &tenant, None).await,
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
