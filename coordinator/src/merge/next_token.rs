//! The next token with all that is asked about it.

use cosec_proto::WorkerRole;
use cosec_proto::sampling::PositionRandom;

use super::decision::{Decision, Hardening, TokenScore, Verdict};
use super::evidence::{MergeError, PositionDistributions};
use super::rule::MergeRule;
use super::score::score;

/// What is asked about a token. The token is the same whatever is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenQuestions {
    /// What hardening did to it.
    pub hardening: bool,
    /// Its probability under the rule's distribution; only whole distributions tell.
    pub law: bool,
    /// Its log-probability under the base's raw distribution, with so many alternatives.
    pub alternatives: Option<u32>,
}

/// Lets `rule` decide, and answers what is asked about its token.
///
/// # Errors
/// [`MergeError::Missing`] says what to find out before asking again.
pub fn next_token(
    rule: &dyn MergeRule,
    models: &PositionDistributions,
    draws: &PositionRandom,
    asked: TokenQuestions,
) -> Result<(Decision, Option<TokenScore>), MergeError> {
    let verdict = rule.decide(models, draws)?;
    let hardening = if asked.hardening { Some(hardening(rule, &verdict, models, draws)?) } else { None };
    let law = if asked.law { Some(rule.distribution(models)?.probability(verdict.id)) } else { None };
    let score = match asked.alternatives {
        Some(count) => Some(score(models.raw_distribution()?, verdict.id, count as usize)),
        None => None,
    };
    let Verdict { id, p, q, rejected } = verdict;
    Ok((Decision { id, hardening, p, q, law, rejected }, score))
}

fn hardening(
    rule: &dyn MergeRule,
    verdict: &Verdict,
    models: &PositionDistributions,
    draws: &PositionRandom,
) -> Result<Hardening, MergeError> {
    let own = models.fallback(draws.fallback())?;
    let is_proposal = rule.description().roles.contains(&WorkerRole::Expert) && verdict.rejected.is_none();
    Ok(match (verdict.id == own.id, is_proposal) {
        (false, _) => Hardening::Expert,
        (true, true) => Hardening::Agreed,
        (true, false) => Hardening::Base,
    })
}
