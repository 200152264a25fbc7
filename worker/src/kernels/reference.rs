//! The kernels as plain formulas in f64: the reference for the fast ones.

use std::ops::Range;

use candle_core::quantized::{QStorage, QTensor};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use super::{
    Activation, AttentionHeads, CacheFormat, CacheShape, KernelError, Kernels, NormKind, NormWeights, RotaryLayout,
    RotaryPairs, TokenPlace, WeightFormat, blocks,
};

/// f64 on the host, one plain loop per formula.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReferenceKernels;

/// A matrix `[outputs, inputs]`.
#[derive(Clone, Debug)]
pub struct ReferenceMatrix {
    values: Vec<f64>,
    inputs: usize,
}

/// Keys and values.
#[derive(Clone, Debug)]
pub struct ReferenceCache {
    shape: CacheShape,
    keys: Vec<f64>,
    values: Vec<f64>,
}

impl Kernels for ReferenceKernels {
    type Buffer = Vec<f64>;
    type Matrix = ReferenceMatrix;
    type Cache = ReferenceCache;

    fn buffer(&self, elements: usize) -> Result<Vec<f64>, KernelError> {
        Ok(vec![0.0; elements])
    }

    fn matrix(&self, weights: &Tensor, format: WeightFormat) -> Result<ReferenceMatrix, KernelError> {
        let (outputs, inputs) = weights.dims2().map_err(device)?;
        match format.dtype() {
            Ok(dtype) => matrix(weights.to_dtype(dtype)),
            Err(_) => self.matrix_from_blocks(format, [outputs, inputs], &blocks::quantise(weights, format)?),
        }
    }

    fn matrix_from_blocks(
        &self,
        format: WeightFormat,
        [outputs, inputs]: [usize; 2],
        blocks: &[u8],
    ) -> Result<ReferenceMatrix, KernelError> {
        // A last block of a row is filled up.
        let stored = [outputs, inputs.next_multiple_of(format.block().0)];
        matrix(dequantise(format, stored, blocks)?.narrow(1, 0, inputs))
    }

    fn cache(&self, shape: CacheShape) -> Result<ReferenceCache, KernelError> {
        let elements = shape.elements().ok_or(KernelError::OutOfMemory { elements: usize::MAX })?;
        Ok(ReferenceCache { shape, keys: vec![0.0; elements], values: vec![0.0; elements] })
    }

    fn write(&self, values: &[f32], buffer: &mut Vec<f64>) -> Result<(), KernelError> {
        for (to, &from) in buffer.iter_mut().zip(values) {
            *to = f64::from(from);
        }
        Ok(())
    }

    fn read(&self, buffer: &Vec<f64>, values: &mut [f32]) -> Result<(), KernelError> {
        for (to, &from) in values.iter_mut().zip(buffer) {
            *to = from as f32;
        }
        Ok(())
    }

    fn embed(&self, table: &ReferenceMatrix, ids: &[u32], out: &mut Vec<f64>) {
        let rows: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
        self.select(&table.values, table.inputs, &rows, out);
    }

    fn select(&self, x: &Vec<f64>, width: usize, rows: &[usize], out: &mut Vec<f64>) {
        for (&row, to) in rows.iter().zip(out.chunks_exact_mut(width)) {
            to.copy_from_slice(&x[row * width..][..width]);
        }
    }

    fn norm(&self, x: &Vec<f64>, rows: usize, norm: NormWeights<'_, Vec<f64>>, out: &mut Vec<f64>) {
        let width = norm.width;
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)).take(rows) {
            let mean = match norm.kind {
                NormKind::RootMeanSquare => 0.0,
                NormKind::Layer => x.iter().sum::<f64>() / width as f64,
            };
            let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width as f64;
            for i in 0..width {
                let normed = (x[i] - mean) / (variance + norm.epsilon).sqrt();
                out[i] = normed * norm.weight[i] + norm.bias.map_or(0.0, |bias| bias[i]);
            }
        }
    }

    fn linear(
        &self,
        x: &Vec<f64>,
        rows: usize,
        weight: &ReferenceMatrix,
        bias: Option<&Vec<f64>>,
        out: &mut Vec<f64>,
    ) {
        let outputs = weight.values.len() / weight.inputs;
        for row in 0..rows {
            let x = &x[row * weight.inputs..][..weight.inputs];
            for (column, w) in weight.values.chunks_exact(weight.inputs).enumerate() {
                let dot: f64 = x.iter().zip(w).map(|(a, b)| a * b).sum();
                out[row * outputs + column] = dot + bias.map_or(0.0, |bias| bias[column]);
            }
        }
    }

    fn rotate(
        &self,
        qkv: &mut Vec<f64>,
        rows: usize,
        heads: AttentionHeads,
        rotary: RotaryLayout,
        angles: &Vec<f64>,
    ) {
        let half = rotary.width / 2;
        for row in 0..rows {
            let angles = &angles[row * rotary.width..][..rotary.width];
            for head in 0..heads.query + heads.kv {
                let x = &mut qkv[row * heads.qkv_width() + head * heads.width..][..heads.width];
                for pair in 0..half {
                    let (i, j) = match rotary.pairs {
                        RotaryPairs::Halves => (pair, pair + half),
                        RotaryPairs::Neighbours => (2 * pair, 2 * pair + 1),
                    };
                    let (cos, sin) = (angles[pair], angles[half + pair]);
                    (x[i], x[j]) = (x[i] * cos - x[j] * sin, x[j] * cos + x[i] * sin);
                }
            }
        }
    }

    fn append(
        &self,
        qkv: &Vec<f64>,
        heads: AttentionHeads,
        places: &[TokenPlace<'_>],
        cache: &mut ReferenceCache,
        layer: usize,
    ) {
        let stored = |value: f64| match cache.shape.format {
            CacheFormat::F32 => value,
            CacheFormat::F16 => f16::from_f32(value as f32).to_f64(),
            CacheFormat::Bf16 => bf16::from_f32(value as f32).to_f64(),
        };
        for (row, &place) in qkv.chunks_exact(heads.qkv_width()).zip(places) {
            let at = cache.shape.offset(layer, place);
            let (keys, values) = row[heads.query_width()..].split_at(heads.kv_width());
            for i in 0..heads.kv_width() {
                cache.keys[at + i] = stored(keys[i]);
                cache.values[at + i] = stored(values[i]);
            }
        }
    }

    fn attend(
        &self,
        qkv: &Vec<f64>,
        heads: AttentionHeads,
        window: Option<usize>,
        places: &[TokenPlace<'_>],
        (cache, layer): (&ReferenceCache, usize),
        out: &mut Vec<f64>,
    ) {
        let width = heads.width;
        for (row, place) in places.iter().enumerate() {
            let first = window.map_or(0, |window| (place.position + 1).saturating_sub(window));
            for head in 0..heads.query {
                let query = &qkv[row * heads.qkv_width() + head * width..][..width];
                let kv = head / (heads.query / heads.kv) * width;
                let at = |position| cache.shape.offset(layer, TokenPlace { position, ..*place }) + kv;
                let score = |position| {
                    let key = &cache.keys[at(position)..][..width];
                    query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() / (width as f64).sqrt()
                };
                let scores: Vec<f64> = (first..=place.position).map(score).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|score| (score - max).exp()).sum();
                let out = &mut out[row * heads.query_width() + head * width..][..width];
                out.fill(0.0);
                for (position, score) in (first..=place.position).zip(&scores) {
                    let weight = (score - max).exp() / total;
                    for (out, value) in out.iter_mut().zip(&cache.values[at(position)..][..width]) {
                        *out += weight * value;
                    }
                }
            }
        }
    }

    fn activate(&self, activation: Activation, x: &mut Vec<f64>, elements: usize) {
        for x in &mut x[..elements] {
            *x = activated(activation, *x);
        }
    }

    fn activate_gated(&self, activation: Activation, x: &Vec<f64>, rows: usize, inner: usize, out: &mut Vec<f64>) {
        for (x, out) in x.chunks_exact(2 * inner).zip(out.chunks_exact_mut(inner)).take(rows) {
            for i in 0..inner {
                out[i] = activated(activation, x[i]) * x[inner + i];
            }
        }
    }

    fn add(&self, x: &mut Vec<f64>, y: &Vec<f64>, elements: usize) {
        for (x, y) in x[..elements].iter_mut().zip(y) {
            *x += y;
        }
    }

    fn add_rows(&self, x: &mut Vec<f64>, width: usize, rows: &[usize], columns: Range<usize>, y: &Vec<f64>) {
        for (&row, y) in rows.iter().zip(y.chunks_exact(columns.len())) {
            let x = &mut x[row * width..][columns.clone()];
            x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        }
    }
}

fn device(error: candle_core::Error) -> KernelError {
    KernelError::Device(error.to_string())
}

fn matrix(weights: candle_core::Result<Tensor>) -> Result<ReferenceMatrix, KernelError> {
    let weights = weights.and_then(|weights| weights.to_dtype(DType::F64)).map_err(device)?;
    let (_, inputs) = weights.dims2().map_err(device)?;
    let flat = weights.flatten_all().map_err(device)?;
    Ok(ReferenceMatrix { values: flat.to_vec1().map_err(device)?, inputs })
}

/// The numbers in `blocks`, as candle decodes them.
fn dequantise(format: WeightFormat, shape: [usize; 2], blocks: &[u8]) -> Result<Tensor, KernelError> {
    blocks::check(format, shape, blocks)?;
    let dtype = blocks::ggml(format)?;
    let stored = QStorage::from_data(blocks.into(), &Device::Cpu, dtype);
    let weights = stored.and_then(|stored| QTensor::new(stored, (shape[0], shape[1])));
    weights.and_then(|weights| weights.dequantize(&Device::Cpu)).map_err(device)
}

fn activated(activation: Activation, x: f64) -> f64 {
    use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluErf => 0.5 * x * (1.0 + libm::erf(x * FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            let inner = FRAC_2_SQRT_PI * FRAC_1_SQRT_2 * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
    }
}
