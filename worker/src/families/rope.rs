//! How configs write that a rotary embedding was scaled to longer contexts, in the keys of transformers 4 and 5.

use std::f64::consts::TAU;

use super::{RopeScaling, RotaryEmbedding};
use crate::checkpoint::config_section::{ConfigFileError, ConfigSection};

/// Reads the scaling in `section` into `rotary`.
pub(super) fn scaled(
    rotary: RotaryEmbedding,
    config: &ConfigSection<'_>,
    section: &ConfigSection<'_>,
) -> Result<RotaryEmbedding, ConfigFileError> {
    #[derive(Clone, Copy)]
    enum ScalingKind {
        Default,
        Linear,
        Dynamic,
        Llama3,
        Yarn,
    }
    let kinds = [
        ("default", ScalingKind::Default),
        ("linear", ScalingKind::Linear),
        ("dynamic", ScalingKind::Dynamic),
        ("llama3", ScalingKind::Llama3),
        ("yarn", ScalingKind::Yarn),
    ];
    let field = if section.has("rope_type") { "rope_type" } else { "type" };
    let scaling = match section.one_of(field, &kinds)? {
        ScalingKind::Default => RopeScaling::Default,
        ScalingKind::Linear => RopeScaling::Linear { factor: section.positive("factor")? },
        ScalingKind::Dynamic => dynamic(config, section)?,
        ScalingKind::Llama3 => llama3(section)?,
        ScalingKind::Yarn => return yarn(rotary, config, section),
    };
    Ok(RotaryEmbedding { scaling, ..rotary })
}

/// Frequencies that change once a sequence is longer than the model's context: within the context they are as they
/// were, and a worker's sequences stay within it.
fn dynamic(config: &ConfigSection<'_>, section: &ConfigSection<'_>) -> Result<RopeScaling, ConfigFileError> {
    let original = section.optional_size("original_max_position_embeddings")?;
    let context = config.size("max_position_embeddings")?;
    match original {
        Some(original) if original < context => {
            let expected = format!(
                "at least max_position_embeddings ({context}): dynamic frequencies, which change with the length of a \
                 sequence, are not supported"
            );
            Err(section.invalid("original_max_position_embeddings", expected))
        }
        _ => Ok(RopeScaling::Default),
    }
}

fn llama3(section: &ConfigSection<'_>) -> Result<RopeScaling, ConfigFileError> {
    let low_frequency_factor = section.positive("low_freq_factor")?;
    let high_frequency_factor = section.positive("high_freq_factor")?;
    if high_frequency_factor <= low_frequency_factor {
        return Err(section.invalid("high_freq_factor", format!("more than {low_frequency_factor}")));
    }
    Ok(RopeScaling::Llama3 {
        factor: section.positive("factor")?,
        low_frequency_factor,
        high_frequency_factor,
        original_context: section.positive("original_max_position_embeddings")?,
    })
}

/// Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", 2023, with the bounds of the ramp
/// rounded to whole pairs unless `truncate` is false.
fn yarn(
    rotary: RotaryEmbedding,
    config: &ConfigSection<'_>,
    section: &ConfigSection<'_>,
) -> Result<RotaryEmbedding, ConfigFileError> {
    let context = config.size("max_position_embeddings")?;
    let original = section.size_or("original_max_position_embeddings", context)? as f64;
    let positive_or = |field: &str, default: f64| match section.has(field) {
        true => section.positive(field),
        false => Ok(default),
    };
    let factor = positive_or("factor", context as f64 / original)?;
    let (fast, slow) = (positive_or("beta_fast", 32.0)?, positive_or("beta_slow", 1.0)?);
    if fast < slow {
        return Err(section.invalid("beta_fast", format!("at least beta_slow ({slow})")));
    }
    if rotary.theta <= 1.0 {
        return Err(section.invalid("rope_theta", "more than 1".to_owned()));
    }
    // The pair that makes `turns` turns in the original context.
    let pair = |turns: f64| rotary.width as f64 * (original / (turns * TAU)).ln() / (2.0 * rotary.theta.ln());
    let (kept, divided) = match section.flag_or("truncate", true)? {
        true => (pair(fast).floor(), pair(slow).ceil()),
        false => (pair(fast), pair(slow)),
    };
    let (kept, divided) = (kept.max(0.0), divided.min(rotary.width as f64 - 1.0));
    // The ramp needs a width.
    let divided = if divided == kept { kept + 0.001 } else { divided };
    let growth = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let inferred = match (section.number_or("mscale", 0.0)?, section.number_or("mscale_all_dim", 0.0)?) {
        (one, all) if one != 0.0 && all != 0.0 => growth(one) / growth(all),
        _ => growth(1.0),
    };
    let attention_factor = positive_or("attention_factor", inferred)?;
    if !(attention_factor.is_finite() && attention_factor > 0.0) {
        return Err(
            section.invalid("mscale_all_dim", "a number that gives a finite attention factor above 0".to_owned())
        );
    }
    Ok(RotaryEmbedding { scaling: RopeScaling::Yarn { factor, kept, divided }, attention_factor, ..rotary })
}
