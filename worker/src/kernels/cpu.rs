//! The kernels on CPU cores: f32 activations, weights in any [`WeightFormat`].
//!
//! Work is spread over the threads of the rayon pool that the caller stands in.

use std::ops::Range;

use candle_core::{DType, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use self::attention::Rows;
use self::blocks_linear::Blocks;
use self::elementwise::{Activate, ActivateGated, Normalise, Rotate};
use self::lanes::{Element, InstructionSet};
use super::{
    Activation, CacheFormat, CacheShape, Heads, KernelError, Kernels, NormWeights, Place, RotaryLayout, WeightFormat,
    blocks,
};

mod attention;
mod blocks_linear;
mod elementwise;
mod lanes;
mod linear;

/// Elements below which one thread works alone.
const PARALLEL_FROM: usize = 1 << 15;

/// Kernels for the instruction set of this machine.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    instructions: InstructionSet,
}

impl Default for Cpu {
    fn default() -> Self {
        Self { instructions: InstructionSet::detect() }
    }
}

impl Cpu {
    /// Kernels that use no instructions beyond the target's baseline.
    #[must_use]
    pub fn baseline() -> Self {
        Self { instructions: InstructionSet::Baseline }
    }
}

/// Weights `[outputs, inputs]`.
#[derive(Clone, Debug)]
pub struct Matrix {
    values: Values,
    inputs: usize,
}

#[derive(Clone, Debug)]
enum Values {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
    Blocks(Blocks),
}

/// Keys and values.
#[derive(Clone, Debug)]
pub struct Cache {
    shape: CacheShape,
    stored: Stored,
}

/// Keys, then values.
#[derive(Clone, Debug)]
enum Stored {
    F32([Vec<f32>; 2]),
    F16([Vec<f16>; 2]),
    Bf16([Vec<bf16>; 2]),
}

impl Kernels for Cpu {
    type Buffer = Vec<f32>;
    type Matrix = Matrix;
    type Cache = Cache;

    fn buffer(&self, elements: usize) -> Result<Vec<f32>, KernelError> {
        zeros(elements)
    }

    fn matrix(&self, weights: &Tensor, format: WeightFormat) -> Result<Matrix, KernelError> {
        let device = |error: candle_core::Error| KernelError::Device(error.to_string());
        let (outputs, inputs) = weights.dims2().map_err(device)?;
        let flat = |dtype| weights.to_dtype(dtype).and_then(|weights| weights.flatten_all());
        let values = match format {
            WeightFormat::F32 => flat(DType::F32).and_then(|flat| flat.to_vec1()).map(Values::F32),
            WeightFormat::Bf16 => flat(DType::BF16).and_then(|flat| flat.to_vec1()).map(Values::Bf16),
            WeightFormat::F16 => flat(DType::F16).and_then(|flat| flat.to_vec1()).map(Values::F16),
            WeightFormat::Q8_0 | WeightFormat::Q4K => {
                let bytes = blocks::quantise(weights, format)?;
                Ok(Values::Blocks(Blocks { format, outputs, bytes }))
            }
        };
        Ok(Matrix { values: values.map_err(device)?, inputs })
    }

    fn matrix_from_blocks(
        &self,
        format: WeightFormat,
        shape: [usize; 2],
        blocks: &[u8],
    ) -> Result<Matrix, KernelError> {
        blocks::check(format, shape, blocks)?;
        let [outputs, inputs] = shape;
        Ok(Matrix { values: Values::Blocks(Blocks { format, outputs, bytes: blocks.to_vec() }), inputs })
    }

    fn cache(&self, shape: CacheShape) -> Result<Cache, KernelError> {
        let elements = shape.elements().ok_or(KernelError::OutOfMemory { elements: usize::MAX })?;
        let stored = match shape.format {
            CacheFormat::F32 => Stored::F32([zeros(elements)?, zeros(elements)?]),
            CacheFormat::F16 => Stored::F16([zeros(elements)?, zeros(elements)?]),
            CacheFormat::Bf16 => Stored::Bf16([zeros(elements)?, zeros(elements)?]),
        };
        Ok(Cache { shape, stored })
    }

    fn write(&self, values: &[f32], buffer: &mut Vec<f32>) -> Result<(), KernelError> {
        buffer[..values.len()].copy_from_slice(values);
        Ok(())
    }

    fn read(&self, buffer: &Vec<f32>, values: &mut [f32]) -> Result<(), KernelError> {
        values.copy_from_slice(&buffer[..values.len()]);
        Ok(())
    }

    fn embed(&self, table: &Matrix, ids: &[u32], out: &mut Vec<f32>) {
        match &table.values {
            Values::F32(values) => embed(values, table.inputs, ids, out),
            Values::Bf16(values) => embed(values, table.inputs, ids, out),
            Values::F16(values) => embed(values, table.inputs, ids, out),
            Values::Blocks(blocks) => blocks.embed(table.inputs, ids, out),
        }
    }

    fn select(&self, x: &Vec<f32>, width: usize, rows: &[usize], out: &mut Vec<f32>) {
        for (&row, out) in rows.iter().zip(out.chunks_exact_mut(width)) {
            out.copy_from_slice(&x[row * width..][..width]);
        }
    }

    fn norm(&self, x: &Vec<f32>, rows: usize, norm: NormWeights<'_, Vec<f32>>, out: &mut Vec<f32>) {
        let NormWeights { kind, epsilon, width, weight, bias } = norm;
        each_row(&mut out[..rows * width], width, |row, out| {
            let x = &x[row * width..][..width];
            let bias = bias.map(Vec::as_slice);
            self.instructions.run(Normalise { kind, epsilon: epsilon as f32, x, weight, bias, out });
        });
    }

    fn linear(&self, x: &Vec<f32>, rows: usize, weight: &Matrix, bias: Option<&Vec<f32>>, out: &mut Vec<f32>) {
        let (x, bias) = ((x.as_slice(), rows), bias.map(Vec::as_slice));
        match &weight.values {
            Values::F32(values) => linear::linear(self.instructions, x, (values, weight.inputs), bias, out),
            Values::Bf16(values) => linear::linear(self.instructions, x, (values, weight.inputs), bias, out),
            Values::F16(values) => linear::linear(self.instructions, x, (values, weight.inputs), bias, out),
            Values::Blocks(blocks) => blocks.linear(self.instructions, x, weight.inputs, bias, out),
        }
    }

    fn rotate(&self, qkv: &mut Vec<f32>, rows: usize, heads: Heads, rotary: RotaryLayout, angles: &Vec<f32>) {
        let width = heads.qkv_width();
        each_row(&mut qkv[..rows * width], width, |row, qkv| {
            let angles = &angles[row * rotary.width..][..rotary.width];
            let heads_rotated = &mut qkv[..heads.query_width() + heads.kv_width()];
            self.instructions.run(Rotate { rotary, head_width: heads.width, angles, heads: heads_rotated });
        });
    }

    fn append(&self, qkv: &Vec<f32>, heads: Heads, places: &[Place<'_>], cache: &mut Cache, layer: usize) {
        match &mut cache.stored {
            Stored::F32(stored) => append(qkv, heads, places, (&cache.shape, layer), stored),
            Stored::F16(stored) => append(qkv, heads, places, (&cache.shape, layer), stored),
            Stored::Bf16(stored) => append(qkv, heads, places, (&cache.shape, layer), stored),
        }
    }

    fn attend(
        &self,
        qkv: &Vec<f32>,
        heads: Heads,
        window: Option<usize>,
        places: &[Place<'_>],
        (cache, layer): (&Cache, usize),
        out: &mut Vec<f32>,
    ) {
        let rows = Rows { qkv, heads, window, places };
        match &cache.stored {
            Stored::F32(stored) => attention::attend(self.instructions, rows, (&cache.shape, layer), stored, out),
            Stored::F16(stored) => attention::attend(self.instructions, rows, (&cache.shape, layer), stored, out),
            Stored::Bf16(stored) => attention::attend(self.instructions, rows, (&cache.shape, layer), stored, out),
        }
    }

    fn activate(&self, activation: Activation, x: &mut Vec<f32>, elements: usize) {
        each_row(&mut x[..elements], PARALLEL_FROM / 4, |_, x| self.instructions.run(Activate { activation, x }));
    }

    fn activate_gated(&self, activation: Activation, x: &Vec<f32>, rows: usize, inner: usize, out: &mut Vec<f32>) {
        each_row(&mut out[..rows * inner], inner, |row, out| {
            let (gate, up) = x[row * 2 * inner..][..2 * inner].split_at(inner);
            self.instructions.run(ActivateGated { activation, gate, up, out });
        });
    }

    fn add(&self, x: &mut Vec<f32>, y: &Vec<f32>, elements: usize) {
        for (x, y) in x[..elements].iter_mut().zip(y) {
            *x += y;
        }
    }

    fn add_rows(&self, x: &mut Vec<f32>, width: usize, rows: &[usize], columns: Range<usize>, y: &Vec<f32>) {
        for (&row, y) in rows.iter().zip(y.chunks_exact(columns.len())) {
            let x = &mut x[row * width..][columns.clone()];
            x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        }
    }
}

fn zeros<T: Clone + Default>(elements: usize) -> Result<Vec<T>, KernelError> {
    let mut zeros = Vec::new();
    zeros.try_reserve_exact(elements).map_err(|_| KernelError::OutOfMemory { elements })?;
    zeros.resize(elements, T::default());
    Ok(zeros)
}

fn append<W: Element>(
    qkv: &[f32],
    heads: Heads,
    places: &[Place<'_>],
    (shape, layer): (&CacheShape, usize),
    [keys, values]: &mut [Vec<W>; 2],
) {
    let width = heads.kv_width();
    for (row, &place) in qkv.chunks_exact(heads.qkv_width()).zip(places) {
        let at = shape.offset(layer, place);
        let (key, value) = row[heads.query_width()..].split_at(width);
        keys[at..][..width].iter_mut().zip(key).for_each(|(to, &from)| *to = W::narrow(from));
        values[at..][..width].iter_mut().zip(value).for_each(|(to, &from)| *to = W::narrow(from));
    }
}

fn embed<W: Element>(table: &[W], width: usize, ids: &[u32], out: &mut [f32]) {
    for (&id, out) in ids.iter().zip(out.chunks_exact_mut(width)) {
        let row = &table[id as usize * width..][..width];
        out.iter_mut().zip(row).for_each(|(out, &value)| *out = value.widen());
    }
}

/// Calls `work` with every piece of `width` elements (the last may be shorter), on all threads where that pays.
fn each_row(x: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    if x.len() < PARALLEL_FROM {
        x.chunks_mut(width).enumerate().for_each(|(row, x)| work(row, x));
    } else {
        x.par_chunks_mut(width).enumerate().for_each(|(row, x)| work(row, x));
    }
}
