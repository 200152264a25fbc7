//! The kinds of normalisation and activation.

/// Weights of a normalisation and how they apply.
#[derive(Debug)]
pub struct NormWeights<'a, B> {
    /// Root mean square or layer norm.
    pub kind: NormKind,
    /// Added to the mean square or variance.
    pub epsilon: f64,
    /// Width of a row.
    pub width: usize,
    /// Scale of each column.
    pub weight: &'a B,
    /// Shift of each column.
    pub bias: Option<&'a B>,
}

/// Which normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x / sqrt(mean(x²) + epsilon) · weight` (Zhang and Sennrich, 2019).
    RootMeanSquare,
    /// `(x - mean) / sqrt(variance + epsilon) · weight + bias` (Ba et al., 2016).
    Layer,
}

/// Elementwise nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)` with the error function.
    GeluErf,
    /// GELU in its tanh approximation (Hendrycks and Gimpel, 2016).
    GeluTanh,
}
