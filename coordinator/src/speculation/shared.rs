//! One controller for all sessions of a kind.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::controller::SpeculationController;
use super::settings::SpeculationMode;

/// The controllers of all kinds of sessions.
#[derive(Debug)]
pub(crate) struct SharedControllers {
    mode: SpeculationMode,
    /// Longest draft that `adaptive` chooses.
    max_draft: u32,
    controllers: Mutex<HashMap<SessionKind, SharedController>>,
}

/// What makes an operation cheap or expensive: model, rule and transport.
type SessionKind = (String, &'static str, &'static str);

pub(crate) type SharedController = Arc<Mutex<SpeculationController>>;

impl SharedControllers {
    pub(crate) fn new(mode: SpeculationMode, max_draft: u32) -> Self {
        Self { mode, max_draft, controllers: Mutex::default() }
    }

    /// The controller of sessions with this model, rule and transport.
    pub(crate) fn of(&self, model: &str, rule: &'static str, transport: &'static str) -> SharedController {
        let allowed = self.mode.draft_lengths(self.max_draft);
        let new = || Arc::new(Mutex::new(SpeculationController::new(allowed)));
        Arc::clone(self.controllers.lock().entry((model.to_owned(), rule, transport)).or_insert_with(new))
    }
}
