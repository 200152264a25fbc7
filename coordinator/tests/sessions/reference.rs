//! The rules written out in one process over the mock models' logits: what sessions must reproduce.

use cosec_coordinator::merge::{BaseOnly, Cosec, ExpertOnly, Hardening, Judge, Linear, Product, SelectedRule};
use cosec_coordinator::request::{TokenEvent, TokenizedRequest};
use cosec_proto::sampling::{Distribution, DrawPurpose, SamplingParams, SamplingSeed};
use cosec_tests::mock_worker::MockModel;

#[derive(Clone, Debug)]
pub(crate) struct Models {
    pub(crate) base: MockModel,
    pub(crate) expert: MockModel,
    pub(crate) anti_expert: Option<MockModel>,
}

/// The tokens of `request` and what hardening did to them; an end token ends the list and is not in it.
pub(crate) fn expected_tokens(models: &Models, request: &TokenizedRequest) -> Vec<(u32, Hardening)> {
    expected_tokens_degraded(models, request, u32::MAX)
}

/// The same when the expert is gone after `hardened` new tokens.
pub(crate) fn expected_tokens_degraded(
    models: &Models,
    request: &TokenizedRequest,
    hardened: u32,
) -> Vec<(u32, Hardening)> {
    let mut history = request.prompt.to_vec();
    let mut decided = Vec::new();
    for new in 0..request.max_new_tokens {
        let rule = if new < hardened { request.settings.rule } else { SelectedRule::BaseOnly(BaseOnly) };
        let (id, hardening) = next(models, request, rule, &history, new);
        if models.base.end_token_ids.contains(&id) {
            break;
        }
        history.push(id);
        decided.push((id, hardening));
    }
    decided
}

fn adjusted(models: &Models, model: &MockModel, request: &TokenizedRequest, history: &[u32], new: u32) -> Vec<f32> {
    let settings = &request.settings;
    let new_tokens = &history[request.prompt.len()..];
    let mut row = model.row(history);
    for (id, logit) in (0u32..).zip(&mut row) {
        let count = new_tokens.iter().filter(|&&token| token == id).count();
        if let Some(bias) = settings.adjustments.logit_bias.get(&id) {
            *logit = (f64::from(*logit) + bias) as f32;
        }
        if count > 0 {
            let penalty = settings.adjustments.frequency_penalty * count as f64;
            *logit = (f64::from(*logit) - penalty - settings.adjustments.presence_penalty) as f32;
        }
        if new < settings.min_tokens && models.base.end_token_ids.contains(&id) {
            *logit = f32::NEG_INFINITY;
        }
    }
    row
}

/// Modified rejection sampling from `law` with q as the proposal; whether the proposal was kept.
fn by_rejection(
    q: &Distribution,
    law: impl Fn(u32) -> f64,
    vocabulary: u32,
    u: impl Fn(DrawPurpose) -> f64,
) -> (u32, bool) {
    let x = q.sample(u(DrawPurpose::Draft));
    if u(DrawPurpose::Acceptance) < law(x) / q.probability(x) {
        return (x, true);
    }
    let residual = (0..vocabulary).map(|id| (law(id) - q.probability(id)).max(0.0)).collect();
    let residual = Distribution::from_support((0..vocabulary).collect(), residual, 0.0).unwrap();
    (residual.sample(u(DrawPurpose::Fallback)), false)
}

fn next(
    models: &Models,
    request: &TokenizedRequest,
    rule: SelectedRule,
    history: &[u32],
    new: u32,
) -> (u32, Hardening) {
    let settings = &request.settings;
    let u =
        |purpose| SamplingSeed { seed: settings.seed, sample: request.sample }.uniform(purpose, history.len() as u32);
    let base_row = adjusted(models, &models.base, request, history, new);
    let expert_row = adjusted(models, &models.expert, request, history, new);
    let reference = settings.reference_code;
    let fallback_warp = if reference { SamplingParams::RAW } else { settings.base };
    let p = Distribution::from_logits(&base_row, &fallback_warp).unwrap();
    let p_judges = settings.judge == Judge::Warped && !reference && settings.base.temperature() > 0.0;
    let r = Distribution::from_logits(&models.base.row(history), &SamplingParams::RAW).unwrap();
    let judge = if p_judges { &p } else { &r };
    let q = Distribution::from_logits(&expert_row, &settings.expert).unwrap();
    let own = p.sample(u(DrawPurpose::Fallback));
    let (id, is_proposal) = match rule {
        SelectedRule::Cosec(Cosec { tau }) => {
            let x = q.sample(u(DrawPurpose::Draft));
            if (judge.probability(x) / q.probability(x)).min(1.0) > tau { (x, true) } else { (own, false) }
        }
        SelectedRule::Linear(Linear { lambda }) => {
            let mixed = |id| lambda * q.probability(id) + (1.0 - lambda) * p.probability(id);
            by_rejection(&q, mixed, models.base.vocabulary, u)
        }
        SelectedRule::Product(Product { alpha }) => {
            let anti = models.anti_expert.as_ref().map(|model| adjusted(models, model, request, history, new));
            let blended: Vec<f32> = (0..base_row.len())
                .map(|id| {
                    let against = anti.as_ref().map_or(0.0, |row| f64::from(row[id]));
                    let against = if against == f64::NEG_INFINITY { 0.0 } else { against };
                    let expert = f64::from(expert_row[id]);
                    if base_row[id] == f32::NEG_INFINITY || expert == f64::NEG_INFINITY {
                        f32::NEG_INFINITY
                    } else {
                        (f64::from(base_row[id]) + alpha * (expert - against)) as f32
                    }
                })
                .collect();
            let law = Distribution::from_logits(&blended, &fallback_warp).unwrap();
            by_rejection(&q, |id| law.probability(id), models.base.vocabulary, u)
        }
        SelectedRule::BaseOnly(BaseOnly) => (own, false),
        SelectedRule::ExpertOnly(ExpertOnly) => (q.sample(u(DrawPurpose::Draft)), true),
    };
    let hardening = match (id == own, is_proposal) {
        (false, _) => Hardening::Expert,
        (true, true) => Hardening::Agreed,
        (true, false) => Hardening::Base,
    };
    (id, hardening)
}

/// Whether `decided` are the tokens that the simulation gives, with what hardening did wherever somebody looked.
pub(crate) fn are_as_expected(decided: &[TokenEvent], expected: &[(u32, Hardening)]) -> bool {
    decided.len() == expected.len()
        && decided.iter().map(|token| token.decision).zip(expected).all(|(decision, &(id, hardening))| {
            decision.id == id && decision.hardening.is_none_or(|seen| seen == hardening)
        })
}

/// The same tokens without what is told of them only where it is asked for or costs nothing.
pub(crate) fn without_hardening(decided: &[TokenEvent]) -> Vec<TokenEvent> {
    let without = |token: &TokenEvent| {
        let mut token = token.clone();
        token.decision.hardening = None;
        token
    };
    decided.iter().map(without).collect()
}
