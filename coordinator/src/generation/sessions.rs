//! What generation asks of the sessions.

use std::sync::Arc;

use futures::Stream;

use crate::admission::QueuedPermit;
use crate::models::ModelInfo;
use crate::request::{SessionError, SessionEvent, TokenizedRequest};
use crate::session::plan::DecodePlan;
use crate::session::service::{SessionService, SessionStream};
use crate::tenant::Tenant;

/// Where sessions come from.
pub trait SessionSource: Send + Sync + 'static {
    /// The models in the order of the configuration.
    fn models(&self) -> Vec<ModelInfo>;

    /// The model of this name.
    fn model(&self, name: &str) -> Option<ModelInfo>;

    /// The most sessions that `tenant` can have at a time.
    fn most_sessions(&self, tenant: &Tenant) -> usize;

    /// Takes a place for a session of at most `tokens` tokens, before its prompt is tokenized.
    ///
    /// # Errors
    /// When it is not admitted.
    fn enter(
        &self,
        model: &ModelInfo,
        plan: &DecodePlan,
        tenant: &Arc<Tenant>,
        tokens: u64,
    ) -> Result<QueuedPermit, SessionError>;

    /// Starts a session; dropping its stream ends it.
    ///
    /// # Errors
    /// When its model cannot serve any more.
    fn open(
        &self,
        request: TokenizedRequest,
        plan: DecodePlan,
        permit: QueuedPermit,
    ) -> Result<BoxedSession, SessionError>;
}

/// Events of one session, in order.
pub trait EventStream: Stream<Item = SessionEvent> + Send + Unpin {
    /// Ends the session as one whose text has come to its end; dropping it ends it as one that nobody wants.
    fn stop(self: Box<Self>);
}

/// A session as a request holds it.
pub type BoxedSession = Box<dyn EventStream>;

impl EventStream for SessionStream {
    fn stop(self: Box<Self>) {
        SessionStream::stop(*self);
    }
}

impl SessionSource for SessionService {
    fn models(&self) -> Vec<ModelInfo> {
        self.models().collect()
    }

    fn model(&self, name: &str) -> Option<ModelInfo> {
        self.model(name)
    }

    fn most_sessions(&self, tenant: &Tenant) -> usize {
        self.most_sessions(tenant)
    }

    fn enter(
        &self,
        model: &ModelInfo,
        plan: &DecodePlan,
        tenant: &Arc<Tenant>,
        tokens: u64,
    ) -> Result<QueuedPermit, SessionError> {
        self.enter(model, plan, tenant, tokens)
    }

    fn open(
        &self,
        request: TokenizedRequest,
        plan: DecodePlan,
        permit: QueuedPermit,
    ) -> Result<BoxedSession, SessionError> {
        Ok(Box::new(self.open(request, plan, permit)?))
    }
}
